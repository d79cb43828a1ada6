"""Bags as strangers record them: several cameras, other clocks, other units, other files."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bag import CAMERA, SIZE, START, header, lens_bag, raw_image, smooth

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings import RecordingError, is_bag, open_recording
from depth_prior_ros.recordings.bag import open_bag
from depth_prior_ros.recordings.bag_topics import CAMERA_INFO, IMAGE, ODOMETRY, POINTS, BagTopics
from depth_prior_ros.recordings.stamps import Logged, number_frames, order_stamps

SECOND = 10**9
STEP = SECOND // 10
Topics = dict[str, tuple[str, list[Any]]]


def types() -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_HUMBLE)


def write(path: Path, topics: Topics, *, mcap: bool = True, compressed: str = "") -> Path:
    """A bag folder: topic -> (type, [(time of logging, fields or message)])."""
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    store = types()
    plugin = StoragePlugin.MCAP if mcap else StoragePlugin.SQLITE3
    bag = Writer(path, version=8, storage_plugin=plugin)
    if compressed:
        bag.set_compression(CompressionMode[compressed], CompressionFormat.ZSTD)
    with bag as writer:
        for topic, (kind, entries) in topics.items():
            connection = writer.add_connection(topic, kind, typestore=store)
            for time, values in entries:
                message = store.types[kind](**values) if isinstance(values, dict) else values
                writer.write(connection, time, store.serialize_cdr(message, kind))
    return path


def info(stamp: int, camera: Camera = CAMERA, **changes: Any) -> dict[str, Any]:
    roi = changes.pop("roi", (0, 0, 0, 0))
    K = camera.matrix()
    return {
        "header": header(stamp),
        "height": camera.height,
        "width": camera.width,
        "distortion_model": "plumb_bob",
        "d": np.zeros(5),
        "k": K.ravel(),
        "r": np.eye(3).ravel(),
        "p": np.hstack([K, np.zeros((3, 1))]).ravel(),
        "binning_x": 0,
        "binning_y": 0,
        "roi": types().types["sensor_msgs/msg/RegionOfInterest"](
            x_offset=roi[0], y_offset=roi[1], width=roi[2], height=roi[3], do_rectify=False
        ),
        **changes,
    }


def camera(
    name: str = "/front", count: int = 3, infos: list[dict[str, Any]] | None = None, **changes: Any
) -> Topics:
    """A camera's topics: `count` images at 10 Hz, and a calibration with each."""
    stamps = [START + i * STEP for i in range(count)]
    told = infos or [info(stamp, **changes) for stamp in stamps]
    images = [(stamp, raw_image(stamp, smooth(i), "rgb8")) for i, stamp in enumerate(stamps)]
    return {
        f"{name}/camera_info": (CAMERA_INFO, list(zip(stamps, told, strict=False))),
        f"{name}/image_raw": (IMAGE, images),
    }


# -- calibration -----------------------------------------------------------------------------------

TWICE = CAMERA.scaled(2 * SIZE[0], 2 * SIZE[1])


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        ([info(START, TWICE, binning_x=2, binning_y=2)], CAMERA),
        ([info(START, TWICE)], CAMERA),
        (
            [info(START, TWICE, roi=(10, 6, *SIZE))],
            Camera(TWICE.fx, TWICE.fy, TWICE.cx - 10, TWICE.cy - 6, *SIZE),
        ),
        ([info(START, Camera(90.0, 90.0, 50.0, 50.0, 100, 100)), info(START)], CAMERA),
        ([info(START, k=np.zeros(9), p=np.zeros(12)), info(START)], CAMERA),
        ([info(START, width=0), info(START)], CAMERA),
        ([info(START, d=np.full(5, np.nan)), info(START)], CAMERA),
        ([info(START, d=np.full(5, 0.1), r=np.ones(9)), info(START)], CAMERA),
    ],
    ids=[
        *("binned", "resized", "region", "other mode first", "zeros first", "no size first"),
        *("no lens first", "no rotation first"),
    ],
)
def test_the_calibration_is_the_first_that_fits_the_images(tmp_path, infos, expected):
    recording = open_recording(write(tmp_path / "bag", camera(infos=infos)))
    assert recording.frames[0].camera == expected
    assert recording.frames[0].image().shape == (SIZE[1], SIZE[0], 3)


def test_without_one_that_fits_the_reason_is_told(tmp_path):
    infos = [info(START, k=np.zeros(9), p=np.zeros(12))]
    with pytest.raises(RecordingError, match=r"/front/camera_info: K and P are all zeros"):
        open_recording(write(tmp_path / "bag", camera(infos=infos)))


