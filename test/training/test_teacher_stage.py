"""Teacher, distillation and the mutual loop: who learns, from whom, and where."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers import texture
from test_stages import learning, nothing, pair_folder, pairs, triplets
from test_training_data import write_drive
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.models.matching import PARALLAX
from depth_prior_ros.models.mism import MultiFrameOutput
from training.data.pairs import PairSource
from training.data.triplets import TripletSource, load_triplets
from training.recipes.data import Drive
from training.recipes.recipe import MultiFrame, Recipe
from training.stages.distil import Distil, DistilStage, teach
from training.stages.self_supervised import Scene, aligned_views
from training.stages.system import LookupFrame, System, held_loss
from training.stages.teacher import Teacher, TeacherStage

__all__ = ["pair_folder", "pairs", "triplets"]

SIZE, TALL = (64, 32), (64, 64)


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> TripletSource:
    """Triplets large enough for a cost volume network."""
    root = tmp_path_factory.mktemp("tall")
    drive = write_drive(root, list(range(5)))
    picture = texture(124, 38, margin=8)
    for i in range(5):
        path = drive / "image_02" / f"{i:010d}.png"
        cv2.imwrite(str(path), picture[8:46, 8 + i : 132 + i])
    return load_triplets(root, [Drive(path=str(drive.relative_to(root)))], TALL, 10.0)


def build(size: tuple[int, int] = SIZE, **multi_frame: Any) -> System:
    recipe = Recipe.model_validate(
        {
            "size": size,
            "networks": {"trunk": TINY_TRUNK, "multi_frame": multi_frame},
            "data": {"synthetic": {"folder": "pairs"}},
            "stages": [{"kind": "supervised", "steps": 1}],
            "output": {"name": "x", "licence": "Apache-2.0"},
        }
    )
    return System.build(recipe, torch.device("cpu"))


def teacher_stage(
    nets: System, triplets: TripletSource, pairs: PairSource | None, folder: Path, **values: Any
) -> TeacherStage:
    config = Teacher(kind="teacher", steps=4, batch=3, **values)
    return TeacherStage(config, nets, triplets, pairs, nothing(folder))


@pytest.mark.parametrize("lookup", [(-1,), (-1, 1)])
def test_all_networks_learn_with_pads(
    triplets: TripletSource, pairs: PairSource, tmp_path: Path, lookup: tuple[int, ...]
) -> None:
    nets = build(lookup=lookup)
    stage = teacher_stage(nets, triplets, pairs, tmp_path)
    assert learning(stage) == {"student", "pose", "multi_frame"}
    _, values = stage.loss(stage.draw_batch(np.random.default_rng(1)))
    assert values["multi/masked_consistency"] > 0
    assert 0 <= values["multi/at_range_end"] <= 1


def test_all_networks_learn_with_a_cost_volume(tall: TripletSource, tmp_path: Path) -> None:
    nets = build(TALL, kind="cost_volume", hypotheses=16)
    before = float(nets.multi_frame.range.max_depth)
    stage = teacher_stage(nets, tall, None, tmp_path, consistency=1.0, scales=(0, 1, 2, 3))
    assert learning(stage) == {"student", "pose", "multi_frame"}
    assert float(nets.multi_frame.range.max_depth) != before, "the range follows"


def test_changed_samples_are_reliable_nowhere(tall: TripletSource, tmp_path: Path) -> None:
    """With all frames standing or missing, ManyDepth's M learns from S alone (2.5)."""
    for change in ({"static_camera": 1.0}, {"missing_frame": 1.0}):
        nets = build(TALL, kind="cost_volume", hypotheses=16)
        stage = teacher_stage(nets, tall, None, tmp_path, consistency=1.0, **change)
        _, values = stage.loss(stage.draw_batch(np.random.default_rng(0)))
        assert values["multi/reliable"] == 0
        assert values["multi/photometric"] == 0
        assert values["multi/consistency"] > 0


def test_student_and_pose_freeze_late(tall: TripletSource, tmp_path: Path) -> None:
    nets = build(TALL, kind="cost_volume", hypotheses=16)
    stage = teacher_stage(nets, tall, None, tmp_path, consistency=1.0, freeze_at=0.5)
    stage.at_step(1)
    assert all(p.requires_grad for p in nets.student.parameters())
    for network in stage.networks.values():
        network.train()
    stage.at_step(2)
    assert not any(p.requires_grad for n in (nets.student, nets.pose) for p in n.parameters())
    assert not nets.student.training and nets.multi_frame.training


def test_the_map_follows_real_frames_beside_a_student_that_does_not_learn(
    triplets: TripletSource, tmp_path: Path
) -> None:
    nets = build()
    config = Teacher(kind="teacher", steps=4, batch=3, train=("multi_frame",))
    stage = TeacherStage(config, nets, triplets, None, nothing(tmp_path))
    assert learning(stage) == {"multi_frame"}
    assert int(nets.multi_frame.window_seen) == 3


# --- distillation ---------------------------------------------------------------------------------


def distil_stage(
    triplets: TripletSource, pairs: PairSource | None, folder: Path, **values: Any
) -> DistilStage:
    torch.manual_seed(5)
    teacher = build()
    for p in teacher.student.parameters():  # another one than the student
        p.data += 0.05 * torch.randn_like(p)
    nets = build()
    nets.multi_frame.load_state_dict(teacher.multi_frame.state_dict())
    nets.teacher = teacher.frozen_copy()
    config = Distil(kind="distil", steps=1, batch=3, **values)
    return DistilStage(config, nets, triplets, pairs, nothing(folder))


