"""KITTI folders and image folders as recordings, whole, with gaps, and damaged."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings import (
    CorruptFrameError,
    Recording,
    RecordingError,
    open_recording,
    read_frames,
)
from depth_prior_ros.recordings.base import speeds_from_poses
from depth_prior_ros.recordings.folder import open_image_folder
from depth_prior_ros.recordings.image_files import (
    decode_depth,
    decode_image,
    encode_depth,
    probe_image,
    read_image,
)

SIZE = (62, 19)  # width, height
CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
S_rect_02: 6.200000e+01 1.900000e+01
P_rect_02: 36.0 0 31.0 2.2 0 36.0 9.5 0.01 0 0 1 0.0027
"""

quick = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    generator = np.random.default_rng(number)
    return generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def write_picture(path: Path, number: int = 0, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(number, size))


def write_drive(
    root: Path, numbers: list[int], suffix: str = ".png", data: bool = True, depth: bool = True
) -> Path:
    """A KITTI raw drive with these frames, depth in the even ones."""
    drive = root / "2011_09_26" / "2011_09_26_drive_0001_sync"
    folder = drive / "image_02" / "data" if data else drive / "image_02"
    folder.mkdir(parents=True)
    (root / "2011_09_26" / "calib_cam_to_cam.txt").write_text(CALIBRATION)
    for number in numbers:
        write_picture(folder / f"{number:010d}{suffix}", number)
        if depth and number % 2 == 0:
            truth = drive / "proj_depth" / "velodyne_raw" / "image_02" / f"{number:010d}.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            truth.write_bytes(encode_depth(np.full(SIZE[::-1], 5.0 + number, np.float32)))
    return drive


def write_sequence(root: Path, count: int) -> Path:
    """A KITTI odometry sequence driving 1 m per frame along z."""
    sequence = root / "sequences" / "07"
    for number in range(count):
        write_picture(sequence / "image_0" / f"{number:06d}.png", number)
    (sequence / "calib.txt").write_text("P0: 36 0 31 0 0 36 9.5 0 0 0 1 0\n")
    (root / "poses").mkdir()
    lines = [f"1 0 0 0 0 1 0 0 0 0 1 {float(n)}" for n in range(count)]
    (root / "poses" / "07.txt").write_text("\n".join(lines))
    return sequence


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_drive_in_both_layouts(tmp_path: Path, data: bool, suffix: str) -> None:
    recording = open_recording(write_drive(tmp_path, list(range(4)), suffix, data))
    assert isinstance(recording, Recording)
    assert [frame.index for frame in recording.frames] == [0, 1, 2, 3]
    assert recording.skipped == []
    assert recording.depth_source == "lidar"
    assert recording.frames[0].camera == Camera(36.0, 36.0, 31.0, 9.5, *SIZE)
    steps = {
        b.stamp_ns - a.stamp_ns
        for a, b in zip(recording.frames, recording.frames[1:], strict=False)
    }
    assert steps == {100_000_000}
    assert recording.frames[2].depth() == pytest.approx(7.0)
    assert recording.frames[1].depth() is None
    if suffix == ".png":
        assert np.array_equal(recording.frames[3].image(), picture(3)[..., ::-1])


@quick
@given(numbers=st.sets(st.integers(0, 40), min_size=1, max_size=12))
def test_gaps_are_known_and_named(tmp_path_factory: pytest.TempPathFactory, numbers: set) -> None:
    root = tmp_path_factory.mktemp("drive")
    present = sorted(numbers)
    recording = open_recording(write_drive(root, present, depth=False))
    assert [frame.index for frame in recording.frames] == present
    missing = set(range(present[0], present[-1] + 1)) - numbers
    named = " ".join(entry.what for entry in recording.skipped)
    if all(b - a <= 20 for a, b in itertools.pairwise(present)):
        assert len(recording.skipped) == len(missing)
        assert all(f"frame {number}" in named for number in missing)
    assert bool(recording.skipped) == bool(missing)
    gaps = [i for i in range(len(present)) if recording.gap_before(i)]
    assert gaps == [i for i in range(1, len(present)) if present[i] != present[i - 1] + 1]
    assert not recording.gap_before(0)
    for a, b in zip(recording.frames, recording.frames[1:], strict=False):
        assert b.stamp_ns - a.stamp_ns == (b.index - a.index) * 100_000_000