def test_trailing_zeros_of_a_lens_change_nothing(tmp_path):
    longer = np.array([-0.3, 0.1, 0.001, -0.002, 0.0, 0.0, 0.0, 0.0])
    plain = open_recording(lens_bag(tmp_path / "plain")).frames[0].image()
    padded = open_recording(lens_bag(tmp_path / "padded", d=longer)).frames[0].image()
    np.testing.assert_array_equal(padded, plain)


def test_doubts_are_notes(tmp_path):
    folder = lens_bag(tmp_path / "bag", "/front/image_undistorted")
    assert any("rectify: never" in note for note in open_recording(folder).notes)


# -- which camera ----------------------------------------------------------------------------------


def test_of_two_cameras_one_is_taken_with_a_reason_and_the_other_on_request(tmp_path):
    rear = Camera(30.0, 30.0, 31.0, 12.0, *SIZE)
    both = {**camera("/front"), **camera("/back", camera=rear)}
    folder = write(tmp_path / "bag", both)
    recording = open_recording(folder)
    assert recording.streams["image"] == "/back/image_raw"
    (note,) = [n for n in recording.notes if "cameras" in n]
    assert "of 2 cameras /back/image_raw is taken, as it comes first by name" in note
    assert "/front/image_raw (3 images)" in note
    for wanted in ("/front/image_raw", "/front"):
        chosen = open_bag(folder, topics=BagTopics(image=wanted))
        assert chosen.frames[0].camera == CAMERA
        assert chosen.streams["camera_info"] == "/front/camera_info"
        assert not [n for n in chosen.notes if "cameras" in n]


def test_a_file_beside_the_bag_names_its_topics_for_every_tool(tmp_path):
    folder = write(tmp_path / "bag", {**camera("/front"), **camera("/back")})
    (folder / "topics.yaml").write_text("image: /front/image_raw\n")
    assert open_recording(folder).streams["image"] == "/front/image_raw"
    named = open_bag(folder, topics=BagTopics(image="/back"))
    assert named.streams["image"] == "/back/image_raw", "what is said goes before what is kept"
    file = tmp_path / "one.mcap"
    shutil.copy(folder / "bag.mcap", file)
    (tmp_path / "one.mcap.topics.yaml").write_text("image: /front\n")
    assert open_recording(file).streams["image"] == "/front/image_raw"
    (folder / "topics.yaml").write_text("picture: /front/image_raw\n")
    with pytest.raises(RecordingError, match=r"topics\.yaml: 'picture': one of image"):
        open_recording(folder)


def test_the_fuller_camera_and_the_calibrated_one_go_first(tmp_path):
    fuller = {**camera("/a", 3), **camera("/b", 5)}
    recording = open_recording(write(tmp_path / "fuller", fuller))
    assert recording.streams["image"] == "/b/image_raw"
    assert "it has the most images" in recording.notes[0]
    del fuller["/b/camera_info"]
    recording = open_recording(write(tmp_path / "calibrated", fuller))
    assert recording.streams["image"] == "/a/image_raw"
    assert "it has a calibration" in recording.notes[0]


def test_a_calibration_of_another_camera_is_not_taken(tmp_path):
    topics = {**camera("/front"), **camera("/back")}
    del topics["/front/camera_info"]
    folder = write(tmp_path / "bag", topics)
    with pytest.raises(RecordingError, match=r"no camera_info for /front.*not taken.*/back/"):
        open_bag(folder, topics=BagTopics(image="/front"))
    named = BagTopics(image="/front", camera_info="/back/camera_info")
    assert open_bag(folder, topics=named).frames[0].camera == CAMERA


def test_a_calibration_that_is_nobodys_is_taken_and_said(tmp_path):
    topics = camera("/front")
    topics["/calibration/camera_info"] = topics.pop("/front/camera_info")
    recording = open_recording(write(tmp_path / "bag", topics))
    assert recording.frames[0].camera == CAMERA
    assert "there is no /front/camera_info: the calibration is taken from" in recording.notes[0]


def test_a_camera_that_cannot_be_read_loses_and_is_named(tmp_path):
    topics = {**camera("/a", 5), **camera("/b", 3)}
    kind, entries = topics["/a/image_raw"]
    strange = [(time, {**values, "encoding": "12UC7"}) for time, values in entries]
    topics["/a/image_raw"] = (kind, strange)
    recording = open_recording(write(tmp_path / "bag", topics))
    assert recording.streams["image"] == "/b/image_raw"
    assert "/a/image_raw cannot be read" in recording.notes[0]
    assert "12UC7" in recording.notes[0]
    del topics["/b/image_raw"]
    with pytest.raises(RecordingError, match=r"no image topic can be read.*12UC7"):
        open_recording(write(tmp_path / "alone", topics))


