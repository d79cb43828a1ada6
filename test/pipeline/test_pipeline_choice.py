"""Motion from odometry, the scale's share in a frame, budgets, memory: what a robot adds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import METRES_PER_UNIT, texture
from numpy.typing import NDArray
from pipeline_scenes import (
    MOVING,
    STANDING,
    TENTH,
    WatchedScale,
    drive,
    models,
    restart,
    view,
)

from depth_prior_ros.bundle import Bundle
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.models.mism import MultiFrameNet
from depth_prior_ros.motion.gate import Motion
from depth_prior_ros.pipeline import BUDGET_SHARE, DepthPipeline, DepthResult
from depth_prior_ros.pipeline.guard import MultiFrameGuard
from depth_prior_ros.pipeline.multi_frame_step import PoseChoice, units_step
from depth_prior_ros.pipeline.results import MatchedFrame
from depth_prior_ros.pipeline.runtime import MultiFrameTensors
from depth_prior_ros.scale import FixedScale


def ahead(metres: float, side: float = 0.0, yaw: float = 0.0) -> NDArray[np.float64]:
    """previous_from_current of a camera that went ahead."""
    pose = np.eye(4)
    pose[:3, :3] = [
        [math.cos(yaw), 0, math.sin(yaw)],
        [0, 1, 0],
        [-math.sin(yaw), 0, math.cos(yaw)],
    ]
    pose[:3, 3] = (side, 0.0, metres)
    return pose


class Given:
    """Keeps the motions that the multi-frame network is given."""

    def __init__(self, pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[NDArray[np.float64]] = []
        multi = pipeline.networks.multi

        def record(*args: object) -> object:
            self.steps.append(args[2])  # type: ignore[arg-type]
            return multi(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(pipeline.networks, "multi", record)


# -- poses from odometry ---------------------------------------------------------------------------


def test_a_pose_from_odometry_in_units(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given(pipeline, monkeypatch)
    monkeypatch.setattr(pipeline.networks, "pose", None)  # it must not be asked
    pipeline.pose_source = "odometry"
    pose = ahead(2.0, 0.1, 0.05)
    results = drive(pipeline, [MOVING, replace(MOVING, pose=pose)])
    assert results[1].active_model == "multi_frame moving"
    assert results[1].pose_source == "odometry"
    assert results[0].pose_source is None
    expected = pose.copy()
    expected[:3, 3] /= METRES_PER_UNIT
    np.testing.assert_allclose(given.steps[0], expected, atol=1e-12)


def test_another_focal_length_stretches_the_motion(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point moved in metres and then stretched is the stretched point moved in units."""
    given = Given(pipeline, monkeypatch)
    pipeline.pose_source = "odometry"
    trained = pipeline.bundle.manifest.camera.scaled(192, 64)
    camera = replace(trained, fx=2 * trained.fx, fy=2 * trained.fy)
    pose = ahead(2.0, 0.1, 0.3)
    pipeline.process(view(0), 0, MOVING, camera)
    pipeline.process(view(1), TENTH, replace(MOVING, pose=pose), camera)
    stretched = np.diag([1.0, 1.0, 0.5, 1.0])
    point = np.array([1.5, -0.7, 8.0])
    moved = pose[:3, :3] @ point + pose[:3, 3]
    step = given.steps[0]
    found = step[:3, :3] @ (stretched[:3, :3] @ point / METRES_PER_UNIT) + step[:3, 3]
    np.testing.assert_allclose(found, stretched[:3, :3] @ moved / METRES_PER_UNIT, atol=1e-12)


@pytest.mark.parametrize(
    "motion",
    [
        replace(MOVING, pose=ahead(1.0), pose_since_ns=7),  # since another frame
        replace(MOVING, pose=np.full((4, 4), math.nan)),
        replace(MOVING, pose=np.eye(3)),
        MOVING,
    ],
)
def test_poses_of_no_use_leave_it_to_the_network(pipeline: DepthPipeline, motion: Motion) -> None:
    pipeline.pose_source = "odometry"
    result = drive(pipeline, [MOVING, motion])[1]
    assert (result.model, result.pose_source) == ("multi_frame", "network")


