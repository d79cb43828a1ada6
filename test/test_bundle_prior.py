from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import make_tiny_bundle, tiny_manifest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from depth_prior_ros.bundle import (
    SCHEMA_VERSION,
    Bundle,
    BundleError,
    PriorSources,
    PriorSpec,
    PriorTeacher,
    build_network,
    describe,
    load_bundle,
    rewrite_manifest,
    save_bundle,
)
from depth_prior_ros.models.prior_fusion import Prior
from depth_prior_ros.runtime import compile_networks

DIGEST = "ab" * 32
PIXELS = 16
IMAGES = [
    {"drive": "one", "frame": 3, "stamp": 1.5, "median_inverse_depth": 0.1},
    {"drive": "never", "frame": 0},
    {"drive": "two", "frame": 8},
]
Change = Callable[[dict[str, Any]], None]


def teacher_of_prior(**changes: Any) -> PriorTeacher:
    values = {
        "name": "tiny",
        "kind": "bundle",
        "sha256": DIGEST,
        "tap": 4,
        "channels": 32,
        "size": [192, 64],
        "licence": "Apache-2.0",
    }
    return PriorTeacher.of(values | changes)


def spec_of_prior(**changes: Any) -> PriorSpec:
    values = {
        "pixels": PIXELS,
        "channels": 32,
        "note": "made up",
        "teacher": teacher_of_prior(),
        "selection": {"method": "attention", "pixels": 640, "images": 20, "seed": 1},
    }
    return PriorSpec(**(values | changes))


def some_prior(seed: int = 7) -> Prior:
    generator = torch.Generator().manual_seed(seed)
    return Prior(
        torch.randn(PIXELS, 32, generator=generator), torch.rand(PIXELS, generator=generator) + 0.1
    )


def some_sources() -> PriorSources:
    image = np.where(np.arange(PIXELS) % 3 == 0, 2, 0)
    return PriorSources(image, np.arange(PIXELS) * 48, IMAGES)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("teacher") / "rich", (192, 64), seed=4)


def save(path: Path, **changes: Any) -> Bundle:
    manifest = tiny_manifest().model_copy(update={"prior": spec_of_prior()})
    torch.manual_seed(11)
    values: dict[str, Any] = {
        "manifest": manifest,
        "student": build_network(manifest, "student"),
        "prior": some_prior(),
        "prior_sources": some_sources(),
    }
    return save_bundle(path, **(values | changes))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, teacher: Bundle) -> Bundle:
    return save(tmp_path_factory.mktemp("prior") / "b", teacher=teacher.path)


@pytest.fixture
def taught(original: Bundle, tmp_path: Path) -> Bundle:
    """A copy to break, with the teacher inside."""
    shutil.copytree(original.path, tmp_path / "b")
    return Bundle(tmp_path / "b", original.manifest)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return save(tmp_path_factory.mktemp("plain") / "b")


@pytest.fixture
def bundle(plain: Bundle, tmp_path: Path) -> Bundle:
    """A copy to break, without a teacher inside."""
    shutil.copytree(plain.path, tmp_path / "b")
    return Bundle(tmp_path / "b", plain.manifest)


def forge(
    bundle: Bundle,
    *,
    tensors: Change | None = None,
    metadata: Change | None = None,
    manifest: Change | None = None,
    file: str = "prior.safetensors",
) -> None:
    """Change a bundle as somebody does who knows how to hash files and seal a manifest."""
    path = bundle.path / file
    with safe_open(path, framework="pt") as opened:
        words: dict[str, Any] = dict(opened.metadata() or {})
    content: dict[str, Any] = load_file(path)
    for change, what in ((tensors, content), (metadata, words)):
        if change is not None:
            change(what)
    save_file(content, path, words or None)
    sealed = bundle.path / "bundle.yaml"
    data = yaml.safe_load(sealed.read_text().rpartition("sha256: ")[0])
    data["files"][file] = hashlib.sha256(path.read_bytes()).hexdigest()
    if manifest is not None:
        manifest(data)
    body = yaml.safe_dump(data, sort_keys=False)
    sealed.write_text(f"{body}sha256: {hashlib.sha256(body.encode()).hexdigest()}\n")


def put(*place: str, value: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        for step in place[:-1]:
            data = data[step]
        data[place[-1]] = value

    return change


def value_at(name: str, value: float) -> Change:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name].view(-1)[5] = value

    return change