def state(system: System) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, network in system.networks.items()
        for key, value in network.state_dict().items()
    }


def test_only_the_fresh_student_learns(
    triplets: TripletSource, pairs: PairSource, tmp_path: Path
) -> None:
    stage = distil_stage(triplets, pairs, tmp_path)
    teacher, multi = state(stage.teacher), stage.system.multi_frame.state_dict()
    multi = {key: value.clone() for key, value in multi.items()}
    assert learning(stage) == {"student", "pose"}
    assert all(torch.equal(v, teacher[k]) for k, v in state(stage.teacher).items())
    now = stage.system.multi_frame.state_dict()
    assert all(torch.equal(v, multi[k]) for k, v in now.items()), "M and its map stay"


def test_the_mask_decides_what_is_taught(
    triplets: TripletSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that explains nothing better teaches nothing; without the mask it does."""
    from training.stages import distil

    def useless(*arguments: Any) -> distil.Taught:
        taught = teach(*arguments)
        return distil.Taught(taught.depth, torch.full_like(taught.error, 9.0))

    monkeypatch.setattr(distil, "teach", useless)
    stage = distil_stage(triplets, None, tmp_path)
    _, masked = stage.loss(stage.draw_batch(np.random.default_rng(0)))
    assert masked["distil/mask_share"] == 0 and masked["distil/loss"] == 0
    stage = distil_stage(triplets, None, tmp_path, masked=False)
    _, free = stage.loss(stage.draw_batch(np.random.default_rng(0)))
    assert free["distil/loss"] > 0


def test_the_teachers_scale_is_of_no_importance(
    triplets: TripletSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.stages import distil

    stage = distil_stage(triplets, None, tmp_path, masked=False)
    scenes: list[Scene] = []
    further = stage._further
    monkeypatch.setattr(stage, "_further", lambda scene: scenes.append(scene) or further(scene))
    stage.loss(stage.draw_batch(np.random.default_rng(0)))
    plain, _ = further(scenes[0])
    monkeypatch.setattr(
        distil,
        "teach",
        lambda *a: distil.Taught(3.7 * teach(*a).depth, teach(*a).error),
    )
    scaled, _ = further(scenes[0])
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-6)


def test_the_teachers_motion_explains_the_teachers_depth(
    triplets: TripletSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = distil_stage(triplets, None, tmp_path)
    asked = []
    monkeypatch.setattr(
        stage.teacher,
        "motion",
        lambda a, b: asked.append(len(a)) or System.motion(stage.teacher, a, b),
    )
    stage.loss(stage.draw_batch(np.random.default_rng(0)))
    assert asked == [6], "both neighbours of three samples, by the teacher's pose network"


def test_standing_cameras_teach_matching_to_keep_the_single_frame_depth(
    triplets: TripletSource, pairs: PairSource, tmp_path: Path
) -> None:
    """With every sample standing, M's depth is S's, and what M matches is drawn towards it."""
    nets = build(lookup=(-1,))
    stage = teacher_stage(
        nets, triplets, pairs, tmp_path, static_camera=1.0, masked_consistency=0.0
    )
    before = nets.multi_frame.delta.clone()
    for _ in range(5):  # more than a window of the map
        loss, values = stage.loss(stage.draw_batch(np.random.default_rng(1)))
    assert values["multi/parallax"] == pytest.approx(0, abs=1e-3)
    assert values["multi/held"] > 0.01
    assert values["synthetic/multi_held"] > 0.01
    assert torch.equal(nets.multi_frame.delta, before), "nothing was matched: nothing to follow"
    nets.multi_frame.zero_grad()
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().any() for p in nets.multi_frame.parameters())
    views, still = stage._lookups(*_scene_of(stage))
    assert still.all()
    for view in views:
        assert torch.equal(view.motion.matrix, torch.eye(4).expand_as(view.motion.matrix))


def _scene_of(stage: TeacherStage) -> tuple[Scene, list[LookupFrame]]:
    batch = stage.triplets.batch(3, np.random.default_rng(0))
    scene = stage._part(stage._student(batch)[0])
    return scene, aligned_views(stage.system, scene)


def test_the_papers_form_is_held_to_nothing(
    triplets: TripletSource, pairs: PairSource, tmp_path: Path
) -> None:
    nets = build(parallax=0.0)
    stage = teacher_stage(nets, triplets, pairs, tmp_path)
    _, values = stage.loss(stage.draw_batch(np.random.default_rng(1)))
    assert values["multi/held"] == values["synthetic/multi_held"] == 0
    assert nets.multi_frame.architecture["parallax"] == 0


def test_held_by_hand() -> None:
    """One pixel without parallax, one with half of it, two with all."""
    single = torch.full((1, 1, 1, 4), 2.0, requires_grad=True)
    matched = torch.tensor([[[[4.0, 1.0, 9.0, 9.0]]]], requires_grad=True)
    weight = torch.tensor([[[[0.0, 0.5, 1.0, 1.0]]]])
    none = torch.zeros(0)
    output = MultiFrameOutput(none, none, none, none, none, none, matched, weight)
    loss = held_loss(output, single)
    assert loss.item() == pytest.approx((math.log(2) + 0.5 * math.log(2)) / 4)
    loss.backward()
    assert single.grad is None
    assert matched.grad is not None
    assert (matched.grad[..., 2:] == 0).all()


def test_the_recipe_s_threshold_is_the_network_s() -> None:
    assert MultiFrame().parallax == PARALLAX
