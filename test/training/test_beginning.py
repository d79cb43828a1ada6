"""What a run begins with, and what its bundle says of where it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from helpers import make_tiny_bundle, texture, tiny_manifest
from training_files import TRAINING_NAMES, write_moving_drive

from depth_prior_ros.bundle import load_bundle, save_bundle
from depth_prior_ros.bundle.baselines import OWN_MEAN, read_baselines
from depth_prior_ros.bundle.manifest import Architecture
from depth_prior_ros.models.student import build_student
from training.loop.checkpoint import save_checkpoint
from training.recipes.recipe import Recipe, RecipeError
from training.runs import output
from training.runs.initialise import initialise, look_for, start_from
from training.runs.output import write_bundle
from training.stages.base import TrainingConfig
from training.stages.system import System, freeze_trunk, parameter_groups


def recipe(size: tuple[int, int] = (64, 32), **drive: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "size": size,
            "data": {"drives": [{"path": "drive", **drive}]},
            "stages": [{"kind": "self_supervised", "steps": 1}],
            "output": {"name": "x", "licence": "Apache-2.0"},
        }
    )


def build(chosen: Recipe) -> System:
    return System.build(chosen, torch.device("cpu"))


def test_the_map_begins_anew_at_another_size(tmp_path: Path) -> None:
    small, path = build(recipe()), tmp_path / "last.safetensors"
    small.multi_frame.delta.fill_(0.3)
    small.multi_frame.window_seen.fill_(5)
    small.student.requires_grad_(False)
    next(small.student.parameters()).fill_(0.25)
    save_checkpoint(path, small.networks, torch.optim.Adam(small.pose.parameters()), {})
    same, large = build(recipe()), build(recipe((96, 64)))
    start_from(path, same)
    assert bool((same.multi_frame.delta == 0.3).all()) and int(same.multi_frame.window_seen) == 5
    start_from(path, large)
    assert large.multi_frame.delta.shape == (1, 1, 16, 24)
    assert bool((large.multi_frame.delta == 1).all()) and int(large.multi_frame.window_seen) == 0
    assert bool((next(large.student.parameters()) == 0.25).all()), "all else is taken over"
    with pytest.raises(RecipeError, match=r"teacher: .*'multi_frame' has other shapes"):
        start_from(path, large, "teacher")


@pytest.mark.slow
def test_a_bundle_gives_the_networks_that_are_built_alike(tmp_path: Path) -> None:
    make_tiny_bundle(tmp_path / "bundle")
    values = recipe((96, 64)).model_dump(mode="json")
    values |= {"start": str(tmp_path / "bundle"), "networks": {"trunk": "mobilenet_v2"}}
    chosen = Recipe.model_validate(values)
    system = build(chosen)
    before = {n: t.clone() for n, t in system.student.state_dict().items()}
    look_for("start", str(tmp_path / "bundle"))
    note = initialise(system, chosen)
    assert "pose, multi_frame begin with" in note and "student: built otherwise" in note
    bundle = load_bundle(tmp_path / "bundle")
    for name in ("pose", "multi_frame"):
        own, given = system.networks[name].state_dict(), getattr(bundle, name)().state_dict()
        for key, tensor in given.items():
            if key not in ("delta", "window_max", "window_seen"):
                assert torch.equal(own[key], tensor), key
    assert bool((system.multi_frame.delta == 1).all()), "of another input size"
    assert all(torch.equal(t, before[n]) for n, t in system.student.state_dict().items())
    # A student of the same trunk and decoder goes on without the bundle's fusion; or is left alone.
    alike = {"trunk": "hrnet_w18_small", "decoder": "light", "camera_code": True}
    chosen = Recipe.model_validate(values | {"networks": alike})
    system = build(chosen)
    assert initialise(system, chosen).startswith("student, pose, multi_frame begin with")
    own, given = system.student.state_dict(), bundle.student().state_dict()
    assert all(torch.equal(own[n], t) for n, t in given.items() if not n.startswith("fusion."))
    chosen = Recipe.model_validate(values | {"networks": alike, "start_networks": ["pose"]})
    assert initialise(build(chosen), chosen).startswith("pose begin with")
    with pytest.raises(RecipeError, match="start: nowhere is not a checkpoint"):
        look_for("start", "nowhere")


def test_a_bundle_whose_student_looks_references_up_gives_the_rest(tmp_path: Path) -> None:
    networks = {"trunk": "mobilenet_v2", "decoder": "convex"}
    student = build_student({**networks, "episodic": {"capacity": 8}})
    manifest = tiny_manifest().model_copy(
        update={"architecture": Architecture(student=student.architecture), "prior": None}
    )
    bundle = save_bundle(tmp_path / "bundle", manifest, student=student)
    values = recipe((96, 64)).model_dump(mode="json") | {"start": str(bundle.path)}
    chosen = Recipe.model_validate(values | {"networks": networks})
    system = build(chosen)
    assert initialise(system, chosen).startswith("student begin with")
    own, given = system.student.state_dict(), bundle.student().state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in own.items())


def test_the_trunk_learns_slower_and_its_first_layers_not_at_all() -> None:
    values = recipe().model_dump(mode="json") | {"networks": {"trunk": "mobilenet_v2"}}
    system = build(Recipe.model_validate(values))
    trunk, config = (
        system.student.trunk,
        TrainingConfig(kind="test", steps=1, trunk_rate=0.25, frozen_to=4),
    )
    freeze_trunk(system, config)
    frozen = [p for p in trunk.parameters() if not p.requires_grad]
    trained = [p for p in system.student.parameters() if p.requires_grad]
    assert len(frozen) == 2 * (1 + 2 + 3 + 3) and frozen[0] is trunk.stem[0].weight
    rest, slower = parameter_groups(system, trained, config)
    assert slower["factor"] == 0.25 and "factor" not in rest
    own = {id(p) for p in trunk.parameters()}
    assert {id(p) for p in slower["params"]} == own - {id(p) for p in frozen}
    assert not own & {id(p) for p in rest["params"]}
    with pytest.raises(RecipeError, match=r"frozen_to: \w+: this trunk cannot be frozen in part"):
        freeze_trunk(build(recipe()), config)


def write_pictures(folder: Path, count: int = 12) -> None:
    folder.mkdir()
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:04d}.png"), texture(124, 38, margin=0, seed=i))


def test_a_folder_of_images_has_the_recipes_camera(tmp_path: Path) -> None:
    """The intrinsics are in the recipe alone; the crop moves the principal point."""
    write_pictures(tmp_path / "drive")
    camera = {"fx": 70, "fy": 70, "cx": 62, "cy": 19}
    chosen = recipe(intrinsics=camera, crop=(0.0, 0.0, 0.5, 0.0))
    path = tmp_path / "run" / "bundle"
    assert write_bundle(path, chosen, build(chosen), [], tmp_path, with_multi=False) == path
    bundle = load_bundle(path)
    spec = bundle.manifest.camera
    assert spec.size == (64, 32)
    assert spec.fx == pytest.approx(70 * 64 / 62) and spec.cx == pytest.approx(64)
    assert spec.fy == pytest.approx(70 * 32 / 38) and spec.cy == pytest.approx(16)
    assert set(read_baselines(bundle)) == {OWN_MEAN}
    assert [p.name for p in path.parent.iterdir()] == ["bundle"], "nothing is left beside it"


def test_a_pattern_of_drives_and_kitti_raw_have_a_camera(tmp_path: Path) -> None:
    for name in TRAINING_NAMES:
        write_moving_drive(tmp_path, name)
    by_pattern = recipe(path="kitti_raw/*/*_sync")
    of_kitti = by_pattern.model_copy(
        update={
            "data": type(by_pattern.data).model_validate({"kitti_raw": {"folder": "kitti_raw"}})
        }
    )
    for i, chosen in enumerate((by_pattern, of_kitti)):
        path = tmp_path / f"bundle_{i}"
        write_bundle(path, chosen, build(chosen), [], tmp_path, with_multi=False)
        bundle = load_bundle(path)
        assert bundle.manifest.camera.fx == pytest.approx(72.15 * 64 / 124)
        assert OWN_MEAN in read_baselines(bundle)


def test_a_kill_between_weights_and_maps_leaves_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_moving_drive(tmp_path)
    chosen = recipe(path="kitti_raw/2011_09_26/" + TRAINING_NAMES[0])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output, "write_baselines", killed)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "bundle", chosen, build(chosen), [], tmp_path)
    assert not (tmp_path / "bundle").exists()
