"""The node's outputs over DDS from another process: what they say, and that nobody makes them idly.

Every message is compared with what its frame's depth should have become, by the readers of
test_clouds and test_compressed_depth.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from outputs_worker import CAMERA, FRAME, HEIGHT, PERIOD_NS, WALL, header_of, result_of
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from ros_helpers import LATCHED, PATIENCE, RELIABLE, NodeProcess, nanoseconds_of
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2
from std_msgs.msg import Header, String
from test_clouds import read_numpy
from test_compressed_depth import decode

from depth_prior_ros.motion.odometry import CameraMount
from depth_prior_ros.ros.messages import camera_info_of, image_to_depth
from depth_prior_ros.ros.mounting import MountSight
from depth_prior_ros.ros.outputs.publishers import ON_DEMAND, TOPICS, Outputs, topic_name
from depth_prior_ros.ros.parameters import Settings
from depth_prior_ros.scale.road import MountedCamera

pytestmark = pytest.mark.timeout(900)  # waits are long on busy machines, and end early

ROOT = Path(__file__).resolve().parents[1]


class Listener:
    """Hears one publishing process; everything waits on a message, never on time."""

    def __init__(self, namespace: str, process: NodeProcess) -> None:
        self.process = process
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("listener", namespace=namespace, context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.told: list[dict[str, Any]] = []
        self.node.create_subscription(
            String, "told", lambda m: self.told.append(json.loads(m.data)), RELIABLE
        )

    def until(self, condition: Any, what: str, seconds: float = 2 * PATIENCE) -> Any:
        deadline = self.node.get_clock().now().nanoseconds + int(seconds * 1e9)
        while not (value := condition()):
            assert self.process.alive, self.process.output
            late = self.node.get_clock().now().nanoseconds > deadline
            assert not late, f"waited {seconds:g} s for {what}; {self.process.output}"
            self.executor.spin_once(timeout_sec=0.1)
        return value

    @contextlib.contextmanager
    def hearing(self, kind: type, topic: str, qos: QoSProfile = RELIABLE) -> Iterator[list[Any]]:
        heard: list[Any] = []
        subscription = self.node.create_subscription(kind, topic, heard.append, qos)
        try:
            yield heard
        finally:
            self.node.destroy_subscription(subscription)

    def first(self, kind: type, topic: str, qos: QoSProfile = RELIABLE) -> Any:
        with self.hearing(kind, topic, qos) as heard:
            return self.until(lambda: heard, f"a message on {topic}")[0]

    def more_frames(self, count: int = 5) -> dict[str, Any]:
        """What was made once `count` more frames were published."""
        self.until(lambda: self.told, "the worker's account")
        then = self.told[-1]["frames"] + count
        self.until(lambda: self.told[-1]["frames"] >= then, "more frames")
        return self.told[-1]


@contextlib.contextmanager
def listening(relative: bool = False, **settings: Any) -> Iterator[Listener]:
    namespace = f"/outputs_{uuid.uuid4().hex[:12]}"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from outputs_worker import main; main({relative!r}, **{settings!r})"
    )
    with NodeProcess(code=code, namespace=namespace) as process:
        listener = Listener(namespace, process)
        try:
            yield listener
        finally:
            listener.executor.shutdown()
            listener.context.try_shutdown()


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    with listening() as found:
        yield found


def frame_of(message: Any) -> int:
    """Which frame a message belongs to; its header must be that frame's."""
    number = nanoseconds_of(message.header.stamp) // PERIOD_NS
    assert message.header == header_of(number)
    assert message.header.frame_id == FRAME
    return number


def test_depth_and_its_calibration(listener: Listener) -> None:
    depth = listener.first(Image, "depth/image_rect")
    assert depth.encoding == "32FC1"
    expected = result_of(frame_of(depth)).depth
    assert np.array_equal(image_to_depth(depth), expected, equal_nan=True)
    info = listener.first(CameraInfo, "depth/camera_info")
    frame_of(info)
    assert (info.width, info.height, info.k[0], info.p[5]) == (48, 20, CAMERA.fx, CAMERA.fy)


def test_confidence(listener: Listener) -> None:
    message = listener.first(Image, "depth/confidence")
    assert (message.encoding, message.width, message.height) == ("32FC1", 48, 20)
    expected = result_of(frame_of(message)).confidence
    assert np.array_equal(np.frombuffer(message.data, "<f4").reshape(20, 48), expected)


def test_points(listener: Listener) -> None:
    message = listener.first(PointCloud2, "depth/points")
    result = result_of(frame_of(message))
    finite = np.isfinite(result.depth)
    points = read_numpy(message)[0]
    v, u = np.nonzero(finite)
    z = result.depth[finite]
    assert np.array_equal(points["z"], z)
    assert np.allclose(points["x"], (u - CAMERA.cx) / CAMERA.fx * z, rtol=1e-5, atol=1e-5)
    assert np.allclose(points["y"], (v - CAMERA.cy) / CAMERA.fy * z, rtol=1e-5, atol=1e-5)
    red, green, blue = result.rgb[finite].astype(np.uint32).T
    assert np.array_equal(points["rgb"], red << 16 | green << 8 | blue)


