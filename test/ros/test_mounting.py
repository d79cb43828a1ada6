"""The camera's place from tf: against exact rendered depth, and where tf is missing, late or loops.

Messages are real ones: bytes of tf2_msgs/TFMessage as they come over DDS, read back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import util
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from helpers import make_tiny_bundle
from ros_helpers import (
    BUNDLE_SIZE,
    FRAME,
    LATCHED,
    PATIENCE,
    RELIABLE,
    STEP,
    NodeProcess,
    Robot,
    node_and_peer,
    stamp_of,
    view,
    wait_until,
)
from rosbags.typesys import Stores, get_typestore
from std_msgs.msg import Header

from depth_prior_ros.geometry.poses import BODY_FROM_OPTICAL, rigid_inverse
from depth_prior_ros.motion.odometry import CameraMount, Speed, Trajectory, motion_with
from depth_prior_ros.recordings.synthetic.drive import DriveSpec, SyntheticDrive
from depth_prior_ros.recordings.synthetic.samples import turned
from depth_prior_ros.ros.mounting import MISSING, Mounting, mount_of, road_of, tf_message
from depth_prior_ros.ros.parameters import Settings
from depth_prior_ros.scale import CameraHeightScale, FixedScale, ScaleSight
from depth_prior_ros.scale.obstacles import road_of_depth
from depth_prior_ros.scale.road import MountedCamera, plane_in_base

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPE = "tf2_msgs/msg/TFMessage"
Matrix = NDArray[np.float64]


def quaternion(rotation: Matrix) -> tuple[float, float, float, float]:
    """x, y, z, w of a rotation by less than half a turn."""
    w = math.sqrt(max(0.0, 1 + float(np.trace(rotation)))) / 2
    x, y, z = (
        float(rotation[i, j] - rotation[j, i]) / (4 * w) for i, j in ((2, 1), (0, 2), (1, 0))
    )
    return x, y, z, w


def message(parent: str, child: str, matrix: Matrix, stamp_ns: int = 0) -> Any:
    """A TFMessage that went through its bytes."""
    kinds = STORE.types
    sec, nanosec = divmod(stamp_ns, 10**9)
    x, y, z, w = quaternion(matrix[:3, :3])
    transform = kinds["geometry_msgs/msg/TransformStamped"](
        kinds["std_msgs/msg/Header"](
            kinds["builtin_interfaces/msg/Time"](sec, nanosec), frame_id=parent
        ),
        child_frame_id=child,
        transform=kinds["geometry_msgs/msg/Transform"](
            kinds["geometry_msgs/msg/Vector3"](*(float(v) for v in matrix[:3, 3])),
            kinds["geometry_msgs/msg/Quaternion"](x, y, z, w),
        ),
    )
    data = STORE.serialize_cdr(kinds[TYPE]([transform]), TYPE)
    return STORE.deserialize_cdr(data, TYPE)


def place(z: float, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Matrix:
    """base_from_optical (4, 4)."""
    return CameraMount(0.4, 0.1, z, roll, pitch, yaw).matrix()


def mounting(refused: list[str], **settings: Any) -> Mounting:
    given = Settings(tf_base_frame="base_link", **settings)
    return Mounting(given, lambda cause, text: refused.append(f"{cause}: {text}"))


@dataclass
class PanningDrive(SyntheticDrive):
    """The camera looks to the side and back, and is mounted with pitch and roll."""

    pan_deg: float = 15.0
    roll_deg: float = 2.0

    def mount_at(self, time: float) -> Matrix:
        """base_from_optical; base is the vehicle's frame on the road below the camera."""
        yaw = math.radians(self.pan_deg) * math.sin(2.0 * time)
        pitch = -math.radians(self.spec.camera_pitch_deg)
        turn = turned(yaw, pitch, math.radians(self.roll_deg))
        place = np.eye(4)
        place[2, 3] = self.spec.camera_height
        return place @ turn @ BODY_FROM_OPTICAL

    def pose(self, time: float) -> Matrix:
        course, lane = self.world.course, self.world.lane_offset(0)
        base = course.frame(20.0 + self.spec.travel(time), lane, 0.0)
        return np.asarray(base @ self.mount_at(time))


