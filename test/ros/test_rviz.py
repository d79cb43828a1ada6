"""config/depth.rviz: every topic that it shows is published, with a type and a QoS that fit."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")
pytest.importorskip("visualization_msgs", reason="needs visualization_msgs, as RViz does")

from helpers import make_tiny_bundle
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from ros_helpers import FRAME, LOCKSTEP, STEP, NodeProcess, Peer, SpunNode, view, wait_until
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from depth_prior_ros.ros import launch_arguments, open_rviz

ROOT = Path(__file__).resolve().parents[2]
RVIZ = ROOT / "config" / "depth.rviz"
START = 240.0  # seconds for a node to be ready on a machine that is busy with something else
TYPES = {
    "rviz_default_plugins/Image": Image,
    "rviz_default_plugins/PointCloud2": PointCloud2,
    "rviz_default_plugins/Marker": Marker,
}


def displays() -> dict[str, dict[str, Any]]:
    """The displays of the file by their topic."""
    tree = yaml.safe_load(RVIZ.read_text(encoding="utf-8"))
    found = [d for d in tree["Visualization Manager"]["Displays"] if "Topic" in d]
    assert all(display["Enabled"] and display["Value"] for display in found)
    return {display["Topic"]["Value"]: display for display in found}


def profile(display: dict[str, Any]) -> QoSProfile:
    """The QoS with which RViz subscribes for a display."""
    topic = display["Topic"]
    reliable = topic["Reliability Policy"] == "Reliable"
    latched = topic["Durability Policy"] == "Transient Local"
    reliability, durability = QoSReliabilityPolicy, QoSDurabilityPolicy
    return QoSProfile(
        depth=topic["Depth"],
        reliability=reliability.RELIABLE if reliable else reliability.BEST_EFFORT,
        durability=durability.TRANSIENT_LOCAL if latched else durability.VOLATILE,
    )


class Viewer(SpunNode):
    """Subscribes as RViz would with this file, the topics remapped below a namespace."""

    def __init__(self, namespace: str) -> None:
        self.shown: dict[str, list[Any]] = {topic: [] for topic in displays()}
        super().__init__("viewer")
        for topic, display in displays().items():
            target = f"{namespace}/{'image' if topic == '/camera/image_raw' else topic[1:]}"
            kind = TYPES[display["Class"]]
            keep = self.shown[topic].append
            self.node.create_subscription(kind, target, keep, profile(display))
        self.start()


@contextlib.contextmanager
def model_text(namespace: str) -> Iterator[subprocess.Popen[bytes]]:
    """``depth_model_text``, remapped as depth.launch.py does."""
    names = ["-r", f"__ns:={namespace}", "-r", f"active_model:={namespace}/depth_node/active_model"]
    program = [sys.executable, "-m", "depth_prior_ros.ros.model_text"]
    process = subprocess.Popen([*program, "--ros-args", *names], cwd=ROOT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_image_depth_points_and_model_are_shown_at_once() -> None:
    shown = displays()
    assert list(shown) == [
        "/camera/image_raw",
        "/depth/colour",
        "/depth/image_rect",
        "/depth/points",
        "/depth/model_text",
    ]
    # Depth beyond the range is +Inf: a range that follows the picture would be black.
    assert shown["/depth/image_rect"]["Normalize Range"] is False
    assert shown["/depth/image_rect"]["Max Value"] == 50
    # A best-effort camera would not be seen by a reliable display.
    assert shown["/camera/image_raw"]["Topic"]["Reliability Policy"] == "Best Effort"


def test_the_launch_file_knows_where_all_of_them_are() -> None:
    given = {name: default for name, default, _ in launch_arguments.depth_arguments()}
    viewed = dict(launch_arguments.viewed(given, "/robot"))
    assert viewed.keys() == displays().keys() | {open_rviz.TOPIC}
    del viewed["/camera/image_raw"]
    assert viewed == {topic: f"/robot{topic}" for topic in viewed}


@pytest.mark.timeout(300)
def test_rviz_opens_in_the_frame_of_the_first_depth_image(tmp_path: Path) -> None:
    """The real program, which becomes another one that says how it was called."""
    program = tmp_path / "rviz2"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n", encoding="utf-8")
    program.chmod(0o755)
    namespace = f"/first_{uuid.uuid4().hex[:12]}"
    remapped = f"{open_rviz.TOPIC}:={namespace}/info"
    arguments = [str(program), "-d", "some.rviz", "--ros-args", "-r", remapped]
    command = [sys.executable, "-m", "depth_prior_ros.ros.open_rviz", *arguments]
    camera = SpunNode("camera", namespace)
    info = camera.node.create_publisher(CameraInfo, "info", 1)
    camera.start()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        wait_until(info.get_subscription_count, "it to listen")

        def ended() -> bool:
            info.publish(CameraInfo(header=Header(frame_id="front_optical")))
            return process.poll() is not None

        wait_until(ended, "the other program")
        assert process.stdout is not None
        said = process.stdout.read().splitlines()[-1]
    camera.close()
    assert said == str(["-f", "front_optical", *arguments[1:]])
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_topic_that_is_shown_is_published(tmp_path: Path) -> None:
    make_tiny_bundle(tmp_path / "tiny")
    namespace = f"/shown_{uuid.uuid4().hex[:12]}"
    bundle = str(tmp_path / "tiny")
    node = NodeProcess(namespace=namespace, bundle=bundle, backend="torch", **LOCKSTEP)
    viewer = Viewer(namespace)
    with node, model_text(namespace) as text, Peer(namespace) as peer:
        peer.wait_for_node(node, START)
        counts = {"confidence": "0", "colour": "1", "points": "1"}  # RViz, and nobody else
        wanted = {f"subscribers.{name}": count for name, count in counts.items()}
        wait_until(lambda: wanted.items() <= peer.status().items(), "the node to see the viewer")
        for number in range(1, 100):
            peer.send(view(number), number * STEP, speed=5.0)
            peer.answer(number * STEP)
            texts = viewer.shown["/depth/model_text"]
            if all(viewer.shown.values()) and texts[-1].text == "multi_frame: moving":
                break
        missing = [topic for topic, messages in viewer.shown.items() if not messages]
        wait_until(lambda: all(viewer.shown.values()), f"{missing}; {node.output}")
        wait_until(lambda: texts[-1].text == "multi_frame: moving", "the moving vehicle's model")
        wait_until(lambda: int(peer.status().get("published.points", 0)) > 0, "counted points")
        text.terminate()
        text.wait(60)
    viewer.close()

    frames = {topic: messages[-1].header.frame_id for topic, messages in viewer.shown.items()}
    assert set(frames.values()) == {FRAME}
    # The frame that the file looks from is that of this project's recordings.
    tree = yaml.safe_load(RVIZ.read_text(encoding="utf-8"))
    assert tree["Visualization Manager"]["Global Options"]["Fixed Frame"] == FRAME
    assert viewer.shown["/depth/colour"][-1].encoding == "rgb8"
    assert viewer.shown["/depth/image_rect"][-1].encoding == "32FC1"
    assert "rgb" in {field.name for field in viewer.shown["/depth/points"][-1].fields}
    marker = viewer.shown["/depth/model_text"][-1]
    assert (marker.type, marker.action) == (Marker.TEXT_VIEW_FACING, Marker.ADD)
    assert marker.scale.z > 0 and marker.color.a == 1.0


def test_the_text_says_model_and_reason() -> None:
    from depth_prior_ros.ros.model_text import marker

    standing, moving = marker("single_frame stationary", "f"), marker("multi_frame moving", "f")
    assert standing.text == "single_frame: stationary"
    assert standing.header.frame_id == "f"
    assert (standing.header.stamp.sec, standing.header.stamp.nanosec) == (0, 0)
    assert standing.color != moving.color
    # In front of the camera and above the middle: z forward, y down.
    assert moving.pose.position.z > 0 > moving.pose.position.y
