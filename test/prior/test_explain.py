"""What was looked up at a pixel: weights, places, sources, the picture; and what is refused."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from explain_files import DRIVE, GONE, MAP, REFERENCES, explained_bundle, write_picture
from helpers import METRES_PER_UNIT, texture
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bag import CAMERA
from test_bag_kinds import camera, write
from training_files import damage, write_moving_drive

from depth_prior_ros.bundle import Bundle, rewrite_manifest, save_bundle
from depth_prior_ros.recording_options import add_recording_options
from training.commands.cli import main
from training.prior.explain.lookup import ExplainError, PriorReader, default_pixels, entropy
from training.prior.explain.picture import explain_image
from training.prior.explain.sources import (
    SourcePictures,
    crop_around,
    example_images,
    one_image,
    read_origins,
)
from training.prior.explain.statistics import BINS, FAR, NEAR, depth_edges, depth_shares, percent
from training.prior.selection.command import recorded_images


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return explained_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def reader(bundle: Bundle) -> PriorReader:
    return PriorReader(bundle)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_moving_drive(root)
    return root


def explicit_weights(reader: PriorReader, image: torch.Tensor, branch: str) -> np.ndarray:
    """Softmax of float64 scores, written with the layers' weights: (cells, N)."""
    fusion, student = reader.fusion.double(), reader.student.double()
    try:
        with torch.no_grad():
            features = torch.cat(student.trunk(image.double())[fusion.config.stride], 1)[0].flatten(
                1
            )
            f = reader.prior.features.double()
            if branch == "pixel_wise":
                q = fusion.query.weight[:, :, 0, 0] @ features + fusion.query.bias[:, None]
                scores = q.T @ (f @ fusion.key.weight.T).T * math.exp(0.5) / math.sqrt(64)
                return torch.softmax(scores, -1).numpy()
            q = fusion.hint_query.weight[:, :, 0, 0] @ features + fusion.hint_query.bias[:, None]
            k = f @ fusion.hint_key.weight.T
            heads = [
                torch.softmax(q[s : s + 16].T @ k[:, s : s + 16].T / 4, -1) for s in (0, 16, 32, 48)
            ]
        if branch != "hint":
            return heads[int(branch[-1])].numpy()
        return torch.stack(heads).mean(0).numpy()
    finally:
        reader.fusion.float()
        reader.student.float()


@pytest.mark.parametrize("branch", ["pixel_wise", "hint", "hint:0", "hint:3"])
def test_weights_are_those_of_an_explicit_softmax(bundle: Bundle, branch: str) -> None:
    reader = PriorReader(bundle, branch)
    seen = reader.predict(texture(120, 40, seed=5, margin=0))
    expected = explicit_weights(reader, torch.from_numpy(seen.framed.tensor()), branch)
    rows, columns = seen.queries.shape
    assert expected.shape == (rows * columns, REFERENCES)
    assert np.ptp(expected.max(1)) > 1e-3  # queries differ
    for pixel in ((0, 0), (119, 39), (70, 20)):
        found = reader.look_up(seen, pixel)
        cell = int(pixel[1] / 40 * rows) * columns + int(pixel[0] / 120 * columns)
        np.testing.assert_allclose(found.weights, expected[cell], rtol=2e-4, atol=1e-7)
        assert found.weights.sum() == pytest.approx(1)
        weights = -np.sort(-expected[cell])
        np.testing.assert_allclose(found.weights[found.top(5)], weights[:5], rtol=2e-4)
        plain = -(expected[cell] * np.log(expected[cell])).sum()
        assert found.neighbours == pytest.approx(math.exp(plain), rel=1e-3)


def test_depth_is_what_the_network_itself_looks_up(reader: PriorReader) -> None:
    seen = reader.predict(texture(120, 40, seed=6, margin=0))
    image = torch.from_numpy(seen.framed.tensor())
    with torch.no_grad():
        output = reader.student(image, reader.prior)
    mean = output.prior_inverse_depth[0, 0].numpy()
    sizes = (120 / mean.shape[1], 40 / mean.shape[0])
    for row, column in ((0, 0), (1, 3)):
        pixel = (int((column + 0.5) * sizes[0]), int((row + 0.5) * sizes[1]))
        found = reader.look_up(seen, pixel)
        assert found.looked_up == pytest.approx(METRES_PER_UNIT / mean[row, column], rel=1e-4)