@pytest.mark.parametrize("pan", [0.0, 15.0])
def test_metres_and_road_by_tf_against_exact_depth(pan: float) -> None:
    """Depth of an unknown factor, tf at 20 Hz with other stamps than the images."""
    spec = DriveSpec(frames=30, rate=10.0, camera_pitch_deg=6.0, camera_height=1.45, stop=False)
    drive = PanningDrive(size=(160, 48), supersample=1, spec=spec, pan_deg=pan)
    refused: list[str] = []
    mounts = mounting(refused)
    pan_frame = np.eye(4)
    mounts.heard(message("pan_link", "camera_optical_frame", pan_frame), static=True)
    stamps = [f.stamp_ns for f in drive.frames]
    for i in range(-2, 62):
        stamp = stamps[0] + i * 50_000_000 - 13_000_000
        matrix = drive.mount_at((stamp - stamps[0]) * 1e-9)
        if pan:
            mounts.heard(message("base_link", "pan_link", matrix, stamp), static=False)
    if not pan:
        fixed = drive.mount_at(0.0)
        mounts.heard(message("base_link", "pan_link", fixed), static=True)
    unknown = 7.0  # metres per unit
    scale = CameraHeightScale(FixedScale(10.0), None)
    heights, tilts = [], []
    for frame in drive.frames:
        sight = mounts.at("camera_optical_frame", frame.stamp_ns)
        assert sight is not None, refused
        expected = drive.mount_at((frame.stamp_ns - stamps[0]) * 1e-9)
        assert np.allclose(sight.base_from_optical, expected, atol=2e-3)
        road, height = road_of(mounts.settings, sight)
        assert height == pytest.approx(1.45, abs=1e-3)
        scale.mount(height, road)
        depth = np.where(frame.depth() > 0, frame.depth(), 200.0).astype(np.float32)
        scale.observe(
            ScaleSight(frame.stamp_ns, unknown / depth, frame.camera, moving=True, seconds=0.1)
        )
        _, _, c, d = plane_in_base(road_of_depth(depth, frame.camera, road), expected)
        heights.append(-d / c)
        tilts.append(math.degrees(math.acos(c)))
    drive.close()
    assert scale.status.state == "measured"
    assert scale.metres_per_unit == pytest.approx(unknown, rel=0.035)
    # The plane in the base frame is the road: through its origin, its normal upwards.
    assert np.median(np.abs(heights)) < 0.05
    assert np.median(tilts) < 1.3  # the lane's own camber is 1.1 degrees
    assert not refused


def test_odometry_of_a_panning_camera_has_the_mount_of_either_frame() -> None:
    """The vehicle's poses and the pan by tf make the camera's own motion, exactly."""
    spec = DriveSpec(frames=6, rate=10.0, camera_pitch_deg=6.0, camera_height=1.45, stop=False)
    drive = PanningDrive(size=(160, 48), supersample=1, spec=spec, pan_deg=40.0)
    mounts, vehicle = mounting([]), Trajectory()
    for frame in drive.frames:
        matrix = drive.mount_at((frame.stamp_ns - drive.frames[0].stamp_ns) * 1e-9)
        mounts.heard(message("base_link", "camera", matrix, frame.stamp_ns), static=False)
        base = frame.pose @ rigid_inverse(matrix)
        vehicle.add(frame.stamp_ns, base[:3, 3], quaternion(base[:3, :3]))
    speed = Speed(0, 7.0, "odometry", (7.0, 0.0))
    for before, frame in pairwise(drive.frames):
        sight = mounts.at("camera", frame.stamp_ns)
        mount, earlier = mounts.mounts_of_way("camera", before.stamp_ns, sight)
        span = frame.stamp_ns, before.stamp_ns
        found = motion_with(speed, vehicle, *span, mount, 0.5, earlier).pose
        expected = rigid_inverse(before.pose) @ frame.pose
        np.testing.assert_allclose(found, expected, atol=1e-9)
        # With one mount for both frames the pan would be missing.
        assert np.abs(motion_with(speed, vehicle, *span, mount, 0.5).pose - expected).max() > 0.03
        by_twist = motion_with(speed, Trajectory(), *span, mount, 0.5, earlier).pose
        assert by_twist is not None
        np.testing.assert_allclose(by_twist[:3, :3], expected[:3, :3], atol=0.01)
    drive.close()
    # What tf does not know is no motion of the camera; what parameters tell needs no tf.
    assert mounts.mounts_of_way("camera", 1, sight) is None
    assert mounts.mounts_of_way("camera", before.stamp_ns, None) is None
    told = mounting([], mount_yaw=1.0).mounts_of_way("camera", 1, None)
    assert told == (CameraMount(yaw=1.0), CameraMount(yaw=1.0))


