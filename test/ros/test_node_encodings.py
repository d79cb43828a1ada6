"""Every encoding over DDS: exact pixels from another process, the same depth from the node."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from camera_encodings import ENCODINGS, WIDE, compressed, encoded, png
from ros_helpers import (
    BUNDLE_SIZE,
    FRAME,
    IMAGE_SIZE,
    RELIABLE,
    NodeProcess,
    Peer,
    Robot,
    SpunNode,
    camera_info_for,
    image_message,
    nanoseconds_of,
    node_and_peer,
    stamp_of,
    view,
    wait_until,
)
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from depth_prior_ros.images.calibration import Calibration
from depth_prior_ros.ros.messages import CameraModels, image_to_depth

ECHO = Path(__file__).parents[1].joinpath("pixel_echo.py")
START = 240.0  # seconds until a node has loaded its bundle, on a machine that has a lot else to do


class Echo(SpunNode):
    """Somebody who sends camera messages to ``pixel_echo`` and gets its pixels back."""

    def __init__(self, namespace: str) -> None:
        super().__init__("camera", namespace)
        self._replies: dict[int, Image] = {}
        self._stamp = 0
        self._publishers = {
            Image: self.node.create_publisher(Image, "image", RELIABLE),
            CompressedImage: self.node.create_publisher(CompressedImage, "compressed", RELIABLE),
        }
        self.node.create_subscription(Image, "rgb", self._on_reply, RELIABLE)
        self.start()

    def _on_reply(self, message: Image) -> None:
        self._replies[nanoseconds_of(message.header.stamp)] = message

    def connect(self, timeout: float = START) -> None:
        """Until an answer comes; what is sent before both sides are connected is lost."""
        message, _ = encoded("mono8", 4, 4)

        def answered() -> bool:
            with contextlib.suppress(AssertionError):
                self.send(message, timeout=0.5)
            return bool(self._replies)

        wait_until(answered, "an answer from the other process", timeout)

    def send(self, message: Image | CompressedImage, timeout: float = 30.0) -> Image:
        """The answer to a message."""
        self._stamp += 1
        stamp = self._stamp
        message.header = Header(stamp=stamp_of(stamp), frame_id=FRAME)
        self._publishers[type(message)].publish(message)
        return wait_until(lambda: self._replies.get(stamp), f"the answer to {stamp}", timeout)


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    namespace = f"/test_{uuid.uuid4().hex[:12]}"
    command = [sys.executable, str(ECHO), "--ros-args", "-r", f"__ns:={namespace}"]
    root = str(ECHO.parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": path})
    peer = Echo(namespace)
    try:
        peer.connect()
        yield peer
    finally:
        peer.close()
        process.kill()
        process.wait()


def pixels_of(message: Image) -> np.ndarray:
    assert message.encoding == "rgb8", f"refused: {message.encoding}"
    return np.array(message.data, dtype=np.uint8).reshape(message.height, message.width, 3)


@pytest.mark.parametrize("name", ENCODINGS)
def test_another_process_sees_the_exact_pixels(echo, name):
    for big_endian in (False, True):
        for padding in (0, 13):
            sent = {"padding": padding, "big_endian": big_endian, "seed": padding}
            message, expected = encoded(name, 96, 32, **sent)
            np.testing.assert_array_equal(
                pixels_of(echo.send(message)), expected, err_msg=f"{name} with {sent}"
            )


def test_another_process_sees_the_exact_pixels_of_a_png(echo):
    rng = np.random.default_rng(0)
    for kind in (np.uint8, np.uint16):
        values = rng.integers(0, np.iinfo(kind).max + 1, (32, 96, 3)).astype(kind)
        expected = values if kind is np.uint8 else (values.astype(int) + 128) // 257
        reply = echo.send(compressed(png(values), "rgb8; png compressed bgr8"))
        np.testing.assert_array_equal(pixels_of(reply), expected)


def test_what_cannot_be_read_is_refused_with_its_cause(echo):
    message, _ = encoded("nv12", 96, 32)
    message.width = 95
    assert echo.send(message).encoding == "odd_size"
    broken = compressed(png(np.zeros((8, 8), np.uint8))[:-3], "png")
    assert echo.send(broken).encoding == "compressed_broken"


# -- the node --------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(bundle: Path, **options: Any) -> Iterator[Robot]:
    options = {"diagnostics_period": 0.1, "force_model": "single_frame", **options}
    with node_and_peer(bundle=bundle, **options) as (process, peer):
        peer.wait_for_node(process, START)
        yield Robot(process=process, peer=peer, stamp=10**12)
        assert process.alive, f"the node did not survive the tests:\n{process.output}"


@pytest.fixture(scope="module")
def robot(tiny_bundle: Path) -> Iterator[Robot]:
    with running(tiny_bundle) as robot:
        yield robot


def depth_of(robot: Robot, message: Image, info: CameraInfo | None = None) -> np.ndarray:
    """The node's answer to a message as it is."""
    stamp = robot.next_stamp()
    header = Header(stamp=stamp_of(stamp), frame_id=FRAME)
    info = info or camera_info_for(message.width, message.height)
    info.header = message.header = header
    robot.peer.info_publisher.publish(info)
    robot.peer.image_publisher.publish(message)
    return image_to_depth(robot.peer.answer(stamp))


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_node_gives_the_depth_of_the_exact_pixels(robot, name):
    big_endian = name in WIDE
    message, rgb = encoded(name, *IMAGE_SIZE, padding=6, big_endian=big_endian, seed=len(name))
    depth = depth_of(robot, message)
    assert np.isfinite(depth).any()
    np.testing.assert_array_equal(depth, depth_of(robot, image_message(rgb, Header())))


