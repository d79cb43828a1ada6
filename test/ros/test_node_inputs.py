"""Compressed images, twists and QoS overrides: one node that is set up for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from geometry_msgs.msg import (
    Twist,
    TwistStamped,
    TwistWithCovariance,
    TwistWithCovarianceStamped,
    Vector3,
)
from helpers import make_tiny_bundle
from rcl_interfaces.srv import DescribeParameters, GetParameters
from rclpy.qos import QoSReliabilityPolicy
from ros_helpers import (
    BUNDLE_SIZE,
    FRAME,
    IMAGE_SIZE,
    RELIABLE,
    Robot,
    camera_info_for,
    image_message,
    node_and_peer,
    stamp_of,
    view,
    wait_until,
)
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from depth_prior_ros.ros.messages import image_to_depth

pytestmark = pytest.mark.timeout(900)  # waits are long on busy machines, and end early

TOPIC = "/front/image_raw/compressed"


class Wired(Robot):
    """A robot whose camera sends JPEG or PNG, and whose motion comes as twists."""

    def connect(self) -> None:
        create = self.peer.node.create_publisher
        self.images = create(CompressedImage, TOPIC, RELIABLE)
        self.twists = create(TwistStamped, "twist", RELIABLE)
        self.covariances = create(TwistWithCovarianceStamped, "twist_with_covariance", RELIABLE)
        inputs = ("image", "camera_info", "odom", "twist", "twist_with_covariance")

        def connected() -> bool:
            assert self.process.alive, self.process.output
            status = self.peer.status()
            known = [status.get(f"publishers.{name}", "0") for name in inputs]
            return "0" not in [*known, status.get("subscribers.depth", "0")]

        wait_until(connected, "all inputs to be connected", 200.0)

    def shown(self, pixels: np.ndarray, suffix: str = ".png", **motion: float) -> np.ndarray:
        """Send a picture, and the speed on a topic; the depth that comes back."""
        stamp = self.next_stamp()
        header = Header(stamp=stamp_of(stamp), frame_id=FRAME)
        for topic, speed in motion.items():
            self.say(topic, speed, header)
        info = camera_info_for(*IMAGE_SIZE)
        info.header = header
        self.peer.info_publisher.publish(info)
        self.images.publish(compressed(pixels, header, suffix))
        return image_to_depth(self.peer.answer(stamp))

    def say(self, topic: str, speed: float, header: Header) -> None:
        twist = Twist(linear=Vector3(x=speed))
        if topic == "twist":
            self.twists.publish(TwistStamped(header=header, twist=twist))
        else:
            message = TwistWithCovarianceStamped(header=header)
            message.twist = TwistWithCovariance(twist=twist)
            self.covariances.publish(message)


def compressed(pixels: np.ndarray, header: Header, suffix: str) -> CompressedImage:
    """A message as image_transport's publishers make it; pixels are RGB."""
    kind = suffix.strip(".").replace("jpg", "jpeg")
    message = CompressedImage(header=header, format=f"rgb8; {kind} compressed bgr8")
    good, data = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert good
    message.data.frombytes(data.tobytes())
    return message


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    bundle: Path = tmp_path_factory.mktemp("bundles") / "tiny"
    make_tiny_bundle(bundle, BUNDLE_SIZE)
    overrides = {
        f"qos_overrides.{TOPIC}.subscription.depth": 7,
        f"qos_overrides.{TOPIC}.subscription.reliability": "reliable",
    }
    running = node_and_peer(
        *("-r", "image:=/front/image_raw"),
        bundle=bundle,
        backend="torch",
        diagnostics_period=0.1,
        image_transport="compressed",
        **overrides,
    )
    with running as (process, peer):
        made = Wired(process=process, peer=peer, stamp=10**12)
        made.connect()
        yield made
        assert process.alive, f"the node did not survive the tests:\n{process.output}"
        assert process.interrupt() == 0


def test_png_loses_nothing_and_jpeg_little(robot):
    robot.set(force_model="single_frame")
    lossless = robot.shown(view(), ".png")
    np.testing.assert_array_equal(robot.shown(view(), ".png"), lossless)
    lossy = robot.shown(view(), ".jpg")
    known = np.isfinite(lossless) & np.isfinite(lossy)
    assert np.median(np.abs(lossy[known] / lossless[known] - 1)) < 0.05
    assert not np.array_equal(robot.shown(view(40), ".png"), lossless), "it looks at the picture"
    robot.set(force_model="")


@pytest.mark.parametrize("topic", ["twist", "twist_with_covariance"])
def test_a_twist_tells_motion(robot, topic):
    robot.shown(view())
    robot.after_a_gap()
    robot.peer.models.clear()
    for k in range(6):
        robot.shown(view(2 * k), **{topic: 5.0})
    for _ in range(6):
        robot.shown(view(12), **{topic: 0.0})
    robot.told("single_frame gap", "multi_frame moving", "single_frame stationary")


def test_a_twist_that_is_not_a_number_is_counted(robot):
    for topic in ("twist", "twist_with_covariance"):
        before = robot.refused("bad_odometry")
        robot.say(topic, float("nan"), Header(stamp=stamp_of(robot.next_stamp())))
        wait_until(lambda n=before: robot.refused("bad_odometry") == n + 1, f"bad {topic}")
    assert topic in robot.peer.status()["refused.bad_odometry.last"]


def test_a_broken_jpeg_is_counted_and_the_next_one_answered(robot):
    before = robot.refused("compressed_broken")
    header = Header(stamp=stamp_of(robot.next_stamp()), frame_id=FRAME)
    broken = compressed(view(), header, ".jpg")
    broken.data = broken.data[: len(broken.data) // 2]
    robot.images.publish(broken)
    wait_until(lambda: robot.refused("compressed_broken") == before + 1, "it to be counted")
    assert np.isfinite(robot.shown(view(), ".jpg")).any()


def test_overrides_decide_and_can_be_read(robot):
    node = robot.peer.node
    (found,) = [
        i for i in node.get_subscriptions_info_by_topic(TOPIC) if i.node_name == "depth_node"
    ]
    assert found.topic_type == "sensor_msgs/msg/CompressedImage"
    assert found.qos_profile.reliability == QoSReliabilityPolicy.RELIABLE
    names = [
        f"qos_overrides.{TOPIC}.subscription.depth",
        f"qos_overrides.{node.get_namespace()}/depth/image_rect.publisher.reliability",
    ]
    request = GetParameters.Request(names=names)
    values = robot.peer.call(GetParameters, "depth_node/get_parameters", request).values
    assert values[0].integer_value == 7
    assert values[1].string_value == "reliable"
    described = robot.peer.call(
        DescribeParameters,
        "depth_node/describe_parameters",
        DescribeParameters.Request(names=names),
    ).descriptors
    assert all(d.read_only for d in described)


def test_a_raw_image_on_the_same_name_is_not_listened_to(robot):
    assert not robot.peer.node.get_subscriptions_info_by_topic("/front/image_raw")
    heard = len(robot.peer.diagnostics)
    # The next one may have been made before the newest picture came, and sent after.
    wait_until(lambda: len(robot.peer.diagnostics) > heard + 1, "a report that counts them all")
    before = robot.peer.status()["received"]
    message = image_message(view(), Header(stamp=stamp_of(robot.next_stamp()), frame_id=FRAME))
    robot.peer.image_publisher.publish(message)
    robot.shown(view())
    wait_until(lambda: int(robot.peer.status()["received"]) > int(before), "the next picture")
    assert int(robot.peer.status()["received"]) == int(before) + 1