# -- what goes in comes out ------------------------------------------------------------------------


def test_a_prior_comes_back_with_its_sources(original: Bundle) -> None:
    bundle = load_bundle(original.path)
    prior, expected = bundle.prior(), some_prior()
    assert torch.equal(prior.features, expected.features.half().float())
    assert torch.equal(prior.inverse_depth, expected.inverse_depth.half().float())
    sources, given_sources = bundle.prior_sources(), some_sources()
    assert sources is not None
    assert sources.image.dtype == sources.pixel.dtype == np.int32
    assert np.array_equal(sources.pixel, given_sources.pixel)
    assert list(sources.images) == [
        {"drive": "one", "frame": 3, "stamp": 1.5},
        {"drive": "two", "frame": 8},
    ]
    for mine, other in zip(sources.image, given_sources.image, strict=True):
        assert sources.images[mine]["drive"] == given_sources.images[other]["drive"]


def test_the_manifest_says_what_the_prior_is(original: Bundle) -> None:
    manifest = load_bundle(original.path).manifest
    assert manifest.schema_version == SCHEMA_VERSION == 2
    spec = manifest.prior
    assert spec is not None
    assert spec.teacher == teacher_of_prior()
    assert spec.selection == {"method": "attention", "pixels": 640, "images": 20, "seed": 1}
    fusion = original.student().fusion
    assert fusion is not None
    assert spec.alignment == fusion.alignment_hash()
    with safe_open(original.path / "prior.safetensors", framework="pt") as file:
        metadata = file.metadata()
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert {k: metadata[k] for k in ("teacher", "tap", "alignment")} == {
        "teacher": DIGEST,
        "tap": "4",
        "alignment": spec.alignment,
    }
    assert kinds == {"features": "F16", "inverse_depth": "F16", "image": "I32", "pixel": "I32"}


def test_a_bundle_of_schema_1_still_loads_and_says_nothing_of_a_teacher() -> None:
    lite = load_bundle("lite")
    assert lite.manifest.schema_version == 1
    assert lite.prior_sources() is None
    assert lite.teacher() is None
    assert lite.manifest.prior is not None
    assert lite.manifest.prior.alignment is lite.manifest.prior.teacher is None
    assert "teacher" not in describe(lite).split("\nprior\n")[1].split("provenance")[0]


def test_a_rewritten_manifest_has_the_schema_of_its_keys(tmp_path: Path) -> None:
    shutil.copytree(load_bundle("lite").path, tmp_path / "b")
    rewrite_manifest(load_bundle(tmp_path / "b"), metrics={})
    assert load_bundle(tmp_path / "b").manifest.schema_version == SCHEMA_VERSION