def test_another_byte_order_is_another_picture(robot):
    message, rgb = encoded("mono16", *IMAGE_SIZE)
    message.is_bigendian = 1
    wrong = depth_of(robot, message)
    assert not np.array_equal(wrong, depth_of(robot, image_message(rgb, Header())))


def test_half_a_pair_of_pixels_is_counted_and_the_node_lives_on(robot):
    message, _ = encoded("yuv422", *IMAGE_SIZE)
    message.width -= 1
    robot.peer.image_publisher.publish(message)
    wait_until(lambda: robot.refused("odd_size") == 1, "the odd image to be counted")
    assert np.isfinite(robot.answered(view())).any()


def bent_info() -> CameraInfo:
    info = camera_info_for(*IMAGE_SIZE)
    info.d = [-0.32, 0.12, 1e-3, -5e-4, 0.0]
    return info


def test_a_distorted_image_is_rectified(robot):
    rectifier = CameraModels().of(Calibration.from_message(bent_info()), *IMAGE_SIZE)[1]
    assert rectifier is not None
    straight = image_message(rectifier.apply(view()), Header())
    expected = depth_of(robot, straight)
    np.testing.assert_array_equal(
        depth_of(robot, image_message(view(), Header()), bent_info()), expected
    )
    as_it_is = depth_of(robot, image_message(view(), Header()))
    assert not np.array_equal(as_it_is, expected), "the lens must matter"
    assert robot.set(rectify="never")[0].successful
    never = depth_of(robot, image_message(view(), Header()), bent_info())
    np.testing.assert_array_equal(never, as_it_is)
    assert robot.set(rectify="auto")[0].successful
    assert not robot.set(rectify="sometimes")[0].successful