def test_the_frame_before_is_told(pipeline: DepthPipeline) -> None:
    assert pipeline.previous_stamp_ns is None
    pipeline.pose_source = "odometry"
    pipeline.process(view(0), 5 * TENTH, MOVING)
    assert pipeline.previous_stamp_ns == 5 * TENTH
    motion = replace(MOVING, pose=ahead(1.0), pose_since_ns=pipeline.previous_stamp_ns)
    assert pipeline.process(view(1), 6 * TENTH, motion).pose_source == "odometry"


def test_the_network_alone_ignores_odometry(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given(pipeline, monkeypatch)
    pipeline.pose_source = "network"
    plain = drive(pipeline, [MOVING] * 2)[1]
    pipeline.reset()
    told = drive(pipeline, [MOVING, replace(MOVING, pose=ahead(1.0, 0.5, 0.2))])[1]
    np.testing.assert_array_equal(given.steps[0], given.steps[1])
    np.testing.assert_array_equal(plain.depth, told.depth)
    assert told.pose_source == "network"


@pytest.mark.parametrize("better", ["network", "odometry"])
def test_auto_takes_what_explains_the_picture(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch, better: str
) -> None:
    """The camera slides sideways by known pixels, in front of a wall; one of the two knows it."""
    networks = pipeline.networks
    wall = torch.full((1, 1, 32, 96), 0.5), torch.ones(1, 1, 32, 96)
    monkeypatch.setattr(networks, "single", lambda _: wall)
    fx = pipeline.bundle.manifest.camera.fx
    # The picture moves by one pixel of the networks' to the right: the camera went to the left.
    slide = np.eye(4)
    slide[0, 3] = -1.0 / fx / 0.5
    wrong = np.eye(4)
    wrong[0, 3] = +3.0 / fx / 0.5
    by_network, by_odometry = (slide, wrong) if better == "network" else (wrong, slide)
    monkeypatch.setattr(networks, "pose", lambda *_: np.linalg.inv(by_network))
    metres = by_odometry.copy()
    metres[:3, 3] *= METRES_PER_UNIT
    given = Given(pipeline, monkeypatch)
    result = drive(pipeline, [MOVING, Motion(0.6, "odometry", metres), None])[1]
    assert result.pose_source == better
    np.testing.assert_allclose(given.steps[0], slide, atol=1e-9)


@pytest.mark.parametrize("source", ["auto", "odometry"])
@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_a_metric_factor_that_is_off_does_not_reach_the_matching(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch, source: PoseChoice, factor: float
) -> None:
    """The camera slides by four pixels before a wall: the depth says how many units that is."""
    networks = pipeline.networks
    wall = torch.full((1, 1, 32, 96), 0.5), torch.ones(1, 1, 32, 96)
    monkeypatch.setattr(networks, "single", lambda _: wall)
    monkeypatch.setattr(networks, "aligns", True)
    slide = np.eye(4)
    slide[0, 3] = -1.0 / pipeline.bundle.manifest.camera.fx / 0.5
    metres = slide.copy()
    metres[:3, 3] *= factor * METRES_PER_UNIT
    pipeline.pose_source = source
    given = Given(pipeline, monkeypatch)
    result = drive(pipeline, [MOVING, Motion(0.6, "odometry", metres)])[1]
    assert result.pose_source == "odometry"
    np.testing.assert_allclose(given.steps[0], slide, atol=0.1 * abs(slide[0, 3]))


def test_odometry_helps_where_the_network_has_lost_the_motion(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(pipeline, [MOVING])
    monkeypatch.setattr(pipeline.networks, "pose", lambda *_: np.full((4, 4), math.nan))
    told = replace(MOVING, pose=ahead(1.0))
    assert pipeline.process(view(1), TENTH, told).pose_source == "odometry"
    pipeline.pose_source = "network"
    lost = pipeline.process(view(2), 2 * TENTH, told)
    assert lost.active_model == "single_frame pose"
    assert "not finite" in (lost.detail or "")


def test_relative_depth_takes_its_length_from_the_network(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a metric factor metres say nothing, but direction and rotation do."""
    given = Given(pipeline, monkeypatch)
    pipeline.pose_source = "odometry"
    pipeline.scale = WatchedScale(1.0, "none", depth=False, travel=False)
    pose = ahead(30.0, 40.0, 0.1)
    result = drive(pipeline, [MOVING, replace(MOVING, pose=pose)])[1]
    assert result.pose_source == "odometry"
    # The tiny bundle's pose network always says 0.05 units, give or take its random weights.
    length = float(np.linalg.norm(given.steps[0][:3, 3]))
    assert 0.04 < length < 0.06
    np.testing.assert_allclose(given.steps[0][:3, 3] / length, [0.8, 0.0, 0.6], atol=1e-9)
    np.testing.assert_allclose(given.steps[0][:3, :3], pose[:3, :3], atol=1e-12)


def test_a_rigid_step_in_units() -> None:
    found = units_step(ahead(3.0, 0.5, 0.2), 10.0, 1.0)
    expected = ahead(0.3, 0.05, 0.2)
    np.testing.assert_allclose(found, expected, atol=1e-15)


@pytest.mark.parametrize("name", ["pose_source", "output_size", "fit", "time_budget_ms"])
def test_settings_that_cannot_be(pipeline: DepthPipeline, name: str) -> None:
    before = getattr(pipeline, name)
    with pytest.raises(ValueError, match=name.replace("_", "[_ ]")):
        setattr(pipeline, name, "somehow")
    assert getattr(pipeline, name) == before
    for budget in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="positive"):
            pipeline.time_budget_ms = budget
    with pytest.raises(ValueError, match="min_pose_ratio"):
        pipeline.min_pose_ratio = 1.5


# -- scale -----------------------------------------------------------------------------------------


def test_the_scale_is_told_of_every_frame(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = WatchedScale()
    pipeline.scale = scale
    results = drive(pipeline, [MOVING, replace(MOVING, pose=ahead(1.5, 0.0, 0.1)), STANDING])
    assert [sight.stamp_ns for sight in scale.seen] == [0, TENTH, 2 * TENTH]
    first, second, third = scale.seen
    assert first.units_travelled is None
    assert first.seconds is None
    assert first.metres_travelled is None
    assert second.seconds == pytest.approx(0.1)
    assert second.metres_travelled == pytest.approx(1.5)
    assert second.radians_turned == pytest.approx(0.1)
    assert second.moving
    assert second.units_travelled == pytest.approx(0.05, rel=0.2)
    # The second frame stands where the third does: both are compared with the first.
    assert third.metres_travelled == pytest.approx(1.5)
    assert third.seconds == pytest.approx(0.1)
    for sight, result in zip(scale.seen, results, strict=True):
        assert sight.inverse_units is not None
        depth = METRES_PER_UNIT / sight.inverse_units
        same = np.allclose(depth, result.depth, rtol=1e-5)
        assert same == (result.model == "single_frame")
        assert result.scale == replace(scale.status, samples=result.scale.samples)  # type: ignore[union-attr]


def test_the_scale_sees_depth_that_does_not_depend_on_it(pipeline: DepthPipeline) -> None:
    """Matched with odometry's motion in units of the factor, depth would confirm any factor."""
    seen, models = [], []
    for factor in (METRES_PER_UNIT, 3 * METRES_PER_UNIT):
        scale = WatchedScale(factor)
        pipeline.reset()
        pipeline.scale = scale
        pipeline.pose_source = "odometry"
        results = drive(pipeline, [MOVING, replace(MOVING, pose=ahead(1.5))])
        models.append(results[1].model)
        seen.append(scale.seen[1].inverse_units)
    assert models == ["multi_frame"] * 2
    np.testing.assert_array_equal(*seen)


def test_what_the_scale_says_holds_for_the_frame_it_saw(pipeline: DepthPipeline) -> None:
    scale = WatchedScale()
    pipeline.scale = scale
    plain = pipeline.process(view(0), 0).depth
    pipeline.reset()
    scale.next = 1.5 * METRES_PER_UNIT
    pipeline.max_metres = math.inf
    result = pipeline.process(view(0), 0)
    np.testing.assert_allclose(result.depth, 1.5 * plain, rtol=1e-6)
    assert result.scale is not None
    assert result.scale.metres_per_unit == 1.5 * METRES_PER_UNIT


def test_a_fixed_scale_costs_no_pose(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.networks, "pose", None)
    pipeline.force_model = "single_frame"
    results = drive(pipeline, [MOVING] * 3)
    assert "pose" not in results[-1].timings


@pytest.mark.parametrize("motion", [MOVING, STANDING])
def test_a_scale_that_measures_travel_without_multi_frame(
    pipeline: DepthPipeline, motion: Motion
) -> None:
    scale = WatchedScale(depth=False)
    pipeline.scale = scale
    pipeline.force_model = "single_frame"
    drive(pipeline, [motion] * 12)
    measured = [i for i, sight in enumerate(scale.seen) if sight.units_travelled is not None]
    assert measured == ([5, 10] if motion is MOVING else []), "twice a second, to stay quick"
    assert [i for i, sight in enumerate(scale.seen) if sight.looked] == [0, 5, 10]
    assert [sight.inverse_units for sight in scale.seen] == [None] * 12


def test_a_scale_that_measures_asks_the_network_beside_odometry(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given(pipeline, monkeypatch)
    scale = WatchedScale()
    pipeline.scale = scale
    pipeline.pose_source = "odometry"
    result = drive(pipeline, [MOVING, replace(MOVING, pose=ahead(9.0))])[1]
    assert result.pose_source == "odometry"
    assert given.steps[0][2, 3] == pytest.approx(9.0 / METRES_PER_UNIT)
    # Not what odometry says over the factor that is looked for.
    assert scale.seen[1].units_travelled == pytest.approx(0.05, rel=0.2)


def test_odometry_that_is_fitted_measures_without_the_network(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length that matching uses is one by picture and depth, whatever the factor says."""
    networks, scale = pipeline.networks, WatchedScale()
    wall = torch.full((1, 1, 32, 96), 0.5), torch.ones(1, 1, 32, 96)
    monkeypatch.setattr(networks, "single", lambda _: wall)
    monkeypatch.setattr(networks, "aligns", True)
    monkeypatch.setattr(networks, "pose", None)
    slide = np.eye(4)
    slide[0, 3] = -1.0 / pipeline.bundle.manifest.camera.fx / 0.5
    metres = slide.copy()
    metres[:3, 3] *= 1.3 * METRES_PER_UNIT
    pipeline.scale, pipeline.pose_source = scale, "odometry"
    drive(pipeline, [MOVING, Motion(0.6, "odometry", metres)])
    assert scale.seen[1].units_travelled == pytest.approx(abs(slide[0, 3]), rel=0.1)


def test_another_focal_length_in_what_the_scale_is_told(pipeline: DepthPipeline) -> None:
    trained = pipeline.bundle.manifest.camera.scaled(192, 64)
    seen = []
    for zoom in (1.0, 2.0):
        scale = WatchedScale()
        restart(pipeline)
        pipeline.scale = scale
        camera = replace(trained, fx=zoom * trained.fx, fy=zoom * trained.fy)
        pipeline.process(view(0), 0, MOVING, camera)
        pipeline.process(view(1), TENTH, MOVING, camera)
        seen.append(scale.seen)
    plain, zoomed = (one[0].inverse_units for one in seen)
    assert plain is not None
    assert zoomed is not None
    np.testing.assert_allclose(zoomed, plain / 2, rtol=1e-6)
    # The tiny network goes straight ahead, the direction that the zoom stretches.
    travelled = [one[1].units_travelled for one in seen]
    assert travelled[0] is not None
    assert travelled[1] == pytest.approx(2 * travelled[0], rel=0.05)


def test_a_failing_pose_network_does_not_hide_the_depth(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("broken")

    monkeypatch.setattr(pipeline.networks, "pose", fail)
    pipeline.scale = WatchedScale()
    pipeline.force_model = "single_frame"
    results = drive(pipeline, [MOVING] * 12)
    assert set(models(results)) == {"single_frame forced"}
    assert "broken" in (results[5].error or "")
    assert calls == 1  # and then it is left alone for a while


# -- budget and memory -----------------------------------------------------------------------------


def test_a_budget_that_follows_the_camera(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = DepthPipeline(bundle, "torch", "cpu", time_budget_ms="auto")
    budgets: list[float | None] = []
    monkeypatch.setattr(pipeline.guard, "record_duration", lambda _, budget: budgets.append(budget))
    drive(pipeline, [MOVING] * 8)
    # Told of no arrivals, it goes by the frames: 100 ms, as soon as there are five intervals.
    assert budgets[:4] == [None] * 4
    assert budgets[4:] == pytest.approx([BUDGET_SHARE * 100] * 3)
    pipeline.reset()
    budgets.clear()
    for i in range(40):  # the camera is three times as fast as the frames that are taken
        pipeline.frame_rate.saw(i * TENTH // 3)
        if i % 3 == 0:
            pipeline.process(view(i // 3), i * TENTH // 3, MOVING)
    assert budgets[-1] == pytest.approx(BUDGET_SHARE * 100 / 3, rel=1e-6)


def test_too_slow_for_the_camera(bundle: Bundle) -> None:
    """A camera of 100 kHz is too fast for any machine."""
    pipeline = DepthPipeline(
        bundle, "torch", "cpu", time_budget_ms="auto", guard=MultiFrameGuard(budget_pause=4)
    )
    results = [pipeline.process(view(i), i * 10_000, MOVING) for i in range(12)]
    found = models(results)
    assert "multi_frame moving" in found
    paused = [result for result in results if result.reason == "budget"]
    assert paused
    assert all("budget 0 ms" in (result.detail or "") for result in paused)
    assert {result.detail for result in results if result.model == "multi_frame"} == {None}
    # Another budget is another chance.
    start = found.index("single_frame budget")
    pipeline.reset()
    for i in range(start + 1):
        pipeline.process(view(i), i * 10_000, MOVING)
    pipeline.time_budget_ms = None
    assert pipeline.process(view(9), 100 * 10_000, MOVING).reason == "moving"


class ExhaustedError(RuntimeError):
    """What a device says whose memory is full."""

    def __init__(self) -> None:
        super().__init__("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_memory_that_runs_out_in_the_single_frame_network(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept is given back, and the frame is tried again."""
    pipeline = DepthPipeline(bundle, "torch", "cpu", guard=MultiFrameGuard(failure_pause=2))
    expected = drive(pipeline, [MOVING] * 2)[1]
    pipeline.reset()
    drive(pipeline, [MOVING])
    single = pipeline.networks.single
    calls: list[str] = []

    def fail_once(image: torch.Tensor) -> object:
        calls.append("single")
        if calls.count("single") == 1:
            raise ExhaustedError
        return single(image)

    monkeypatch.setattr(pipeline.networks, "single", fail_once)
    backend = pipeline.networks.backend
    monkeypatch.setattr(type(backend), "free_memory", lambda _: calls.append("free"))
    result = pipeline.process(view(1), TENTH, MOVING)
    assert calls == ["single", "free", "single"]
    assert result.active_model == "single_frame memory"
    assert "out of memory" in (result.detail or "")
    assert np.isfinite(result.depth).any()
    assert expected.model == "multi_frame"
    found = [pipeline.process(view(i), i * TENTH, MOVING) for i in (2, 3)]
    assert models(found) == ["single_frame memory", "multi_frame moving"]


def test_other_failures_of_the_single_frame_network_are_raised(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("broken")

    before = drive(pipeline, [MOVING] * 2)
    monkeypatch.setattr(pipeline.networks, "single", fail)
    with pytest.raises(RuntimeError, match="broken"):
        pipeline.process(view(2), 2 * TENTH, MOVING)
    monkeypatch.undo()
    assert before[1].model == "multi_frame"
    # As though the frame had never been.
    assert pipeline.process(view(3), 3 * TENTH, MOVING).active_model == "multi_frame moving"


def test_the_detail_lasts_as_long_as_the_pause(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = DepthPipeline(bundle, "torch", "cpu", guard=MultiFrameGuard(failure_pause=2))
    match = MultiFrameNet.match

    def fail(*_: object) -> None:
        raise ValueError("no match")

    drive(pipeline, [MOVING] * 2)
    monkeypatch.setattr(MultiFrameNet, "match", fail)
    results = [pipeline.process(view(2), 2 * TENTH, MOVING)]
    monkeypatch.setattr(MultiFrameNet, "match", match)
    results += [pipeline.process(view(i), i * TENTH, MOVING) for i in (3, 4, 5)]
    assert [result.reason for result in results] == ["model_failed"] * 3 + ["moving"]
    assert [result.detail for result in results] == ["ValueError: no match"] * 3 + [None]
    assert [result.error for result in results] == ["ValueError: no match"] + [None] * 3


# -- output ----------------------------------------------------------------------------------------


def test_what_is_matched_alone_and_how_sure_it_is_are_told_apart(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A witness has depth by matching alone; confidence is of what is published, by parallax."""
    from depth_prior_ros.pipeline import pipeline as module

    multi, combine = pipeline.networks.multi, module.combine
    said: list[MultiFrameTensors] = []
    made: list[NDArray[np.float32]] = []
    seen: list[MatchedFrame] = []

    def apart(*arguments: Any) -> MultiFrameTensors:
        found = multi(*arguments)
        said.append(
            found._replace(
                confidence=0 * found.confidence + 0.25,
                parallax=0 * found.parallax + 0.75 * pipeline.networks.parallax,
                matched=2 * found.depth,
            )
        )
        return said[-1]

    def keep(*given: NDArray[np.float32]) -> NDArray[np.float32]:
        made.append(combine(*given))
        if len(given) == 2:
            np.testing.assert_array_equal(given[1], seen[-1].inverse)
        return made[-1]

    monkeypatch.setattr(pipeline.networks, "multi", apart)
    monkeypatch.setattr(module, "combine", keep)
    monkeypatch.setattr(pipeline, "witness", seen.append)
    pipeline.process(view(0), 0, MOVING)
    result = pipeline.process(view(1), TENTH, MOVING, confidence=True)
    assert result.model == "multi_frame" and len(made) == 2
    depth, matched = (
        pipeline.networks.backend.to_numpy(part)[0, 0]
        for part in (said[-1].depth, said[-1].matched)
    )
    np.testing.assert_allclose(seen[-1].inverse, 1 / depth, rtol=1e-6)
    np.testing.assert_allclose(seen[-1].matched, 1 / matched, rtol=1e-6)
    np.testing.assert_allclose(result.confidence, 0.5 * made[0] + 0.5 * made[1], rtol=1e-5)


def test_confidence_is_made_when_asked_for(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from depth_prior_ros.pipeline import pipeline as module

    combine, calls = module.combine, []

    def count(*args: object, **kwargs: object) -> NDArray[np.float32]:
        calls.append(1)
        return combine(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "combine", count)
    assert pipeline.process(view(0), 0, MOVING).confidence is None
    assert calls == []
    result = pipeline.process(view(1), TENTH, MOVING, confidence=True)
    assert result.model == "multi_frame"
    assert calls == [1, 1]  # of matched and of single-frame depth, blended as those are
    assert result.confidence is not None
    assert result.confidence.shape == result.depth.shape
    assert result.confidence.dtype == np.float32
    assert 0 <= result.confidence.min() <= result.confidence.max() <= 1


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_output_of_the_input_s_size(pipeline: DepthPipeline, fit: str) -> None:
    image = view(0, (160, 120))
    camera = Camera(150.0, 150.0, 79.5, 59.5, 160, 120)
    pipeline.fit = fit  # type: ignore[assignment]
    small = pipeline.process(image, 0, None, camera, confidence=True)
    pipeline.reset()
    pipeline.output_size = "input"
    large = pipeline.process(image, 0, None, camera, confidence=True)
    assert large.depth.shape == (120, 160)
    assert large.confidence is not None
    assert large.confidence.shape == (120, 160)
    assert large.rgb is image
    assert (large.region.x, large.region.y) == (0, 0)
    assert large.camera.size == (160, 120)
    for name in ("fx", "fy", "cx", "cy"):
        assert getattr(large.camera, name) == pytest.approx(getattr(camera, name))
    # Padding leaves out at most the columns at the image's edge.
    assert np.isnan(large.depth[:, 3:-3]).any() == (fit == "crop")
    assert np.isnan(large.depth[60, 3:-3]).sum() == 0
    assert np.isnan(small.depth).any() == (fit == "pad")
    assert (large.confidence[np.isnan(large.depth)] == 0).all()
    # The same ray has the same depth.
    u = (40 + 0.5) * 96 / small.region.width - 0.5 - small.region.x * 96 / small.region.width
    v = (60 + 0.5 - small.region.y) * 32 / small.region.height - 0.5
    near = small.depth[math.floor(v) : math.floor(v) + 2, math.floor(u) : math.floor(u) + 2]
    assert near.min() * 0.99 <= large.depth[60, 40] <= near.max() * 1.01


def test_any_output_size(pipeline: DepthPipeline) -> None:
    pipeline.output_size = (50, 70)
    result = pipeline.process(view(0), 0, confidence=True)
    assert result.depth.shape == (70, 50)
    assert result.confidence is not None
    assert result.confidence.shape == (70, 50)
    assert result.rgb is not None
    assert result.rgb.shape == (70, 50, 3)
    assert result.camera == pipeline.bundle.manifest.camera.scaled(50, 70)


def test_where_the_image_shows_nothing(pipeline: DepthPipeline) -> None:
    outside = np.zeros((64, 192), np.bool_)
    outside[:, :40] = True
    result = pipeline.process(view(0), 0, outside=outside)
    assert np.isnan(result.depth[:, :19]).all()
    assert not np.isnan(result.depth[:, 22:]).any()


def test_the_way_an_image_is_cut_may_change(pipeline: DepthPipeline) -> None:
    """Frames that show different windows have nothing to match."""
    image = [view(i, (160, 120)) for i in range(3)]
    pipeline.process(image[0], 0, MOVING)
    assert pipeline.process(image[1], TENTH, MOVING).model == "multi_frame"
    pipeline.fit = "pad"
    assert pipeline.process(image[2], 2 * TENTH, MOVING).active_model == "single_frame resolution"


def test_output_sizes_do_not_change_the_choice(pipeline: DepthPipeline) -> None:
    found: list[list[DepthResult]] = []
    for size in ("model", "input", (64, 64)):
        restart(pipeline)
        pipeline.output_size = size  # type: ignore[assignment]
        found.append(drive(pipeline, [MOVING] * 3 + [STANDING] * 2))
    assert models(found[0]) == models(found[1]) == models(found[2])


def test_a_fixed_scale_s_status(pipeline: DepthPipeline) -> None:
    pipeline.scale = FixedScale(7.0, "given here")
    status = pipeline.process(texture(96, 32, margin=0), 0).scale
    assert status is not None
    assert (status.mode, status.state, status.metres_per_unit) == ("fixed", "fixed", 7.0)


def test_where_neither_motion_explains_the_picture(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without overlap there is nothing to compare: the network's is used, as without odometry."""
    monkeypatch.setattr(pipeline.networks, "photometric_costs", lambda *_: [math.nan] * 2)
    result = drive(pipeline, [MOVING, replace(MOVING, pose=ahead(1.0))])[1]
    assert (result.model, result.pose_source) == ("multi_frame", "network")


@pytest.mark.parametrize(
    ("costs", "source"),
    [((0.0100, 0.0114), "odometry"), ((0.0100, 0.0116), "network"), ((0.0, 0.0), "odometry")],
)
def test_auto_uses_odometry_that_is_nearly_as_good(
    pipeline: DepthPipeline,
    monkeypatch: pytest.MonkeyPatch,
    costs: tuple[float, float],
    source: str,
) -> None:
    """A refined motion was made to fit the picture: a little worse is not worse."""
    told = ahead(1.25)

    def cost(_previous: object, _current: object, steps: list[NDArray[np.float64]], *_: object):
        told = [math.isclose(s[2, 3], 1.25 / METRES_PER_UNIT, rel_tol=1e-9) for s in steps]
        return [costs[1] if by_odometry else costs[0] for by_odometry in told]

    monkeypatch.setattr(pipeline.networks, "photometric_costs", cost)
    result = drive(pipeline, [MOVING, replace(MOVING, pose=told)])[1]
    assert result.pose_source == source
