"""The stage `episodic`: what it draws, what it leaves alone, and that it learns to look up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_manifest

from depth_prior_ros.adaptation.keyframes import MatchedKeyframe, in_metres
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.models.mism import MultiFrameNet, build_multi_frame
from depth_prior_ros.models.pose import PoseNet
from depth_prior_ros.models.student import Student, build_student
from training.data.pairs import SampleSet
from training.recipes.recipe import Recipe
from training.stages.episodic import (
    EpisodeSource,
    Episodic,
    EpisodicStage,
    Matcher,
    draw_references,
    matched_frames,
    mirror,
    see,
    smooth_noise,
    with_matches,
)
from training.stages.system import System

TRAINED = Camera(56.0, 61.0, 48.0, 16.0, 96, 32)
FRAMES, RECORDINGS = 4, 3


def _student() -> Student:
    torch.manual_seed(0)
    values = {"trunk": "mobilenet_v2", "decoder": "convex", "far_bias": -2.0}
    return build_student({**values, "episodic": {"capacity": 40}}).eval()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> SampleSet:
    """Noise, with depth that is the recording's own everywhere: 4, 10 or 25 m."""
    shard = tmp_path_factory.mktemp("recordings") / "shard_00000"
    shard.mkdir()
    count = FRAMES * RECORDINGS
    rng = np.random.default_rng(0)
    metres = np.repeat([4.0, 10.0, 25.0], FRAMES).astype(np.float16)
    depth = np.broadcast_to(metres[:, None, None, None], (count, 2, 32, 96)).copy()
    depth[:, :, :12] = 0
    K = np.array([[112.0, 0, 48], [0, 122.0, 16], [0, 0, 1]], np.float32)
    np.save(shard / "images.npy", rng.integers(0, 255, (count, 2, 32, 96, 3), dtype=np.uint8))
    np.save(shard / "depth.npy", depth)
    np.save(shard / "K.npy", np.repeat(K[None], count, axis=0))
    np.save(shard / "previous_from_current.npy", np.repeat(np.eye(4)[None], count, axis=0))
    return SampleSet(shard.parent)


def _recipe(**networks: object) -> dict[str, object]:
    return {
        "size": [96, 32],
        "networks": {"trunk": "mobilenet_v2", "decoder": "convex", **networks},
        "data": {"synthetic": {"folder": "x", "count": 12, "frames_per_street": 4, "cameras": 1.0}},
        "stages": [
            {"kind": "episodic", "steps": 3, "batch": 2, "queries": 2, "references": [5, 30]}
        ],
        "output": {"name": "x", "licence": "x"},
    }


def test_depth_is_that_of_the_training_cameras_focal_length(samples: SampleSet) -> None:
    source = EpisodeSource.open(samples, FRAMES, _student(), TRAINED, 2.0)
    assert len(source.recordings) == RECORDINGS
    for metres, (plain, mirrored) in zip((4, 10, 25), source.recordings, strict=True):
        for frame in (*plain, *mirrored):  # a focal length twice that of training
            known = frame.depth[frame.depth > 0]
            torch.testing.assert_close(known, torch.full_like(known, metres / 2 / 2))
            assert (frame.depth == 0).float().mean() == 0.25
    assert not torch.equal(source.recordings[0][0][0].keys, source.recordings[0][1][0].keys)


def test_references_come_from_other_frames_of_the_recording(samples: SampleSet) -> None:
    source = EpisodeSource.open(samples, FRAMES, _student(), TRAINED, 2.0)
    config = Episodic(
        kind="episodic", steps=1, batch=4, queries=2, references=(5, 30), noise_share=0.0
    )
    for seed in range(6):
        rng = np.random.default_rng(seed)
        batch = source.batch(rng, config)
        assert batch.which.tolist() == [0, 0, 1, 1]
        for i, which in enumerate(batch.which.tolist()):
            found = batch.references[which]
            assert 5 <= len(found) <= 30
            depth = batch.depth[i][batch.depth[i] > 0].unique()
            torch.testing.assert_close(1 / found.inverse_depth, depth.expand(len(found)))
            # No pixel of a frame that asks is a reference.
            asked = source.recordings[[1.0, 2.5, 6.25].index(float(depth))]
            query = next(
                f
                for f in (*asked[0], *asked[1])
                if torch.equal(f.decoded.float()[0], batch.decoded[i])
            )
            keys = query.keys.float()[0].flatten(1).T
            assert torch.cdist(found.features, keys).min() > 1e-3


