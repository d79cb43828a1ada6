"""Bags: written and read back, found topics, and bags that are not what they should be."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.motion.odometry import Trajectory, read_odometry
from depth_prior_ros.recordings import CorruptFrameError, RecordingError, open_recording
from depth_prior_ros.recordings.bag import open_bag
from depth_prior_ros.recordings.bag_messages import (
    KITTI_UNIT,
    camera_pose,
    depth_of,
    image_of,
    odometry_from_pose,
)
from depth_prior_ros.recordings.bag_topics import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    ODOMETRY,
    BagTopics,
    choose_topics,
)
from depth_prior_ros.recordings.base import Frame, StoredRecording
from depth_prior_ros.recordings.image_files import encode_depth, read_image
from rosbag_tools.make import write_bag

SIZE = (64, 24)
CAMERA = Camera(40.0, 41.0, 31.5, 11.25, *SIZE)
START = 1_700_000_000_123_456_789


def smooth(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture that JPEG keeps well."""
    coarse = np.random.default_rng(number).integers(30, 226, (4, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def turned(yaw: float, pitch: float, roll: float, x: float, y: float, z: float) -> np.ndarray:
    rotation = np.eye(3)
    for axis, angle in enumerate((pitch, yaw, roll)):
        vector = np.zeros(3)
        vector[axis] = angle
        rotation = rotation @ cv2.Rodrigues(vector)[0]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, (x, y, z)
    return pose


def make_recording(
    count: int = 4,
    *,
    skip: tuple[int, ...] = (),
    speed: float | None = 3.5,
    depth: bool = True,
    size: tuple[int, int] = SIZE,
) -> StoredRecording:
    """A drive in memory: exact depth, poses, speed."""
    camera = CAMERA.scaled(*size)

    def frame(number: int) -> Frame:
        far = np.linspace(2, 60, size[1], dtype=np.float32)[::-1, None] + number
        truth = np.broadcast_to(far, size[::-1]).copy()
        truth[:3] = 0
        return Frame(
            index=number,
            stamp_ns=START + number * 100_000_000,
            camera=camera,
            load_image=lambda: smooth(number, size),
            load_depth=(lambda: truth) if depth else None,
            pose=turned(0.1 * number, 0.02, -0.03, 1.0, -2.0, 0.35 * number),
            speed=speed,
        )

    frames = [frame(number) for number in range(count) if number not in skip]
    return StoredRecording("made", frames, depth_source="exact" if depth else None)


def write(tmp_path: Path, recording: StoredRecording, name: str = "made.mcap") -> Path:
    return write_bag(recording, tmp_path / name).path


def write_messages(path: Path, topics: dict[str, tuple[str, list[Any]]]) -> Path:
    """A bag folder with any messages: topic -> (type, [(time, message)])."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    with Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        for topic, (kind, entries) in topics.items():
            connection = writer.add_connection(topic, kind, typestore=store)
            for time, values in entries:
                message = store.types[kind](**values)
                writer.write(connection, time, store.serialize_cdr(message, kind))
    return path


def header(stamp_ns: int) -> Any:
    from rosbags.typesys import Stores, get_typestore

    types = get_typestore(Stores.ROS2_HUMBLE).types
    time = types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return types["std_msgs/msg/Header"](stamp=time, frame_id="camera")


def raw_image(stamp_ns: int, pixels: np.ndarray, encoding: str, **other: Any) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    values = {
        "header": header(stamp_ns),
        "height": height,
        "width": width,
        "encoding": encoding,
        "is_bigendian": 0,
        "step": pixels.nbytes // max(1, height),
        "data": np.frombuffer(pixels.tobytes(), np.uint8),
    }
    return values | other


class Message:
    """A message by its fields only, as the decoders take it."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


@pytest.mark.parametrize("name", ["made.mcap", "made"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    recording = make_recording(5, skip=(2,))
    again = open_recording(write(tmp_path, recording, name))
    assert again.name == "made"
    assert again.depth_source == "exact"
    assert [frame.index for frame in again.frames] == [0, 1, 3, 4]
    assert [again.gap_before(i) for i in range(4)] == [False, False, True, False]
    for before, after in zip(recording.frames, again.frames, strict=True):
        assert after.stamp_ns == before.stamp_ns
        assert after.camera == before.camera
        assert after.speed == pytest.approx(before.speed)
        assert after.pose == pytest.approx(before.pose, abs=1e-9)
        difference = after.image().astype(int) - before.image().astype(int)
        assert np.abs(difference).mean() < 4
        depth, truth = after.depth(), before.depth()
        assert depth is not None
        assert truth is not None
        assert np.abs(depth - truth).max() <= 1 / 512 + 1e-6
        assert np.array_equal(depth == 0, truth == 0)


def test_same_recording_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a", make_recording())
    second = write(tmp_path / "b", make_recording())
    assert first.read_bytes() == second.read_bytes()


def test_jpeg_files_are_copied_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "frame.jpg"
    assert cv2.imwrite(str(file), smooth(0), [cv2.IMWRITE_JPEG_QUALITY, 60])
    frame = Frame(0, START, CAMERA, lambda: read_image(file), file=file)
    again = open_recording(write(tmp_path, StoredRecording("one", [frame])))
    assert np.array_equal(again.frames[0].image(), read_image(file))


def test_unknown_speed_and_depth_stay_unknown(tmp_path: Path) -> None:
    again = open_recording(write(tmp_path, make_recording(speed=None, depth=False)))
    assert {frame.speed for frame in again.frames} == {None}
    assert {frame.has_depth for frame in again.frames} == {False}
    assert again.depth_source is None


def test_corrupt_frames_are_left_out_of_the_bag_and_named(tmp_path: Path) -> None:
    recording = make_recording(3)

    def broken() -> np.ndarray:
        raise CorruptFrameError("frame.png: truncated")

    frames = list(recording.frames)
    frames[1] = Frame(1, frames[1].stamp_ns, CAMERA, broken, speed=3.5)
    recording.frames = frames
    again = open_recording(write(tmp_path, recording))
    assert len(again.frames) == 2
    assert [entry.what for entry in recording.skipped] == ["frame 1"]


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    recording = make_recording(3)

    def fails() -> np.ndarray:
        raise RuntimeError("disk on fire")

    recording.frames = [Frame(0, START, CAMERA, fails)]
    with pytest.raises(RuntimeError):
        write_bag(recording, tmp_path / "made.mcap")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bag_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path, make_recording(1))
    with pytest.raises(RecordingError, match="exists already"):
        write(tmp_path, make_recording(2))


def test_frames_of_a_bag_can_be_sent_to_another_process(tmp_path: Path) -> None:
    recording = open_recording(write(tmp_path, make_recording()))
    first = recording.frames[0].image()
    again = pickle.loads(pickle.dumps(recording))
    assert np.array_equal(again.frames[0].image(), first)


def test_a_bag_that_nobody_holds_is_closed(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    frames = open_bag(write(tmp_path, make_recording(2), "drive.mcap")).frames
    gc.collect()  # what other tests left
    recwarn.clear()
    assert len(frames[1].image())
    del frames
    gc.collect()
    assert [w.message for w in recwarn if w.category is ResourceWarning] == []


def test_bag_without_images_lists_what_is_there(tmp_path: Path) -> None:
    folder = write_messages(
        tmp_path / "bag", {"/note": ("std_msgs/msg/String", [(1, {"data": "hello"})])}
    )
    with pytest.raises(RecordingError, match=r"no images.*/note \(std_msgs/msg/String, 1\)"):
        open_recording(folder)


def test_bag_of_depth_only_has_no_images(tmp_path: Path) -> None:
    values = {
        "header": header(5),
        "format": "png",
        "data": np.frombuffer(encode_depth(np.ones((4, 6), np.float32)), np.uint8),
    }
    folder = write_messages(
        tmp_path / "bag", {"/ground_truth/depth": (COMPRESSED_IMAGE, [(5, values)])}
    )
    with pytest.raises(RecordingError, match="no images"):
        open_recording(folder)


def test_empty_bag(tmp_path: Path) -> None:
    folder = write_messages(tmp_path / "bag", {})
    with pytest.raises(RecordingError, match=r"no topics at all|cannot be read"):
        open_recording(folder)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(share=st.floats(0, 0.999))
def test_cut_off_mcap_is_an_error_that_says_so(tmp_path: Path, share: float) -> None:
    whole = tmp_path / "whole.mcap"
    if not whole.exists():
        write(tmp_path, make_recording(6), "whole.mcap")
    content = whole.read_bytes()
    part = tmp_path / "part.mcap"
    part.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RecordingError, match=r"part\.mcap"):
        open_recording(part)


def test_most_of_a_cut_off_mcap_can_be_recovered_and_the_error_says_how(tmp_path: Path) -> None:
    path = write(tmp_path, make_recording())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecordingError, match="mcap recover"):
        open_recording(path)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@example(at=0.804202768632186, value=95)  # the name of a field in a definition
@given(at=st.floats(0, 0.999), value=st.integers(0, 255))
def test_damaged_mcap_gives_a_recording_or_an_error_of_ours(
    tmp_path: Path, at: float, value: int
) -> None:
    whole = tmp_path / "whole.mcap"
    if not whole.exists():
        write(tmp_path, make_recording(3), "whole.mcap")
    content = bytearray(whole.read_bytes())
    content[int(at * len(content))] = value
    path = tmp_path / "damaged.mcap"
    path.write_bytes(content)
    try:
        recording = open_recording(path)
        for frame in recording.frames:
            frame.image()
            frame.depth()
    except RecordingError as error:
        assert str(error)


def test_stamps_that_stand_still_or_run_backwards_are_named(tmp_path: Path) -> None:
    stamps = [100, 200, 200, 150, 300]
    entries = [
        (1000 + i, raw_image(stamp * 10**6, smooth(i), "rgb8")) for i, stamp in enumerate(stamps)
    ]
    folder = write_messages(tmp_path / "bag", {"/front/image_raw": (IMAGE, entries)})
    recording = open_bag(folder, camera=CAMERA)
    assert [frame.stamp_ns // 10**6 for frame in recording.frames] == [100, 200, 300]
    reasons = [entry.why for entry in recording.skipped]
    assert "stands still" in reasons[0]
    assert "runs backwards" in reasons[1]


def test_zero_stamps_give_way_to_the_time_of_logging(tmp_path: Path) -> None:
    entries = [(1000 + 100 * i, raw_image(0, smooth(i), "rgb8")) for i in range(3)]
    folder = write_messages(tmp_path / "bag", {"/front/image_raw": (IMAGE, entries)})
    recording = open_bag(folder, camera=CAMERA)
    assert [frame.stamp_ns for frame in recording.frames] == [1000, 1100, 1200]


def test_messages_logged_at_the_same_time_are_told_apart(tmp_path: Path) -> None:
    entries = [(7, raw_image(10**9 + i, smooth(i), "rgb8")) for i in range(3)]
    folder = write_messages(tmp_path / "bag", {"/front/image_raw": (IMAGE, entries)})
    recording = open_bag(folder, camera=CAMERA)
    for i, frame in enumerate(recording.frames):
        assert np.array_equal(frame.image(), smooth(i))


def test_camera_info_is_needed_unless_the_camera_is_given(tmp_path: Path) -> None:
    entries = [(5, raw_image(5, smooth(0), "rgb8"))]
    folder = write_messages(tmp_path / "bag", {"/front/image_raw": (IMAGE, entries)})
    with pytest.raises(RecordingError, match="no camera_info for /front/image_raw"):
        open_recording(folder)
    assert open_recording(folder, camera=CAMERA).frames[0].camera == CAMERA


def test_a_camera_is_scaled_to_images_that_were_resized_and_no_further(tmp_path: Path) -> None:
    entries = [(5, raw_image(5, smooth(0, (32, 12)), "rgb8"))]
    folder = write_messages(tmp_path / "bag", {"/front/image_raw": (IMAGE, entries)})
    assert open_recording(folder, camera=CAMERA).frames[0].camera == CAMERA.scaled(32, 12)
    with pytest.raises(RecordingError, match="64x48 pixels, the image has 32x12"):
        open_recording(folder, camera=CAMERA.scaled(64, 48))


LENS = {
    "height": SIZE[1],
    "width": SIZE[0],
    "distortion_model": "plumb_bob",
    "d": np.array([-0.3, 0.1, 0.001, -0.002, 0.0]),
    "k": CAMERA.matrix().ravel(),
    "r": np.zeros(9),  # as drivers of single cameras leave it
    "p": np.zeros(12),
    "binning_x": 0,
    "binning_y": 0,
}


def lens_bag(folder: Path, image_topic: str = "/front/image_raw", **changes: Any) -> Path:
    """A bag of three images through a lens."""
    from rosbags.typesys import Stores, get_typestore

    types = get_typestore(Stores.ROS2_HUMBLE).types
    roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    infos, images = [], []
    for number in range(3):
        stamp = START + number * 100_000_000
        infos.append((stamp, {"header": header(stamp), "roi": roi, **LENS, **changes}))
        images.append((stamp, raw_image(stamp, smooth(number), "rgb8")))
    topics = {"/front/camera_info": (CAMERA_INFO, infos), image_topic: (IMAGE, images)}
    return write_messages(folder, topics)


def test_a_topic_of_another_type_is_refused_in_words(tmp_path: Path) -> None:
    bag = lens_bag(tmp_path / "bag")
    for topics, words in (
        (BagTopics(image="/front/camera_info"), "is sensor_msgs/msg/CameraInfo, not sensor_msgs"),
        (BagTopics(camera_info="/front/image_raw"), "is sensor_msgs/msg/Image, not sensor_msgs"),
    ):
        with pytest.raises(RecordingError, match=words):
            open_bag(bag, topics=topics)


def test_images_through_a_lens_are_rectified(tmp_path: Path) -> None:
    import cv2

    recording = open_recording(lens_bag(tmp_path / "bag"))
    assert recording.frames[0].camera == CAMERA
    assert any("is rectified (plumb_bob" in note for note in recording.notes)
    for number, frame in enumerate(pickle.loads(pickle.dumps(recording.frames))):
        raw = smooth(number)
        expected = cv2.undistort(raw, CAMERA.matrix(), LENS["d"])
        inner = np.s_[6:-6, 12:-12]  # beyond, OpenCV's border is black
        difference = np.abs(frame.image()[inner].astype(int) - expected[inner])
        assert difference.max() <= 2
        assert np.abs(raw[inner].astype(int) - expected[inner]).max() > 4, "the lens did nothing"


@pytest.mark.parametrize(
    ("topic", "rectify", "rectified"),
    [
        ("/front/image_raw", "auto", True),
        ("/front/image_raw", "never", False),
        ("/front/image_rect", "auto", False),
        ("/front/image_rect", "always", True),
    ],
)
def test_what_is_rectified_already_is_left_alone(
    tmp_path: Path, topic: str, rectify: str, rectified: bool
) -> None:
    folder = lens_bag(tmp_path / "bag", topic)
    frame = open_bag(folder, rectify=rectify).frames[0]
    assert np.array_equal(frame.image(), smooth(0)) is not rectified
    assert bool(frame.processing) is rectified
    # intrinsics that somebody gives are those of the images as they are
    assert np.array_equal(open_bag(folder, camera=CAMERA).frames[0].image(), smooth(0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distortion_model": "ftheta"}, "'ftheta' is not known.*rectify: never"),
        ({"d": np.array([np.nan, 0, 0, 0, 0.1])}, "not finite"),
        ({"d": np.array([0.1, 0.1])}, "coefficients"),
    ],
)
def test_a_lens_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = lens_bag(tmp_path / "bag", **changes)
    with pytest.raises(RecordingError, match=f"/front/camera_info: .*{words}"):
        open_recording(folder)
    assert len(open_bag(folder, rectify="never").frames) == 3


def test_topics_are_found_by_type_and_name() -> None:
    there = {
        "/rear/image_raw": (IMAGE, 500),
        "/camera/image_raw/compressed": (COMPRESSED_IMAGE, 80),
        "/camera/camera_info": (CAMERA_INFO, 80),
        "/rear/camera_info": (CAMERA_INFO, 500),
        "/camera/depth/image_rect": (IMAGE, 900),
        "/camera/image_raw/compressedDepth": (COMPRESSED_IMAGE, 900),
        "/ground_truth/depth": (COMPRESSED_IMAGE, 80),
        "/ground_truth/camera_info": (CAMERA_INFO, 80),
        "/wheel/odom": (ODOMETRY, 400),
    }
    found = choose_topics(there, BagTopics(), Path("bag"))[0]
    assert found == BagTopics(
        image="/camera/image_raw/compressed",
        camera_info="/camera/camera_info",
        odom="/wheel/odom",
        depth="/ground_truth/depth",
    )
    rear = choose_topics(there, BagTopics(image="/rear/image_raw"), Path("bag"))[0]
    assert rear.camera_info == "/rear/camera_info"
    with pytest.raises(RecordingError, match=r"no topic /left.*Its topics"):
        choose_topics(there, BagTopics(image="/left"), Path("bag"))


@pytest.mark.parametrize(
    ("encoding", "pixels", "rgb"),
    [
        ("rgb8", [[[1, 2, 3]]], [1, 2, 3]),
        ("bgr8", [[[1, 2, 3]]], [3, 2, 1]),
        ("mono8", [[[7]]], [7, 7, 7]),
        ("rgba8", [[[1, 2, 3, 9]]], [1, 2, 3]),
        ("bgra8", [[[1, 2, 3, 9]]], [3, 2, 1]),
        ("8UC3", [[[1, 2, 3]]], [3, 2, 1]),
        ("yuyv", [[[235, 128], [235, 128]]], [255, 255, 255]),
        ("nv12", np.array([[[16], [16]], [[16], [16]], [[128], [128]]]), [0, 0, 0]),
        ("bayer_rggb8", [[[9], [9]], [[9], [9]]], [9, 9, 9]),
    ],
)
def test_encodings(encoding: str, pixels: list, rgb: list[int]) -> None:
    rows = {"height": 2} if encoding == "nv12" else {}
    message = Message(**raw_image(0, np.array(pixels, np.uint8), encoding, **rows))
    image = image_of(message, "test")
    assert image[0, 0].tolist() == rgb
    assert image.flags.writeable


def test_row_padding_is_dropped() -> None:
    padded = np.zeros((2, 10), np.uint8)
    padded[:, :6] = np.arange(12).reshape(2, 6)
    message = Message(**raw_image(0, padded, "rgb8", width=2, step=10))
    assert image_of(message, "test").ravel().tolist() == list(range(12))


@given(
    width=st.integers(0, 40),
    height=st.integers(0, 40),
    step=st.integers(0, 200),
    size=st.integers(0, 3000),
    encoding=st.sampled_from(["rgb8", "mono8", "bayer_what8", ""]),
)
def test_impossible_images_are_refused(
    width: int, height: int, step: int, size: int, encoding: str
) -> None:
    data = np.zeros(size, np.uint8)
    message = Message(
        width=width, height=height, step=step, encoding=encoding, is_bigendian=0, data=data
    )
    channels = {"rgb8": 3, "mono8": 1}.get(encoding)
    fits = channels and width and height and step >= width * channels and size == height * step
    if fits:
        assert image_of(message, "test").shape == (height, width, 3)
    else:
        with pytest.raises(CorruptFrameError):
            image_of(message, "test")


def test_depth_encodings() -> None:
    metres = np.array([[1.5, np.nan, np.inf, -1.0]], np.float32)
    message = Message(**raw_image(0, metres, "32FC1"))
    assert depth_of(message, "test").tolist() == [[1.5, 0, 0, 0]]
    raw = np.array([[384, 0]], ">u2")
    message = Message(**raw_image(0, raw, "16UC1", is_bigendian=1))
    assert depth_of(message, "test").tolist() == [[pytest.approx(0.384), 0]], "millimetres"
    assert depth_of(message, "test", KITTI_UNIT).tolist() == [[1.5, 0]]
    with pytest.raises(CorruptFrameError, match="encoding"):
        depth_of(Message(**raw_image(0, raw, "rgb8")), "test")


angle = st.floats(-3.2, 3.2)
place = st.floats(-1000, 1000)


@given(angle, angle, angle, place, place, place)
def test_pose_survives_the_odometry_message(
    yaw: float, pitch: float, roll: float, x: float, y: float, z: float
) -> None:
    pose = turned(yaw, pitch, roll, x, y, z)
    position, quaternion = odometry_from_pose(pose)
    assert np.linalg.norm(quaternion) == pytest.approx(1)
    # the vehicle's x is the camera's z, y points left, z up (REP-103)
    assert position == pytest.approx([z, -x, -y])
    trajectory = Trajectory()
    reading = read_odometry(odometry(position, quaternion))
    assert reading.position is not None and reading.quaternion is not None
    assert trajectory.add(7, reading.position, reading.quaternion)
    found = trajectory.pose(7)
    assert found is not None
    assert camera_pose(found, optical=False) == pytest.approx(pose, abs=1e-9)


def odometry(position: np.ndarray, quaternion: np.ndarray) -> Message:
    return Message(
        pose=Message(
            covariance=np.zeros(36),
            pose=Message(
                position=Message(**dict(zip("xyz", position, strict=True))),
                orientation=Message(**dict(zip("xyzw", quaternion, strict=True))),
            ),
        )
    )


@given(hnp.arrays(np.float64, 7, elements=st.sampled_from([0.0, np.nan, np.inf])))
def test_broken_poses_are_unknown(values: np.ndarray) -> None:
    reading = read_odometry(odometry(values[:3], values[3:]))
    assert reading.position is not None and reading.quaternion is not None
    assert not Trajectory().add(0, reading.position, reading.quaternion)


def test_ros_1_bag(tmp_path: Path) -> None:
    from rosbags.rosbag1 import Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS1_NOETIC)
    types = store.types
    K = CAMERA.matrix().ravel()

    def ros_1_header(number: int) -> Any:
        time = types["builtin_interfaces/msg/Time"](sec=50, nanosec=number * 100_000_000)
        return types["std_msgs/msg/Header"](seq=number, stamp=time, frame_id="camera")

    roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    path = tmp_path / "old.bag"
    with Writer(path) as writer:
        image_topic = writer.add_connection("/cam/image_raw", IMAGE, typestore=store)
        info_topic = writer.add_connection("/cam/camera_info", CAMERA_INFO, typestore=store)
        for number in range(3):
            time = 50 * 10**9 + number * 100_000_000
            info = types[CAMERA_INFO](
                header=ros_1_header(number),
                height=SIZE[1],
                width=SIZE[0],
                distortion_model="plumb_bob",
                D=np.zeros(5),
                K=K,
                R=np.eye(3).ravel(),
                P=np.zeros(12),  # an uncalibrated projection: K counts
                binning_x=0,
                binning_y=0,
                roi=roi,
            )
            writer.write(info_topic, time, store.serialize_ros1(info, CAMERA_INFO))
            values = raw_image(0, smooth(number), "bgr8") | {"header": ros_1_header(number)}
            image = types[IMAGE](**values)
            writer.write(image_topic, time, store.serialize_ros1(image, IMAGE))
    recording = open_recording(path)
    assert recording.frames[0].camera == CAMERA
    assert [frame.stamp_ns for frame in recording.frames] == [
        50 * 10**9 + n * 100_000_000 for n in range(3)
    ]
    assert np.array_equal(recording.frames[2].image(), smooth(2)[..., ::-1])
