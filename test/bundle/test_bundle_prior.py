from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_tiny_bundle, tiny_manifest
from hypothesis import given
from hypothesis import strategies as st
from prior_bundles import (
    DIGEST,
    IMAGES,
    OTHER,
    PIXELS,
    Change,
    drop,
    forge,
    put,
    save,
    some_prior,
    some_sources,
    spec_of_prior,
    teacher_of_prior,
    value_at,
)
from safetensors import safe_open
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.bundle import (
    SCHEMA_VERSION,
    Bundle,
    BundleError,
    PriorSources,
    build_network,
    describe,
    load_bundle,
    rewrite_manifest,
)
from depth_prior_ros.bundle.derive import replace_references
from depth_prior_ros.models.prior_fusion import Prior
from depth_prior_ros.pipeline.runtime import compile_networks


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return save(tmp_path_factory.mktemp("plain") / "b")


@pytest.fixture
def bundle(plain: Bundle, tmp_path: Path) -> Bundle:
    """A copy to break, without a teacher inside."""
    shutil.copytree(plain.path, tmp_path / "b")
    return Bundle(tmp_path / "b", plain.manifest)


# -- what goes in comes out ------------------------------------------------------------------------


def test_a_prior_comes_back_with_its_sources(plain: Bundle) -> None:
    bundle = load_bundle(plain.path)
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


def test_the_manifest_says_what_the_prior_is(plain: Bundle) -> None:
    manifest = load_bundle(plain.path).manifest
    assert manifest.schema_version == SCHEMA_VERSION == 5
    spec = manifest.prior
    assert spec is not None
    assert spec.teacher == teacher_of_prior()
    assert spec.selection == {"method": "attention", "pixels": 640, "images": 20, "seed": 1}
    fusion = plain.student().fusion
    assert fusion is not None
    assert spec.alignment == fusion.alignment_hash()
    with safe_open(plain.path / "prior.safetensors", framework="pt") as file:
        metadata = file.metadata()
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert {k: metadata[k] for k in ("teacher", "stride", "alignment")} == {
        "teacher": DIGEST,
        "stride": "4",
        "alignment": spec.alignment,
    }
    assert kinds == {"features": "F16", "inverse_depth": "F16", "image": "I32", "pixel": "I32"}


def test_the_same_prior_is_the_same_file(tmp_path: Path) -> None:
    """Whatever order the metadata are written in: a hash of it is what caches go by."""
    strange = [{**IMAGES[0], "drive": 'n\u00e4chtlich "\\\u0007'}, *IMAGES[1:]]
    sources = PriorSources(some_sources().image, some_sources().pixel, strange)
    made = [save(tmp_path / str(n), prior_sources=sources) for n in range(6)]
    assert len({bundle.digest for bundle in made}) == 1
    found = load_bundle(made[0].path)
    assert torch.equal(found.prior().features, some_prior().features.half().float())
    read = found.prior_sources()
    assert read is not None and read.images[0]["drive"] == strange[0]["drive"]


def as_in_schema_1(manifest: dict[str, Any]) -> None:
    manifest["schema"] = 1
    drop("teacher", "alignment", "selection")(manifest["prior"])


def test_a_bundle_of_schema_1_still_loads_and_says_nothing_of_a_teacher(tmp_path: Path) -> None:
    replace_references(load_bundle("lite"), tmp_path / "lite", None, None)  # there were none
    forge(load_bundle(tmp_path / "lite"), manifest=as_in_schema_1, metadata=dict.clear)
    assert "alignment" not in (tmp_path / "lite" / "bundle.yaml").read_text()
    lite = load_bundle(tmp_path / "lite")
    assert lite.manifest.schema_version == 1
    assert lite.prior_sources() is None
    assert lite.teacher() is None
    assert lite.manifest.prior is not None
    assert lite.manifest.prior.alignment is lite.manifest.prior.teacher is None
    assert "teacher" not in describe(lite).split("\nprior\n")[1].split("provenance")[0]