@quick
@given(
    suffix=st.sampled_from([".png", ".jpg"]),
    share=st.floats(0.0, 0.999),
    victim=st.integers(0, 4),
)
def test_truncated_file_is_left_out_and_named(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, share: float, victim: int
) -> None:
    drive = write_drive(tmp_path_factory.mktemp("drive"), list(range(5)), suffix)
    file = drive / "image_02" / "data" / f"{victim:010d}{suffix}"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    recording = open_recording(drive)
    read = [recording.frames[i].index for i, _ in read_frames(recording)]
    assert read == [n for n in range(5) if n != victim]
    named = [entry for entry in recording.skipped if entry.what == f"frame {victim}"]
    assert len(named) == 1
    assert file.name in named[0].why


@quick
@given(at=st.floats(0.02, 0.98), value=st.integers(0, 255))
def test_png_damaged_inside_never_passes(
    tmp_path_factory: pytest.TempPathFactory, at: float, value: int
) -> None:
    folder = tmp_path_factory.mktemp("image")
    write_picture(folder / "0.png")
    content = bytearray((folder / "0.png").read_bytes())
    place = int(at * len(content))
    if content[place] == value:
        return
    content[place] = value
    with pytest.raises(CorruptFrameError):
        decode_image(bytes(content), "test")


@quick
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("image") / "0.png"
    for start in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"):
        file.write_bytes(start + content)
        with pytest.raises(CorruptFrameError):
            read_image(file)
        try:
            probe_image(file)
        except CorruptFrameError:
            continue


def test_corrupt_frame_is_named_once_however_often_it_is_read(tmp_path: Path) -> None:
    drive = write_drive(tmp_path, [0, 1, 2])
    recording = open_recording(drive)
    file = drive / "image_02" / "data" / "0000000001.png"
    file.write_bytes(file.read_bytes()[:-40])  # after opening: found on reading
    for _ in range(3):
        assert [i for i, _ in read_frames(recording)] == [0, 2]
    assert [entry.what for entry in recording.skipped] == ["frame 1"]


def test_odd_names_sizes_and_doubles_are_named(tmp_path: Path) -> None:
    drive = write_drive(tmp_path, [0, 1, 2])
    folder = drive / "image_02" / "data"
    write_picture(folder / "thumb.png")
    write_picture(folder / "１２.png")  # digits that are not ASCII
    write_picture(folder / "2.png")
    write_picture(folder / "0000000003.png", size=(30, 10))
    (folder / "notes.txt").write_text("no image")
    (folder / "0000000004.png").mkdir()
    recording = open_recording(drive)
    assert [frame.index for frame in recording.frames] == [0, 1, 2]
    reasons = " ".join(str(entry) for entry in recording.skipped)
    assert len(recording.skipped) == 4
    for part in ("thumb.png", "１２.png", "there twice", "30x10"):
        assert part in reasons


def test_drive_without_usable_images_says_so(tmp_path: Path) -> None:
    drive = write_drive(tmp_path, [0])
    (drive / "image_02" / "data" / "0000000000.png").write_bytes(b"")
    with pytest.raises(RecordingError, match=r"no usable image.*empty"):
        open_recording(drive)


@pytest.mark.parametrize("make", ["nothing", "folder", "file"])
def test_what_is_no_recording_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "here"
    if make == "folder":
        path.mkdir()
    elif make == "file":
        path.write_text("hello")
    with pytest.raises(RecordingError, match="here"):
        open_recording(path)


