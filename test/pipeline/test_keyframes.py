"""Which earlier frame is matched: by distance, age and overlap; and how much is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline_scenes import MOVING, STANDING, TENTH, drive, restart, view

from depth_prior_ros.camera import Camera
from depth_prior_ros.motion.gate import Motion, RelativeMotion
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.pipeline.framing import frame_image
from depth_prior_ros.pipeline.keyframes import (
    ENOUGH_PARALLAX,
    KEYFRAME_SECONDS,
    LIMIT,
    Keyframes,
    scaled_step,
)
from depth_prior_ros.pipeline.multi_frame_step import FramePair, ObservedFrame

CAMERA = Camera(56.0, 61.0, 48.0, 16.0, 96, 32)
WIDTH, FX = 96, 56.0


def shown(stamp_ns: int) -> ObservedFrame:
    picture = np.zeros((32, 96, 3), np.uint8)
    framed = frame_image(picture, CAMERA, CAMERA)
    return ObservedFrame(stamp_ns, framed, framed.tensor(), (np.zeros(8), np.zeros(8)))


def ahead(metres: float, yaw: float = 0.0) -> NDArray[np.float64]:
    pose = np.eye(4)
    pose[0, 0] = pose[2, 2] = math.cos(yaw)
    pose[0, 2], pose[2, 0] = math.sin(yaw), -math.sin(yaw)
    pose[2, 3] = metres
    return pose


def follow(
    frames: Keyframes, steps: Iterable[RelativeMotion], start: int = 0, *, standing: bool = False
) -> int:
    """Frames at 10 Hz, the first without a step; the next frame's number."""
    i = start
    for i, step in enumerate(steps, start=start):
        if frames.previous is not None:
            frames.advance(step, 0.1, standing=standing)
        frames.add(shown(i * TENTH))
    return i + 1