def test_multi_frame_depth_becomes_references(samples: SampleSet) -> None:
    """As `adapt` takes it, off by what odometry is; exact depth where nothing was matched."""
    seen = EpisodeSource.open(samples, FRAMES, _student(), TRAINED, 2.0).recordings[0][0]
    depth = np.zeros((4, 12), np.float32)
    depth[2, 3:7] = 1, 2, 3, 4
    once = MatchedKeyframe(0, np.zeros((0, 96, 3), np.uint8), TRAINED, depth, 1.0, 1.0)
    frames = with_matches(seen, [once] * FRAMES, [0.5] * FRAMES)
    unmatched = with_matches(seen, [None] * FRAMES, [0.5] * FRAMES)
    rng = np.random.default_rng(0)
    assert matched_frames(unmatched, 0.05, rng) == []
    assert torch.equal(matched_frames(frames[:1], 0.0, rng)[0].depth[0, 0], torch.tensor(depth) * 2)
    off = torch.stack([f.depth[0, 0, 2, 3:7] for f in matched_frames(frames * 50, 0.05, rng)])
    ratio = off / (2 * torch.arange(1, 5))
    assert 0.03 < float(ratio[:, 0].std()) < 0.07
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 4))
    # A step whose metres disagree with the others is not taken.
    wrong = with_matches(seen[:1], [replace(once, metres=2.0)], [0.5])
    known = [bool(f.depth.any()) for f in matched_frames(frames[1:] + wrong, 0.0, rng)]
    assert known == [True] * (FRAMES - 1) + [False]
    # Of two that disagree neither is.
    assert matched_frames(with_matches(seen[:1], [once], [0.5]) + wrong, 0.0, rng) == []
    values = {"steps": 1, "batch": 2, "queries": 2, "references": (5, 30), "noise_share": 0.0}
    config = Episodic(kind="episodic", matched_share=1.0, odometry=0.0, **values)  # type: ignore[arg-type]
    for recording, expected in ((unmatched, {1.0}), (frames, {2.0, 4.0, 6.0, 8.0})):
        drawn = EpisodeSource([(recording, recording)]).batch(rng, config).references[0]
        assert {round(d, 4) for d in (1 / drawn.inverse_depth).tolist()} == expected


def test_a_matcher_has_the_scale_of_odometry(samples: SampleSet) -> None:
    """Twice as long a step is twice as far; without parallax there is no keyframe."""
    student, trained = _student(), replace(TRAINED, fx=112.0, fy=122.0)
    torch.manual_seed(1)
    matcher = Matcher(student, PoseNet("small").eval(), _multi_frame(0.0), trained)
    row = {
        "images": samples[0]["images"],
        "K": samples[0]["K"],
        "previous_from_current": np.eye(4) + np.eye(4, k=1) * (np.arange(4) == 2)[:, None],
    }
    once = matcher.keyframe(row)
    row["previous_from_current"][2, 3] = 2.0
    twice = matcher.keyframe(row)
    assert once is not None and twice is not None and (once.metres, twice.metres) == (1.0, 2.0)
    (one,), (two,) = in_metres([once]), in_metres([twice])
    known = (one.depth > 0) & (two.depth > 0)
    assert known.any()
    np.testing.assert_allclose(two.depth[known], 2 * one.depth[known], rtol=1e-5)
    np.testing.assert_array_equal(mirror(once).depth, once.depth[:, ::-1])
    assert Matcher(student, matcher.pose, _multi_frame(1e6), trained).keyframe(row) is None


def _multi_frame(parallax: float) -> MultiFrameNet:
    torch.manual_seed(2)
    architecture = {
        **tiny_manifest().architecture.multi_frame,
        "parallax": parallax,
        "size": [32, 96],
    }
    return build_multi_frame(architecture).eval()


def test_errors_are_smooth_and_as_large_as_asked(samples: SampleSet) -> None:
    source = EpisodeSource.open(samples, FRAMES, _student(), TRAINED, 2.0)
    rng = np.random.default_rng(0)
    noise = torch.cat([smooth_noise((16, 52), rng, 0.1) for _ in range(200)])
    assert 0.05 < float(noise.std()) < 0.1
    assert float((noise[..., 1:] - noise[..., :-1]).abs().max()) < 0.1
    found = draw_references(source.recordings[0][0], 30, rng, 0.1)
    assert 0.01 < float(found.inverse_depth.log().std()) < 0.2


def test_it_learns_the_look_up_and_nothing_else(samples: SampleSet) -> None:
    recipe = Recipe.model_validate(_recipe(episodic={"capacity": 40}))
    system = System.build(recipe, torch.device("cpu"))
    config = recipe.stages[0]
    assert isinstance(config, Episodic)
    source = EpisodeSource.open(samples, FRAMES, system.student.eval(), TRAINED, 2.0)
    stage = EpisodicStage(config, system, source, source)
    before = {name: t.clone() for name, t in system.student.state_dict().items()}
    image, depth = torch.rand(1, 3, 32, 96), torch.ones(1, 1, 4, 12)
    seen = see(system.student, image, depth)
    optimiser = torch.optim.Adam(stage.trained, lr=3e-3)
    errors = []
    for step in range(40):
        loss, logs = stage.loss(stage.draw_batch(np.random.default_rng(step)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(float(logs["episodic/error"] / logs["episodic/none"]))
    assert np.mean(errors[-10:]) < 0.6 * np.mean(errors[:5]), errors
    for name, tensor in system.student.state_dict().items():
        assert name.startswith("episodic.") or torch.equal(tensor, before[name]), name
    assert torch.equal(see(system.student, image, depth).own, seen.own)
    figures = stage.validate()
    assert figures["abs_rel_references"] < figures["abs_rel_none"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks": {}}, "needs networks.episodic"),
        ({"stages": {"references": [5, 50]}}, "has room for 40"),
        ({"stages": {"queries": 4, "batch": 4}}, "frames_per_street of 5 or more"),
        ({"stages": {"batch": 3}}, "no multiple of queries"),
        (
            {"multi_frame": {"kind": "cost_volume"}, "stages": {"matched_share": 0.5}},
            "matched_share needs networks.multi_frame.kind pads",
        ),
    ],
)
def test_recipes_that_do_not_fit_are_refused(change: dict[str, dict], message: str) -> None:
    values = _recipe(episodic={"capacity": 40})
    if "networks" in change:
        values["networks"] = {}
    if "multi_frame" in change:
        values["networks"]["multi_frame"] = change["multi_frame"]  # type: ignore[index]
    for key, value in change.get("stages", {}).items():
        values["stages"][0][key] = value  # type: ignore[index]
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(values)
