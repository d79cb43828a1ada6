"""The page of a prior: its figures against plain ones, and that it carries everything in itself."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from explain_files import DRIVE, GONE, MAP, REFERENCES, explained_bundle, write_picture
from helpers import make_tiny_bundle, texture
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_trunk import TINY_TRUNK
from training_files import write_moving_drive

from depth_prior_ros.bundle import Bundle
from training.commands.cli import main
from training.prior.explain import statistics
from training.prior.explain.lookup import PriorReader
from training.prior.explain.page import explain_prior
from training.prior.explain.sources import Origins, read_origins
from training.prior.explain.statistics import BINS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return explained_bundle(tmp_path_factory.mktemp("bundle") / "tiny", trunk=TINY_TRUNK)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        write_picture(folder / f"{number}.png", seed=number)
    return folder


VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Everything that a page refers to, and its text; a tag that is not closed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, attrs)

    def note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        names = ("src", "href", "xlink:href", "data", "action", "poster", "srcset")
        found = [value or "" for name, value in attrs if name in names]
        self.references += [uri for uri in found if not uri.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def images(self) -> Iterator[np.ndarray]:
        for uri in self.references:
            data = base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            assert picture is not None
            yield picture


def self_contained(text: str) -> Page:
    page = Page(text)
    assert all(uri.startswith("data:image/png;base64,") for uri in page.references)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import", without_pictures)
    return page


def test_the_page(bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    write_moving_drive(tmp_path / "data")
    out = tmp_path / "page" / "prior.html"
    seen: list[tuple[str, int, int]] = []
    explain_prior(
        bundle,
        out,
        data=tmp_path / "data",
        images=[pictures],
        progress=lambda *step: seen.append(step),
    )
    assert [p.name for p in out.parent.iterdir()] == ["prior.html"]
    page = self_contained(out.read_text(encoding="utf-8"))
    sizes = [picture.shape for picture in page.images()]
    assert sizes.count((MAP[1], MAP[0], 3)) == 3  # maps of places, depth and weight
    assert sizes.count((2, 6, 3)) == 2  # neighbours by cell of the student's stride, a branch each
    assert sizes.count((BINS, BINS, 3)) == 1  # looked up against predicted
    assert len(sizes) > 9  # and the source images that are there
    for words in (
        "The prior of tiny & <odd>",
        "used by 3 images",
        f"{REFERENCES} reference pixels",
        "4 images of 2 recordings",
        "30 of 3 images",
        DRIVE,
        "method: random",
        "<teacher>",
        "CC-BY-4.0",
        "Apache-2.0",
        f"{GONE}: recording not found below",
    ):
        assert words in page.text, words
    assert ("looking at images", 3, 0) in seen


def test_without_images_and_sources_the_page_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("DEPTH_PRIOR_DATA", raising=False)
    bundle = explained_bundle(tmp_path / "b", trunk=TINY_TRUNK, sources=False)
    out = tmp_path / "prior.html"
    explain_prior(bundle, out)
    page = self_contained(out.read_text(encoding="utf-8"))
    assert page.text.count("Not known: there were no images to look at.") == 3
    assert page.text.count("does not say where its reference pixels come from") == 2
    assert "how it is used is not known" in page.text
    assert list(page.images()) == []


def test_a_multi_frame_bundle_of_before_sources(pictures: Path, tmp_path: Path) -> None:
    bundle, out = make_tiny_bundle(tmp_path / "b", trunk=TINY_TRUNK), tmp_path / "prior.html"
    explain_prior(bundle, out, images=[pictures / "0.png"])
    page = self_contained(out.read_text(encoding="utf-8"))
    assert "used by 1 image: 0.png" in page.text
    assert "does not say where its reference pixels come from" in page.text
    assert len(list(page.images())) == 3  # agreement, and neighbours by branch


def test_the_command_writes_picture_and_page(bundle: Bundle, pictures: Path, tmp_path, capsys):
    image, out, folder = pictures / "0.png", tmp_path / "x.png", tmp_path / "report"
    call = ["explain", str(bundle.path), str(image), "--out", str(out), "--pixels", "3,4"]
    assert main([*call, "--report", str(folder), "--images-from", str(pictures)]) == 0
    assert f"page: {folder / 'prior.html'}" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["prior.html", "report", "x.png"]
    assert main([*call[:2], "--images-from", str(tmp_path / "gone"), "--report", str(folder)]) == 1
    assert "no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pixels", "3,4"], "--pixels has no effect here: give an image"),
        (["--frame", "0"], "--frame has no effect here: give an image"),
        (["--branch", "hint"], "--branch has no effect here: give an image"),
        (["--top", "3"], "--top has no effect here: give an image"),
        (["--report", "d", "--out", "p.html"], "--out has no effect here: --report says"),
        (["IMAGE", "--images", "3"], "--images has no effect here: give --report"),
        (["IMAGE", "--images-from", "x"], "--images-from has no effect here: give --report"),
        (["IMAGE", "--reference", "x"], "--reference has no effect here: give --report"),
    ],
)
def test_options_without_effect_are_refused(
    bundle: Bundle, pictures: Path, tmp_path, capsys, monkeypatch, options: list[str], words: str
):
    monkeypatch.chdir(tmp_path)
    options = [str(pictures / "0.png") if word == "IMAGE" else word for word in options]
    assert main(["explain", str(bundle.path), *options]) == 1
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# -- figures ---------------------------------------------------------------------------------------


def test_use_is_the_mean_of_what_single_pixels_look_up(bundle: Bundle) -> None:
    images = [(str(n), texture(120, 40, seed=n, margin=0)) for n in range(3)]
    for branch, name in (("pixel_wise", "pixel-wise"), ("hint", "depth hint")):
        reader = PriorReader(bundle, branch)
        use = statistics.measure_use(reader, images)
        cells = np.arange(use.shape[0] * use.shape[1])
        weights = [reader.weights(reader.predict(image).queries, cells) for _, image in images]
        expected = np.mean(np.concatenate(weights).astype(float), axis=0)
        np.testing.assert_allclose(use.branches()[name], expected, rtol=1e-4)
        if branch == "pixel_wise":
            each = weights[2].reshape(*use.shape, -1).astype(float)
            plain = np.exp(-(each * np.log(each)).sum(-1))
            np.testing.assert_allclose(use.neighbours()[name][0, 2], plain, rtol=1e-3)
    assert use.neighbours()["depth hint"].shape == (4, 3, *use.shape)
    assert use.weights.sum() == pytest.approx(1)
    assert len(use.depths) == 3 * len(cells)


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_gini_is_half_the_mean_difference(values: list[float]) -> None:
    x = np.array(values)
    found = statistics.gini(x)
    if x.sum() <= 0:
        assert found == 0
        return
    x = x / x.max()  # of the smallest numbers there are, sums and means would be rounded away
    plain = np.abs(x[:, None] - x).sum() / (2 * len(x) ** 2 * x.mean())
    assert found == pytest.approx(plain, abs=1e-9)


@settings(deadline=None)
@given(st.integers(3, 50), st.integers(0, 99))
def test_rank_correlation_sees_order_alone(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.permutation(count).astype(float), rng.normal(size=count)
    assert statistics.rank_correlation(a, np.exp(a / 10)) == pytest.approx(1)
    assert statistics.rank_correlation(a, -a) == pytest.approx(-1)
    found = statistics.rank_correlation(a, b)
    assert found == pytest.approx(statistics.rank_correlation(b**3, a**3))
    ranks = [np.array([(x < value).sum() for value in x]) for x in (a, b)]
    d = ranks[0] - ranks[1]
    assert found == pytest.approx(1 - 6 * (d @ d) / (count * (count**2 - 1)))
    assert statistics.rank_correlation(a, np.ones(count)) == 0


def test_columns_are_distributions() -> None:
    edges = np.array([1.0, 2.0, 4.0, 8.0])
    found = statistics.columns_of(
        np.array([0.5, 1.5, 5.0, 99.0]), np.array([3.0, 1.5, 5.0, 0.1]), edges
    )
    np.testing.assert_allclose(found, [[0.5, 0, 0.5], [0.5, 0, 0], [0, 0, 0.5]])


def test_looked_up_depth_is_that_of_single_pixels(bundle: Bundle) -> None:
    reader, image = PriorReader(bundle), texture(120, 40, seed=4, margin=0)
    use, seen = statistics.measure_use(reader, [("one", image)]), reader.predict(image)
    rows, columns = use.shape
    assert use.looked_up is not None
    for row, column in ((0, 0), (rows - 1, 2)):
        x, y = int((column + 0.5) * 120 / columns), int((row + 0.5) * 40 / rows)
        one = reader.look_up(seen, (x, y))
        assert use.looked_up[row * columns + column] == pytest.approx(one.looked_up, rel=1e-4)
        assert use.depths[row * columns + column] == pytest.approx(one.predicted, rel=0.05)


def test_concentration_of_known_weights() -> None:
    even, one = np.full(50, 1 / 50), np.eye(50)[7]
    curve = statistics.concentration(even)
    np.testing.assert_allclose(curve[:, 0], curve[:, 1], atol=1e-9)
    assert statistics.share_that_holds(even, 0.5) == pytest.approx(0.5, abs=0.021)
    assert statistics.share_that_holds(one, 0.9) == pytest.approx(1 / 50)
    assert statistics.concentration(one)[-1].tolist() == [1.0, 1.0]
    assert (np.diff(statistics.concentration(one)[:, 1]) >= 0).all()


def origins_of(pixel: np.ndarray, size: tuple[int, int]) -> Origins:
    x, y = (pixel % size[0] + 0.5) / size[0], (pixel // size[0] + 0.5) / size[1]
    return Origins(np.zeros(len(pixel), int), x, y, [{"drive": "d", "frame": 0}], size)


@settings(deadline=None)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 20),
    count=st.integers(1, 400),
    seed=st.integers(0, 99),
)
def test_maps_keep_the_sum_and_find_the_place(
    width: int, height: int, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pixel = rng.integers(0, width * height, count)
    grid = statistics.Grid.of(origins_of(pixel, (width, height)))
    weights = rng.random(count) + 0.1
    found = grid.density(weights)
    assert found.shape == (height, width)
    assert found.mean() == pytest.approx(1)
    # every pixel of the map once is as even as it gets, also with cells cut off at the edge
    every = statistics.Grid.of(origins_of(np.arange(width * height), (width, height)))
    np.testing.assert_allclose(every.density(), 1)
    # the median of a cell, of its members by hand
    row, column = divmod(int(pixel[0]), width)
    mates = ((pixel // width) // grid.side == row // grid.side) & (
        (pixel % width) // grid.side == column // grid.side
    )
    assert grid.median(weights)[row, column] == pytest.approx(np.median(weights[mates]))


def test_shares_by_recording(bundle: Bundle) -> None:
    origins = read_origins(bundle)
    assert origins is not None
    weights = np.arange(REFERENCES) / np.arange(REFERENCES).sum()
    mine, gone = statistics.by_drive(origins, weights)
    assert (mine.name, mine.references, mine.images) == (DRIVE, 30, 3)
    assert (gone.name, gone.references, gone.images) == (GONE, 10, 1)
    assert gone.weight == pytest.approx(sum(range(30, 40)) / sum(range(40)))
    assert mine.weight + gone.weight == pytest.approx(1)
    assert statistics.image_counts(origins).tolist() == [10, 10, 10, 10]
    best = next(statistics.top_images(origins, weights, 1))
    assert best[0] == 3 and best[1] == pytest.approx(gone.weight)


def test_positions_are_read_row_by_row(bundle: Bundle) -> None:
    origins, sources = read_origins(bundle), bundle.prior_sources()
    assert origins is not None and origins.map_size == MAP
    row, column = np.divmod(sources.pixel, MAP[0])
    np.testing.assert_allclose(origins.x, (column + 0.5) / MAP[0])
    np.testing.assert_allclose(origins.y, (row + 0.5) / MAP[1])