@settings(deadline=None)
@given(count=st.integers(2, 60), seed=st.integers(0, 99), sharp=st.floats(0, 200))
def test_effective_neighbours_are_between_one_and_all(count: int, seed: int, sharp: float) -> None:
    scores = np.random.default_rng(seed).normal(size=count) * sharp
    weights = np.exp(scores - scores.max())
    found = np.exp(entropy(weights / weights.sum()))
    assert 1 - 1e-9 <= found <= count + 1e-6
    assert np.exp(entropy(np.full(count, 1 / count))) == pytest.approx(count)
    assert np.exp(entropy(np.eye(count)[0])) == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(40, 400), height=st.integers(40, 300), u=st.floats(0, 1), v=st.floats(0, 1)
)
def test_the_cell_holds_the_pixel_for_every_aspect(
    reader: PriorReader, width: int, height: int, u: float, v: float
) -> None:
    seen = reader.predict(texture(width, height, margin=0))
    region = seen.framed.region
    x = region.x + min(int(u * region.width), region.width - 1)
    y = region.y + min(int(v * region.height), region.height - 1)
    left, top, wide, tall = reader.look_up(seen, (x, y)).box
    assert left <= x + 0.5 <= left + wide and top <= y + 0.5 <= top + tall
    assert region.x <= left + 1e-6 and left + wide <= region.x + region.width + 1e-6
    for pixel in default_pixels(seen):
        reader.look_up(seen, pixel)
    if region.y:
        with pytest.raises(ExplainError, match=f"y from {region.y} to"):
            reader.look_up(seen, (x, region.y - 1))
    if region.x:
        with pytest.raises(ExplainError, match=f"x from {region.x} to"):
            reader.look_up(seen, (region.x + region.width, y))


@pytest.mark.parametrize("pixel", [(120, 0), (0, 40), (-1, 0), (0, -5)])
def test_a_pixel_outside_is_refused(reader: PriorReader, pixel: tuple[int, int]) -> None:
    seen = reader.predict(texture(120, 40, margin=0))
    with pytest.raises(ExplainError, match=r"x from 0 to 119, y from 0 to 39"):
        reader.look_up(seen, pixel)


@pytest.mark.parametrize("branch", ["both", "hint:4", "hint:", "hint:x", "pixel_wise:0"])
def test_an_unknown_branch_is_refused_with_those_there_are(bundle: Bundle, branch: str) -> None:
    with pytest.raises(ExplainError, match="pixel_wise, hint, hint:0, hint:1, hint:2, hint:3"):
        PriorReader(bundle, branch)


def test_a_bundle_without_prior_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    student = bundle.manifest.architecture.student
    plain = bundle.manifest.architecture.model_copy(update={"student": {**student, "fusion": None}})
    manifest = bundle.manifest.model_copy(update={"prior": None, "architecture": plain})
    from depth_prior_ros.bundle import build_network

    without = save_bundle(tmp_path / "b", manifest, student=build_network(manifest, "student"))
    with pytest.raises(ExplainError, match="has no prior"):
        PriorReader(without)


# -- sources ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [(0.0, 0.0, 0.0, 0.0), (0.25, 0.1, 0.0, 0.2)])
def test_a_reference_is_marked_where_the_teacher_saw_it(
    data: Path, tmp_path: Path, crop: tuple[float, ...]
) -> None:
    bundle = explained_bundle(tmp_path / "b", crop=crop)
    origins = read_origins(bundle)
    assert origins is not None
    sources, recorded = bundle.prior_sources(), data / "kitti_raw" / "2011_09_26" / DRIVE
    pictures = SourcePictures(bundle, origins, data)
    for reference in (0, 9, 10, 25):
        found = pictures[reference]
        number = int(sources.image[reference])
        row, column = divmod(int(sources.pixel[reference]), MAP[0])
        file = recorded / "image_02" / "data" / f"{sources.images[number]['frame']:010d}.png"
        np.testing.assert_array_equal(found.image, cv2.imread(str(file))[..., ::-1])
        left, top = round(crop[0] * 124), round(crop[1] * 38)
        wide, tall = round((1 - crop[2]) * 124) - left, round((1 - crop[3]) * 38) - top
        x, y = left + (column + 0.5) * wide / MAP[0], top + (row + 0.5) * tall / MAP[1]
        assert found.place == pytest.approx((x, y))
        assert found.label == f"0001 · {sources.images[number]['frame']}"