def chosen(frames: Keyframes, stamp: int) -> list[int]:
    return [c.shown.stamp_ns // TENTH for c in frames.choose(stamp * TENTH, WIDTH, FX)]


@pytest.mark.parametrize(
    ("metres", "expected"),
    [(0.2, [4, 8]), (0.34, [6, 8]), (0.45, [6, 8]), (0.55, [7, 8]), (1.0, [8]), (3.0, [8])],
)
def test_the_nearest_frame_that_is_a_metre_back(metres: float, expected: list[int]) -> None:
    frames = Keyframes()
    step = RelativeMotion(ahead(metres), metres)
    i = follow(frames, [step] * 9)
    frames.advance(step, 0.1, standing=False)
    found = chosen(frames, i)
    assert found == expected
    for candidate in frames.choose(i * TENTH, WIDTH, FX):
        steps = i - candidate.shown.stamp_ns // TENTH
        assert candidate.metres == candidate.told == pytest.approx(steps * metres)
        assert candidate.pose is not None
        np.testing.assert_allclose(candidate.pose, ahead(steps * metres), atol=1e-12)


def test_poses_compose_exactly() -> None:
    frames, way = Keyframes(), [RelativeMotion(ahead(0.3, 0.02 * i), 0.3) for i in range(6)]
    i = follow(frames, way[:5])
    frames.advance(way[5], 0.1, standing=False)
    best = frames.choose(i * TENTH, WIDTH, FX)[0]
    number = best.shown.stamp_ns // TENTH
    assert i - number == 4
    expected = np.eye(4)
    for step in way[number + 1 :]:
        assert step.pose is not None
        expected = expected @ step.pose
    assert best.pose is not None
    np.testing.assert_allclose(best.pose, expected, atol=1e-12)


def test_a_distance_of_zero_is_the_previous_frame() -> None:
    frames = Keyframes(0.0)
    follow(frames, [RelativeMotion(ahead(0.2), 0.2)] * 9)
    assert chosen(frames, 9) == [8]
    assert len(frames) <= 2


def test_much_parallax_needs_no_metre() -> None:
    """Twenty pixels a metre, as in a car park: a fifth of a metre shows four of them."""
    frames = Keyframes()
    step = RelativeMotion(ahead(0.05), 0.05)
    for i in range(40):
        if i:
            frames.advance(step, 0.1, standing=False)
            best = frames.choose(i * TENTH, WIDTH, FX)[0]
            frames.saw(best, i * TENTH, ahead(0.01), best.metres, 20 * best.metres)
        frames.add(shown(i * TENTH))
    frames.advance(step, 0.1, standing=False)
    best = frames.choose(40 * TENTH, WIDTH, FX)[0]
    assert 20 * best.metres == pytest.approx(ENOUGH_PARALLAX, abs=20 * 0.06)


def test_what_is_too_old_or_too_far_turned_away_is_not_matched() -> None:
    frames = Keyframes()
    i = follow(frames, [RelativeMotion(ahead(0.03), 0.03)] * 60)  # 0.3 m/s
    assert i - chosen(frames, i)[0] <= KEYFRAME_SECONDS * 10
    frames.clear()
    # 0.1 m and 10 degrees a frame: a field of view of 81 degrees leaves room for two.
    turn = RelativeMotion(ahead(0.1, math.radians(10)), 0.1)
    i = follow(frames, [turn] * 9)
    frames.advance(turn, 0.1, standing=False)
    assert i - chosen(frames, i)[0] <= 2


def test_without_odometry_the_network_s_own_steps_count() -> None:
    """Before the first match only the previous frame is there; then 0.3 m a frame are known."""
    frames = Keyframes()
    for i in range(9):
        if i:
            frames.advance(RelativeMotion(), 0.1, standing=False)
            best = frames.choose(i * TENTH, WIDTH, FX)[0]
            steps = i - best.shown.stamp_ns // TENTH
            if i == 1:
                assert (steps, frames.guess(best, i * TENTH)) == (1, None)
            else:
                guess = frames.guess(best, i * TENTH)
                assert guess is not None
                np.testing.assert_allclose(guess, ahead(0.03 * steps), atol=1e-9)
            frames.saw(best, i * TENTH, ahead(0.03 * steps), 0.3 * steps, 1.0)
        frames.add(shown(i * TENTH))
    frames.advance(RelativeMotion(), 0.1, standing=False)
    assert chosen(frames, 9) == [5, 8]
    # A frame that was not matched breaks the chain of steps, not the guess of distances.
    frames.add(shown(9 * TENTH))
    frames.advance(RelativeMotion(), 0.1, standing=False)
    best = frames.choose(10 * TENTH, WIDTH, FX)[0]
    assert best.shown.stamp_ns < 9 * TENTH
    assert frames.guess(best, 10 * TENTH) is None
    # A vehicle that stands forgets how fast it was.
    frames.add(shown(10 * TENTH))
    frames.advance(RelativeMotion(), 0.1, standing=True)
    frames.add(shown(11 * TENTH))
    frames.advance(RelativeMotion(), 0.1, standing=False)
    assert chosen(frames, 12) == [11]


def test_a_share_of_a_step() -> None:
    whole = ahead(1.0, 0.3)
    half = scaled_step(whole, 0.5)
    np.testing.assert_allclose(half[:3, :3] @ half[:3, :3], whole[:3, :3], atol=1e-12)
    np.testing.assert_allclose(half[:3, 3], whole[:3, 3] / 2)
    np.testing.assert_allclose(scaled_step(whole, 1.0), whole, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(0, 5)), st.integers(1, 30), st.booleans(), st.booleans()
        ),
        max_size=120,
    )
)
def test_memory_is_bounded_whatever_comes(
    frames_of: list[tuple[float | None, int, bool, bool]],
) -> None:
    frames, stamp = Keyframes(), 0
    frames.add(shown(stamp))
    for metres, tenths, standing, matched in frames_of:
        stamp += tenths * TENTH
        way = RelativeMotion() if metres is None else RelativeMotion(ahead(metres), metres)
        frames.advance(way, tenths * 0.1, standing=standing)
        candidates = frames.choose(stamp, WIDTH, FX)
        assert candidates[-1].shown is frames.previous
        assert len(candidates) in (1, 2)
        for candidate in candidates[:-1]:
            assert stamp - candidate.shown.stamp_ns <= KEYFRAME_SECONDS * 1e9
        if matched:
            frames.saw(candidates[0], stamp, ahead(0.1), candidates[0].metres, 2.0)
        frames.add(shown(stamp))
        assert 1 <= len(frames) <= LIMIT
        held: list[Any] = [f.shown.features for f in frames._frames[:-1]]
        assert all(len(features) == 1 for features in held)  # no context


# -- in the pipeline -------------------------------------------------------------------------------


