"""Stages of training on small made-up data: what learns, in which direction, on which device."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import texture
from test_training_data import write_drive
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.geometry.warping import Pose, disparity_to_depth
from depth_prior_ros.models.prior_fusion import FusionConfig
from training.data.pairs import PairSource, SampleSet
from training.data.triplets import TripletSource, load_triplets
from training.recipes.data import Drive
from training.recipes.recipe import Recipe, RecipeError
from training.stages.prior import RandomPrior, random_prior
from training.stages.self_supervised import SelfSupervised, SelfSupervisedStage
from training.stages.supervised import Supervised, SupervisedStage
from training.stages.system import System
from training.stages.validation import Validation

SIZE = (64, 32)
UNIT = 10.0


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pairs in the files that `write_samples` writes: a plane, 1 m driven straight ahead."""
    folder = tmp_path_factory.mktemp("pairs")
    picture = texture(SIZE[0], SIZE[1], margin=16)
    images = np.stack([picture[8:40, 8 + i : 72 + i] for i in range(12)]).reshape(6, 2, 32, 64, 3)
    depth = np.full((6, 2, 32, 64), 20.0, np.float16)
    depth[:, :, :8] = 0  # sky
    pose = np.tile(np.eye(4, dtype=np.float32), (6, 1, 1))
    pose[:, 2, 3] = 1.0
    K = np.tile(np.array([[37, 0, 30], [0, 61, 15], [0, 0, 1]], np.float32), (6, 1, 1))
    columns = {"images": images, "depth": depth, "K": K, "previous_from_current": pose}
    (folder / "shard_00000").mkdir()
    for name, values in columns.items():
        np.save(folder / "shard_00000" / f"{name}.npy", values)
    return folder


@pytest.fixture(scope="module")
def pairs(pair_folder: Path) -> PairSource:
    return PairSource.open(pair_folder, UNIT)


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> TripletSource:
    root = tmp_path_factory.mktemp("data")
    drive = write_drive(root, list(range(6)))
    picture = texture(124, 38, margin=8)
    for i in range(6):
        path = drive / "image_02" / f"{i:010d}.png"
        cv2.imwrite(str(path), picture[8:46, 8 + i : 132 + i])
    return load_triplets(root, [Drive(path=str(drive.relative_to(root)))], SIZE, UNIT)


def system(fusion: FusionConfig | None = None) -> System:
    recipe = Recipe.model_validate(
        {
            "size": SIZE,
            "networks": {"trunk": TINY_TRUNK},
            "data": {"synthetic": {"folder": "pairs"}},
            "stages": [{"kind": "supervised", "steps": 1}],
            "output": {"name": "x", "licence": "Apache-2.0"},
        }
    )
    return System.build(recipe, torch.device("cpu"), fusion)


def nothing(folder: Path) -> Validation:
    return Validation(folder, SIZE)


# --- batches --------------------------------------------------------------------------------------


