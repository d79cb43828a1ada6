from __future__ import annotations

import itertools
import math
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import shifted, texture
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.motion.gate import (
    FLOW_SECONDS,
    MOTION_SIZE,
    GateSettings,
    ImageMotion,
    Motion,
    MotionGate,
    RecentPictures,
)
from depth_prior_ros.pipeline.framing import frame_image
from depth_prior_ros.recordings import open_recording
from depth_prior_ros.share import demo_bag

TENTH = 100_000_000
SETTINGS = GateSettings()
SPEEDS = st.one_of(
    st.none(), st.floats(-30.0, 30.0), st.sampled_from([math.nan, math.inf, 0.0, 0.1, 0.3, 0.6])
)
STEPS = st.one_of(st.integers(1, 10**9), st.integers(-(10**10), 10**10))


def drive(gate: MotionGate, speeds: list[float | None], start: int = 0) -> list[str]:
    return [gate.update(start + i * TENTH, speed) for i, speed in enumerate(speeds)]


def test_it_starts_unknown_and_the_first_reading_decides() -> None:
    gate = MotionGate()
    assert gate.state == "unknown"
    assert gate.update(0) == "unknown"
    assert gate.update(TENTH, math.nan) == "unknown"
    assert gate.update(2 * TENTH, 5.0) == "moving"
    assert MotionGate().update(0, 0.0) == "stationary"
    assert MotionGate().update(0, 0.3) == "stationary"


def test_stopping_and_starting_take_the_hold_times() -> None:
    gate = MotionGate()
    states = drive(gate, [5.0, 5.0, *[0.0] * 6, *[5.0] * 4])
    assert states == ["moving"] * 5 + ["stationary"] * 5 + ["moving"] * 2


def test_stamps_that_jitter_do_not_cost_a_frame() -> None:
    gate = MotionGate()
    gate.update(0, 5.0)
    assert [gate.update(TENTH * i - i, 0.0) for i in range(1, 5)][-1] == "stationary"


def test_one_contrary_reading_starts_the_hold_again() -> None:
    gate = MotionGate()
    states = drive(gate, [5.0, 0.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0])
    assert states == ["moving"] * 8 + ["stationary"]


def test_readings_that_are_missing_neither_confirm_nor_contradict() -> None:
    gate = MotionGate()
    states = drive(gate, [5.0, 0.0, None, math.nan, 0.0])
    assert states == ["moving"] * 4 + ["stationary"]


def test_driving_backwards_is_moving() -> None:
    assert drive(MotionGate(), [-3.0])[-1] == "moving"


def test_image_motion_counts_where_there_is_no_speed() -> None:
    gate = MotionGate()
    assert gate.update(0, None, 1.0) == "moving"
    for i in range(1, 5):
        state = gate.update(i * TENTH, None, 0.01)
    assert state == "stationary"
    # Odometry goes first: the scene moves, the vehicle does not.
    for i in range(5, 12):
        state = gate.update(i * TENTH, 0.0, 9.0)
    assert state == "stationary"


def test_a_gap_makes_it_unknown_again() -> None:
    gate = MotionGate()
    drive(gate, [5.0] * 3)
    assert gate.update(20 * TENTH) == "unknown"
    assert gate.update(21 * TENTH, 0.0) == "stationary"


def test_stamps_that_stand_still_are_ignored() -> None:
    gate = MotionGate()
    drive(gate, [5.0] * 3)
    for _ in range(50):
        assert gate.update(2 * TENTH, 0.0) == "moving"


def test_time_that_runs_backwards_starts_over() -> None:
    gate = MotionGate()
    drive(gate, [5.0] * 3)
    assert gate.update(0, 0.0) == "stationary"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(STEPS, SPEEDS, SPEEDS), max_size=60))
def test_it_never_flips_within_the_hold_time(
    readings: list[tuple[int, float | None, float | None]],
) -> None:
    """Whatever comes: between two flips lies the hold time, a gap, or a jump back."""
    gate = MotionGate(SETTINGS)
    stamp, changed, state = 0, None, "unknown"
    for step, speed, flow in readings:
        stamp += step
        new = gate.update(stamp, speed, flow)
        assert new in ("unknown", "stationary", "moving")
        if step < 0 or step > SETTINGS.max_gap * 1e9:
            changed = None
        elif state != "unknown" and new != state:
            assert new != "unknown"
            hold = SETTINGS.hold_start if new == "moving" else SETTINGS.hold_stop
            if changed is not None:
                assert stamp - changed >= hold * 1e9 - 2e6
            changed = stamp
        elif new != state:
            changed = stamp
        state = new


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.21, 0.49), min_size=1, max_size=50), st.sampled_from([0.0, 5.0]))
def test_between_the_thresholds_nothing_changes(speeds: list[float], first: float) -> None:
    gate = MotionGate()
    state = gate.update(0, first)
    assert set(drive(gate, list(speeds), start=TENTH)) == {state}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([None, math.nan]), max_size=30), st.sampled_from([0.0, 5.0]))