def test_images_of_another_size_are_left_out_and_named(tmp_path):
    topics = camera(count=6)
    kind, entries = topics["/front/image_raw"]
    entries[1] = (entries[1][0], raw_image(START + STEP, smooth(1, (32, 12)), "rgb8"))
    topics["/front/image_raw"] = (kind, entries)
    recording = open_recording(write(tmp_path / "bag", topics))
    assert [frame.index for frame in recording.frames] == [0, 2, 3, 4, 5]
    assert "32x12, the others are 64x24" in recording.skipped[0].why


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mcap", [True, False])
def test_a_folder_without_its_metadata(tmp_path, mcap):
    folder = write(tmp_path / "drive.mcap", camera(), mcap=mcap)  # a folder called like a file
    (folder / "metadata.yaml").unlink()
    assert is_bag(folder)
    recording = open_recording(folder)
    assert len(recording.frames) == 3
    assert any("there is no metadata.yaml" in note for note in recording.notes)


def test_a_split_recording_without_metadata_and_renamed(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    for part in range(2):
        stamps = [START + (3 * part + i) * STEP for i in range(3)]
        images = [(s, raw_image(s, smooth(3 * part + i), "rgb8")) for i, s in enumerate(stamps)]
        topics: Topics = {"/front/image_raw": (IMAGE, images)}
        if not part:
            topics["/front/camera_info"] = (CAMERA_INFO, [(START, info(START))])
        folder = write(tmp_path / f"part_{part}", topics)
        shutil.move(folder / f"part_{part}.mcap", whole / f"drive_{part}.mcap")
    recording = open_recording(whole)
    assert [frame.index for frame in recording.frames] == list(range(6))
    np.testing.assert_array_equal(recording.frames[4].image(), smooth(4))
    # Metadata that names files which are called otherwise now.
    shutil.copy(tmp_path / "part_0" / "metadata.yaml", whole / "metadata.yaml")
    recording = open_recording(whole)
    assert len(recording.frames) == 6
    assert any("metadata.yaml is not usable" in note for note in recording.notes)


def test_compressed_without_the_metadata_that_say_so(tmp_path):
    bag = write(tmp_path / "messages", camera(), mcap=False, compressed="MESSAGE")
    (bag / "metadata.yaml").unlink()
    assert len(open_recording(bag).frames) == 3
    bag = write(tmp_path / "file", camera(), mcap=False, compressed="FILE")
    assert len(open_recording(bag).frames) == 3
    (bag / "metadata.yaml").unlink()
    for path in (bag, bag / "file.db3.zstd"):
        with pytest.raises(RecordingError, match=r"unpack it first \(zstd -d file\.db3\.zstd\)"):
            open_recording(path)


@pytest.mark.parametrize("mcap", [True, False])
def test_names_in_capitals(tmp_path, mcap):
    bag = write(tmp_path / "bag", camera(), mcap=mcap)
    (bag / "metadata.yaml").unlink()
    (file,) = bag.iterdir()
    file = file.rename(bag / file.name.upper())
    assert len(open_recording(file).frames) == len(open_recording(bag).frames) == 3


def test_several_bags_in_a_folder_are_not_one(tmp_path):
    for name in ("morning", "evening"):
        folder = write(tmp_path / name, camera())
        shutil.move(folder / f"{name}.mcap", tmp_path)
        shutil.rmtree(folder)
    with pytest.raises(RecordingError, match=r"several bags.*evening\.mcap, morning\.mcap"):
        open_recording(tmp_path)


def test_a_recording_that_was_not_finished_says_what_to_do(tmp_path):
    path = tmp_path / "drive.bag.active"
    path.write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(RecordingError, match="rosbag reindex"):
        open_recording(path)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        (b"jsonsch", b"string data"),
        (b"protobu", b"\x0a\xff\xfe\x80 data!!"),
        (b"ros2msg", b"no definiti"),
    ],
)
def test_channels_that_are_not_of_ros_are_left_out_and_named(tmp_path, encoding, text):
    """A channel whose definition is of another encoding, or none that can be read."""
    topics = {**camera(), "/gps": ("std_msgs/msg/String", [(START, {"data": "here"})])}
    path = write(tmp_path / "bag", topics) / "bag.mcap"
    content = path.read_bytes()
    name, size = b"std_msgs/msg/String", (7).to_bytes(4, "little")
    schema = name + size + b"ros2msg"
    assert schema in content and len(text) == len(b"string data")
    content = content.replace(schema, b"foxglove.LocationFx" + size + encoding)
    path.write_bytes(content.replace(b"string data", text))
    recording = open_recording(path)
    assert len(recording.frames) == 3
    assert any("/gps is left out" in note for note in recording.notes)


