"""launch/depth.launch.py: by a real ``ros2`` where there is one, and what it shows in any case."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from helpers import make_tiny_bundle, shifted, texture
from rcl_interfaces.srv import GetParameters
from ros_helpers import Peer

ROOT = Path(__file__).resolve().parents[1]
LAUNCH_FILE = ROOT / "launch" / "depth.launch.py"


def topics_of_rviz() -> dict[str, dict]:
    tree = yaml.safe_load((ROOT / "config" / "depth.rviz").read_text(encoding="utf-8"))
    displays = tree["Visualization Manager"]["Displays"]
    return {display["Topic"]["Value"]: display for display in displays if "Topic" in display}


def test_rviz_shows_the_image_and_the_depth_with_a_fixed_range():
    shown = topics_of_rviz()
    assert set(shown) == {"/camera/image_raw", "/depth/image_rect"}
    assert shown["/depth/image_rect"]["Normalize Range"] is False
    assert shown["/depth/image_rect"]["Max Value"] == 50
    # A best-effort camera would not be seen by a reliable display.
    assert shown["/camera/image_raw"]["Topic"]["Reliability Policy"] == "Best Effort"


def test_the_profile_for_large_images_has_room_for_them():
    space = "{http://www.eprosima.com}"
    root = ET.parse(ROOT / "config" / "fastdds_large_images.xml").getroot()
    (memory,) = [
        t for t in root.iter(f"{space}transport_descriptor") if t.findtext(f"{space}type") == "SHM"
    ]
    assert int(memory.findtext(f"{space}segment_size", "0")) >= 32 * 2**20
    assert int(memory.findtext(f"{space}maxMessageSize", "0")) >= 16 * 2**20
    participant = next(root.iter(f"{space}participant"))
    assert participant.get("is_default_profile") == "true"
    listed = {t.text for t in participant.iter(f"{space}transport_id")}
    assert listed == {t.findtext(f"{space}transport_id") for t in root.iter(memory.tag)}


def test_every_launch_argument_is_explained_and_used():
    tree = ast.parse(LAUNCH_FILE.read_text(encoding="utf-8"))
    (table,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "ARGUMENTS"  # type: ignore[attr-defined]
    ]
    names = [entry.elts[0].value for entry in table.elts]  # type: ignore[attr-defined]
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    for name in names:
        assert strings.count(name) > 1, f"{name} is declared and never read"


class Launched:
    """A running ``ros2 launch`` of the file in this checkout."""

    def __init__(self, log: Path, arguments: tuple[str, ...]) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                ["ros2", "launch", str(LAUNCH_FILE), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                # Its own group, so that nothing it started survives.
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@contextmanager
def launched(log: Path, *arguments: str) -> Iterator[Launched]:
    """Started, and interrupted, or else killed, at the end."""
    launch = Launched(log, arguments)
    try:
        yield launch
    finally:
        try:
            if launch.alive:
                launch.interrupt()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(launch.process.pid, signal.SIGKILL)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of this checkout where ament looks for it, so that no colcon build is needed."""
    prefix = tmp_path / "prefix"
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    programs = prefix / "lib" / "depth_prior_ros"
    index.mkdir(parents=True)
    programs.mkdir(parents=True)
    (index / "depth_prior_ros").touch()
    script = f"#!{sys.executable}\nimport sys\nfrom depth_prior_ros.ros.node import main\n"
    (programs / "depth_node").write_text(f"{script}sys.exit(main())\n", encoding="utf-8")
    (programs / "depth_node").chmod(0o755)
    for name, path in (("AMENT_PREFIX_PATH", prefix), ("PYTHONPATH", ROOT)):
        monkeypatch.setenv(name, str(path), prepend=os.pathsep)


@pytest.mark.launch
def test_show_args_lists_every_argument():
    shown = subprocess.run(
        ["ros2", "launch", str(LAUNCH_FILE), "--show-args"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    for name in ("bundle", "device", "backend", "params_file", "camera", "rviz", "log_level"):
        assert f"'{name}':" in shown


@pytest.mark.launch
@pytest.mark.slow
def test_launch_starts_the_node_and_it_works_and_ends_cleanly(installed, tmp_path):
    make_tiny_bundle(tmp_path / "tiny")
    namespace = f"car_{uuid.uuid4().hex[:8]}"
    arguments = (
        f"bundle:={tmp_path / 'tiny'}",
        "backend:=torch",
        f"namespace:={namespace}",
        "log_level:=warn",
        f"image:=/{namespace}/image",
        f"camera_info:=/{namespace}/camera_info",
        f"odom:=/{namespace}/odom",
    )
    with launched(tmp_path / "log", *arguments) as launch, Peer(f"/{namespace}") as peer:
        peer.wait_for_node(launch, 120)
        peer.send(shifted(texture(), 0), 10**9, speed=0.0)
        assert peer.answer(10**9).encoding == "32FC1"
        request = GetParameters.Request(names=["bundle", "max_gap"])
        values = peer.call(GetParameters, "depth_node/get_parameters", request).values
        assert values[0].string_value == str(tmp_path / "tiny"), "the command line goes first"
        assert values[1].double_value == 0.5, "the rest comes from the parameter file"
        assert launch.interrupt() == 0
    assert "process has finished cleanly" in launch.output, launch.output
    assert "Traceback" not in launch.output
    assert "waiting for images" not in launch.output, "an info line in spite of log_level:=warn"


@pytest.mark.launch
@pytest.mark.slow
def test_launch_tells_that_the_bundle_is_not_there(installed, tmp_path):
    with launched(tmp_path / "log", f"bundle:={tmp_path / 'nothing'}") as launch:
        launch.process.wait(120)
    assert str(tmp_path / "nothing") in launch.output
    assert "exit code 1" in launch.output
