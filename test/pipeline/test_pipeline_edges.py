"""Frames far apart, networks that are missing, odometry without poses, borders, full memory."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import METRES_PER_UNIT, shifted, texture
from numpy.typing import NDArray
from pipeline_scenes import MOVING, TENTH, WatchedScale, drive, models, view

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.motion.gate import Motion
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.pipeline import pipeline as module
from depth_prior_ros.scale import FilterSettings, FixedScale, OdometryScale

CAMERA = Camera(50.0, 50.0, 48.0, 16.0, 96, 32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((CAMERA, 0), "stamp_ns must be an integer of nanoseconds, not Camera"),
        ((0, CAMERA), "motion must be a Motion or None, not Camera"),
        ((0, None, 5.0), "camera must be a Camera or None, not float"),
        ((0.5,), "stamp_ns must be an integer"),
    ],
)
def test_arguments_in_another_order_are_not_ignored(
    pipeline: DepthPipeline, arguments: tuple[Any, ...], words: str
) -> None:
    image = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
    with pytest.raises(TypeError, match=rf"{words}.*process\(image, stamp_ns, motion, camera"):
        pipeline.process(image, *arguments)
    assert pipeline.process(image, np.int64(0), None, CAMERA).camera is not None


def test_frames_far_apart_are_driving_all_the_same(pipeline: DepthPipeline) -> None:
    """A slow machine has a gap before every frame; the road can be measured nevertheless."""
    scale = WatchedScale()
    pipeline.scale = scale
    found = [pipeline.process(view(i), 8 * i * TENTH, MOVING) for i in range(4)]
    assert models(found)[1:] == ["single_frame gap"] * 3
    assert [sight.seconds for sight in scale.seen] == [None, *[pytest.approx(0.8)] * 3]
    pipeline.process(view(4), 0, MOVING)  # the clock was set back
    assert scale.seen[-1].seconds is None


@pytest.mark.parametrize(("tenths", "state"), [(8, "moving"), (12, "unknown")])
def test_a_slow_camera_without_odometry(pipeline: DepthPipeline, tenths: int, state: str) -> None:
    """Too far apart for matching, and yet the picture tells whether the vehicle moves."""
    found = [pipeline.process(view(i), tenths * i * TENTH) for i in range(4)]
    assert models(found)[1:] == ["single_frame gap"] * 3
    assert pipeline.motion_state == state


def test_odometry_is_there_where_the_networks_have_no_answer(pipeline: DepthPipeline) -> None:
    pipeline.scale = OdometryScale(FixedScale(METRES_PER_UNIT))
    found = [pipeline.process(view(i), 8 * i * TENTH, MOVING) for i in range(2)]
    assert found[1].scale is not None
    assert "the networks saw no motion" in found[1].scale.text
    without = pipeline.process(view(2), 9 * TENTH, None)
    assert without.scale is not None
    assert "no odometry" in without.scale.text


def test_a_bundle_without_a_pose_network_is_not_called_a_lack_of_odometry(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.networks, "_features", None)
    pipeline.scale = OdometryScale(FixedScale(METRES_PER_UNIT))
    result = drive(pipeline, [MOVING] * 6)[-1]
    assert result.active_model == "single_frame forced"
    assert result.scale is not None
    assert "the networks saw no motion" in result.scale.text


@pytest.mark.parametrize("source", ["auto", "network", "odometry"])
def test_a_factor_that_is_far_off_can_be_found(pipeline: DepthPipeline, source: str) -> None:
    """Fifteen times too small: by that factor the pose network seems to have lost the motion."""
    start = FixedScale(METRES_PER_UNIT / 15)
    pipeline.scale = OdometryScale(start, FilterSettings(limit=100.0))
    pipeline.pose_source = source  # type: ignore[assignment]
    before = pipeline.scale.metres_per_unit
    results = drive(pipeline, [MOVING] * 12)
    assert models(results)[1:] == ["multi_frame moving"] * 11
    assert pipeline.scale.status.samples == 11
    assert pipeline.scale.metres_per_unit > 1.1 * before


def test_once_it_is_found_it_checks_the_pose_network(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.scale = OdometryScale(FixedScale(METRES_PER_UNIT), FilterSettings(limit=100.0))
    drive(pipeline, [MOVING] * 15)
    assert pipeline.scale.status.state == "measured"
    lost = np.eye(4)
    lost[2, 3] = -1e-3
    # The motion of the frames before would serve as well.
    monkeypatch.setattr(pipeline._keyframes, "guess", lambda *_: None)
    monkeypatch.setattr(pipeline.networks, "pose", lambda *_: lost)
    monkeypatch.setattr(pipeline.networks, "aligns", False)
    assert pipeline.process(view(15), 15 * TENTH, MOVING).active_model == "single_frame pose"


def test_odometry_that_knows_speeds_only(pipeline: DepthPipeline) -> None:
    """Messages are born with a pose: one at the origin, that never moves."""
    scale = WatchedScale()
    pipeline.scale = scale
    pipeline.pose_source = "odometry"
    result = drive(pipeline, [MOVING, replace(MOVING, pose=np.eye(4))])[1]
    assert (result.model, result.pose_source) == ("multi_frame", "network")
    assert scale.seen[1].metres_travelled == pytest.approx(1.0)
    assert scale.seen[1].radians_turned is None


def test_a_padded_picture_that_moves(pipeline: DepthPipeline) -> None:
    """Its border repeats what is at the edge, here the vehicle itself, which stands still."""
    pipeline.fit = "pad"
    sheet, vehicle = texture(640, 480, seed=4), texture(32, 480, margin=0)
    found = []
    for i in range(4):
        image = shifted(sheet, 12.0 * i)
        image[:, :32] = image[:, -32:] = vehicle
        found.append(pipeline.process(image, i * TENTH, Motion()).active_model)
    assert found == ["single_frame first_frame"] + ["multi_frame moving"] * 3


def test_confidence_compares_what_both_networks_saw(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    combine, given = module.combine, []

    def keep(*maps: NDArray[np.float32]) -> NDArray[np.float32]:
        given.append(maps)
        return combine(*maps)

    monkeypatch.setattr(module, "combine", keep)
    outside = np.zeros((64, 192), np.bool_)
    outside[:, :40] = True
    for i in range(2):
        pipeline.process(view(i), i * TENTH, MOVING, confidence=True, outside=outside)
    single, multi = given[1]
    assert np.isnan(multi).any()
    np.testing.assert_array_equal(np.isnan(single), np.isnan(multi))


class FullError(RuntimeError):
    """What a device says whose memory is full."""

    def __init__(self) -> None:
        super().__init__("CUDA out of memory. Tried to allocate 20.00 MiB")


class Block:
    """Memory that a network has taken."""


def test_what_filled_the_memory_is_gone_before_another_try(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = pipeline.networks.single
    blocks: list[weakref.ref[Block]] = []
    freed: list[bool] = []

    def fail_once(image: object) -> object:
        if blocks:
            return single(image)
        block = Block()
        blocks.append(weakref.ref(block))
        raise FullError

    monkeypatch.setattr(pipeline.networks, "single", fail_once)
    backend = type(pipeline.networks.backend)
    monkeypatch.setattr(backend, "free_memory", lambda _: freed.append(blocks[0]() is None))
    assert np.isfinite(pipeline.process(view(0), 0, MOVING).depth).any()
    assert freed == [True]