def test_missing_speeds_change_nothing(speeds: list[float | None], first: float) -> None:
    gate = MotionGate()
    state = gate.update(0, first)
    assert set(drive(gate, list(speeds), start=TENTH)) <= {state}


@pytest.mark.parametrize(
    "values",
    [
        {"start_speed": 0.1, "stop_speed": 0.2},
        {"stop_flow": -1.0},
        {"start_flow": math.nan},
        {"hold_stop": -0.1},
        {"hold_start": math.inf},
        {"max_gap": 0.2},
    ],
)
def test_settings_that_make_no_sense(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        GateSettings(**values)


@given(st.one_of(st.none(), st.floats()))
def test_known_speed(speed: float | None) -> None:
    known = Motion(speed, "odometry").known_speed
    if speed is None or not math.isfinite(speed):
        assert known is None
    else:
        assert known == abs(speed)


def test_the_way_since_a_frame() -> None:
    pose = np.eye(4)
    pose[:3, 3] = (0.3, 0.0, 0.4)
    told = Motion(5.0, "odometry", pose, 0).way(0, TENTH)
    assert told.metres == pytest.approx(0.5)
    assert told.pose is not None
    # By the speed where there is no pose since that frame, and not at all back in time.
    assert Motion(-5.0, "odometry", pose, 7).way(0, TENTH) == (None, pytest.approx(0.5))
    assert Motion(5.0, "odometry", pose).way(TENTH, TENTH) == (None, None)
    assert Motion().way(0, TENTH) == (None, None)


@pytest.mark.parametrize(("speed", "known"), [(5.0, False), (0.0, True), (None, True)])
def test_a_pose_that_stands_while_the_vehicle_drives_is_none(
    speed: float | None, known: bool
) -> None:
    assert (Motion(speed, "odometry", np.eye(4)).pose_since(0) is not None) == known


# -- image motion ----------------------------------------------------------------------------------


def camera_picture(x: float, seed: int = 0, noise: float = 2.0) -> NDArray[np.uint8]:
    """A textured 640x192 picture moved by x pixels, with sensor noise."""
    picture = shifted(texture(640, 192, seed=7), x).astype(np.float32)
    picture += np.random.default_rng(seed).normal(0, noise, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def measure(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float | None:
    meter = ImageMotion()
    return meter.measure(meter.prepare(first), meter.prepare(second))


@pytest.mark.parametrize("x", [0.8, 2.0, 4.0, 10.0])
def test_a_shift_is_measured_in_pixels_at_the_small_size(x: float) -> None:
    flow = measure(camera_picture(0, 1), camera_picture(x, 2))
    assert flow == pytest.approx(x * MOTION_SIZE[0] / 640, rel=0.25)
    assert flow > SETTINGS.start_flow


def test_noise_is_no_motion() -> None:
    flow = measure(camera_picture(0, 1, noise=4), camera_picture(0, 2, noise=4))
    assert flow is not None
    assert flow < SETTINGS.stop_flow


@pytest.mark.parametrize("width", [150, 380])
def test_a_moving_car_or_bus_in_a_standing_scene_is_no_motion(width: int) -> None:
    first, second = camera_picture(0, 1), camera_picture(0, 2)
    vehicle = texture(width, 170, seed=3, margin=0)
    first[10:180, 100 : 100 + width] = vehicle
    second[10:180, 130 : 130 + width] = vehicle
    flow = measure(first, second)
    assert flow is not None
    assert flow < SETTINGS.stop_flow


@pytest.mark.parametrize("width", [150, 380])
def test_driving_behind_a_car_or_bus_is_motion(width: int) -> None:
    """The vehicle ahead keeps its place in the picture; the street does not."""
    first, second = camera_picture(0, 1), camera_picture(4, 2)
    vehicle = texture(width, 90, seed=3, margin=0)
    for picture in (first, second):
        picture[60:150, 100 : 100 + width] = vehicle
    flow = measure(first, second)
    assert flow is not None
    assert flow > SETTINGS.start_flow


@pytest.mark.parametrize("every", [1, 2])
def test_the_embedded_drive_stops_and_goes_without_odometry(every: int) -> None:
    """At ten and at five frames a second."""
    frames = open_recording(demo_bag()).frames[::every]
    pictures, gate = RecentPictures(), MotionGate()
    wrong = []
    for frame in frames:
        flow = pictures.motion(frame.stamp_ns, frame.image(), SETTINGS)
        state = gate.update(frame.stamp_ns, None, flow)
        assert frame.speed is not None
        # Between these speeds, and while a change is being held, either answer will do.
        if state != ("moving" if frame.speed > 1.0 else "stationary") and frame.index > 1:
            wrong.append((frame.index, frame.speed, flow))
    stopped = [frame.index for frame in frames if frame.speed == 0.0]
    assert len(stopped) >= 20 // every
    assert [index for index, _, _ in wrong if index in stopped[7 // every :]] == []
    assert [index for index, speed, _ in wrong if speed > 1.5] == []


@pytest.mark.parametrize("rate", [5, 10, 30, 100])
@pytest.mark.parametrize(("pixels_a_second", "state"), [(0.1, "stationary"), (4.0, "moving")])
def test_moving_is_the_same_at_any_frame_rate(
    rate: int, pixels_a_second: float, state: str
) -> None:
    """Pixels of a 640 pixels wide picture: a quarter of them at MOTION_SIZE."""
    pictures, gate = RecentPictures(), MotionGate()
    for i in range(rate):
        picture = camera_picture(pixels_a_second * i / rate, seed=i)
        stamp = round(i * 1e9 / rate)
        flow = pictures.motion(stamp, picture, SETTINGS)
        gate.update(stamp, None, flow)
    assert gate.state == state
    assert flow is not None
    if state == "moving":
        expected = pixels_a_second * max(FLOW_SECONDS, 1 / rate) / 4
        assert flow == pytest.approx(expected, rel=0.3)


def test_recent_pictures_say_nothing_before_they_can() -> None:
    pictures = RecentPictures()
    assert pictures.motion(0, camera_picture(0), SETTINGS) is None
    # Too short a time to say that it stands, long enough to say that it moves.
    assert pictures.motion(TENTH // 3, camera_picture(0, 1), SETTINGS) is None
    flow = pictures.motion(2 * TENTH // 3, camera_picture(8, 2), SETTINGS)
    assert flow is not None
    assert flow > SETTINGS.start_flow
    # Not across a gap, and not back in time.
    assert pictures.motion(20 * TENTH, camera_picture(30), SETTINGS) is None
    assert pictures.motion(19 * TENTH, camera_picture(60), SETTINGS) is None
    assert pictures.motion(21 * TENTH, camera_picture(60, 1), SETTINGS) is not None
    pictures.clear()
    assert pictures.motion(22 * TENTH, camera_picture(0), SETTINGS) is None


def test_recent_pictures_are_few() -> None:
    pictures = RecentPictures()
    picture = camera_picture(0)
    for i in range(500):
        pictures.motion(i * 1_000_000, picture, SETTINGS)
    assert len(pictures._kept) <= 32


@pytest.mark.parametrize(("x", "moves"), [(0.0, False), (12.0, True)])
def test_a_border_takes_no_part(x: float, moves: bool) -> None:
    """A 4:3 picture in the networks' frame: three fifths of it are filled with the edge's pixels,
    and there is a part of the vehicle itself."""
    trained, vehicle = Camera(371.0, 369.0, 320.0, 96.0, 640, 192), texture(16, 480, margin=0)
    images = [shifted(texture(640, 480, seed=4), place) for place in (0.0, x)]
    for image in images:
        image[:, :16] = image[:, -16:] = vehicle
    first, second = (frame_image(image, None, trained, "pad") for image in images)
    meter = ImageMotion()
    pictures = meter.prepare(first.pixels), meter.prepare(second.pixels)
    flow = meter.measure(*pictures, second.outside)
    assert flow is not None
    assert flow == pytest.approx(x * 0.4 / 4, rel=0.25, abs=0.02)
    assert (flow > SETTINGS.start_flow) == moves
    everywhere = np.ones_like(second.outside, dtype=bool)
    assert meter.measure(*pictures, everywhere) is None


def test_brightness_is_no_motion() -> None:
    brighter = np.clip(camera_picture(0, 2).astype(np.float32) * 1.15 + 5, 0, 255).astype(np.uint8)
    flow = measure(camera_picture(0, 1), brighter)
    assert flow is not None
    assert flow < SETTINGS.stop_flow


def test_without_texture_there_is_no_answer() -> None:
    grey = np.full((192, 640, 3), 90, dtype=np.uint8)
    assert measure(grey, grey) is None


def test_it_costs_little() -> None:
    """A bound that a slow, busy machine keeps as well: 1.5 ms where it was measured."""
    first, second = camera_picture(0, 1), camera_picture(3, 2)
    meter = ImageMotion()
    times = []
    for _ in range(20):
        start = time.process_time()
        meter.measure(meter.prepare(first), meter.prepare(second))
        times.append(time.process_time() - start)
    assert min(times) < 10e-3


@pytest.mark.data
def test_the_real_drive_comes_to_a_stop() -> None:
    folder = (
        Path(os.environ["DEPTH_PRIOR_DATA"])
        / "kitti_raw/2011_09_26/2011_09_26_drive_0052_sync/image_02"
    )
    files = sorted(folder.rglob("*.jpg")) + sorted(folder.rglob("*.png"))
    assert len(files) == 78
    pictures, gate, states = RecentPictures(), MotionGate(), []
    for index, file in enumerate(files):
        image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        pixels = cv2.resize(image, (640, 192), interpolation=cv2.INTER_AREA)
        flow = pictures.motion(index * TENTH, pixels, SETTINGS)
        states.append(gate.update(index * TENTH, None, flow))
    assert set(states[1:40]) == {"moving"}
    assert set(states[66:]) == {"stationary"}
    assert sum(a != b for a, b in itertools.pairwise(states[1:])) == 1