def test_pairs_are_drawn_without_a_warning_and_follow_the_seed(pairs: PairSource) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (pairs.batch(8, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first.inputs, second.inputs)
    assert not torch.equal(first.inputs, pairs.batch(8, np.random.default_rng(4)).inputs)


def test_pairs_are_in_units_and_run_either_way(pairs: PairSource) -> None:
    batch = pairs.batch(32, np.random.default_rng(0))
    assert set(batch.depth.unique().tolist()) == {0.0, 2.0}
    forward = batch.previous_from_current.translation
    torch.testing.assert_close(forward[:, 2].abs(), torch.full((32,), 1 / UNIT))
    assert set(forward[:, 2].sign().tolist()) == {-1.0, 1.0}
    mirrored = batch.K[:, 0, 2]
    assert set(mirrored.tolist()) == {30.0, 63.0 - 30.0}


def test_a_folder_may_hold_more_pairs_than_are_drawn_from(pair_folder: Path) -> None:
    asked: list[int] = []

    def drawn(source: PairSource, first: int | None = None) -> set[int]:
        asked.clear()
        source.batch(64, np.random.default_rng(0), first)
        return set(asked)

    source = PairSource.open(pair_folder, UNIT, 4)
    read = source.samples.__class__.__getitem__
    source.samples.__class__ = type(
        "Spied", (SampleSet,), {"__getitem__": lambda s, i: asked.append(i) or read(s, i)}
    )
    assert drawn(source) == {0, 1, 2, 3}
    assert drawn(source, first=2) == {0, 1}
    assert PairSource.open(pair_folder, UNIT, 9).count == 6


@pytest.mark.parametrize("keep", [0, 60, 1000])
def test_a_damaged_shard_is_named(pair_folder: Path, tmp_path: Path, keep: int) -> None:
    shutil.copytree(pair_folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "shard_00000" / "images.npy"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RecipeError, match=r"shard_00000 is damaged.*remove it"):
        PairSource.open(tmp_path, UNIT)


def test_every_tensor_of_a_batch_moves(pairs: PairSource, triplets: TripletSource) -> None:
    elsewhere = torch.device("meta")
    rng = np.random.default_rng(0)
    for batch in (pairs.batch(2, rng).to(elsewhere), triplets.batch(2, rng).to(elsewhere)):
        for field in fields(batch):
            value = getattr(batch, field.name)
            if field.default is None:  # what nobody asked for
                assert value is None
                continue
            tensor = value.matrix if isinstance(value, Pose) else value
            assert tensor.device == elsewhere, field.name


# --- what learns ----------------------------------------------------------------------------------


def learning(stage: SupervisedStage | SelfSupervisedStage) -> set[str]:
    """Names of the networks whose every part gets a gradient from one batch."""
    for network in stage.networks.values():
        network.train()
    torch.manual_seed(0)
    loss, _ = stage.loss(stage.draw_batch(np.random.default_rng(0)))
    loss.backward()
    learns = {id(p) for p in stage.trained}
    return {
        name
        for name, network in stage.networks.items()
        if all(id(p) in learns for p in network.parameters())
        and any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    }


def test_the_supervised_stage_teaches_all_networks(pairs: PairSource, tmp_path: Path) -> None:
    nets = system()
    config = Supervised(kind="supervised", steps=1, batch=4, multi_batch=2)
    stage = SupervisedStage(config, nets, pairs, nothing(tmp_path))
    assert learning(stage) == {"student", "pose", "multi_frame"}
    assert nets.multi_frame.window_seen > 0, "the PADS map follows"


def test_the_self_supervised_stage_teaches_all_networks(
    triplets: TripletSource, pairs: PairSource, tmp_path: Path
) -> None:
    nets = system()
    config = SelfSupervised(kind="self_supervised", steps=1, batch=3, synthetic_batch=2)
    stage = SelfSupervisedStage(config, nets, triplets, pairs, nothing(tmp_path))
    assert learning(stage) == {"student", "pose", "multi_frame"}
    assert nets.multi_frame.window_seen > 0, "the PADS map follows"


def frozen_state(nets: System) -> dict[str, torch.Tensor]:
    """Weights, batch statistics and PADS map that a prior stage must not touch."""
    states = {
        f"{n}.{k}": v for n, net in nets.networks.items() for k, v in net.state_dict().items()
    }
    return {k: v for k, v in states.items() if not k.startswith("student.fusion.")}


def test_the_prior_stage_teaches_the_fusion_alone(
    triplets: TripletSource, pairs: PairSource, tmp_path: Path
) -> None:
    nets = system(FusionConfig())
    nets.prior = random_prior(nets, triplets, 20, 4, seed=1)
    config = RandomPrior(kind="prior", steps=1, batch=3, synthetic_batch=0)
    stage = SelfSupervisedStage(config, nets, triplets, None, nothing(tmp_path))
    before = {k: v.clone() for k, v in frozen_state(nets).items()}
    assert learning(stage) == set(), "no network as a whole"
    assert nets.student.fusion is not None
    assert {id(p) for p in stage.trained} == {id(p) for p in nets.student.fusion.parameters()}
    assert any(p.grad.abs().sum() > 0 for p in stage.trained if p.grad is not None)
    others = [p for n, p in nets.student.named_parameters() if not n.startswith("fusion.")]
    assert all(p.grad is None for p in [*others, *nets.pose.parameters()]), "nothing in vain"
    assert all(torch.equal(v, before[k]) for k, v in frozen_state(nets).items())
    settle = SelfSupervised(kind="self_supervised", steps=1, train=("pose", "multi_frame"))
    # With pairs: the auto-mask may leave a random pose network without a single pixel.
    stage = SelfSupervisedStage(settle, nets, triplets, pairs, nothing(tmp_path))
    assert learning(stage) == {"pose", "multi_frame"}, "a later stage trains what it names"
    nets.student.zero_grad()
    again = Supervised(kind="supervised", steps=1, batch=2)
    assert learning(SupervisedStage(again, nets, pairs, nothing(tmp_path))) == set(nets.networks)


# --- directions and units -------------------------------------------------------------------------


def test_poses_lead_from_the_current_frame_to_its_neighbours(
    triplets: TripletSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera that drives 1 unit a frame: ahead in the frame before, behind in the next one."""
    nets = system()
    config = SelfSupervised(kind="self_supervised", steps=1)
    stage = SelfSupervisedStage(config, nets, triplets, None, nothing(tmp_path))

    def drives_ahead(first: torch.Tensor, _second: torch.Tensor) -> Pose:
        later_from_earlier = torch.eye(4).repeat(first.shape[0], 1, 1)
        later_from_earlier[:, 2, 3] = -1.0
        return Pose(later_from_earlier)

    monkeypatch.setattr(nets, "motion", drives_ahead)
    batch = triplets.batch(2, np.random.default_rng(0))
    poses, predicted, error = stage._poses(batch)
    assert poses[0, :, 2, 3].tolist() == [1.0, 1.0]
    assert poses[1, :, 2, 3].tolist() == [-1.0, -1.0]
    assert error == 0, "nothing is known of this drive"
    batch.known[1] = True
    batch.poses[1, :, 0, 3] = 7.0
    poses, predicted, error = stage._poses(batch)
    assert predicted[0, :, 2, 3].tolist() == [1.0, 1.0]
    assert poses[:, 1, 0, 3].tolist() == [7.0, 7.0], "a recorded pose replaces the predicted one"
    assert error > 0


def test_a_random_prior_has_the_teachers_features_and_inverse_depth(
    triplets: TripletSource,
) -> None:
    nets = system()
    first, again, other = (random_prior(nets, triplets, 20, 4, seed) for seed in (1, 1, 2))
    assert first.features.shape == (20, 32) and first.inverse_depth.shape == (20,)
    assert torch.equal(first.features, again.features)
    assert not torch.equal(first.features, other.features)
    low, high = 1 / 100.0 / 2, 2 / 0.1  # the network's range, widened by delta = 1
    assert ((first.inverse_depth > low) & (first.inverse_depth < high)).all()


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_all_stages_run_on_cuda(triplets: TripletSource, pairs: PairSource, tmp_path: Path) -> None:
    nets = system()
    nets.device = torch.device("cuda")
    for network in nets.networks.values():
        network.to(nets.device)
    prior = random_prior(nets, triplets, 20, 4, 1)
    assert prior.features.is_cuda
    supervised = Supervised(kind="supervised", steps=1, batch=2)
    real = SelfSupervised(kind="self_supervised", steps=1, batch=2)
    stages = [
        SupervisedStage(supervised, nets, pairs, nothing(tmp_path)),
        SelfSupervisedStage(real, nets, triplets, pairs, nothing(tmp_path)),
    ]
    for stage in stages:
        loss, _ = stage.loss(stage.draw_batch(np.random.default_rng(0)))
        assert loss.is_cuda and torch.isfinite(loss)
        loss.backward()
    _, depth = disparity_to_depth(nets.single(torch.rand(1, 3, 32, 64, device="cuda"))[0])
    assert depth.is_cuda