def test_a_prior_without_sources(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b", prior_sources=None)
    assert bundle.prior_sources() is None
    assert tuple(bundle.prior().features.shape) == (PIXELS, 32)


def test_reading_the_prior_leaves_the_rest_of_the_file_alone(
    original: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors

    asked: list[str] = []
    whole = safetensors.safe_open

    class Watched:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.file = whole(*arguments, **options)

        def __enter__(self) -> Any:
            opened = self.file.__enter__()

            class Opened:
                def get_tensor(self, name: str) -> Any:
                    asked.append(name)
                    return opened.get_tensor(name)

            return Opened()

        def __exit__(self, *arguments: Any) -> None:
            self.file.__exit__(*arguments)

    monkeypatch.setattr(safetensors, "safe_open", Watched)
    original.prior()
    assert sorted(asked) == ["features", "inverse_depth"]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_compact_keeps_every_pixels_image(image: list[int]) -> None:
    images = [{"drive": f"d{i}", "frame": i} for i in range(7)]
    sources = PriorSources(np.array(image), np.arange(len(image)), images)
    small = sources.compact()
    assert [small.images[i] for i in small.image] == [images[i] for i in image]
    assert len(small.images) == len(set(image))
    assert np.array_equal(small.pixel, sources.pixel)


@pytest.mark.parametrize(
    ("image", "pixel", "images", "cause"),
    [
        ([0, 3], [1, 2], IMAGES, "image 3, but only 3"),
        ([0, -1], [1, 2], IMAGES, "image holds -1"),
        ([0, 1], [1, -2], IMAGES, "pixel holds -2"),
        ([0, 1], [1, 2**31], IMAGES, "pixel holds"),
        ([0, 1], [1], IMAGES, "2 images for 1 pixels"),
        ([0.0, 1.0], [1, 2], IMAGES, "whole numbers"),
        ([[0], [1]], [1, 2], IMAGES, "whole numbers"),
        ([0, 0], [1, 2], [{"drive": "a"}], "lacks drive"),
        ([0, 0], [1, 2], [{"drive": "a", "frame": True}], "lacks drive"),
        ([0, 0], [1, 2], ["a"], "lacks drive"),
    ],
)
def test_sources_that_make_no_sense(image: Any, pixel: Any, images: Any, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        PriorSources(np.array(image), np.array(pixel), images)


# -- a prior that does not match -------------------------------------------------------------------

OTHER = "cd" * 32


def drop(*names: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        for name in names:
            data.pop(name, None)

    return change


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"metadata": put("teacher", value=OTHER)}, "another teacher than the manifest's"),
        ({"manifest": put("prior", "teacher", "sha256", value=OTHER)}, "another teacher"),
        ({"metadata": drop("teacher")}, "another teacher than the manifest's: none"),
        ({"metadata": put("tap", value="8")}, "another tap than the manifest's: 8, not 4"),
        ({"manifest": put("prior", "teacher", "tap", value=2)}, "another tap"),
        ({"metadata": put("alignment", value=OTHER)}, "another alignment hash than the manifest"),
        ({"manifest": put("prior", "alignment", value=OTHER)}, "another alignment hash"),
        ({"manifest": put("prior", "alignment", value=None)}, "another alignment hash"),
        (
            {
                "metadata": put("alignment", value=OTHER),
                "manifest": put("prior", "alignment", value=OTHER),
            },
            "another alignment hash than the student's",
        ),
        (
            {
                "tensors": lambda t: t.update(features=t["features"][:, :16].contiguous()),
                "manifest": put("prior", "channels", value=16),
            },
            "16 channels, the student's fusion reads 32",
        ),
        ({"manifest": put("prior", "teacher", "channels", value=64)}, "its teacher tiny gives 64"),
        ({"tensors": value_at("features", float("nan"))}, "features hold NaN"),
        ({"tensors": value_at("features", float("-inf"))}, "features hold NaN or infinite"),
        ({"tensors": value_at("inverse_depth", float("nan"))}, "not positive"),
        ({"tensors": value_at("inverse_depth", float("inf"))}, "not positive"),
        ({"tensors": value_at("inverse_depth", 0.0)}, "not positive"),
        ({"tensors": value_at("inverse_depth", -0.5)}, "not positive"),
    ],
)
def test_a_prior_of_something_else_is_refused(
    bundle: Bundle, changes: dict[str, Change], cause: str
) -> None:
    forge(bundle, **changes)
    with pytest.raises(BundleError, match=cause) as caught:
        load_bundle(bundle.path)
    assert caught.value.path == bundle.path / "prior.safetensors"
    for command in ("depth_train select", "adapt", "depth_train fine-tune"):
        assert command in caught.value.cause


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"tensors": drop("pixel")}, "lacks 1 .pixel"),
        ({"tensors": lambda t: t.update(image=t["image"][:-1].clone())}, "image has shape"),
        ({"tensors": lambda t: t.update(image=t["image"].half())}, "whole numbers"),
        ({"tensors": lambda t: t.update(colour=torch.zeros(3))}, "unknown .colour"),
        ({"tensors": value_at("image", 2)}, "image 2, but only 2"),
        ({"tensors": value_at("pixel", 768)}, "pixel 768 is outside the teacher's map of 768"),
        ({"metadata": drop("images")}, "list of images is missing"),
        ({"metadata": put("images", value="[{")}, "sources cannot be read"),
        ({"metadata": put("images", value='[{"drive": 1}, {}]')}, "lacks drive"),
        ({"manifest": put("prior", "teacher", "kind", value="oracle")}, "prior.teacher.kind"),
        ({"manifest": put("prior", "teacher", "sha256", value="abc")}, "prior.teacher.sha256"),
        ({"manifest": put("prior", "teacher", "colour", value=1)}, "unknown key prior.teacher"),
        ({"manifest": put("prior", "alignment", value="abc")}, "prior.alignment"),
    ],
)
def test_a_prior_file_that_makes_no_sense(
    bundle: Bundle, changes: dict[str, Change], cause: str
) -> None:
    forge(bundle, **changes)
    with pytest.raises(BundleError, match=cause):
        load_bundle(bundle.path)