def test_schema_3_says_tap_where_it_is_stride_now(plain: Bundle, tmp_path: Path) -> None:
    def older(manifest: dict[str, Any]) -> None:
        manifest["schema"] = 3
        for section in (
            manifest["architecture"]["student"]["fusion"],
            manifest["prior"]["teacher"],
        ):
            section["tap"] = section.pop("stride")

    shutil.copytree(plain.path, tmp_path / "b")
    rename = lambda words: words.update(tap=words.pop("stride"))  # noqa: E731
    forge(load_bundle(tmp_path / "b"), manifest=older, metadata=rename)
    assert "stride" not in (tmp_path / "b" / "bundle.yaml").read_text()
    old, new = load_bundle(tmp_path / "b").manifest, load_bundle(plain.path).manifest
    assert old.schema_version == 3
    assert (old.architecture, old.prior) == (new.architecture, new.prior)


def test_a_rewritten_manifest_has_the_schema_of_its_keys(tmp_path: Path) -> None:
    shutil.copytree(load_bundle("lite").path, tmp_path / "b")
    rewrite_manifest(load_bundle(tmp_path / "b"), metrics={})
    assert load_bundle(tmp_path / "b").manifest.schema_version == SCHEMA_VERSION


def test_a_prior_without_sources(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b", prior_sources=None)
    assert bundle.prior_sources() is None
    assert tuple(bundle.prior().features.shape) == (PIXELS, 32)


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


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"metadata": put("teacher", value=OTHER)}, "another teacher than the manifest's"),
        ({"manifest": put("prior", "teacher", "sha256", value=OTHER)}, "another teacher"),
        ({"metadata": drop("teacher")}, "another teacher than the manifest's: none"),
        ({"metadata": put("stride", value="8")}, "another stride than the manifest's: 8, not 4"),
        ({"manifest": put("prior", "teacher", "stride", value=2)}, "another stride"),
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
    for command in ("depth_train select", "depth_train fine-tune"):
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
        ({"manifest": put("prior", "teacher", "kind", value="")}, "prior.teacher.kind"),
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
        ("trunk.levels.0.0.weight", False),
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


@pytest.mark.parametrize(("name", "value"), [("heads", 2), ("normalise", True)])
def test_a_prior_that_would_be_read_in_another_way_is_refused(
    bundle: Bundle, name: str, value: Any
) -> None:
    """The weights fit both ways, so only the hash can tell."""
    forge(bundle, manifest=put("architecture", "student", "fusion", name, value=value))
    with pytest.raises(BundleError, match="another alignment hash than the student's"):
        load_bundle(bundle.path)


def test_a_hash_of_the_layers_alone_is_still_known(bundle: Bundle) -> None:
    fusion = bundle.student().fusion
    assert fusion is not None
    first = fusion.alignment_hash(layers_only=True)
    assert first != fusion.alignment_hash()
    forge(
        bundle,
        metadata=put("alignment", value=first),
        manifest=put("prior", "alignment", value=first),
    )
    assert load_bundle(bundle.path).manifest.prior.alignment == first  # type: ignore[union-attr]


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
    manifest = tiny_manifest(trunk=TINY_TRUNK).model_copy(update={"prior": spec_of_prior()})
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
        (
            {"manifest": tiny_manifest(trunk=TINY_TRUNK).model_copy(update={"prior": None})},
            "no `prior`",
        ),
        (
            {
                "manifest": tiny_manifest(trunk=TINY_TRUNK).model_copy(
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
    """Files exchanged after the bundle was opened: what was verified is what is used."""
    compile_networks(bundle, "torch", "cpu")
    other = make_tiny_bundle(tmp_path / "other", seed=9, trunk=TINY_TRUNK)
    shutil.copyfile(other.path / "student.safetensors", bundle.path / "student.safetensors")
    with pytest.raises(BundleError, match=r"student\.safetensors: altered"):
        compile_networks(bundle, "torch", "cpu")
