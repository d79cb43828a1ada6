"""What an active node listens to: its QoS, its names, and what becomes of single messages."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from camera_process import CameraProcess

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

import rclpy
from geometry_msgs.msg import Twist, TwistWithCovariance, Vector3
from nav_msgs.msg import Odometry
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from ros_helpers import (
    FRAME,
    PATIENCE,
    STEP,
    camera_info_for,
    image_message,
    stamp_of,
    wait_until,
)
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from depth_prior_ros.ros.diagnostics import Statistics
from depth_prior_ros.ros.inputs import Inputs
from depth_prior_ros.ros.parameters import Settings
from depth_prior_ros.ros.subscriptions import Subscriptions

RELIABLE, BEST_EFFORT = QoSReliabilityPolicy.RELIABLE, QoSReliabilityPolicy.BEST_EFFORT

MakeNode = Callable[..., LifecycleNode]


@pytest.fixture
def make_node() -> Iterator[MakeNode]:
    """Nodes in a context of their own, with parameters and remappings as of a command line."""
    context = Context()
    rclpy.init(context=context)
    nodes = []

    def make(*arguments: str, **parameters: str) -> LifecycleNode:
        nodes.append(
            LifecycleNode(
                "subscribing",
                namespace="/subscriptions",
                context=context,
                cli_args=["--ros-args", *arguments] if arguments else None,
                parameter_overrides=[Parameter(k, value=v) for k, v in parameters.items()],
            )
        )
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()
    context.try_shutdown()


class Heard:
    """Subscriptions of a node, and what they did with messages."""

    def __init__(self, node: LifecycleNode, **settings: Any) -> None:
        self.refused: list[str] = []
        self.seen: list[int] = []
        self.inputs = Inputs(lambda: None)
        self.subscriptions = Subscriptions(
            node,
            Settings(**settings),
            self.inputs,
            Statistics(),
            lambda cause, text, frame: self.refused.append(cause),
            self.seen.append,
        )


def reliabilities(node: LifecycleNode, *topics: str) -> list[QoSReliabilityPolicy]:
    own = [s for s in node.subscriptions if s.topic_name.startswith("/subscriptions/")]
    found = {s.topic_name.removeprefix("/subscriptions/"): s.qos_profile for s in own}
    return [found[topic].reliability for topic in topics]


def test_reliability_changed_between_two_activations_is_taken_up(make_node):
    node, topics = make_node(), ("image", "camera_info", "odom", "twist")
    Heard(node).subscriptions.destroy()
    changed = Heard(node, image_reliability="reliable", odom_reliability="reliable")
    assert reliabilities(node, *topics) == [RELIABLE] * 4
    changed.subscriptions.destroy()
    Heard(node, image_reliability="best_effort")
    assert reliabilities(node, *topics) == [BEST_EFFORT] * 4


@contextlib.contextmanager
def spinning(node: LifecycleNode) -> Iterator[None]:
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        executor.shutdown()
        thread.join(PATIENCE)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_large_images_of_a_reliable_camera_arrive_and_others_are_heard_too(make_node):
    """Cameras are processes: what a best-effort subscription loses is lost between two of them."""
    node = make_node()
    heard, camera = Heard(node), {"namespace": "/subscriptions", "rate": 0.0}
    topics, count = ("image", "camera_info"), 10
    assert reliabilities(node, *topics) == [RELIABLE] * 2, "so that no first image is lost"
    with spinning(node), CameraProcess(**camera, size=(1242, 375)) as reliable:
        wait_until(lambda: heard.subscriptions.publishers()["image"], "the reliable camera")
        wait_until(lambda: reliable.sent()["subscribers"], "the camera to see the node")
        for number in range(1, count + 1):  # one by one: a busy machine takes the newest only
            reliable.film(rate=10.0, count=1)
            wait_until(lambda n=number: len(heard.seen) == n, f"image {number} of 1.4 MB", 30)
        with CameraProcess(**camera, reliable=False) as lossy:
            wait_until(lambda: reliabilities(node, *topics) == [BEST_EFFORT] * 2, "best effort")
            wait_until(lambda: heard.subscriptions.publishers()["image"] == 2, "both cameras")
            wait_until(lambda: lossy.sent()["subscribers"], "the second camera to see the node")
            stamp = 7 * 10**9
            lossy.film(rate=5.0, stamp=stamp)
            wait_until(lambda: stamp in heard.seen or heard.seen[-1] < 10**12, "its images")
            lossy.close()
        wait_until(lambda: reliabilities(node, *topics) == [RELIABLE] * 2, "reliable again")
        reliable.close()
    assert reliabilities(node, *topics) == [RELIABLE] * 2, "nobody is there: as it was"
    heard.subscriptions.destroy()
    assert not [s for s in node.subscriptions if s.topic_name.startswith("/subscriptions/")]


def test_an_override_goes_before_the_nodes_own_parameter(make_node):
    name = "qos_overrides./subscriptions/odom.subscription.reliability"
    node = make_node(**{name: "best_effort"})
    Heard(node, image_reliability="reliable", odom_reliability="reliable")
    assert reliabilities(node, "image", "odom") == [RELIABLE, BEST_EFFORT]
    assert node.get_parameter(name).value == "best_effort"
    assert node.describe_parameter(name).read_only


def test_a_misspelt_override_is_named_and_leaves_no_subscription_behind(make_node):
    name = "qos_overrides./subscriptions/twist.subscription.reliability"
    node = make_node(**{name: "relaible"})
    before = len(list(node.subscriptions))
    with pytest.raises(ValueError, match=f"{name}.*best_effort.*relaible"):
        Heard(node)
    assert len(list(node.subscriptions)) == before


def test_publishers_are_counted_under_the_name_after_remapping(make_node):
    """Where a subscription cannot tell whom it is connected to, as in Humble."""
    node = make_node("-r", "camera_info:=/somewhere/camera_info")
    heard = Heard(node).subscriptions
    asked: list[str] = []
    node.count_publishers = lambda name: asked.append(name) or 1
    heard.destroy()
    heard._all = {name: SimpleNamespace() for name in ("image", "camera_info", "odom")}
    assert heard.publishers() == {"image": 1, "camera_info": 1, "odom": 1}
    assert asked == ["/subscriptions/image", "/somewhere/camera_info", "/subscriptions/odom"]
    heard._all = {}


@pytest.mark.parametrize("latched_first", [True, False])
def test_a_calibration_that_was_sent_once_is_taken_up(make_node, latched_first):
    """Latched before the node listened; or its publisher comes later, beside a usual one."""
    node = make_node()
    peer = make_node("-r", "__node:=driver")
    once = QoSProfile(
        depth=1,
        reliability=QoSReliabilityPolicy.RELIABLE,
        durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
    )

    def send() -> None:
        peer.create_publisher(CameraInfo, "camera_info", once).publish(camera_info_for(64, 32))

    if latched_first:
        send()
    else:
        peer.create_publisher(CameraInfo, "camera_info", 5)
    heard = Heard(node)
    if not latched_first:
        send()
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    deadline = time.monotonic() + 20
    while not heard.inputs._calibrations and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.05)
    assert heard.inputs.calibration(64, 32, wait=0).width == 64
    assert "camera_info" in heard.subscriptions.publishers()
    heard.subscriptions.destroy()
    assert not [s for s in node.subscriptions if s.topic_name.endswith("camera_info")]
    executor.shutdown()


def odometry(speed: float, twist_covariance: float, pose_covariance: float = 0.0) -> Odometry:
    message = Odometry(header=Header(stamp=stamp_of(STEP)))
    message.twist = TwistWithCovariance(twist=Twist(linear=Vector3(x=speed)))
    message.twist.covariance[0] = twist_covariance
    message.pose.covariance[0] = pose_covariance
    message.pose.pose.orientation.w = 1.0
    return message


@pytest.mark.parametrize(("covariance", "speed"), [(0.0, 3.0), (0.1, 3.0), (-1.0, None)])
def test_odometry_that_knows_no_speed_does_not_say_that_the_vehicle_stands(
    make_node, covariance, speed
):
    heard = Heard(make_node())
    heard.subscriptions._on_odometry(odometry(3.0, covariance))
    motion = heard.inputs.motion_at(STEP, 0.5, wait=0)
    assert (motion.speed if motion else None) == speed
    assert not heard.refused


@pytest.mark.parametrize(
    ("told", "covariance", "expected"),
    [(0.0, 0.0, 4.0), (0.0, -1.0, 4.0), (3.0, 0.0, 3.0), (float("nan"), 0.0, None)],
)
def test_where_the_twist_is_never_filled_the_poses_tell_the_speed(
    make_node, told, covariance, expected
):
    heard = Heard(make_node())
    for number in range(8):  # ten poses a second, 0.4 m apart
        message = odometry(told if number != 4 else 0.0, covariance)
        message.header.stamp = stamp_of((number + 1) * 10**8)
        message.pose.pose.position.x = 0.4 * number
        heard.subscriptions._on_odometry(message)
    motion = heard.inputs.motion_at(8 * 10**8, 0.01, wait=0)
    assert (motion.speed if motion else None) == pytest.approx(expected)


def test_a_vehicle_that_stands_has_no_speed_by_its_poses(make_node):
    heard = Heard(make_node())
    for number in range(8):
        message = odometry(0.0, 0.0)
        message.header.stamp = stamp_of((number + 1) * 10**8)
        heard.subscriptions._on_odometry(message)
        motion = heard.inputs.motion_at((number + 1) * 10**8, 0.01, wait=0)
        assert motion is not None and motion.speed == 0


def test_copies_of_a_stamp_are_dropped_and_counted_and_zeros_are_not_copies(make_node):
    heard = Heard(make_node())
    pixels = np.zeros((4, 6, 3), np.uint8)
    for stamp in (0, 0, STEP, STEP, STEP, 2 * STEP, STEP):  # the last: a bag that starts again
        header = Header(frame_id=FRAME, stamp=stamp_of(stamp))
        heard.subscriptions._on_image(image_message(pixels, header))
    assert heard.refused == ["copied_stamp"] * 2
    assert heard.seen == [0, 0, STEP, 2 * STEP, STEP]


def test_malformed_images_do_not_count_for_the_cameras_rate(make_node):
    heard = Heard(make_node())
    message = image_message(np.zeros((4, 6, 3), np.uint8), Header(frame_id=FRAME))
    heard.subscriptions._on_image(message)
    message.encoding = "yuv9"
    heard.subscriptions._on_image(message)
    assert heard.refused == ["unknown_encoding"]
    assert heard.seen == [0]