def test_the_last_pixel_of_the_map_is_inside(bundle: Bundle) -> None:
    forge(bundle, tensors=value_at("pixel", 767))
    load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("name", "noticed"),
    [
        ("fusion.key.weight", True),
        ("fusion.hint_key.weight", True),
        ("fusion.hint_value.weight", True),
        ("fusion.log_temperature", True),
        ("fusion.query.weight", False),
        ("trunk.conv1.weight", False),
    ],
)
def test_a_retrained_reader_of_the_prior_is_noticed_and_the_rest_is_free(
    bundle: Bundle, name: str, noticed: bool
) -> None:
    forge(bundle, file="student.safetensors", tensors=lambda t: t[name].view(-1)[0].add_(1))
    if not noticed:
        load_bundle(bundle.path)
        return
    with pytest.raises(BundleError, match="layers that read the prior have changed"):
        load_bundle(bundle.path)


def test_the_manifest_cannot_be_rewritten_into_another_prior(bundle: Bundle) -> None:
    before = (bundle.path / "bundle.yaml").read_bytes()
    for spec in (
        spec_of_prior(),  # no alignment
        bundle.manifest.prior.model_copy(update={"alignment": OTHER}),  # type: ignore[union-attr]
        bundle.manifest.prior.model_copy(  # type: ignore[union-attr]
            update={"teacher": teacher_of_prior(sha256=OTHER)}
        ),
    ):
        with pytest.raises(BundleError, match="another"):
            rewrite_manifest(bundle, prior=spec)
    assert (bundle.path / "bundle.yaml").read_bytes() == before
    note = bundle.manifest.prior.model_copy(update={"note": "new"})  # type: ignore[union-attr]
    assert load_bundle(rewrite_manifest(bundle, prior=note).path).manifest.prior == note


def test_a_prior_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    manifest = tiny_manifest().model_copy(update={"prior": spec_of_prior()})
    architecture = manifest.architecture
    plain = architecture.model_copy(update={"student": {**architecture.student, "fusion": None}})
    manifest = manifest.model_copy(update={"architecture": plain})
    with pytest.raises(BundleError, match="no prior fusion"):
        save(tmp_path / "b", manifest=manifest, student=build_network(manifest, "student"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"prior": Prior(torch.randn(PIXELS, 32), torch.full((PIXELS,), 1e-9))}, "not positive"),
        ({"prior": Prior(torch.full((PIXELS, 32), 1e6), torch.ones(PIXELS))}, "exceeds 65504"),
        ({"prior": Prior(torch.randn(8, 32), torch.ones(8))}, "16 sources for 8"),
        ({"manifest": tiny_manifest().model_copy(update={"prior": None})}, "no `prior`"),
        (
            {
                "manifest": tiny_manifest().model_copy(
                    update={"prior": spec_of_prior(alignment=OTHER)}
                )
            },
            "another alignment hash than the student's",
        ),
    ],
)
def test_what_is_not_saved(tmp_path: Path, changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(BundleError, match=cause) as caught:
        save(tmp_path / "b", **changes)
    assert caught.value.path.is_relative_to(tmp_path / "b")  # not the folder it was staged in
    assert list(tmp_path.iterdir()) == []


def test_networks_check_the_student_that_they_run(bundle: Bundle, tmp_path: Path) -> None:
    """Files exchanged after the bundle was opened: the hashes have been checked already."""
    compile_networks(bundle, "torch", "cpu")
    other = make_tiny_bundle(tmp_path / "other", seed=9)
    shutil.copyfile(other.path / "student.safetensors", bundle.path / "student.safetensors")
    with pytest.raises(BundleError, match="another alignment hash than the student's"):
        compile_networks(bundle, "torch", "cpu")


# -- the teacher inside ----------------------------------------------------------------------------


def test_the_teacher_comes_back_whole(original: Bundle, teacher: Bundle) -> None:
    inside = load_bundle(original.path).teacher()
    assert inside is not None
    assert inside.manifest == teacher.manifest
    assert inside.digest == teacher.digest
    assert (inside.path / "bundle.yaml").read_bytes() == (teacher.path / "bundle.yaml").read_bytes()
    assert inside.multi_frame().delta.shape == teacher.multi_frame().delta.shape
    assert "teacher/bundle.yaml" in original.manifest.files
    for file in (*inside.path.iterdir(), inside.path):
        assert file.stat().st_mode & 0o044 == 0o044, file.name


@pytest.mark.parametrize("file", ["bundle.yaml", "student.safetensors", "multi_frame.safetensors"])
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_teacher_is_refused(taught: Bundle, file: str, damage: str) -> None:
    path = taught.path / "teacher" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if damage == "altered" else content[:-100])
    expected = "altered" if file == "bundle.yaml" and damage != "missing" else damage
    with pytest.raises(BundleError, match=expected) as caught:
        load_bundle(taught.path)
    assert caught.value.path == path