@pytest.mark.parametrize("profile", [b"ros1", b"\0\0\0\0", b"\x1b[2J"])
def test_the_profile_of_a_file_does_not_decide(tmp_path, profile):
    """Each channel says its own encoding; recorders of other systems write other profiles."""
    path = write(tmp_path / "bag", camera()) / "bag.mcap"
    path.write_bytes(path.read_bytes().replace(b"ros2", profile, 1))
    assert len(open_recording(path).frames) == 3


def test_without_images_of_ros_what_was_left_out_is_named(tmp_path):
    path = write(tmp_path / "bag", {"/g\x1bps": ("std_msgs/msg/String", [(START, {"data": "x"})])})
    file = path / "bag.mcap"
    file.write_bytes(file.read_bytes().replace(b"\x03\0\0\0cdr", b"\x03\0\0\0xml"))
    with pytest.raises(RecordingError) as caught:
        open_recording(file)
    assert r"/g\x1bps is left out: its messages are xml" in str(caught.value)
    assert str(caught.value).isprintable()


# -- clocks ----------------------------------------------------------------------------------------


def ordered(*stamps: float) -> tuple[list[int], list[str], list[int]]:
    """Kept positions, why the others were left out, and frame numbers; logged every 0.1 s."""
    entries = [Logged(round(s * SECOND), i * STEP) for i, s in enumerate(stamps)]
    order = order_stamps(entries)
    assert all(a < b for a, b in itertools.pairwise(order.stamps))
    numbers = number_frames(order)
    return order.kept, [skipped.why for skipped in order.skipped], numbers


def test_one_stamp_ahead_costs_its_image():
    for ahead, of_what in ((0, "what follows"), (2, "what follows"), (5, "the time of logging")):
        stamps = [100 + 0.1 * i for i in range(6)]
        stamps[ahead] += 40
        kept, whys, _ = ordered(*stamps)
        assert kept == [i for i in range(6) if i != ahead]
        assert f"ahead of {of_what}" in whys[0]


def test_the_last_of_a_slow_camera_stays_where_times_of_logging_say_nothing():
    assert ordered(0.0, 3.0, 6.0, 9.0)[0] == [0, 1, 2, 3]


def test_one_stamp_behind_costs_its_image():
    kept, whys, numbers = ordered(10.0, 10.1, 10.05, 10.2, 10.3)
    assert kept == [0, 1, 3, 4]
    assert "runs backwards" in whys[0]
    assert numbers == [0, 1, 2, 3]


def test_a_clock_that_is_set_back_costs_a_gap():
    stamps = [100 + 0.1 * i - (2.0 if i >= 5 else 0.0) for i in range(10)]
    kept, whys, numbers = ordered(*stamps)
    assert kept == list(range(10))
    assert whys == []
    assert numbers == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]


def test_a_clock_that_never_moves_gives_way_to_the_time_of_logging(tmp_path):
    topics = camera(count=5)
    kind, images = topics["/front/image_raw"]
    still = [(time, raw_image(START, smooth(i), "rgb8")) for i, (time, _) in enumerate(images)]
    recording = open_recording(
        write(tmp_path / "bag", topics | {"/front/image_raw": (kind, still)})
    )
    assert [frame.stamp_ns for frame in recording.frames] == [time for time, _ in images]
    assert "have one stamp" in " ".join(recording.notes)


def test_copies_are_left_out():
    kept, whys, numbers = ordered(1.0, 1.1, 1.1, 1.1, 1.2)
    assert kept == [0, 1, 4]
    assert all("stands still" in why for why in whys) and len(whys) == 2
    assert numbers == [0, 1, 2]


@given(st.lists(st.integers(0, 50), max_size=30))
def test_whatever_the_stamps_they_increase_and_everything_is_accounted_for(tenths):
    entries = [Logged(stamp * STEP, i * STEP) for i, stamp in enumerate(tenths)]
    order = order_stamps(entries)
    assert all(a < b for a, b in itertools.pairwise(order.stamps))
    assert len(order.kept) + len(order.skipped) == len(entries)
    numbers = number_frames(order)
    assert all(a < b for a, b in itertools.pairwise(numbers))


