from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_tiny_bundle, tiny_manifest
from prior_bundles import (
    OTHER,
    PIXELS,
    save,
    some_prior,
    some_sources,
    spec_of_prior,
    teacher_of_prior,
)
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.bundle import Bundle, BundleError, PriorSpec, load_bundle
from depth_prior_ros.bundle.baselines import LIDAR_ROW, OWN_MEAN, add_baselines, read_baselines
from depth_prior_ros.bundle.derive import replace_prior
from depth_prior_ros.models.prior_fusion import Prior

NETWORKS = ("student.safetensors", "multi_frame.safetensors", "pose.safetensors")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """All parts, baselines, metrics, and the teacher inside."""
    folder = tmp_path_factory.mktemp("derive")
    teacher = make_tiny_bundle(folder / "other", (192, 64), seed=4, trunk=TINY_TRUNK)
    whole = make_tiny_bundle(folder / "whole", seed=2, trunk=TINY_TRUNK)
    manifest = tiny_manifest(trunk=TINY_TRUNK).model_copy(
        update={"prior": spec_of_prior(), "metrics": {"kitti2015": 0.1}}
    )
    made = save(
        folder / "b",
        manifest=manifest,
        student=whole.student(),
        multi_frame=whole.multi_frame(),
        pose=whole.pose(),
        teacher=teacher.path,
    )
    maps = {OWN_MEAN: np.full((32, 96), 0.1), LIDAR_ROW: np.linspace(1, 3, 32)}
    return add_baselines(made, maps)


def derive(bundle: Bundle, out: Path, **changes: Any) -> Bundle:
    values: dict[str, Any] = {
        "prior": some_prior(99),
        "spec": spec_of_prior(note="of another drive"),
        "sources": some_sources(),
        "note": "adapted to a drive",
    }
    return replace_prior(bundle, out, **(values | changes))


@pytest.mark.slow
def test_the_networks_stay_byte_for_byte_and_the_prior_is_new(
    bundle: Bundle, tmp_path: Path
) -> None:
    derive(bundle, tmp_path / "new", data_sources=["bag", "random numbers"], name="mine")
    new = load_bundle(tmp_path / "new")
    for file in NETWORKS:
        assert (new.path / file).read_bytes() == (bundle.path / file).read_bytes(), file
    assert torch.equal(new.prior().features, some_prior(99).features.half().float())
    assert not torch.equal(new.prior().features, bundle.prior().features)
    assert new.prior_sources() is not None
    old_spec, spec = bundle.manifest.prior, new.manifest.prior
    assert old_spec is not None
    assert spec is not None
    assert spec.alignment == old_spec.alignment is not None
    assert spec.note == "of another drive"
    assert new.manifest.name == "mine"
    assert new.manifest.provenance.note == "adapted to a drive"
    assert new.manifest.provenance.data_sources == ["random numbers", "bag"]
    assert new.digest != bundle.digest


def test_what_was_measured_with_the_old_prior_does_not_travel(
    bundle: Bundle, tmp_path: Path
) -> None:
    new = derive(bundle, tmp_path / "new")
    assert new.manifest.metrics == {}
    maps, old = read_baselines(new), read_baselines(bundle)
    assert sorted(maps) == [LIDAR_ROW]
    assert np.array_equal(maps[LIDAR_ROW], old[LIDAR_ROW])
    measured = derive(bundle, tmp_path / "other", metrics={"error": 0.5})
    assert measured.manifest.metrics == {"error": 0.5}


def test_notes_add_up(bundle: Bundle, tmp_path: Path) -> None:
    first = derive(bundle, tmp_path / "a", note="first", licence="CC-BY-NC-SA-3.0")
    second = derive(first, tmp_path / "b", note="second")
    assert second.manifest.provenance.note == "first; second"
    assert second.manifest.licence == "CC-BY-NC-SA-3.0"


@pytest.mark.slow
def test_the_teacher_travels_or_is_exchanged(bundle: Bundle, tmp_path: Path) -> None:
    own, new = bundle.teacher(), derive(bundle, tmp_path / "new").teacher()
    assert own is not None
    assert new is not None
    assert new.digest == own.digest
    other = make_tiny_bundle(tmp_path / "other", (192, 64), seed=8, trunk=TINY_TRUNK)
    given = derive(bundle, tmp_path / "third", teacher=other.path).teacher()
    assert given is not None
    assert given.digest == other.digest != own.digest
    with pytest.raises(BundleError, match="not the teacher"):
        derive(bundle, tmp_path / "fourth", teacher=other.path, identify=lambda _: OTHER)


def test_it_may_take_the_place_of_the_old_one(bundle: Bundle, tmp_path: Path) -> None:
    old = derive(bundle, tmp_path / "b")
    new = derive(old, tmp_path / "b", prior=some_prior(5))
    assert load_bundle(tmp_path / "b").digest == new.digest != old.digest
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"spec": spec_of_prior(teacher=teacher_of_prior(sha256=OTHER))}, "new prior is of tiny"),
        ({"spec": spec_of_prior(teacher=teacher_of_prior(stride=8))}, "tiny at stride 8"),
        ({"spec": spec_of_prior(teacher=None)}, "unknown teacher"),
        ({"spec": spec_of_prior(alignment=OTHER)}, "alignment hash than the student's"),
        ({"spec": spec_of_prior(pixels=PIXELS + 1)}, "has shape"),
        (
            {
                "prior": Prior(torch.randn(PIXELS, 8), torch.ones(PIXELS)),
                "spec": spec_of_prior(channels=8, teacher=teacher_of_prior(channels=8)),
            },
            "8 channels, the student's fusion reads 32",
        ),
        ({"prior": Prior(torch.randn(PIXELS, 32) * torch.nan, torch.ones(PIXELS))}, "not finite"),
        ({"prior": Prior(torch.randn(PIXELS, 32), -torch.ones(PIXELS))}, "not positive"),
    ],
)
def test_a_prior_that_the_student_cannot_read(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any], cause: str
) -> None:
    with pytest.raises(BundleError, match=cause):
        derive(bundle, tmp_path / "new", **changes)
    assert list(tmp_path.iterdir()) == []


def test_other_things_are_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(BundleError, match="other things"):
        derive(bundle, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["cat.jpg"]


def test_a_full_disk_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """Files may grow to a hundred thousand bytes only."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
    try:
        with pytest.raises(BundleError, match=r"new/student\.safetensors: cannot be written"):
            derive(bundle, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_before_takes_a_new_prior(tmp_path: Path) -> None:
    """One that names no teacher cannot say that it is another one's."""
    lite = load_bundle("lite")
    prior = Prior(torch.randn(40, 32), torch.rand(40) + 0.1)
    spec = PriorSpec(pixels=40, channels=32, note="x", teacher=teacher_of_prior())
    new = replace_prior(lite, tmp_path / "b", prior, spec, note="another prior")
    assert new.manifest.prior is not None
    assert new.manifest.prior.teacher == teacher_of_prior()
    assert new.manifest.prior.alignment is not None
    assert new.manifest.provenance.note.startswith(lite.manifest.provenance.note)
    assert new.manifest.provenance.note.endswith("; another prior")
