"""The stage `self_distil`: its target, what learns and what stays, the bundle that it leaves."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_manifest
from training_files import TRAINING_NAMES, write_moving_drive

from depth_prior_ros.adaptation.references import make_references
from depth_prior_ros.bundle import Bundle, CameraSpec, ReferencesSpec, load_bundle, save_bundle
from depth_prior_ros.bundle.baselines import OWN_MEAN, read_baselines
from depth_prior_ros.bundle.derive import replace_references, tell_camera
from depth_prior_ros.bundle.manifest import Architecture, CameraCodeSpec
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.models.mism import build_multi_frame
from depth_prior_ros.models.pose import PoseNet
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from depth_prior_ros.models.student import build_student
from training.data.pairs import PairSource
from training.data.triplets import TripletSource, load_triplets
from training.recipes.data import Drive
from training.recipes.recipe import Recipe, RecipeError
from training.runs.run import Run
from training.stages.self_distil import (
    RawRecordings,
    SelfDistil,
    SelfDistilStage,
    taught_depth,
)
from training.stages.system import System
from training.stages.validation import Validation

SIZE, UNIT, FRAMES, CAPACITY = (96, 32), 10.0, 4, 24
DRIVE = f"kitti_raw/2011_09_26/{TRAINING_NAMES[0]}"
CAMERA = Camera(72.15, 72.15, 61.0, 17.0, 124, 38)
TRAINED = Camera(56.0, 61.0, 48.0, 16.0, *SIZE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_moving_drive(root, numbers=range(10))
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Random networks; the student reads a prior and looks references up."""
    torch.manual_seed(0)
    manifest = tiny_manifest(SIZE)
    spec = {"trunk": "mobilenet_v2", "decoder": "convex", "camera_code": True, "far_bias": -2.0}
    fusion = FusionConfig(stride=16, reference_channels=32, width=16, heads=2)
    student = build_student({**spec, "fusion": fusion, "episodic": {"capacity": CAPACITY}})
    assert student.episodic is not None
    torch.nn.init.normal_(student.episodic.weigh.weight, std=0.3)
    multi = {**manifest.architecture.multi_frame, "size": [32, 96], "parallax": 0.5}
    built = Architecture(
        student=student.architecture,
        pose={"variant": "small"},
        multi_frame={name: value for name, value in multi.items() if name != "size"},
        align_motion=True,
    )
    assert manifest.prior is not None
    prior = manifest.prior.model_copy(update={"pixels": 16, "channels": 32})
    folder = tmp_path_factory.mktemp("bundles")
    plain = save_bundle(
        folder / "plain",
        manifest.model_copy(update={"architecture": built, "prior": prior}),
        student=student,
        pose=PoseNet("small"),
        multi_frame=build_multi_frame(multi),
        prior=Prior(torch.randn(16, 32), torch.rand(16) + 0.1),
    )
    depth = torch.rand(2, 1, 4, 12) * 30
    found = make_references(
        plain.student(), torch.rand(2, 3, 32, 96), depth, 20, metres_per_unit=UNIT
    )
    about = ReferencesSpec(
        count=1,
        channels=1,
        camera=CameraSpec.of(CAMERA),
        source="a drive",
        alignment="0" * 64,
    )
    return replace_references(plain, folder / "bundle", found, about)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PairSource:
    """Noise, the brighter the nearer; depth is the recording's everywhere: 4, 10 or 25 m."""
    shard = tmp_path_factory.mktemp("recordings") / "shard_00000"
    shard.mkdir()
    rng, count = np.random.default_rng(0), 3 * FRAMES
    metres = np.repeat([4.0, 10.0, 25.0], FRAMES).astype(np.float16)
    K = np.array([[112.0, 0, 48], [0, 122.0, 16], [0, 0, 1]], np.float32)
    bright = (4 / metres).astype(np.float32)[:, None, None, None, None]
    columns = {
        "images": (rng.integers(0, 255, (count, 2, 32, 96, 3)) * bright).astype(np.uint8),
        "depth": np.broadcast_to(metres[:, None, None, None], (count, 2, 32, 96)),
        "K": np.repeat(K[None], count, axis=0),
        "previous_from_current": np.repeat(np.eye(4)[None], count, axis=0),
    }
    for name, values in columns.items():
        np.save(shard / f"{name}.npy", values)
    return PairSource.open(shard.parent, UNIT)