def test_calibration_of_another_day_is_needed(tmp_path: Path) -> None:
    drive = write_drive(tmp_path, [0])
    (drive.parent / "calib_cam_to_cam.txt").unlink()
    # KITTI's own values are known for this day, but not for images of this shape
    with pytest.raises(RecordingError, match="1242x375"):
        open_recording(drive)
    other = drive.rename(drive.parent / "2011_10_03_drive_0001_sync")
    with pytest.raises(RecordingError, match="calib_cam_to_cam"):
        open_recording(other)


def test_camera_is_scaled_with_resized_images_and_noted(tmp_path: Path) -> None:
    drive = write_drive(tmp_path, [])
    write_picture(drive / "image_02" / "data" / "0.png", size=(124, 38))
    recording = open_recording(drive)
    assert recording.frames[0].camera == Camera(72.0, 72.0, 62.0, 19.0, 124, 38)
    assert any("scaled" in note for note in recording.notes)


def test_timestamps_and_oxts_are_used(tmp_path: Path) -> None:
    drive = write_drive(tmp_path, [0, 1, 2])
    lines = [f"2011-09-26 13:02:25.{n}00000007" for n in range(3)]
    (drive / "image_02" / "timestamps.txt").write_text("\n".join(lines) + "\n")
    for number in range(2):
        file = drive / "oxts" / "data" / f"{number:010d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(" ".join(str(v) for v in [49.0, 8.4, 112.0, 0, 0, 0, 1, 2, 7.5 + number]))
    (drive / "oxts" / "data" / "0000000002.txt").write_text("49.0 oops")
    recording = open_recording(drive)
    assert [frame.stamp_ns % 1_000_000_000 for frame in recording.frames] == [
        7,
        100_000_007,
        200_000_007,
    ]
    assert [frame.speed for frame in recording.frames] == [7.5, 8.5, None]
    assert any("no speed" in entry.why for entry in recording.skipped)


@pytest.mark.parametrize("content", ["", "rubbish\n", "2011-09-26 13:02:25.1\n" * 3])
def test_unusable_timestamps_are_noted(tmp_path: Path, content: str) -> None:
    drive = write_drive(tmp_path, [0, 1, 2])
    (drive / "image_02" / "timestamps.txt").write_text(content)
    recording = open_recording(drive)
    assert any("10 Hz taken" in note for note in recording.notes)
    assert recording.frames[1].stamp_ns - recording.frames[0].stamp_ns == 100_000_000


def test_odometry_sequence_has_poses_and_speed(tmp_path: Path) -> None:
    recording = open_recording(write_sequence(tmp_path, 4))
    assert [frame.speed for frame in recording.frames] == pytest.approx([10.0] * 4)
    pose = recording.frames[3].pose
    assert pose is not None
    assert np.allclose(pose[:3, 3], [0, 0, 3])


def test_odometry_sequence_without_poses_or_with_broken_ones(tmp_path: Path) -> None:
    sequence = write_sequence(tmp_path, 3)
    poses = tmp_path / "poses" / "07.txt"
    poses.write_text("1 2 3\n")
    with pytest.raises(RecordingError, match="line 1"):
        open_recording(sequence)
    poses.unlink()
    recording = open_recording(sequence)
    assert {frame.speed for frame in recording.frames} == {None}
    assert "no poses" in recording.notes


def test_second_camera_stands_beside_the_first(tmp_path: Path) -> None:
    sequence = write_sequence(tmp_path, 2)
    (sequence / "image_0").rename(sequence / "image_1")
    with (sequence / "calib.txt").open("a") as file:
        file.write("P1: 36 0 31 -18 0 36 9.5 0 0 0 1 0\n")
    pose = open_recording(sequence).frames[1].pose
    assert pose is not None
    assert np.allclose(pose[:3, 3], [0.5, 0, 1])  # half a metre to the right


def test_kitti_2015_scenes_do_not_follow_each_other(tmp_path: Path) -> None:
    for number in (2, 3, 5):
        write_picture(tmp_path / "image_02" / f"{number:06d}.png", number)
    (tmp_path / "depth_stereo").mkdir()
    depth = encode_depth(np.full(SIZE[::-1], 12.0, np.float32))
    (tmp_path / "depth_stereo" / "000003.png").write_bytes(depth)
    (tmp_path / "calib_cam_to_cam.txt").write_text(CALIBRATION)
    recording = open_recording(tmp_path)
    assert recording.depth_source == "stereo"
    assert [recording.gap_before(i) for i in range(3)] == [False, True, True]
    assert [frame.has_depth for frame in recording.frames] == [False, True, False]
    assert recording.skipped == []  # missing numbers are no gaps here


