"""Several cameras in one process: `depth_node --cameras FILE`."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from helpers import make_tiny_bundle
from ros_helpers import (
    FRAME,
    LATCHED,
    RELIABLE,
    STEP,
    NodeProcess,
    Peer,
    nanoseconds_of,
    view,
    wait_until,
)
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header
from std_srvs.srv import SetBool

from depth_prior_ros.ros import launch_arguments

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


def cameras_file(folder: Path, *lines: str, bundle: Path | str = "lite") -> Path:
    path = folder / "cameras.yaml"
    path.write_text(
        f"all: {{bundle: '{bundle}', backend: torch, sync_wait: 5.0, diagnostics_period: 0.1}}\n"
        "cameras:\n" + "".join(f"  {line}\n" for line in lines),
        encoding="utf-8",
    )
    return path


def listener_count(peer: Peer, output: str) -> str | None:
    return peer.status().get(f"subscribers.{output}")


@contextmanager
def two_cameras(file: Path, above: str) -> Iterator[tuple[NodeProcess, Peer, Peer]]:
    """The process of a file's cameras `front` and `rear` in a namespace, and a peer of each."""
    code = (
        "import sys; from depth_prior_ros.ros.node import main; "
        f"sys.exit(main(['--cameras', {str(file)!r}, '--below', {above!r}]))"
    )
    with (
        NodeProcess(code=code) as process,
        Peer(f"{above}/front") as left,
        Peer(f"{above}/rear") as right,
    ):
        yield process, left, right


def test_each_camera_has_its_topics_its_parameters_and_its_answers(bundle, tmp_path):
    above = f"/robot_{uuid.uuid4().hex[:8]}"
    lines = {
        name: f"{name}: {{camera: {above}/{name}, image: {above}/{name}/image, "
        f"odom: {above}/{name}/odom"
        for name in ("front", "rear")
    }
    file = cameras_file(
        tmp_path,
        lines["front"] + "}",
        lines["rear"] + ", max_depth_m: 1.5, camera_height: 1.5}",
        bundle=bundle,
    )
    with two_cameras(file, above) as (process, left, right):
        for peer in (left, right):
            peer.wait_for_node(process)
        left.send(view(), STEP)
        right.send(view(1), 2 * STEP)
        near, far = right.answer(2 * STEP), left.answer(STEP)
        assert near.data != far.data
        wait_until(lambda: left.status().get("inferred") == "1", "the first camera's count")
        wait_until(lambda: right.status().get("inferred") == "1", "that of the second")
        # One of them pauses and has listeners of its own; the other one knows nothing of either.
        assert left.call(SetBool, "depth_node/enable", SetBool.Request(data=False)).success
        clouds = []
        right.node.create_subscription(PointCloud2, "depth/obstacles", clouds.append, RELIABLE)
        wait_until(lambda: listener_count(right, "obstacles") == "1", "the node to see a listener")
        left.send(view(), 3 * STEP)
        right.send(view(1), 4 * STEP)
        assert right.answer(4 * STEP).data == near.data
        wait_until(lambda: clouds, "its obstacles")
        assert nanoseconds_of(clouds[0].header.stamp) == 4 * STEP
        wait_until(lambda: left.status()["enabled"] == "false", "the first to say that it pauses")
        assert right.status()["enabled"] == "true"
        assert listener_count(left, "obstacles") == "0"
        assert left.call(SetBool, "depth_node/enable", SetBool.Request(data=True)).success
        left.send(view(), 5 * STEP)
        assert left.answer(5 * STEP).data == far.data
        assert [nanoseconds_of(m.header.stamp) for m in left.depth] == [STEP, 5 * STEP]
        assert process.interrupt() == 0, process.output
        assert "Traceback" not in process.output
        assert process.output.count("warming up") == 2


def test_each_camera_has_its_place_by_tf(bundle, tmp_path):
    """Two frames on one vehicle, through the one /tf that all cameras share."""
    tf = pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (a ROS 2 installation)")
    above = f"/robot_{uuid.uuid4().hex[:8]}"
    bases = {"front": "base_link", "rear": "trailer"}
    lines = [
        f"{name}: {{camera: {above}/{name}, image: {above}/{name}/image, "
        f"odom: {above}/{name}/odom, tf.base_frame: {base}, scale: camera_height}}"
        for name, base in bases.items()
    ]
    file = cameras_file(tmp_path, *lines, bundle=bundle)
    with two_cameras(file, above) as (process, left, right):
        fixed = left.node.create_publisher(tf.TFMessage, "/tf_static", LATCHED)
        # The optical frame, 1.5 m over one base, 0.7 m over the other, which is 0.8 m higher.
        optical = Transform(
            translation=Vector3(z=1.5), rotation=Quaternion(x=-0.5, y=0.5, z=-0.5, w=0.5)
        )
        trailer = Transform(translation=Vector3(z=0.8))
        fixed.publish(
            tf.TFMessage(
                transforms=[
                    TransformStamped(
                        header=Header(frame_id="base_link"), child_frame_id=child, transform=where
                    )
                    for child, where in ((FRAME, optical), ("trailer", trailer))
                ]
            )
        )
        for peer in (left, right):
            peer.wait_for_node(process)
        for peer, height in ((left, "1.50 m"), (right, "0.70 m")):
            peer.send(view(), STEP)
            peer.answer(STEP)
            wait_until(
                lambda peer=peer, height=height: peer.status()["mount"].startswith(height),
                "the mount of that camera",
            )
        assert process.interrupt() == 0, process.output


def test_what_is_of_a_process_and_files_that_are_none_are_refused_in_a_line(tmp_path):
    file = cameras_file(tmp_path, "front: {large_images: true}")
    with pytest.raises(ValueError, match="front: large_images is of a process"):
        launch_arguments.as_ros_arguments(file)
    run = [sys.executable, "-m", "depth_prior_ros.ros.node", "--cameras"]
    for name, words in ((file, "large_images"), (tmp_path / "none.yaml", "no such file")):
        done = subprocess.run([*run, str(name)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_arguments_are_those_of_the_launch_file(tmp_path):
    file = cameras_file(tmp_path, "front: {scale: odometry, max_depth_m: 30.0}", bundle="street")
    (words,) = launch_arguments.as_ros_arguments(file, "/robot")
    assert words[:3] == ["--ros-args", "-r", "__ns:=/robot/front"]
    assert "__node:=depth_node" in words and "image:=/front/image_raw" in words
    assert 'scale.mode:="odometry"' in words and "max_depth_m:=30.0" in words