@pytest.fixture(scope="module")
def triplets(data: Path) -> TripletSource:
    return load_triplets(data, [Drive(path=DRIVE)], SIZE, UNIT)


def values(start: object, **stage: Any) -> dict[str, Any]:
    config = {"kind": "self_distil", "steps": 3, "batch": 2, "queries": 2, "references": [5, 20]}
    config |= {"frozen_to": 16, "warm_up": 0, "learning_rate": 1e-3, "frames": [1, 2]}
    synthetic = {"folder": "x", "count": 12, "frames_per_street": FRAMES, "cameras": 1.0}
    return {
        "size": list(SIZE),
        "start": str(start),
        "networks": {
            "trunk": "mobilenet_v2",
            "decoder": "convex",
            "camera_code": True,
            "episodic": {"capacity": CAPACITY},
            "multi_frame": {"hypotheses": 16, "lookup": [-1, 1], "parallax": 0.5},
        },
        "data": {"drives": [{"path": DRIVE}], "synthetic": synthetic},
        "stages": [config | stage],
        "output": {"name": "after", "licence": tiny_manifest().licence, "provenance": ["drive"]},
    }


@pytest.fixture
def run(bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DEPTH_PRIOR_DATA", str(data))
    return Run(Recipe.model_validate(values(bundle.path)), tmp_path / "run")


def prepared(run: Run) -> System:
    stage = run.recipe.stages[0]
    assert isinstance(stage, SelfDistil)
    return stage.prepare(run, run.initial_system(), 0)


def test_the_target_of_a_mirrored_frame_is_the_mirrored_target(
    run: Run, triplets: TripletSource
) -> None:
    """Where nothing is matched: motion is another one in a mirror, since networks are not exact."""
    system = prepared(run)
    assert system.teacher is not None and system.references is not None
    teacher = system.teacher
    teacher.multi_frame.parallax = 1e6
    batch = triplets.batch(2, np.random.default_rng(1))
    mirrored = replace(batch, images=batch.images.flip(-1), mirrored=~batch.mirrored)
    target, other = taught_depth(teacher, batch), taught_depth(teacher, mirrored)
    torch.testing.assert_close(other.flip(-1), target, rtol=1e-3, atol=1e-4)
    wrong = taught_depth(teacher, replace(mirrored, mirrored=batch.mirrored))
    assert (wrong.flip(-1) / target).log().abs().mean() > 0.01, "references matter, and their side"
    single = teacher.single_depth(batch.images[:, 1], teacher.looked_up(batch.mirrored))
    assert (single / target).log().abs().mean() > 0.01, "the mirrored picture counts"


def test_what_was_matched_is_in_the_target(run: Run, triplets: TripletSource) -> None:
    teacher = prepared(run).teacher
    assert teacher is not None
    batch = triplets.batch(2, np.random.default_rng(1))
    teacher.multi_frame.parallax = 0.0
    both = taught_depth(teacher, batch)
    teacher.lookup = (-1,)
    assert not torch.equal(taught_depth(teacher, batch), both), "of both neighbours"
    teacher.multi_frame.parallax = 1e6
    assert (taught_depth(teacher, batch) / both).log().abs().mean() > 0.01


def test_what_the_student_alone_sees_far_is_not_matched(run: Run, triplets: TripletSource) -> None:
    """Whatever references or a match make of it."""
    teacher = prepared(run).teacher
    assert teacher is not None
    batch = triplets.batch(2, np.random.default_rng(1))
    alone = teacher.single_depth(batch.images[:, 1])
    far = float(alone.median())
    everywhere, near = taught_depth(teacher, batch), taught_depth(teacher, batch, far)
    assert bool((everywhere > 0).all()), "nothing is beyond 10 units here"
    assert torch.equal(near, everywhere * (alone <= far))


def test_it_comes_nearer_to_its_teacher_and_nothing_else_moves(
    run: Run, triplets: TripletSource, pairs: PairSource
) -> None:
    system = prepared(run)
    config = run.recipe.stages[0].model_copy(update={"without_references": 0.0})
    assert isinstance(config, SelfDistil) and system.teacher is not None
    stage = SelfDistilStage(
        config,
        system,
        triplets,
        pairs,
        RawRecordings(pairs, FRAMES, TRAINED),
        Validation(run.root, SIZE),
    )
    networks = {**system.networks, **{f"t_{n}": m for n, m in system.teacher.networks.items()}}
    before = copy.deepcopy({name: network.state_dict() for name, network in networks.items()})
    optimiser = torch.optim.Adam(stage.trained, lr=3e-4)
    probes = [stage.draw_batch(np.random.default_rng([9, number])) for number in range(8)]

    def errors() -> dict[str, float]:
        with torch.no_grad():
            logs = [stage.loss(probe)[1] for probe in probes]
        return {name: float(np.mean([float(log[name]) for log in logs])) for name in logs[0]}

    first = errors()
    for step in range(40):
        loss, _ = stage.loss(stage.draw_batch(np.random.default_rng(step)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    last = errors()
    assert set(last) == {"distil", "distil_gradient", "rendered", "episode"}
    assert all(last[name] < 0.9 * first[name] for name in ("distil", "rendered", "episode")), (
        first,
        last,
    )
    frozen = {id(p) for layer in system.student.trunk.layers_to(16) for p in layer.parameters()}
    for name, network in networks.items():
        for key, tensor in network.state_dict().items():
            parameter = dict(network.named_parameters()).get(key)
            learns = (
                name == "student" and not key.startswith("fusion.") and id(parameter) not in frozen
            )
            same = torch.equal(tensor, before[name][key])
            assert learns or same, (name, key)
    moved = {"decoder.", "episodic.", "camera_code.", "trunk."}
    for part in moved:
        assert any(
            not torch.equal(t, before["student"][k])
            for k, t in system.student.state_dict().items()
            if k.startswith(part)
        ), part


def test_an_episode_is_of_one_recording_and_two_roles(pairs: PairSource) -> None:
    config = SelfDistil(kind="self_distil", steps=1, queries=2, frames=(1, 2), references=(5, 20))
    recordings = RawRecordings(pairs, FRAMES, TRAINED)
    sides = set()
    for seed in range(12):
        episode = recordings.episode(np.random.default_rng(seed), config)
        (depth,) = torch.cat([episode.depth, episode.given_depth]).unique().tolist()
        number = [4.0, 10.0, 25.0].index(round(depth * UNIT * 2, 3))  # a focal length twice as long
        own = torch.stack(
            [
                torch.from_numpy(np.array(pairs.samples[FRAMES * number + i]["images"][1]))
                for i in range(FRAMES)
            ]
        ).permute(0, 3, 1, 2)
        shown = (torch.cat([episode.asked, episode.given]) * 255).round().to(torch.uint8)
        flip = not bool((own == shown[0]).flatten(1).all(1).any())
        sides.add(flip)
        own = own.flip(-1) if flip else own
        frames = [int((own == picture).flatten(1).all(1).nonzero()) for picture in shown]
        assert len(set(frames)) == len(frames) == 2 + len(episode.given)
        assert 5 <= episode.count <= 20
    assert sides == {True, False}


def test_without_references_none_are_looked_up(
    run: Run, triplets: TripletSource, pairs: PairSource
) -> None:
    system = prepared(run)
    config = run.recipe.stages[0].model_copy(update={"without_references": 1.0})
    assert isinstance(config, SelfDistil)
    stage = SelfDistilStage(config, system, triplets, pairs, None, Validation(run.root, SIZE))
    lesson = stage.draw_batch(np.random.default_rng(0))
    assert not lesson.looks_up and lesson.episode is None
    loss = stage.loss(lesson)[0]
    assert system.references is not None
    system.references = replace(
        system.references, inverse_depth=system.references.inverse_depth * 2
    )
    assert torch.equal(stage.loss(lesson)[0], loss)
    assert not torch.equal(stage.loss(replace(lesson, looks_up=True))[0], loss)


def test_a_run_leaves_the_bundle_with_another_student(
    run: Run, bundle: Bundle, pairs: PairSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds; stopped in the second one and begun again it is the same to the bit."""
    monkeypatch.setattr(Run, "pairs", lambda self, count=None: pairs)
    made = values(bundle.path, rounds=2, ema=0.5) | {"checkpoint_every": 1}
    recipe = Recipe.model_validate(made)
    written = load_bundle(replace(run, recipe=recipe, loaded=None).carry_out())
    old, new = bundle.manifest, written.manifest
    assert (new.name, new.depth, new.camera) == ("after", old.depth, old.camera)
    assert new.provenance.steps == old.provenance.steps | {
        "0_self_distil_round1": 3,
        "0_self_distil_round2": 3,
    }
    kept = {"pose.safetensors", "multi_frame.safetensors", "references.safetensors"}
    for name in kept:
        assert new.files[name] == old.files[name], name
    assert new.files["student.safetensors"] != old.files["student.safetensors"]
    assert torch.equal(written.prior().features, bundle.prior().features)
    assert old.references is not None and new.references is not None
    assert new.references.alignment != old.references.alignment, "the look-up reads otherwise now"
    assert new.references.source == "a drive (of the student before)"
    assert new.provenance.data_sources == [*old.provenance.data_sources, "drive"]
    assert OWN_MEAN in read_baselines(written)

    again = Run(recipe, run.folder.parent / "again")
    drawn = RawRecordings.episode
    count = 0

    def stops(self: RawRecordings, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return drawn(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RawRecordings, "episode", stops)
        with pytest.raises(KeyboardInterrupt):
            again.carry_out()
    resumed = load_bundle(Run(recipe, again.folder).carry_out())
    assert resumed.manifest.files == new.files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": None}, "goes on from the bundle that start names"),
        ({"start": __file__}, "not from the checkpoint"),
        ({"start_networks": ["pose"]}, "begins with all networks of start"),
        ({"init": {"student": "x"}}, "begins with all networks of start"),
        ({"output": {"camera_height": 1.65}}, "leave output.camera_height out"),
        ({"output": {"multi_frame": False}}, "leave output.multi_frame out"),
        ({"stages": {"frozen_to": 8}}, "frozen_to: 16 or more"),
        ({"stages": {"frozen_to": None}}, "frozen_to: 16 or more"),
        ({"stages": {"queries": 4}}, "frames_per_street of 5 or more"),
        ({"stages": {"references": [5, 50]}}, "has room for 24"),
        ({"data": {"mode": "S"}}, "which data.mode S has not"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    made = values("bundle", **change.get("stages", {}))
    for key in ("data", "output"):
        made[key] |= change.get(key, {})
    made |= {key: change[key] for key in ("start", "start_networks", "init") if key in change}
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(json.loads(json.dumps(made)))


def test_it_is_the_only_stage() -> None:
    made = values("bundle")
    made["stages"].append({"kind": "self_supervised", "steps": 1})
    with pytest.raises(ValueError, match="as the only stage"):
        Recipe.model_validate(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose": "resnet18"}, "networks.pose: "),
        ({"camera_code": False}, "networks: "),
        ({"episodic": {"capacity": CAPACITY, "width": 8}}, "networks: "),
        ({"multi_frame": {"hypotheses": 16, "parallax": 1.0}}, "networks.multi_frame: "),
        ({"multi_frame": {"hypotheses": 16, "align_motion": False}}, "align_motion: False"),
        ({"size": [128, 64]}, r"size: \(128, 64\) is not what the bundle"),
        ({"output": {"name": "x", "licence": "MIT"}}, "output.licence: MIT"),
    ],
)
def test_a_recipe_unlike_the_bundle_is_refused(
    run: Run, bundle: Bundle, change: dict[str, Any], message: str
) -> None:
    made = values(bundle.path)
    whole = {key: change.pop(key) for key in ("size", "output") if key in change}
    made["networks"] |= change
    recipe = Recipe.model_validate(made | whole)
    with pytest.raises(RecipeError, match=message):
        prepared(replace(run, recipe=recipe))


def test_a_bundle_that_was_told_a_camera_is_refused(
    run: Run, bundle: Bundle, tmp_path: Path
) -> None:
    """Its numbers were fitted to the student as it was."""
    camera = CameraSpec.of(CAMERA)
    code = CameraCodeSpec(numbers=(0.1, 0.0, 0.0, 0.0, 0.0), camera=camera, source="a drive")
    told = tell_camera(bundle, tmp_path / "told", code, keep_references=False)
    recipe = Recipe.model_validate(values(told.path))
    with pytest.raises(RecipeError, match="start with the bundle before"):
        prepared(replace(run, recipe=recipe))
