"""What is kept of a drive, how much of it, and how its depth becomes metres."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from depth_prior_ros.adaptation.adapt import LEAST, stretches
from depth_prior_ros.adaptation.keyframes import (
    MOST,
    MOST_BYTES,
    AdaptationError,
    DriveMemory,
    Keyframe,
    MatchedKeyframe,
    depth_at_cells,
    followed_keyframe,
    in_metres,
    matched_keyframe,
    spaced,
)
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline.framing import frame_image
from depth_prior_ros.pipeline.results import MatchedFrame
from depth_prior_ros.scale import Points, RoadSettings, ScaleSight

SIZE = (64, 32)
CAMERA = Camera(40.0, 40.0, 32.0, 14.0, *SIZE)


def matched(
    number: int = 0,
    camera: Camera = CAMERA,
    travelled: float | None = 1.0,
    seconds: float = 0.1,
    **changes: object,
) -> MatchedFrame:
    image = np.full((camera.height, camera.width, 3), number % 256, np.uint8)
    frame = MatchedFrame(
        round(number * seconds * 1e9),
        frame_image(image, camera, camera),
        np.full((camera.height, camera.width), 0.3, np.float32),
        np.full((camera.height, camera.width), 0.5, np.float32),
        np.full((camera.height // 4, camera.width // 4), 6.0, np.float32),
        stretch=1.0,
        travelled=travelled,
        metres=travelled,
        units=0.1,
    )
    return replace(frame, **changes)  # type: ignore[arg-type]


def kept(metres: float | None = 1.0, units: float = 0.1, **changes: object) -> MatchedKeyframe:
    frame = matched_keyframe(matched(), 2.0, None)
    assert frame is not None
    return replace(frame, metres=metres, units=units, **changes)  # type: ignore[arg-type]


def test_only_matched_cells_have_depth() -> None:
    parallax = np.full((8, 16), 6.0, np.float32)
    parallax[:, :9] = 1.0  # a cell is as good as its worst quarter
    inverse = np.full((32, 64), 0.25, np.float32)
    inverse[:8] = np.nan
    frame = matched_keyframe(matched(parallax=parallax, matched=inverse, stretch=2.0), 2.0, None)
    assert frame is not None
    expected = np.zeros((4, 8), np.float32)
    expected[1:, 5:] = 8.0  # 1 / 0.25, the stretch undone
    np.testing.assert_array_equal(frame.depth, expected)
    assert matched_keyframe(matched(parallax=0 * parallax), 2.0, None) is None


@pytest.mark.parametrize(
    ("threshold", "pixels"),
    [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (3.0, 4.0), (4.0, 4.0), (8.0, 8.0)],
)
def test_depth_by_matching_alone_counts_from_four_pixels(threshold: float, pixels: float) -> None:
    """From less for a network of small pictures, from more where its bundle wants more."""
    parallax = np.full((8, 16), pixels, np.float32)
    assert matched_keyframe(matched(parallax=parallax), threshold, None) is not None
    assert matched_keyframe(matched(parallax=0.99 * parallax), threshold, None) is None


def test_metres_by_the_step_or_the_camera_s_height() -> None:
    (frame,) = in_metres([kept(metres=0.6, units=0.1)])
    assert frame.depth[0, 0] == pytest.approx(6.0 * 2.0)
    (frame,) = in_metres([kept(metres=None, road=0.1)], camera_height=1.5)
    assert frame.depth[0, 0] == pytest.approx(15.0 * 2.0)
    far = in_metres([kept(metres=6.0, units=0.1)])
    assert not far[0].depth.any(), "120 m is beyond what is used"


def test_a_step_that_was_measured_wrong_is_left_out() -> None:
    frames = [kept(metres=1.0 + 0.05 * n) for n in range(5)] + [kept(metres=9.0)]
    assert len(in_metres(frames)) == 5


@pytest.mark.parametrize(
    ("frames", "height", "words"),
    [
        ([], None, "no keyframe with depth"),
        ([kept(metres=None)], None, "metres need odometry"),
        ([kept(metres=0.01)], None, "nothing says how far"),
        ([kept()], 1.5, "no flat road"),
    ],
)
def test_without_metres_the_reason_is_said(
    frames: list[MatchedKeyframe], height: float | None, words: str
) -> None:
    with pytest.raises(AdaptationError, match=words):
        in_metres(frames, height)


def test_the_road_gives_the_camera_s_height_in_units() -> None:
    """A camera 0.2 units above a plane, in a world that is stretched by 1.5."""
    rows = np.arange(32)[:, None] + np.zeros(64)
    real = np.maximum((rows - CAMERA.cy) / CAMERA.fy / 0.2, 1e-3).astype(np.float32)
    frame = matched_keyframe(matched(inverse=real * 1.5, stretch=1.5), 2.0, RoadSettings())
    assert frame is not None and frame.road == pytest.approx(0.2, rel=0.02)


def test_keyframes_are_spaced_by_distance_or_by_time() -> None:
    memory = DriveMemory()
    for n in range(30):
        memory.saw(matched(n))
    stamps = [frame.stamp_ns // 10**8 for frame in memory.keyframes()]
    assert stamps == list(range(0, 30, 3)), "3 m apart"
    memory = DriveMemory()
    for n in range(30):
        memory.saw(matched(n, travelled=None))
    assert [f.stamp_ns // 10**8 for f in memory.keyframes()] == list(range(0, 30, 5)), "0.5 s"


def test_followed_points_are_depth_in_metres_near_the_cells_centres() -> None:
    """Of a network that matches nothing: 40 points at 5 m at centres, and what is not to count."""
    rows, columns = np.divmod(np.arange(40), 10)
    camera = Camera(80.0, 80.0, 40.0, 16.0, 80, 32)
    centres = np.stack([8 * columns + 3.5, 8 * rows + 3.5], axis=1).astype(np.float32)
    inverse, sigma = np.full(40, 0.2), np.full(40, 0.01)
    inverse[0], sigma[1], inverse[2] = 1 / 90, 0.1, -0.1  # too far, unsure, beyond infinity
    centres[3] += 3  # at a corner of its cell
    picture = np.zeros((32, 80, 3), np.uint8)
    sight = ScaleSight(7, None, camera, moving=True, picture=picture)
    frame = followed_keyframe(Points(centres, inverse, sigma), sight)
    assert frame is not None and frame.stamp_ns == 7
    assert frame.depth.shape == (4, 10) and (frame.depth[0, :4] == 0).all()
    assert np.count_nonzero(frame.depth) == 36 and frame.depth[1, 1] == pytest.approx(5.0)
    (known,) = in_metres([frame])
    np.testing.assert_array_equal(known.depth, frame.depth)
    few = Points(centres[10:30], inverse[10:30], sigma[10:30])
    assert followed_keyframe(few, sight) is None


def test_a_memory_follows_points_only_while_odometry_tells_the_way() -> None:
    memory = DriveMemory()
    picture = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    for n in range(5):
        memory.saw(ScaleSight(n, None, CAMERA, moving=True, picture=picture, seconds=0.1))
    assert not memory.keyframes()


def test_what_is_kept_is_bounded() -> None:
    memory = DriveMemory()
    for n in range(20 * MOST):
        memory.saw(matched(n, travelled=3.0))
    assert MOST // 2 <= len(memory) <= MOST
    first, last = memory.keyframes()[0], memory.keyframes()[-1]
    assert first.stamp_ns == 0 and last.stamp_ns > 18 * MOST * 10**8, "all of the drive"
    large = Camera(1000.0, 1000.0, 1024.0, 512.0, 2048, 1024)
    memory = DriveMemory()
    for n in range(40):
        memory.saw(matched(n, camera=large, travelled=100.0))
        assert memory.nbytes <= MOST_BYTES
    memory = DriveMemory(seconds=5.0)
    for n in range(200):
        memory.saw(matched(n, travelled=3.0))
    assert len(memory) <= 51


def test_another_camera_or_clock_begins_anew() -> None:
    memory = DriveMemory()
    memory.saw(matched(100))
    memory.saw(matched(200, camera=replace(CAMERA, fx=60.0, fy=60.0), travelled=50.0))
    assert [f.stamp_ns for f in memory.keyframes()] == [20 * 10**9]
    memory.saw(matched(1, camera=replace(CAMERA, fx=60.0, fy=60.0)))
    assert [f.stamp_ns for f in memory.keyframes()] == [10**8]
    memory.clear()
    assert len(memory) == 0 and memory.nbytes == 0


def test_depth_of_a_sensor_goes_to_the_cell_whose_centre_it_is_near() -> None:
    framed = frame_image(np.zeros((32, 64, 3), np.uint8), CAMERA, CAMERA)
    depth = np.zeros((32, 64), np.float32)
    depth[4, 4], depth[3, 11], depth[20, 40] = 7.0, 9.0, 90.0
    depth[8, 16] = 5.0  # a corner of its cell
    cells = depth_at_cells(depth, framed)
    assert cells[0, 0] == 7.0 and cells[0, 1] == 9.0
    assert (cells > 0).sum() == 2


def test_stretches_alternate() -> None:
    frames: list[Keyframe] = [kept(stamp_ns=n) for n in range(160)]
    fitted, judged = stretches(frames)
    places = {frame.stamp_ns // 20 for frame in fitted}, {f.stamp_ns // 20 for f in judged}
    assert places == ({0, 2, 4, 6}, {1, 3, 5, 7})
    few = stretches(frames[:LEAST])
    assert [len(part) for part in few] == [4, 4]
    assert [f.stamp_ns for f in spaced(frames[:10], 3)] == [1, 4, 7]