def test_what_is_missing_or_damaged_is_said_and_no_error(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_moving_drive(tmp_path, numbers=range(3))
    damage(folder / "image_02" / "data" / "0000000001.png")
    pictures = SourcePictures(bundle, read_origins(bundle), tmp_path)
    assert "cannot be read" in pictures[0].why and pictures[0].image is None
    assert pictures[15].image is not None  # frame 2
    assert pictures[25].why == "no frame 3 in the recording"
    assert "not found below" in pictures[35].why
    assert list(pictures.missing()) == [GONE]
    nowhere = SourcePictures(bundle, read_origins(bundle), None)
    assert "no data folder" in nowhere[35].why


def test_an_adapted_recording_is_framed_as_at_inference(data: Path, tmp_path: Path) -> None:
    about = {"method": "attention", "adapt": {"recording": DRIVE}}
    bundle = explained_bundle(tmp_path / "b", crop=(0.25, 0.0, 0.0, 0.0), selection=about)
    found = SourcePictures(bundle, read_origins(bundle), data)[0]
    column = int(bundle.prior_sources().pixel[0]) % MAP[0]
    # 124x38 for a teacher of 96x32: 114 columns from the fifth, whatever training cut off.
    assert found.place[0] == pytest.approx(5 + (column + 0.5) * 114 / MAP[0])


def test_recordings_are_found_by_name_and_by_path(data: Path, tmp_path: Path) -> None:
    import dataclasses

    bundle = explained_bundle(tmp_path / "b")
    origins = read_origins(bundle)
    assert origins is not None
    folder = tmp_path / "elsewhere" / "deep" / DRIVE
    folder.parent.mkdir(parents=True)
    folder.symlink_to(data / "kitti_raw" / "2011_09_26" / DRIVE)
    (folder.parent / "calib_cam_to_cam.txt").symlink_to(
        data / "kitti_raw" / "2011_09_26" / "calib_cam_to_cam.txt"
    )
    assert SourcePictures(bundle, origins, tmp_path)[0].image is not None
    figures = {"adapt": {"recording": {"name": DRIVE, "path": str(folder)}}}
    adapted = rewrite_manifest(explained_bundle(tmp_path / "adapted"), metrics=figures)
    assert SourcePictures(adapted, origins, None)[0].image is not None
    beside = SourcePictures(bundle, origins, None, [folder])
    assert beside[0].image is not None and beside[35].image is None
    absolute = [{"drive": str(folder), "frame": 1}] * 4
    moved = dataclasses.replace(origins, images=absolute)
    assert SourcePictures(bundle, moved, None)[0].image is not None


@settings(deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 200),
    u=st.floats(0, 0.999),
    v=st.floats(0, 0.999),
    aspect=st.floats(0.5, 3),
)
def test_a_window_keeps_the_place(
    width: int, height: int, u: float, v: float, aspect: float
) -> None:
    numbers = np.arange(width * height).reshape(height, width)
    image = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    x, y = int(u * width) + 0.5, int(v * height) + 0.5
    window, (a, b) = crop_around(image, (x, y), aspect)
    assert 0 <= a <= 1 and 0 <= b <= 1
    there = window[int(b * window.shape[0]), int(a * window.shape[1])]
    np.testing.assert_array_equal(there, image[int(y), int(x)])


# -- pictures --------------------------------------------------------------------------------------


def test_depth_shares_keep_the_sum_and_the_place() -> None:
    depths = np.array([0.01, 3.0, 10.0, 10.0, 1e4])
    weights = np.array([0.1, 0.2, 0.3, 0.3, 0.1])
    found, edges = depth_shares(depths, weights), depth_edges()
    assert found.sum() == pytest.approx(1) and len(found) == BINS == len(edges) - 1
    assert found[0] == pytest.approx(0.1) and found[-1] == pytest.approx(0.1)
    place = np.flatnonzero(found == 0.6)[0]
    assert edges[place] <= 10 < edges[place + 1]
    assert edges[0] < NEAR and edges[-1] > FAR


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.5, "50 %"), (0.034, "3.4 %"), (0.0056, "0.56 %"), (0.000123, "0.012 %"), (0.0, "0 %")],
)
def test_percent(share: float, words: str) -> None:
    assert percent(share) == words


def magenta(picture: np.ndarray) -> int:
    b, g, r = (picture[..., c].astype(int) for c in range(3))
    return int(((r > 240) & (g < 15) & (b > 240)).sum())