def test_image_folder_needs_a_camera_and_keeps_natural_order(tmp_path: Path) -> None:
    for name in ("shot10.png", "shot9.png", "shot1.png"):
        write_picture(tmp_path / name, int(name[4:-4]))
    with pytest.raises(RecordingError, match="intrinsics"):
        open_recording(tmp_path)
    camera = Camera(30.0, 30.0, 31.0, 9.0, *SIZE)
    recording = open_recording(tmp_path, camera=camera, rate=20.0)
    assert np.array_equal(recording.frames[2].image(), picture(10)[..., ::-1])
    assert recording.frames[1].stamp_ns - recording.frames[0].stamp_ns == 50_000_000
    with pytest.raises(RecordingError, match="rate"):
        open_image_folder(tmp_path, camera=camera, rate=0)


def test_grey_images_get_three_equal_channels(tmp_path: Path) -> None:
    grey = picture(1)[..., 0]
    assert cv2.imwrite(str(tmp_path / "0.png"), grey)
    image = read_image(tmp_path / "0.png")
    assert image.shape == (*SIZE[::-1], 3)
    assert all(np.array_equal(image[..., c], grey) for c in range(3))


def test_frames_can_be_sent_to_another_process(tmp_path: Path) -> None:
    recording = open_recording(write_drive(tmp_path, [0, 1]))
    again = pickle.loads(pickle.dumps(recording))
    assert np.array_equal(again.frames[1].image(), recording.frames[1].image())


@quick
@given(
    metres=st.lists(st.floats(-5, 400, allow_nan=False), min_size=4, max_size=4),
    holes=st.lists(st.sampled_from([np.nan, np.inf, 0.0]), min_size=2, max_size=2),
)
def test_depth_survives_the_16_bit_png(metres: list[float], holes: list[float]) -> None:
    depth = np.array([metres + holes], np.float32)
    again = decode_depth(encode_depth(depth), "test")
    for value, read in zip(depth[0], again[0], strict=False):
        if not np.isfinite(value) or value <= 1 / 512 or value > 255.99:
            assert read == 0 or abs(read - value) <= 1 / 512
        else:
            assert abs(read - value) <= 1 / 512 + 1e-6


def test_eight_bit_png_is_no_depth(tmp_path: Path) -> None:
    write_picture(tmp_path / "0.png")
    with pytest.raises(CorruptFrameError, match="16-bit"):
        decode_depth((tmp_path / "0.png").read_bytes(), "test")


def test_speed_is_negative_when_reversing_and_unknown_when_time_stands_still() -> None:
    poses = [np.eye(4) for _ in range(3)]
    poses[1][2, 3] = -0.5
    poses[2][2, 3] = -0.5
    speeds = speeds_from_poses(poses, [0, 100_000_000, 100_000_000])
    assert speeds == [pytest.approx(-5.0), pytest.approx(-5.0), None]


@pytest.mark.data
@pytest.mark.parametrize(
    ("path", "count", "depths"),
    [
        ("kitti_raw/2011_09_26/2011_09_26_drive_0095_sync", 268, 0),
        ("kitti_raw/2011_09_26/2011_09_26_drive_9001_sync", 91, 0),
        ("kitti_raw/2011_09_26/2011_09_26_drive_0052_sync", 78, 78),
        ("kitti_raw/2011_09_26/2011_09_26_drive_0039_sync", 400, 58),
        ("kitti_odometry/sequences/03", 801, 0),
        ("kitti_2015", 91, 91),
    ],
)
def test_real_folders_are_read_whole(data_dir: Path, path: str, count: int, depths: int) -> None:
    recording = open_recording(data_dir / path)
    assert len(recording.frames) == count
    assert sum(frame.has_depth for frame in recording.frames) == depths
    image = recording.frames[-1].image()
    assert image.shape == (375, 1242, 3)
    gaps = [i for i in range(count) if recording.gap_before(i)]
    if "0039" in path:
        assert gaps == [23]
        assert [str(entry) for entry in recording.skipped] == ["frame 23: missing"]
    elif path != "kitti_2015":
        assert gaps == []