def test_obstacles_are_what_stands_on_the_road(listener: Listener) -> None:
    message = listener.first(PointCloud2, "depth/obstacles")
    frame_of(message)
    assert [f.name for f in message.fields] == ["x", "y", "z", "intensity"]
    points = read_numpy(message)[0]
    height = HEIGHT - points["y"]
    assert ((height > 0.19) & (height < 2.51)).all()
    assert (np.hypot(points["x"], points["z"]) < 20.1).all()
    assert np.isclose(points["z"], WALL).sum() > 20
    # Sigma cannot be below the scale's own spread.
    assert (points["intensity"] > 0.04 * points["z"]).all()


def test_the_scan_has_the_wall_at_its_bearing(listener: Listener) -> None:
    scan = listener.first(LaserScan, "depth/scan")
    assert scan.header.frame_id == "camera_frame"
    assert scan.header.stamp == header_of(nanoseconds_of(scan.header.stamp) // PERIOD_NS).stamp
    assert len(scan.ranges) == 48
    assert scan.angle_min == pytest.approx(-math.atan((47 - CAMERA.cx) / CAMERA.fx))
    assert scan.angle_max == pytest.approx(math.atan(CAMERA.cx / CAMERA.fx))
    ranges = np.array(scan.ranges)
    assert ranges[np.isfinite(ranges)].max() <= scan.range_max == 20.0
    to_the_wall = math.atan((CAMERA.cx - 9) / CAMERA.fx)
    bin_of_it = round((to_the_wall - scan.angle_min) / scan.angle_increment)
    assert ranges[bin_of_it] <= WALL / math.cos(to_the_wall) * 1.01


def test_colours(listener: Listener) -> None:
    """Against OpenCV's turbo applied to log depth between 2 and 80 m, pixel by pixel."""
    message = listener.first(Image, "depth/colour")
    assert (message.encoding, message.step) == ("rgb8", 48 * 3)
    found = np.frombuffer(message.data, np.uint8).reshape(20, 48, 3)
    depth = result_of(frame_of(message)).depth
    for v, u in np.ndindex(depth.shape):
        z = float(depth[v, u])
        if math.isnan(z):
            assert found[v, u].tolist() == [0, 0, 0]
            continue
        share = 0.0 if math.isinf(z) else math.log(80 / z) / math.log(80 / 2)
        place = 255 * min(max(share, 0), 1)
        colours = [
            cv2.applyColorMap(np.array([[step]], np.uint8), cv2.COLORMAP_TURBO)[0, 0, ::-1].tolist()
            for step in {math.floor(place + 0.49), math.floor(place + 0.51)}
        ]
        assert found[v, u].tolist() in colours


def test_compressed_depth(listener: Listener) -> None:
    message = listener.first(CompressedImage, "depth/image_rect/compressedDepth")
    depth = result_of(frame_of(message)).depth
    found = decode(message)
    assert np.array_equal(np.isnan(found), ~np.isfinite(depth))
    finite = np.isfinite(depth)
    assert np.allclose(found[finite], depth[finite], rtol=0.008)


def test_model_and_scale_reach_those_who_come_late(listener: Listener) -> None:
    listener.more_frames()
    assert listener.first(String, "depth_node/active_model", LATCHED).data == "multi_frame moving"
    status = listener.first(DiagnosticStatus, "depth_node/scale", LATCHED)
    values = {pair.key: pair.value for pair in status.values}
    assert values == {
        "mode": "odometry",
        "state": "measured",
        "unit": "metres",
        "metres_per_unit": "9.5",
        "spread": "0.04",
        "samples": "12",
    }
    assert (status.level, status.message) == (DiagnosticStatus.OK, "words")
    assert status.name.endswith("depth_node: scale")


@pytest.mark.parametrize("output", ON_DEMAND)
def test_nothing_is_made_for_nobody(listener: Listener, output: str) -> None:
    """Counted in the publishing process: none before, each frame while heard, none after."""
    listener.until(lambda: listener.told and not listener.told[-1]["wanted"], "silence")
    before = listener.more_frames()
    later = listener.more_frames(10)
    assert before["depth"] == before["frames"]
    assert all(later.get(o, 0) == before.get(o, 0) for o in ON_DEMAND)
    with listener.hearing(TOPICS[output].kind, topic_name(output)) as heard:
        asked = sorted({output} | ({"confidence"} if output == "obstacles" else set()))
        listener.until(lambda: listener.told[-1]["wanted"] == asked, "being wanted")
        then = listener.told[-1]
        during = listener.more_frames(10)
        made = during[output] - then.get(output, 0)
        assert made == during["frames"] - then["frames"]
        listener.until(lambda: heard, f"{output}")
    others = [o for o in ON_DEMAND if o != output]
    listener.until(lambda: not listener.told[-1]["wanted"], "silence afterwards")
    after, still = listener.told[-1], listener.more_frames(10)
    assert still.get(output) == after.get(output)
    assert all(still.get(o, 0) == before.get(o, 0) for o in others)


def test_relative_depth_is_nowhere_called_metres() -> None:
    with listening(relative=True) as listener:
        depth = listener.first(Image, "depth/relative")
        expected = result_of(frame_of(depth)).depth
        assert np.array_equal(image_to_depth(depth), expected, equal_nan=True)
        assert listener.first(PointCloud2, "depth/relative/points").width > 0
        decode(listener.first(CompressedImage, "depth/relative/compressedDepth"))
        status = listener.first(DiagnosticStatus, "depth_node/scale", LATCHED)
        values = {pair.key: pair.value for pair in status.values}
        assert (values["state"], values["unit"], values["spread"]) == ("none", "relative", "")
        assert status.level == DiagnosticStatus.WARN
        there = {name for name, _ in listener.node.get_topic_names_and_types()}
        space = listener.node.get_namespace()
        for output in ("depth", "points", "compressed"):
            assert f"{space}/{topic_name(output)}" not in there
            assert f"{space}/{topic_name(output, metres=False)}" in there


def test_points_by_confidence_ask_for_confidence() -> None:
    with listening(points_min_confidence=0.5, points_colour=False) as listener:
        with listener.hearing(PointCloud2, "depth/points") as heard:
            listener.until(
                lambda: listener.told and listener.told[-1]["wanted"] == ["confidence", "points"],
                "confidence to be wanted",
            )
            heard.clear()
            message = listener.until(lambda: heard, "points")[0]
        result = result_of(frame_of(message))
        keep = np.isfinite(result.depth) & (result.confidence >= 0.5)
        assert np.array_equal(read_numpy(message)[0]["z"], result.depth[keep])
        assert [f.name for f in message.fields] == ["x", "y", "z"]
        assert "confidence" not in listener.more_frames()  # computed, but published to nobody


def test_the_road_in_the_base_frame_reaches_those_who_come_late() -> None:
    """A camera 1.7 m above its base, whose depth shows the road 1.6 m below it."""
    shapes = pytest.importorskip("shape_msgs.msg", reason="needs shape_msgs (extra `ros`)")
    sight = MountSight(CameraMount(x=1.0, z=1.7).matrix(), MountedCamera(1.7, 0.0, 0.0))
    with lifecycle_node() as node:
        outputs = Outputs(node, Settings(tf_base_frame="base_link"))
        node.trigger_configure()
        node.trigger_activate()
        outputs.publish(header_of(1), camera_info_of(CAMERA, Header()), result_of(1), sight)
        heard: list[Any] = []
        node.create_subscription(shapes.Plane, "~/road", heard.append, LATCHED)
        executor = SingleThreadedExecutor(context=node.context)
        executor.add_node(node)
        deadline = time.monotonic() + PATIENCE
        while not heard and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.1)
        executor.shutdown()
    assert np.allclose(heard[0].coef[:3], [0, 0, 1], atol=0.02)
    assert heard[0].coef[3] == pytest.approx(HEIGHT - 1.7, abs=0.03)
    assert outputs.road.newest.text.startswith("fitted")