def test_a_teacher_of_another_prior_is_refused(tmp_path: Path, teacher: Bundle) -> None:
    def refused(cause: str, **changes: Any) -> None:
        with pytest.raises(BundleError, match=cause):
            save(tmp_path / "b", teacher=teacher.path, **changes)
        assert not (tmp_path / "b").exists()

    def manifest(**changes: Any) -> dict[str, Any]:
        spec = spec_of_prior(teacher=teacher_of_prior(**changes) if changes else None)
        return {"manifest": tiny_manifest().model_copy(update={"prior": spec})}

    refused("names none for the prior", **manifest())
    refused("prior's teacher is bundle rich", **manifest(name="rich"))
    refused("prior's teacher is foundation tiny", **manifest(kind="foundation"))
    refused(r"is tiny at \(192, 64\)", **manifest(size=[640, 192]))
    refused("not the teacher that the prior came from", identify=lambda _: OTHER)
    seen: list[Path] = []
    save(
        tmp_path / "b",
        teacher=teacher.path,
        identify=lambda b: (seen.append(b.path), DIGEST)[1],
    )
    assert seen == [teacher.path]


def test_a_teacher_exchanged_under_a_new_seal_is_refused(taught: Bundle, tmp_path: Path) -> None:
    other = make_tiny_bundle(tmp_path / "other", (96, 32))
    shutil.rmtree(taught.path / "teacher")
    shutil.copytree(other.path, taught.path / "teacher")
    digest = hashlib.sha256((other.path / "bundle.yaml").read_bytes()).hexdigest()
    forge(taught, manifest=put("files", "teacher/bundle.yaml", value=digest))
    with pytest.raises(BundleError, match=r"is tiny at \(96, 32\), the prior's teacher"):
        load_bundle(taught.path)


def test_a_teachers_own_teacher_stays_outside(tmp_path: Path, original: Bundle) -> None:
    spec = spec_of_prior(teacher=teacher_of_prior(size=[96, 32]))
    manifest = tiny_manifest().model_copy(update={"prior": spec})
    outer = save(tmp_path / "b", manifest=manifest, prior_sources=None, teacher=original.path)
    inside = load_bundle(outer.path).teacher()
    assert inside is not None
    assert inside.teacher() is None
    assert not (inside.path / "teacher").exists()
    assert {n: h for n, h in original.manifest.files.items() if "teacher" not in n} == (
        inside.manifest.files
    )


def test_a_disk_that_fills_up_while_the_teacher_is_copied(
    tmp_path: Path, teacher: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save(tmp_path / "b")

    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("depth_prior_ros.bundle_files.shutil.copyfile", full)
    with pytest.raises(BundleError, match=r"b/teacher/.*cannot be written.*No space"):
        save(tmp_path / "b", teacher=teacher.path)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert load_bundle(tmp_path / "b").digest == before.digest


# -- in words --------------------------------------------------------------------------------------


def test_describe_tells_where_the_prior_comes_from(original: Bundle) -> None:
    text = describe(original)
    prior = text.split("\nprior\n")[1].split("\nprovenance\n")[0]
    assert original.manifest.prior is not None
    alignment = original.manifest.prior.alignment
    assert alignment is not None
    for part in (
        "from: 2 images of 2 drives",
        "name: tiny (bundle)",
        "input: 192x64",
        "features: 32 channels at 1/4",
        "method: attention",
        f"alignment: {alignment[:16]}...",
    ):
        assert part in prior, part
    assert alignment not in text
    size = sum(f.stat().st_size for f in (original.path / "teacher").iterdir()) / 1e6
    assert f"teacher/: {size:6.2f} MB" in text
