"""Several cameras in one process: `depth_node --cameras FILE`."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from helpers import make_tiny_bundle
from ros_helpers import STEP, NodeProcess, Peer, view, wait_until

from depth_prior_ros.ros import launch_arguments

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


def cameras_file(folder: Path, *lines: str, bundle: Path | str = "lite") -> Path:
    path = folder / "cameras.yaml"
    path.write_text(
        f"all: {{bundle: '{bundle}', backend: torch, diagnostics_period: 0.1}}\ncameras:\n"
        + "".join(f"  {line}\n" for line in lines),
        encoding="utf-8",
    )
    return path


def test_each_camera_has_its_topics_its_parameters_and_its_answers(bundle, tmp_path):
    above = f"/robot_{uuid.uuid4().hex[:8]}"
    lines = {
        name: f"{name}: {{camera: {above}/{name}, image: {above}/{name}/image, "
        f"odom: {above}/{name}/odom"
        for name in ("front", "rear")
    }
    file = cameras_file(
        tmp_path, lines["front"] + "}", lines["rear"] + ", max_depth_m: 1.5}", bundle=bundle
    )
    code = (
        "import sys; from depth_prior_ros.ros.node import main; "
        f"sys.exit(main(['--cameras', {str(file)!r}, '--below', {above!r}]))"
    )
    with (
        NodeProcess(code=code) as process,
        Peer(f"{above}/front") as left,
        Peer(f"{above}/rear") as right,
    ):
        for peer in (left, right):
            peer.wait_for_node(process)
        left.send(view(), STEP)
        right.send(view(1), 2 * STEP)
        near, far = right.answer(2 * STEP), left.answer(STEP)
        assert near.data != far.data
        wait_until(lambda: left.status().get("inferred") == "1", "the first camera's count")
        wait_until(lambda: right.status().get("inferred") == "1", "that of the second")
        assert process.interrupt() == 0, process.output
        assert "Traceback" not in process.output
        assert process.output.count("warming up") == 2


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
