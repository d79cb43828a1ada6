"""The real node in its own process, spoken to over DDS."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from helpers import shifted, texture
from rcl_interfaces.srv import DescribeParameters, ListParameters
from rclpy.qos import QoSDurabilityPolicy, QoSReliabilityPolicy
from ros_helpers import (
    BUNDLE_SIZE,
    FRAME,
    IMAGE_SIZE,
    LOCKSTEP,
    STEP,
    NodeProcess,
    Peer,
    Robot,
    camera_info_for,
    image_message,
    node_and_peer,
    stamp_of,
    view,
    wait_until,
)
from std_msgs.msg import Header

from depth_prior_ros.backends import backend_options
from depth_prior_ros.ros.messages import image_to_depth
from depth_prior_ros.ros.parameters import PARAMETERS

pytestmark = pytest.mark.timeout(900)  # waits are long on busy machines, and end early


@pytest.fixture(scope="module")
def robot(tiny_bundle: Path) -> Iterator[Robot]:
    with (
        NodeProcess(bundle=tiny_bundle, diagnostics_period=0.1, **LOCKSTEP) as process,
        Peer() as peer,
    ):
        peer.wait_for_node(process)
        yield Robot(process=process, peer=peer, stamp=10**12)
        assert process.alive, f"the node did not survive the tests:\n{process.output}"


def test_depth_is_what_rep_118_says_with_the_header_of_the_image(robot):
    stamp = robot.next_stamp()
    robot.peer.send(view(), stamp, speed=0.0)
    message = robot.peer.answer(stamp)
    assert message.encoding == "32FC1"
    assert (message.width, message.height) == BUNDLE_SIZE
    assert message.step == 4 * BUNDLE_SIZE[0]
    assert message.header.frame_id == FRAME
    assert message.header.stamp == stamp_of(stamp)
    depth = image_to_depth(message)
    assert np.all((depth[np.isfinite(depth)] > 0) & (depth[np.isfinite(depth)] <= 80))
    assert not np.any(depth == -math.inf)


def test_camera_info_comes_with_every_depth_image_scaled_to_its_size(robot):
    sent = camera_info_for(*IMAGE_SIZE)
    sent.distortion_model, sent.d = "plumb_bob", [0.1, 0.0, 0.0, 0.0, 0.0]
    stamp = robot.next_stamp()
    robot.peer.send(view(), stamp, info=sent)
    robot.peer.answer(stamp)

    def matching():
        return [m for m in robot.peer.info if m.header.stamp == stamp_of(stamp)]

    info = wait_until(matching, "camera_info with the stamp of the depth")[0]
    assert (info.width, info.height) == BUNDLE_SIZE
    assert info.header.frame_id == FRAME
    sx, sy = BUNDLE_SIZE[0] / IMAGE_SIZE[0], BUNDLE_SIZE[1] / IMAGE_SIZE[1]
    expected = np.array(sent.p).reshape(3, 4) * [[sx], [sy], [1]]
    np.testing.assert_allclose(np.array(info.p).reshape(3, 4), expected)
    assert (info.distortion_model, list(info.d)) == ("plumb_bob", [0.0] * 5), "of what is rectified"
    assert list(info.r) == np.eye(3).ravel().tolist()


def test_camera_info_of_a_wider_view_belongs_to_the_window_that_depth_shows(robot):
    """A 4:3 image loses rows above and below: the principal point moves with them."""
    stamp = robot.after_a_gap()
    robot.peer.send(shifted(texture(384, 288), 0), stamp)
    robot.peer.answer(stamp)
    robot.answered(view())
    info = wait_until(
        lambda: [m for m in robot.peer.info if m.header.stamp == stamp_of(stamp)], "camera_info"
    )[0]
    assert (info.width, info.height) == BUNDLE_SIZE
    assert info.p[0] == pytest.approx(0.58 * 384 / 4)
    assert info.p[6] == pytest.approx(16)


def test_the_model_switches_when_the_vehicle_stops_and_back(robot):
    robot.answered(view())
    robot.after_a_gap()
    robot.peer.models.clear()
    for k in range(24):
        speed = 0.0 if 8 <= k < 16 else 5.0
        robot.answered(view(2 * k), speed=speed)
    robot.told(
        "single_frame gap",
        "multi_frame moving",
        "single_frame stationary",
        "multi_frame moving",
    )


def test_without_odometry_the_picture_tells_motion(robot):
    robot.after_a_gap()
    robot.peer.models.clear()
    for k in range(8):
        robot.answered(view(3 * k))
    for _ in range(8):
        robot.answered(view(24))
    wait_until(lambda: len(robot.peer.models) >= 3, "two switches")
    assert robot.peer.models[-2:] == ["multi_frame moving", "single_frame stationary"]


def test_the_active_model_is_latched(robot):
    robot.answered(view())
    with Peer() as late:
        wait_until(lambda: late.models, "the active model, for somebody who comes late")
        assert late.models[-1].startswith(("single_frame ", "multi_frame "))


def test_encodings_of_one_picture_give_one_depth(robot):
    grey = np.repeat(view()[..., :1], 3, axis=2)
    robot.set(force_model="single_frame")
    rgb = robot.answered(grey)
    np.testing.assert_array_equal(robot.answered(grey[..., ::-1], encoding="bgr8"), rgb)
    np.testing.assert_array_equal(robot.answered(grey[..., 0], encoding="mono8"), rgb)
    coloured = robot.answered(view())
    np.testing.assert_array_equal(robot.answered(view()[..., ::-1], encoding="bgr8"), coloured)
    assert not np.array_equal(coloured, rgb), "the network does not look at the picture"
    robot.set(force_model="")


def malformed(cause: str):
    message = image_message(view(), Header(frame_id=FRAME))
    if cause == "zero_size":
        message.width = 0
    elif cause == "wrong_step":
        message.step -= 1
    elif cause == "truncated":
        message.data = message.data[:-1]
    else:
        message.encoding = "yuv9"
    return message


@pytest.mark.parametrize("cause", ["zero_size", "wrong_step", "truncated", "unknown_encoding"])
def test_a_malformed_image_is_counted_and_named_and_the_node_lives_on(robot, cause):
    wait_until(robot.peer.status, "diagnostics")
    before = robot.refused(cause)
    # Once per wait, so that none can overtake another in the queue of one.
    for count in range(1, 4):
        robot.peer.image_publisher.publish(malformed(cause))
        wait_until(lambda n=count: robot.refused(cause) == before + n, f"{cause} to be counted")
    status = robot.peer.status()
    assert status[f"refused.{cause}.last"]
    assert np.isfinite(robot.answered(view())).any()


@pytest.mark.parametrize(
    ("cause", "change"),
    [
        ("bad_intrinsics", {"p": [math.nan] * 12}),
        ("bad_intrinsics", {"p": [0.0] * 12, "k": [0.0] * 9}),
        ("bad_intrinsics", {"p": [0.0] * 12, "k": [-5.0] * 9}),
        ("camera_info_size", {"width": 0, "height": 0}),
    ],
)
def test_useless_camera_info_is_counted_and_named_and_the_node_lives_on(robot, cause, change):
    wait_until(robot.peer.status, "diagnostics")
    before = robot.refused(cause)
    info = camera_info_for(*IMAGE_SIZE)
    for name, value in change.items():
        setattr(info, name, value)
    robot.peer.send(view(), robot.next_stamp(), info=info)
    wait_until(lambda: robot.refused(cause) == before + 1, f"{cause} to be counted")
    # The next calibration is good again; until it is there the node keeps refusing.
    robot.peer.info_publisher.publish(camera_info_for(*IMAGE_SIZE))

    def answered() -> bool:
        stamp = robot.next_stamp()
        robot.peer.send(view(), stamp)
        try:
            return bool(robot.peer.answer(stamp, timeout=1.0))
        except AssertionError:
            return False

    wait_until(answered, "depth after good calibration")


def test_camera_info_of_another_size_is_scaled_where_the_aspect_fits(robot):
    stamp = robot.next_stamp()
    robot.peer.send(view(), stamp, info=camera_info_for(IMAGE_SIZE[0] * 2, IMAGE_SIZE[1] * 2))
    robot.peer.answer(stamp)
    info = wait_until(
        lambda: [m for m in robot.peer.info if m.header.stamp == stamp_of(stamp)], "camera_info"
    )[0]
    assert (info.width, info.p[0]) == (BUNDLE_SIZE[0], pytest.approx(0.58 * BUNDLE_SIZE[0]))


def test_odometry_that_is_not_a_number_is_counted(robot):
    robot.peer.send_odometry(math.nan, robot.next_stamp())
    wait_until(lambda: robot.refused("bad_odometry") > 0, "bad odometry to be counted")
    assert np.isfinite(robot.answered(view(), speed=1.0)).any()


def test_stamps_that_run_backwards_are_answered_and_copies_are_counted(robot):
    robot.answered(view())
    robot.peer.models.clear()
    robot.stamp -= 3 * STEP
    backwards = robot.next_stamp()
    robot.peer.send(view(1), backwards)
    robot.peer.answer(backwards)
    robot.told("single_frame time_jump")
    copies = robot.refused("copied_stamp")
    robot.peer.send(view(2), backwards)
    wait_until(lambda: robot.refused("copied_stamp") == copies + 1, "the copy to be counted")
    robot.stamp += 10 * STEP


def test_every_image_is_inferred_dropped_or_refused(robot):
    wait_until(robot.peer.status, "diagnostics")
    for _ in range(40):
        robot.peer.send(view(), robot.next_stamp())
    robot.answered(view())

    def adds_up() -> bool:
        status = robot.peer.status()
        frames = [int(status[k]) for k in ("inferred", "dropped_stale", "refused_frames")]
        return int(status["received"]) == sum(frames)

    wait_until(adds_up, "received = inferred + dropped + refused")


def test_diagnostics_say_what_runs(robot):
    robot.answered(view())

    def of_a_frame() -> dict[str, str] | None:
        found = robot.peer.status()
        return found if found and found["active_model"] else None

    status = wait_until(of_a_frame, "diagnostics of a frame")
    assert status["state"] == "active"
    assert status["backend"] == backend_options()[0].name
    assert status["device"]
    assert status["bundle"].endswith("tiny")
    assert status["active_model"] in ("single_frame", "multi_frame")
    assert float(status["latency_ms.infer.p50"]) <= float(status["latency_ms.total.p95"])


def test_parameters_are_described_and_checked(robot):
    names = robot.peer.call(
        ListParameters, "depth_node/list_parameters", ListParameters.Request()
    ).result.names
    assert {d.name for d in PARAMETERS} <= set(names)
    request = DescribeParameters.Request(names=["motion.start_speed", "autostart"])
    described = robot.peer.call(
        DescribeParameters, "depth_node/describe_parameters", request
    ).descriptors
    assert described[0].floating_point_range[0].to_value == 100.0
    assert "m/s" in described[0].description
    assert described[1].read_only
    for change in (
        {"autostart": False},
        {"motion__stop_speed": 50.0},
        {"motion__start_speed": -1.0},
        {"force_model": "both"},
        {"image_transport": "compressed"},
    ):
        (result,) = robot.set(**change)
        assert not result.successful, change
        assert result.reason, change


def test_a_forced_model_applies_to_the_next_frame_and_can_be_taken_back(robot):
    robot.after_a_gap()
    for k in range(3):
        robot.answered(view(3 * k), speed=5.0)
    robot.peer.models.clear()
    assert robot.set(force_model="single_frame")[0].successful
    robot.answered(view(9), speed=5.0)
    robot.told("single_frame forced")
    assert robot.set(force_model="")[0].successful
    robot.answered(view(12), speed=5.0)
    robot.told("single_frame forced", "multi_frame moving")


def test_a_change_of_the_depth_range_applies_to_the_next_frame(robot):
    assert robot.set(max_depth_m=0.001)[0].successful
    assert np.all(np.isinf(robot.answered(view())))
    assert robot.set(max_depth_m=0.0)[0].successful
    assert np.isfinite(robot.answered(view())).any()


def test_names_types_and_qos_are_the_documented_ones(robot):
    node = robot.peer.node

    def qos(topic: str):
        found = [i for i in node.get_publishers_info_by_topic(topic) if i.node_name == "depth_node"]
        assert len(found) == 1, topic
        return found[0].topic_type, found[0].qos_profile

    for topic, kind in (
        ("/depth/image_rect", "sensor_msgs/msg/Image"),
        ("/depth/camera_info", "sensor_msgs/msg/CameraInfo"),
        ("/depth_node/active_model", "std_msgs/msg/String"),
        ("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray"),
    ):
        topic_type, profile = qos(topic)
        assert topic_type == kind
        assert profile.reliability == QoSReliabilityPolicy.RELIABLE
    assert qos("/depth_node/active_model")[1].durability == QoSDurabilityPolicy.TRANSIENT_LOCAL
    subscribed = [
        i for i in node.get_subscriptions_info_by_topic("/image") if i.node_name == "depth_node"
    ]
    assert subscribed[0].qos_profile.reliability == QoSReliabilityPolicy.RELIABLE


def test_images_too_large_for_shared_memory_are_missed_with_their_cure(tiny_bundle):
    """1.4 MB from another process, best effort, as camera drivers send it without a profile."""
    options = {"image_reliability": "best_effort", "diagnostics_period": 0.1}
    with node_and_peer(bundle=tiny_bundle, **options) as (process, peer):
        peer.wait_for_node(process)
        images_are_missed(Robot(process=process, peer=peer))


def images_are_missed(robot: Robot) -> None:
    large = shifted(texture(1242, 375), 0)
    heard = [len(robot.peer.diagnostics)]

    def told() -> dict[str, str] | None:
        if len(robot.peer.diagnostics) > heard[0]:
            heard[0] = len(robot.peer.diagnostics)
            robot.peer.send(large, robot.next_stamp())
            robot.peer.send(large, robot.next_stamp())
        status = robot.peer.status()
        return status if "lost by the transport" in status["message"] else None

    try:
        status = wait_until(told, "words about lost images", 60.0)
    except AssertionError:
        if int(robot.peer.status()["message_lost"]) == 0:
            pytest.skip("this middleware loses nothing, or its Python does not tell")
        raise
    assert int(status["message_lost"]) > 0
    assert status["level"] == "1"
    assert "config/fastdds_large_images.xml" in status["message"]
    assert np.isfinite(robot.answered(view())).any(), "smaller ones come through"