def odometry(x: float, vx: float = 0.0, vz: float = 0.0, z: float = 0.0) -> dict[str, Any]:
    t = {name.rpartition("/")[2]: kind for name, kind in types().types.items()}
    zero = t["Vector3"](x=0.0, y=0.0, z=0.0)
    pose = t["Pose"](
        position=t["Point"](x=x, y=0.0, z=z),
        orientation=t["Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0),
    )
    twist = t["Twist"](linear=t["Vector3"](x=vx, y=0.0, z=vz), angular=zero)
    return {
        "child_frame_id": "base_link",
        "pose": t["PoseWithCovariance"](pose=pose, covariance=np.zeros(36)),
        "twist": t["TwistWithCovariance"](twist=twist, covariance=np.zeros(36)),
    }


@pytest.mark.parametrize("forward", ["x", "z"])
def test_odometry_of_poses_alone_between_the_images(tmp_path, forward):
    """8 m/s at 20 Hz and stamps of its own, along a vehicle's x or an optical frame's z."""
    entries = []
    for i in range(-3, 30):
        stamp = START + i * SECOND // 20 + 13_000_000
        metres = (stamp - START) * 1e-9 * 8
        pose = odometry(metres) if forward == "x" else odometry(0.0, z=metres)
        entries.append((stamp, {"header": header(stamp), **pose}))
    topics = {**camera(count=10), "/vo/odom": (ODOMETRY, entries)}
    recording = open_recording(write(tmp_path / "bag", topics))
    for frame in recording.frames:
        assert frame.speed == pytest.approx(8.0)
        assert frame.pose is not None
    step = np.linalg.inv(recording.frames[3].pose) @ recording.frames[5].pose
    np.testing.assert_allclose(step[:3, 3], [0.0, 0.0, 1.6], atol=1e-9)


def test_a_twist_along_the_optical_axis_is_a_speed(tmp_path):
    stamps = [START + i * STEP for i in range(3)]
    entries = [(s, {"header": header(s), **odometry(0.0, vz=-3.0)}) for s in stamps]
    topics = {**camera(), "/odom": (ODOMETRY, entries)}
    recording = open_recording(write(tmp_path / "bag", topics))
    assert [frame.speed for frame in recording.frames] == [-3.0] * 3


def test_odometry_of_another_clock_is_said(tmp_path):
    entries = [(START, {"header": header(5 * SECOND), **odometry(0.0, vx=8.0)})]
    topics = {**camera(), "/odom": (ODOMETRY, entries)}
    recording = open_recording(write(tmp_path / "bag", topics))
    assert recording.frames[0].speed is None
    assert any("different clocks" in note for note in recording.notes)


def test_zero_stamps_are_said(tmp_path):
    topics = camera()
    kind, entries = topics["/front/image_raw"]
    topics["/front/image_raw"] = (kind, [(t, {**v, "header": header(0)}) for t, v in entries])
    recording = open_recording(write(tmp_path / "bag", topics))
    assert [frame.stamp_ns for frame in recording.frames] == [START + i * STEP for i in range(3)]
    assert any("3 of 3 images" in note and "no stamp" in note for note in recording.notes)


# -- depth -----------------------------------------------------------------------------------------


def test_depth_of_a_camera_is_in_millimetres_as_ros_has_it(tmp_path):
    topic = "/front/depth/image_rect"
    deep = np.full(SIZE[::-1], 5000, np.uint16)
    stamps = [START + i * STEP for i in range(3)]
    topics = {**camera(), topic: (IMAGE, [(s, raw_image(s, deep, "16UC1")) for s in stamps])}
    folder = write(tmp_path / "bag", topics)
    assert open_recording(folder).depth_source is None
    recording = open_bag(folder, topics=BagTopics(depth=topic))
    np.testing.assert_allclose(recording.frames[0].depth(), 5.0)
    assert recording.depth_source == "stereo", "no sensor is exact"
    assert any("16 bits are millimetres" in note for note in recording.notes)


def transform(parent: str, child: str, place: tuple[float, ...], turn: tuple[float, ...]) -> Any:
    t = {name.rpartition("/")[2]: kind for name, kind in types().types.items()}
    return t["TransformStamped"](
        header=t["Header"](stamp=t["Time"](sec=0, nanosec=0), frame_id=parent),
        child_frame_id=child,
        transform=t["Transform"](
            translation=t["Vector3"](**dict(zip("xyz", place, strict=True))),
            rotation=t["Quaternion"](**dict(zip("xyzw", turn, strict=True))),
        ),
    )


def cloud(stamp: int, points: list[tuple[float, float, float]]) -> dict[str, Any]:
    t = types().types
    data = np.array(points, np.float32)
    kind = t["sensor_msgs/msg/PointField"]
    return {
        "header": t["std_msgs/msg/Header"](stamp=header(stamp).stamp, frame_id="lidar"),
        "height": 1,
        "width": len(points),
        "fields": [kind(name=n, offset=4 * i, datatype=7, count=1) for i, n in enumerate("xyz")],
        "is_bigendian": False,
        "point_step": 12,
        "row_step": 12 * len(points),
        "data": np.frombuffer(data.tobytes(), np.uint8),
        "is_dense": True,
    }


def test_poses_of_a_vehicle_become_those_of_a_camera_that_looks_aside(tmp_path):
    """8 m/s along the vehicle's x; the camera looks to its left (y): it sees itself move right."""
    stamps = [START + i * STEP for i in range(4)]
    odom = [(s, {"header": header(s), **odometry((s - START) * 8e-9, vx=8.0)}) for s in stamps]
    # Columns: right of the picture is ahead of the vehicle (x), down is -z, the axis is y.
    links = [transform("base_link", "camera", (1.0, 0.5, 1.2), (-(0.5**0.5), 0.0, 0.0, 0.5**0.5))]
    tf = "tf2_msgs/msg/TFMessage"
    topics = {**camera(count=4), "/odom": (ODOMETRY, odom)}
    topics["/tf_static"] = (tf, [(START, {"transforms": links})])
    aside = open_recording(write(tmp_path / "aside", topics))
    first, last = aside.frames[0].pose, aside.frames[3].pose
    seconds = (stamps[3] - stamps[0]) * 1e-9
    step = (np.linalg.inv(first) @ last)[:3, 3]
    np.testing.assert_allclose(step, [8 * seconds, 0.0, 0.0], atol=1e-9)
    # The world's axes are optical ones: right, down, ahead.
    np.testing.assert_allclose(first[:3, 3], [-0.5, -1.2, 1.0], atol=1e-9)
    np.testing.assert_allclose(first[:3, 2], [-1.0, 0.0, 0.0], atol=1e-9)
    assert aside.frames[0].speed == 8.0
    links[0].header.frame_id = "another"
    apart = open_recording(write(tmp_path / "apart", topics))
    step = (np.linalg.inv(apart.frames[0].pose) @ apart.frames[3].pose)[:3, 3]
    np.testing.assert_allclose(step, [0.0, 0.0, 8 * seconds], atol=1e-9)
    assert any("looks ahead" in n or "look ahead" in n for n in apart.notes), apart.notes


def test_points_become_depth_through_tf(tmp_path):
    stamps = [START + i * STEP for i in range(3)]
    links = [
        transform("base", "camera", (1.0, 0.0, 1.0), (-0.5, 0.5, -0.5, 0.5)),
        transform("base", "lidar", (0.0, 0.0, 2.0), (0.0, 0.0, 0.0, 1.0)),
    ]
    # 10 m ahead of the LiDAR and 1 m below it: 9 m ahead of the camera, on its axis.
    sweeps = [(s + 20_000_000, cloud(s + 20_000_000, [(10.0, 0.0, -1.0)])) for s in stamps[:2]]
    tf = "tf2_msgs/msg/TFMessage"
    topics = {
        **camera(),
        "/points": (POINTS, sweeps),
        "/tf_static": (tf, [(START, {"transforms": links})]),
    }
    folder = write(tmp_path / "bag", topics)
    recording = open_bag(folder, topics=BagTopics(depth="/points"))
    assert [frame.has_depth for frame in recording.frames] == [True, True, False]
    assert recording.depth_source == "lidar"
    depth = recording.frames[0].depth()
    assert np.argwhere(depth).tolist() == [[round(CAMERA.cy), round(CAMERA.cx)]]
    assert depth.max() == pytest.approx(9.0)
    topics["/tf_static"] = (tf, [(START, {"transforms": links[:1]})])
    unconnected = open_bag(write(tmp_path / "apart", topics), topics=BagTopics(depth="/points"))
    assert not unconnected.frames[0].has_depth
    assert any("no frame lidar; there are base, camera" in note for note in unconnected.notes)