@pytest.mark.slow
def test_the_picture_shows_the_source_images(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    marked = tmp_path / "marked"
    folder = write_moving_drive(marked)
    for file in (folder / "image_02" / "data").iterdir():
        cv2.imwrite(str(file), np.full((38, 124, 3), (255, 0, 255), np.uint8))
    image, out = write_picture(tmp_path / "image.png"), tmp_path / "out" / "found.png"
    words = explain_image(bundle, image, out, pixels=[(60, 20), (5, 30)], data=marked)
    picture = cv2.imread(str(out))
    assert picture is not None and picture.shape[1] > 1500
    assert magenta(picture) > 20_000
    assert [p.name for p in out.parent.iterdir()] == ["found.png"]
    assert "pixel 60,20: looked up" in words and len(words.splitlines()) == 2

    explain_image(bundle, image, out, pixels=[(60, 20)], data=tmp_path / "out")  # none there
    missing = cv2.imread(str(out))
    assert magenta(missing) == 0
    assert missing.shape[0] < picture.shape[0]  # a row a pixel


# -- images and the command line -------------------------------------------------------------------


def test_one_image_or_a_frame_of_a_recording(data: Path, tmp_path: Path) -> None:
    drive = data / "kitti_raw" / "2011_09_26" / DRIVE
    name, image = one_image(drive, 2)
    file = drive / "image_02" / "data" / "0000000002.png"
    assert name == f"{DRIVE} · 2"
    np.testing.assert_array_equal(image, cv2.imread(str(file))[..., ::-1])
    assert one_image(drive)[0] == f"{DRIVE} · 3"
    with pytest.raises(ExplainError, match="0 to 5"):
        one_image(drive, 6)
    with pytest.raises(ExplainError, match="is an image"):
        one_image(file, 1)
    cut = tmp_path / "cut.png"
    cut.write_bytes(file.read_bytes()[:200])
    for path in (cut, tmp_path / "missing.png", tmp_path / "missing"):
        with pytest.raises(ExplainError, match=r"truncated|no such|cannot be read"):
            one_image(path)


def test_example_images_are_spread_and_damaged_ones_left_out(tmp_path: Path) -> None:
    for number in range(9):
        write_picture(tmp_path / f"{number}.png", seed=number)
    found = example_images([tmp_path], None, 3)
    assert [name for name, _ in found] == ["0.png", "4.png", "8.png"]
    damage(tmp_path / "4.png")
    found = example_images([tmp_path], None, 3)
    assert [name for name, _ in found] == ["0.png", "8.png"]
    assert len(found.left_out) == 1
    assert len(example_images([], tmp_path / "nothing", 3)) == 0
    with pytest.raises(ExplainError, match="at least one"):
        example_images([tmp_path], None, 0)


def test_the_command(bundle: Bundle, data: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("DEPTH_PRIOR_DATA", raising=False)
    image, out = write_picture(tmp_path / "image.png"), tmp_path / "found.jpg"
    call = ["explain", str(bundle.path), str(image), "--out", str(out), "--top", "3"]
    assert main([*call, "--branch", "hint:1", "--pixels", "60,20"]) == 0
    assert f"picture: {out}" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\xff\xd8\xff")

    refused = {
        "outside the image": ["--pixels", "500,3"],
        "no branch": ["--branch", "some"],
        "no such folder": ["--data", str(tmp_path / "gone")],
        "1 to 8": ["--top", "0"],
        "ends in": ["--out", str(tmp_path / "found.txt")],
    }
    for words, options in refused.items():
        assert main([*call, *options]) == 1
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error
    with pytest.raises(SystemExit):
        main([*call, "--pixels", "5"])
    assert "X,Y" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found.jpg", "image.png"]


@pytest.mark.data
def test_the_shipped_bundle_on_a_real_frame(data_dir: Path, tmp_path: Path) -> None:
    image = next((data_dir / "kitti_2015" / "image_02").glob("*.jpg"))
    words = explain_image("lite", image, tmp_path / "lite.png", pixels=[(600, 300)], data=data_dir)
    assert re.search(r"of 256\b(?!,)", words) and (tmp_path / "lite.png").stat().st_size > 100_000


def test_of_a_bag_with_two_cameras_either_is_explained(tmp_path: Path) -> None:
    topics = {**camera("/front"), **camera("/rear", count=2)}
    bag = write(tmp_path / "bag", topics)
    parser = argparse.ArgumentParser()
    add_recording_options(parser)
    front, rear = (
        parser.parse_args(["--image-topic", f"/{name}/image_raw"]) for name in ("front", "rear")
    )
    assert one_image(bag, 2, front)[0] == "bag · 2"
    with pytest.raises(ExplainError, match="no frame 2: 0 to 1"):
        one_image(bag, 2, rear)
    assert len(example_images([bag], None, 9, rear)) == 2
    frames = recorded_images(bag, CAMERA, 9, rear)
    assert len(list(frames)) == 2