def test_depth_where_the_lens_saw_nothing_is_unknown(robot):
    info = bent_info()
    info.distortion_model = "rational_polynomial"
    info.d = [0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    rectifier = CameraModels().of(Calibration.from_message(info), *IMAGE_SIZE)[1]
    assert rectifier is not None
    assert rectifier.outside is not None
    depth = depth_of(robot, image_message(view(), Header()), info)
    centres = rectifier.outside[2::4, 2::4]  # four pixels of the image for one of the network
    assert centres.shape == depth.shape
    np.testing.assert_array_equal(np.isnan(depth), centres)


def test_padding_shows_all_of_the_image_and_nothing_beside_it(robot):
    picture = np.ascontiguousarray(view()[:, :128])
    assert robot.set(fit="pad")[0].successful
    try:
        depth = depth_of(robot, image_message(picture, Header()))
        info = wait_until(
            lambda: [m for m in robot.peer.info if m.header.stamp == stamp_of(robot.stamp)], "info"
        )[0]
    finally:
        assert robot.set(fit="crop")[0].successful
    assert depth.shape == BUNDLE_SIZE[::-1]
    np.testing.assert_array_equal(np.isnan(depth).all(axis=0), np.abs(np.arange(96) - 47.5) > 16)
    assert np.isfinite(depth[:, 32:64]).any()
    assert info.p[0] == pytest.approx(0.58 * 128 / 4)
    assert info.p[2] == pytest.approx(16 + 32)
    assert not math.isnan(info.p[6])


# -- a node that listens to compressed images of a rectified topic ---------------------------------


class CompressedRobot(Robot):
    """A robot whose camera sends JPEG or PNG on ``image_rect/compressed``."""

    def connect(self) -> None:
        kind = (CompressedImage, "image_rect/compressed")
        self._publisher = self.peer.node.create_publisher(*kind, RELIABLE)

        def connected() -> bool:
            assert self.process.alive, f"the node ended early:\n{self.process.output}"
            status = self.peer.status()
            names = ("publishers.image", "publishers.camera_info", "subscribers.depth")
            seen = [status.get(name, "0") for name in names]
            return "0" not in seen and self._publisher.get_subscription_count() > 0

        wait_until(connected, "the node to be connected", START)

    def send(self, data: bytes, form: str, info: CameraInfo | None = None) -> int:
        """Publish calibration and image; their stamp."""
        stamp = self.next_stamp()
        message = compressed(data, form)
        message.header = Header(stamp=stamp_of(stamp), frame_id=FRAME)
        info = info or camera_info_for(*IMAGE_SIZE)
        info.header = message.header
        self.peer.info_publisher.publish(info)
        self._publisher.publish(message)
        return stamp

    def depth(self, data: bytes, form: str, info: CameraInfo | None = None) -> np.ndarray:
        return image_to_depth(self.peer.answer(self.send(data, form, info)))


@pytest.fixture(scope="module")
def compressed_robot(tiny_bundle: Path) -> Iterator[CompressedRobot]:
    namespace = f"/test_{uuid.uuid4().hex[:12]}"
    with (
        NodeProcess(
            "-r",
            "image:=image_rect",
            bundle=tiny_bundle,
            namespace=namespace,
            image_transport="compressed",
            diagnostics_period=0.1,
            sync_wait=5.0,
            force_model="single_frame",
        ) as process,
        Peer(namespace) as peer,
    ):
        robot = CompressedRobot(process=process, peer=peer, stamp=10**12)
        robot.connect()
        yield robot
        assert process.alive, f"the node did not survive the tests:\n{process.output}"


def test_compressed_images_give_the_depth_of_their_pixels(robot, compressed_robot):
    expected = depth_of(robot, image_message(view(), Header()))
    answer = compressed_robot.depth(png(view()), "rgb8; png compressed bgr8")
    np.testing.assert_array_equal(answer, expected)


def test_a_compressed_bayer_pattern_gives_the_depth_of_its_colours(robot, compressed_robot):
    mosaic, rgb = encoded("bayer_grbg8", *IMAGE_SIZE, seed=1)
    pattern = np.array(mosaic.data, np.uint8).reshape(IMAGE_SIZE[::-1])
    answer = compressed_robot.depth(png(pattern), "bayer_grbg8; png compressed ")
    np.testing.assert_array_equal(answer, depth_of(robot, image_message(rgb, Header())))


def test_broken_compressed_images_are_counted_and_the_node_lives_on(compressed_robot):
    robot = compressed_robot
    robot.send(png(view())[:-40], "png")
    wait_until(lambda: robot.refused("compressed_broken") == 1, "the broken one to be counted")
    robot.send(b"\0" * 500, "h264")
    wait_until(lambda: robot.refused("unknown_encoding") == 1, "the video to be counted")
    assert np.isfinite(robot.depth(png(view()), "png")).any()


def test_a_topic_that_is_called_rectified_is_not_rectified_again(compressed_robot):
    plain = compressed_robot.depth(png(view()), "png")
    np.testing.assert_array_equal(compressed_robot.depth(png(view()), "png", bent_info()), plain)
    assert compressed_robot.set(rectify="always")[0].successful
    bent = compressed_robot.depth(png(view()), "png", bent_info())
    assert not np.array_equal(bent, plain)