@contextlib.contextmanager
def lifecycle_node(**overrides: str) -> Iterator[LifecycleNode]:
    context = Context()
    rclpy.init(context=context)
    parameters = [Parameter(name, value=value) for name, value in overrides.items()]
    node = LifecycleNode("outputs", context=context, parameter_overrides=parameters)
    try:
        yield node
    finally:
        node.destroy_node()
        context.try_shutdown()


def test_points_wait_for_the_confidence_that_they_are_chosen_by() -> None:
    """Somebody began to listen after the pipeline had been asked what is wanted."""
    with lifecycle_node() as node:
        outputs = Outputs(node, Settings(points_min_confidence=0.5))
        header = header_of(1)
        assert outputs._points(header, result_of(1, confidence=False)) is None
        chosen = outputs._points(header, result_of(1))
        assert 0 < chosen.width < np.isfinite(result_of(1).depth).sum()


def test_a_misspelt_override_leaves_no_publisher_behind() -> None:
    name = "qos_overrides./depth/points.publisher.reliability"
    with lifecycle_node(**{name: "relaible"}) as node:
        before = len(list(node.publishers))
        with pytest.raises(RuntimeError, match="relaible"):
            Outputs(node)
        assert len(list(node.publishers)) == before


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"colour_min_depth_m": 80.0}, "colour.max_depth_m"),
        ({"colour_min_depth_m": 0.0}, "colour.min_depth_m"),
        ({"points_stride": 0}, "points.stride"),
        ({"compressed_depth_quantization": 0.0}, "compressed_depth.quantization"),
        ({"obstacles_max_height_m": 0.1}, "obstacles.max_height_m"),
    ],
)
def test_senseless_settings_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Settings(**values)