def slow(metres: float) -> Motion:
    return Motion(10 * metres, "odometry", ahead(metres))


def test_the_pipeline_matches_with_the_keyframe_and_its_kept_features(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.pose_source = "odometry"
    networks, given_steps, computed = pipeline.networks, [], []
    multi, features = networks.multi, networks.features

    def record(*args: Any) -> Any:
        given_steps.append((args[1][0], args[2]))
        return multi(*args)

    def count(image: Any) -> Any:
        computed.append(features(image))
        return computed[-1]

    monkeypatch.setattr(networks, "multi", record)
    monkeypatch.setattr(networks, "features", count)
    results = drive(pipeline, [slow(0.3)] * 8)
    assert [r.active_model for r in results[1:]] == ["multi_frame moving"] * 7
    assert len(computed) == 8
    for i, (matching, step) in enumerate(given_steps, start=1):
        back = min(i, 4)  # 1.2 m
        assert step[2, 3] == pytest.approx(0.3 * back / 20.0)
        assert matching is computed[i - back][0]


@pytest.mark.parametrize("broken", ["gap", "time_jump", "resolution"])
def test_a_broken_sequence_begins_anew(pipeline: DepthPipeline, broken: str) -> None:
    pipeline.pose_source = "odometry"
    drive(pipeline, [slow(0.3)] * 6)
    stamp = {"gap": 30, "time_jump": 2, "resolution": 6}[broken]
    size = (384, 128) if broken == "resolution" else None
    assert pipeline.process(view(6, size), stamp * TENTH, slow(0.3)).reason == broken
    assert len(pipeline._keyframes) == 1
    after = pipeline.process(view(7, size), (stamp + 1) * TENTH, slow(0.3))
    assert after.model == "multi_frame"


def test_after_a_long_stop_no_frame_is_older_than_it_may_be(pipeline: DepthPipeline) -> None:
    drive(pipeline, [slow(0.3)] * 6 + [STANDING] * 40)
    kept = [c.shown.stamp_ns for c in pipeline._keyframes._frames]
    assert min(kept) >= (45 - 10 * KEYFRAME_SECONDS) * TENTH
    assert len(kept) <= LIMIT


def test_where_the_keyframe_s_motion_is_not_found_the_previous_frame_is_matched(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.pose_source = "odometry"
    matched: list[int] = []
    depth = pipeline._step.depth

    def record(pair: FramePair, *further: Any) -> Any:
        matched.append(pair.previous.stamp_ns)
        return depth(pair, *further)

    monkeypatch.setattr(pipeline._step, "depth", record)
    drive(pipeline, [slow(0.3)] * 6)
    assert matched[-1] == TENTH
    # Too little of both frames in common.
    monkeypatch.setattr(pipeline.networks, "photometric_costs", lambda *a: [math.inf] * len(a[2]))
    result = pipeline.process(view(6), 6 * TENTH, slow(0.3))
    assert result.active_model == "multi_frame moving"
    assert matched[-1] == 5 * TENTH


def test_without_motion_the_depth_is_the_single_frame_depth(pipeline: DepthPipeline) -> None:
    still = Motion(0.0, "odometry", np.eye(4))
    pipeline.pose_source = "odometry"
    pipeline.force_model = "multi_frame"
    result = drive(pipeline, [still] * 3)[2]
    assert result.active_model == "multi_frame forced"
    assert result.parallax_px == pytest.approx(0.0, abs=1e-4)
    restart(pipeline)
    pipeline.force_model = "single_frame"
    single = drive(pipeline, [still] * 3)[2]
    assert single.parallax_px is None
    np.testing.assert_allclose(result.depth, single.depth, rtol=1e-6)


def test_parallax_is_reported_and_grows_with_the_step(pipeline: DepthPipeline) -> None:
    pipeline.pose_source = "odometry"
    pipeline.keyframe_metres = 0.0
    found = []
    for metres in (0.5, 1.0, 2.0):
        pipeline.reset()
        results = drive(pipeline, [MOVING, slow(metres)], start=3)
        assert results[0].parallax_px is None
        found.append(results[1].parallax_px)
    assert 0 < found[0] < found[1] < found[2]
    pipeline.keyframe_metres = 1.0
    with pytest.raises(ValueError, match="keyframe_metres"):
        pipeline.keyframe_metres = math.nan