@pytest.mark.data
def test_real_odometry_has_the_length_of_the_road(data_dir: Path) -> None:
    recording = open_recording(data_dir / "kitti_odometry/sequences/03")
    places = np.array([frame.pose[:3, 3] for frame in recording.frames])
    assert np.linalg.norm(np.diff(places, axis=0), axis=1).sum() == pytest.approx(560.9, abs=0.1)


# -- names, kinds and orientations of images, videos, calibration files ----------------------------

FOLDER_CAMERA = Camera(50.0, 50.0, 31.0, 9.5, *SIZE)


def write_named(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        write_picture(folder / name, number)
    return folder


@pytest.mark.parametrize(
    ("names", "nanoseconds"),
    [
        ([f"{1_700_000_000_000_000_000 + i * 50_000_000}.png" for i in (0, 1, 3)], 1),
        ([f"{1_700_000_000_000_000 + i * 50_000}.png" for i in (0, 1, 3)], 1),
        ([f"{1_700_000_000_000 + i * 50}.png" for i in (0, 1, 3)], 1),
        ([f"1700000000.{i * 50_000:06d}.png" for i in (0, 1, 3)], 1),
    ],
    ids=["ns", "us", "ms", "s"],
)
def test_names_that_are_times(tmp_path: Path, names: list[str], nanoseconds: int) -> None:
    more = [names[0], names[1], names[2]]
    recording = open_image_folder(write_named(tmp_path / "f", more), camera=FOLDER_CAMERA)
    start = 1_700_000_000 * 10**9
    assert [f.stamp_ns - start for f in recording.frames] == [0, 50_000_000, 150_000_000]
    assert any("stamps are taken from the images' names" in note for note in recording.notes)


def test_a_gap_among_times_is_a_gap(tmp_path: Path) -> None:
    names = [f"{1_700_000_000_000_000_000 + i * 50_000_000}.png" for i in (0, 1, 2, 3, 6, 7)]
    recording = open_image_folder(write_named(tmp_path / "f", names), camera=FOLDER_CAMERA)
    assert [frame.index for frame in recording.frames] == [0, 1, 2, 3, 6, 7]
    assert recording.gap_before(4)


def test_a_constant_step_is_the_step(tmp_path: Path) -> None:
    names = [f"{number:06d}.png" for number in (0, 5, 10, 20)]
    recording = open_image_folder(write_named(tmp_path / "f", names), camera=FOLDER_CAMERA, rate=2)
    assert [frame.index for frame in recording.frames] == [0, 1, 2, 4]
    assert [recording.gap_before(i) for i in range(4)] == [False, False, False, True]
    stamps = [frame.stamp_ns for frame in recording.frames]
    assert stamps[1] - stamps[0] == 500_000_000
    assert any("steps of 5" in note for note in recording.notes)


def test_dates_and_other_large_numbers_give_an_order_only(tmp_path: Path) -> None:
    names = [f"202301011230{second}.png" for second in (58, 59)] + ["20230101123100.png"]
    recording = open_image_folder(write_named(tmp_path / "f", names), camera=FOLDER_CAMERA)
    assert [frame.index for frame in recording.frames] == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".webp", ".ppm"])
def test_every_kind_of_image(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / "f" / f"0{suffix}"
    write_picture(file)
    recording = open_image_folder(tmp_path / "f", camera=FOLDER_CAMERA)
    difference = recording.frames[0].image()[..., ::-1].astype(int) - picture(0)
    assert np.abs(difference).mean() < 40  # some lose something


def test_16_bits_become_8_as_in_messages(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 65535]], np.uint16)
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 255]