def test_where_tf_is_missing_late_or_loops_the_node_says_so_and_goes_on() -> None:
    refused: list[str] = []
    mounts = mounting(refused)
    frame, second = "camera_optical_frame", 10**9
    assert mounts.at(frame, second) is None
    assert "no frame base_link" in refused[-1]
    mounts.heard(message("head", frame, np.eye(4)), static=True)
    assert mounts.at(frame, second) is None
    for i in range(10):
        mounts.heard(message("base_link", "head", place(1.5), second + i * second // 10), False)
    assert mounts.at(frame, second + second // 2) is not None
    assert mounts.at(frame, second * 2 + second // 5) is not None  # late by 0.3 s: gone on from
    assert mounts.at(frame, second * 5) is None
    assert "is known from" in refused[-1]
    mounts.heard(message(frame, "base_link", np.eye(4)), static=True)
    assert mounts.at(frame, second) is None
    assert "loop" in refused[-1]
    assert "unknown" in mounts.text
    assert all(text.startswith("tf: ") for text in refused)
    assert len(refused) == 4


def test_a_camera_that_sees_no_road_is_refused_in_words() -> None:
    refused: list[str] = []
    mounts = mounting(refused)
    mounts.heard(message("base_link", "camera", place(-0.2)), static=True)
    assert mounts.at("camera", 1) is None
    assert "above the road" in refused[-1]
    mounts.heard(message("base_link", "camera", place(1.5, pitch=1.2)), static=True)
    assert mounts.at("camera", 2) is None
    assert "does not see the road" in refused[-1]


def test_parameters_go_before_tf() -> None:
    mounts = mounting([], scale_camera_height=1.2, scale_camera_pitch_deg=3.0)
    mounts.heard(message("base_link", "camera", place(1.5, pitch=0.1, yaw=0.5)), static=True)
    sight = mounts.at("camera", 1)
    assert sight is not None
    assert sight.camera.height == 1.2
    assert math.degrees(sight.camera.pitch) == pytest.approx(3.0)
    assert mount_of(mounts.settings, sight).yaw == pytest.approx(0.5)
    told = mounting([], mount_yaw=1.0)
    assert mount_of(told.settings, sight) == CameraMount(yaw=1.0)


@pytest.mark.parametrize("yaw", [0.0, 0.7, -2.0])
@pytest.mark.parametrize(("pitch", "roll"), [(0.0, 0.0), (0.2, 0.0), (0.1, -0.15)])
def test_mounts_from_their_matrices(yaw: float, pitch: float, roll: float) -> None:
    matrix = place(1.5, yaw, pitch, roll)
    again = CameraMount.of(matrix)
    assert np.allclose(again.matrix(), matrix)
    camera = MountedCamera.of(matrix, base_height=0.25)
    assert camera.height == pytest.approx(1.75)
    # The road's normal in the optical frame, turned by the mount, is straight down.
    normal = np.array(
        [
            math.sin(camera.roll) * math.cos(camera.pitch),
            math.cos(camera.roll) * math.cos(camera.pitch),
            math.sin(camera.pitch),
        ]
    )
    assert np.allclose(matrix[:3, :3] @ normal, [0, 0, -1])


def test_the_node_takes_its_mount_from_tf_over_dds(tmp_path: Path) -> None:
    """Without tf depth all the same; then a static link and a moving one, and both by stamp."""
    tf = pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (a ROS 2 installation)")
    pytest.importorskip("shape_msgs.msg", reason="needs shape_msgs (extra `ros`)")
    make_tiny_bundle(tmp_path / "tiny", BUNDLE_SIZE)
    options = {"tf.base_frame": "base_link", "scale.mode": "camera_height"}
    options |= {"bundle": str(tmp_path / "tiny"), "diagnostics_period": 0.1}

    def transform(parent: str, child: str, matrix: Matrix, stamp: int) -> Any:
        x, y, z, w = quaternion(matrix[:3, :3])
        places = dict(zip("xyz", (float(v) for v in matrix[:3, 3]), strict=True))
        return TransformStamped(
            header=Header(frame_id=parent, stamp=stamp_of(stamp)),
            child_frame_id=child,
            transform=Transform(
                translation=Vector3(**places), rotation=Quaternion(x=x, y=y, z=z, w=w)
            ),
        )

    with node_and_peer(**options) as (process, peer):
        peer.wait_for_node(process)
        robot = Robot(process=process, peer=peer, stamp=10**12)
        robot.answered(view())
        wait_until(lambda: robot.refused("tf") == 1, "the image without a mount to be counted")
        assert "no frame base_link" in peer.status()["mount"]
        fixed = peer.node.create_publisher(tf.TFMessage, "/tf_static", LATCHED)
        moving = peer.node.create_publisher(tf.TFMessage, "/tf", RELIABLE)
        fixed.publish(tf.TFMessage(transforms=[transform("head", FRAME, np.eye(4), 0)]))
        wait_until(lambda: moving.get_subscription_count() > 0, "the node to listen to /tf")

        def known() -> bool:
            stamp = robot.next_stamp()
            for shift in (-STEP, 0):
                matrix = place(1.5, yaw=1e-12 * stamp, pitch=0.1)
                moved = transform("base_link", "head", matrix, stamp + shift)
                moving.publish(tf.TFMessage(transforms=[moved]))
            peer.send(view(), stamp)
            peer.answer(stamp)
            return peer.status()["mount"].startswith("1.50 m above the road, pitch 5.7")

        wait_until(known, "the mount by tf")
        assert process.alive
        assert "tf: the camera sits 1.50 m" in process.output


@pytest.mark.skipif(util.find_spec("tf2_msgs") is not None, reason="tf2_msgs is installed")
def test_without_tf2_msgs_the_node_ends_with_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ImportError):
        tf_message()
    make_tiny_bundle(tmp_path / "tiny", BUNDLE_SIZE)
    options = {"bundle": str(tmp_path / "tiny"), "tf.base_frame": "base_link"}
    with NodeProcess(namespace="/without_tf2", **options) as process:
        assert process.process.wait(PATIENCE) == 1
        errors = [line for line in process.output.splitlines() if "[ERROR]" in line]
    assert MISSING in errors[0]