def turned(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG with an orientation tag."""
    entry = (0x0112).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    tiff = b"II*\0\x08\0\0\0\x01\0" + entry + orientation.to_bytes(4, "little") + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_orientation_tag_is_not_followed(tmp_path: Path, orientation: int) -> None:
    """Intrinsics describe the sensor, whichever way up a viewer shows its picture."""
    jpeg = bytes(cv2.imencode(".jpg", picture(0))[1])
    (tmp_path / "a.jpg").write_bytes(jpeg)
    (tmp_path / "b.jpg").write_bytes(turned(jpeg, orientation))
    assert probe_image(tmp_path / "b.jpg") == SIZE
    np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), read_image(tmp_path / "a.jpg"))


def test_a_folder_without_images_says_which_there_could_be(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"no images in it; .*\.png.*\.bmp"):
        open_image_folder(tmp_path, camera=FOLDER_CAMERA)


VIDEO_SIZE = (64, 48)


def write_video(path: Path, count: int = 12) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 20.0, VIDEO_SIZE)
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.full((*VIDEO_SIZE[::-1], 3), 20 * number, np.uint8))
    writer.release()
    return path


def test_a_video_is_a_recording(tmp_path: Path) -> None:
    (tmp_path / "intrinsics.yaml").write_text(
        "{units: normalised, fx: 0.6, fy: 0.8, cx: 0.5, cy: 0.5}"
    )
    recording = open_recording(write_video(tmp_path / "drive.mp4"))
    assert (recording.name, len(recording.frames)) == ("drive", 12)
    assert recording.frames[0].camera.fx == pytest.approx(0.6 * 64)
    assert recording.frames[1].stamp_ns - recording.frames[0].stamp_ns == 50_000_000
    again = pickle.loads(pickle.dumps(recording))
    for order in (range(12), (7, 3, 11, 0)):
        for number in order:
            assert again.frames[number].image().mean() == pytest.approx(20 * number, abs=8)


def test_a_file_that_is_no_video_says_so(tmp_path: Path) -> None:
    (tmp_path / "drive.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    with pytest.raises(RecordingError, match="cannot be read as a video"):
        open_image_folder(tmp_path / "drive.mp4", camera=FOLDER_CAMERA)
    with pytest.raises(RecordingError, match=r"drive\.mp4: a video has no calibration"):
        open_recording(tmp_path / "drive.mp4")


def test_a_calibration_of_ros_in_the_folder_rectifies_the_images(tmp_path: Path) -> None:
    folder = write_named(tmp_path / "f", ["0.png", "1.png"])
    (folder / "ost.yaml").write_text(
        "image_width: 62\nimage_height: 19\ncamera_name: c\n"
        "camera_matrix: {rows: 3, cols: 3, data: [50, 0, 31, 0, 50, 9.5, 0, 0, 1]}\n"
        "distortion_model: plumb_bob\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [-0.3, 0.1, 0, 0, 0]}\n"
        "rectification_matrix: {rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}\n"
        "projection_matrix: {rows: 3, cols: 4, data: [45, 0, 30, 0, 0, 46, 9, 0, 0, 0, 1, 0]}\n"
    )
    recording = open_recording(folder)
    frame = recording.frames[0]
    assert frame.camera == Camera(45.0, 46.0, 30.0, 9.0, *SIZE)
    assert "rectified" in frame.processing
    assert frame.file is None, "the file shows another picture"
    K, P = np.diag([50.0, 50.0, 1.0]), np.diag([45.0, 46.0, 1.0])
    K[:2, 2], P[:2, 2] = (31, 9.5), (30, 9)
    expected = cv2.undistort(picture(0)[..., ::-1], K, np.array([-0.3, 0.1, 0, 0, 0]), None, P)
    inner = np.s_[4:-4, 8:-8]
    assert np.abs(frame.image()[inner].astype(int) - expected[inner]).mean() < 2
    plain = open_recording(folder, rectify="never").frames[0]
    np.testing.assert_array_equal(plain.image(), picture(0)[..., ::-1])
