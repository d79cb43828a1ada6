"""The launch files: by a real ``ros2`` where there is one, and what can be said in any case."""

from __future__ import annotations

import os
import re
import shutil
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
from ros_helpers import Peer, nanoseconds_of
from test_bag import make_recording

from depth_prior_ros.recordings import open_recording
from depth_prior_ros.ros import launch_arguments
from depth_prior_ros.ros.parameters import PARAMETERS
from rosbag_tools.make import write_bag

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILE = str(ROOT / "launch" / "depth.launch.py")
LAUNCH_FILES = sorted((ROOT / "launch").glob("*.launch.py"))
TEST_IN_LAUNCH = Path(__file__).parents[1].joinpath("depth_node_launch.py")
PROGRAMS = {
    "depth_node": "depth_prior_ros.ros.node",
    "depth_model_text": "depth_prior_ros.ros.model_text",
    "depth_bag": "rosbag_tools.cli",
    "depth_rviz": "depth_prior_ros.ros.open_rviz",
}


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


DEFAULTS = {name: default for name, default, _ in launch_arguments.depth_arguments()}


def test_every_parameter_is_an_argument_and_every_argument_is_explained():
    """Each once: nothing of the launch file has the name of a parameter."""
    arguments = launch_arguments.depth_arguments()
    names = [name for name, _, _ in arguments]
    assert len(set(names)) == len(names)
    assert {declared.name for declared in PARAMETERS} < set(names)
    assert all(text for _, _, text in arguments)


def test_what_is_not_said_of_a_parameter_is_left_to_the_file():
    launch_arguments.check(DEFAULTS)
    assert launch_arguments.parameter_values(DEFAULTS) == {}
    assert launch_arguments.parameter_file(DEFAULTS) == str(ROOT / "config" / "depth.yaml")


def test_parameters_are_taken_in_their_own_type():
    said = {"scale": "camera_height", "camera_height": "2", "threads": "3", "scale.file": "1.0"}
    values = launch_arguments.parameter_values({**said, "autostart": "0", "use_sim_time": "true"})
    assert values == {
        **{"scale.mode": "camera_height", "scale.camera_height": 2.0, "threads": 3},
        **{"scale.file": "1.0", "autostart": False, "use_sim_time": True},
    }
    assert type(values["scale.camera_height"]) is float


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"camera_height": "high"}, "camera_height:=high must be a number"),
        ({"fit": "cut"}, "fit:=cut must be one of 'crop', 'pad'"),
        ({"max_gap": "4000"}, "max_gap:=4000 must lie between 0.001 and 3600"),
        ({"scale": "fixed", "scale.mode": "none"}, "scale.mode and scale are the same"),
        ({"log_level": "loud"}, "log_level:=loud is none of debug, "),
        ({"large_images": "perhaps"}, "large_images:=perhaps must be true or false"),
        ({"params_file": "no.yaml"}, f"params_file:={Path('no.yaml').absolute()}: no such file"),
    ],
)
def test_what_cannot_be_started_is_refused_before_anything_is(said, words):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(words)):
        launch_arguments.check({**DEFAULTS, **said})


def test_misspelt_arguments_are_refused_with_the_nearest_name():
    started = ["/opt/ros/bin/ros2", "launch", "depth_prior_ros", "depth.launch.py"]
    typed = launch_arguments.typed([*started, "camera:=/a", "--debug", "rviz:=1"], LAUNCH_FILE)
    assert typed == ["camera", "rviz"]
    launch_arguments.refuse_unknown(typed, DEFAULTS, LAUNCH_FILE)
    with pytest.raises(ValueError, match="has no argument camera_hight; is camera_height meant"):
        launch_arguments.refuse_unknown(["camera_hight"], DEFAULTS, LAUNCH_FILE)
    # Arguments of a file that includes this one are not its own.
    others = ["ros2", "launch", "robot", "robot.launch.py", "camera_hight:=2"]
    assert launch_arguments.typed(others, LAUNCH_FILE) == []


USB = {name: default for name, default, _ in launch_arguments.USB}


def test_the_driver_of_a_usb_camera_is_one_that_is_installed():
    both = ["usb_cam", "v4l2_camera"]
    assert launch_arguments.usb_driver("auto", both) == "v4l2_camera"
    assert launch_arguments.usb_driver("auto", ["usb_cam"]) == "usb_cam"
    assert launch_arguments.usb_driver("usb_cam", both) == "usb_cam"
    own = {name for name, _, _ in launch_arguments.usb_camera_arguments()}
    assert not own & set(USB), "one word for two things"
    with pytest.raises(FileNotFoundError, match=r"apt install ros-\$ROS_DISTRO-v4l2-camera"):
        launch_arguments.usb_driver("auto", [])
    with pytest.raises(FileNotFoundError, match="usb_cam is not installed"):
        launch_arguments.usb_driver("usb_cam", ["v4l2_camera"])
    with pytest.raises(ValueError, match="none of auto, v4l2_camera, usb_cam"):
        launch_arguments.usb_driver("webcam", both)


def test_both_drivers_are_told_the_same_in_their_own_words(tmp_path: Path):
    file = tmp_path / "camera.yaml"
    file.touch()
    given = {**USB, "size": "1280x720", "calibration": str(file)}
    both = {"video_device": "/dev/video0", "camera_info_url": f"file://{file}"}
    assert launch_arguments.usb_parameters("v4l2_camera", given) == {
        **both,
        "image_size": [1280, 720],
        "camera_frame_id": "camera_optical_frame",
    }
    assert launch_arguments.usb_parameters("usb_cam", given) == {
        **both,
        **{"image_width": 1280, "image_height": 720, "frame_id": "camera_optical_frame"},
    }
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        launch_arguments.usb_parameters("usb_cam", {**USB, "size": "720p"})
    with pytest.raises(FileNotFoundError, match="no such file"):
        launch_arguments.usb_parameters("usb_cam", {**USB, "calibration": "/no/such.yaml"})


def test_names_are_those_below_the_namespace():
    given = {**DEFAULTS, "camera": "/front/", "image": "/other", "name": "depth", "enclave": "/e"}
    assert dict(launch_arguments.inputs(given)) == {
        **{"image": "/other", "camera_info": "/front/camera_info", "odom": "/odom"},
        **{"twist": "/twist", "twist_with_covariance": "/twist_with_covariance"},
    }
    assert launch_arguments.absolute("/robot", "front") == "/robot/front"
    assert launch_arguments.absolute("/robot", "/front/") == "/front"
    assert launch_arguments.absolute("", "") == ""
    words = ["--log-level", "robot.front.depth:=info", "--enclave", "/e"]
    assert launch_arguments.ros_arguments(given, "/robot/front") == words
    viewed = dict(launch_arguments.viewed({**given, "scale": "none"}, "/robot"))
    assert viewed["/camera/image_raw"] == "/other"
    assert viewed["/depth/points"] == "/robot/depth/relative/points"


def test_replay_hands_on_what_its_player_does_not_decide():
    handed = {name: default for name, default, _ in launch_arguments.replay_arguments()}
    assert DEFAULTS.keys() - handed.keys() == {
        *("camera", "image", "camera_info", "odom", "twist", "twist_with_covariance"),
        "large_images",
    }
    assert handed["rviz"] == handed["use_sim_time"] == "true"


def test_the_example_of_several_cameras_can_be_started():
    cameras = launch_arguments.read_cameras(ROOT / "config" / "several_cameras.yaml")
    assert set(cameras) == {"front", "rear"}
    assert cameras["front"]["camera"] == "/front"
    assert cameras["rear"]["camera"] == "/backup_camera"
    assert cameras["rear"]["namespace"] == "rear"
    assert all(arguments["odom"] == "/odom" for arguments in cameras.values())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cameras": {"front": {"scaling": "odometry"}}}, "front: .* has no argument scaling"),
        ({"all": {"namespace": "a"}, "cameras": {"front": None}}, "front: leave namespace out"),
        ({"cameras": {"f": {}, "r": {"camera_height": "high"}}}, "r: camera_height:=high must be"),
        ({"all": {}}, f"needs a table `cameras`, as in {ROOT}"),
    ],
)
def test_a_file_of_cameras_that_cannot_be_started_is_refused_by_camera(tmp_path, content, words):
    file = tmp_path / "cameras.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{file}: {words}"):
        launch_arguments.read_cameras(file)


class Launched:
    """A running ``ros2 launch`` of this checkout's package."""

    def __init__(self, log: Path, file: str, arguments: tuple[str, ...]) -> None:
        self._log = log
        where = [file] if Path(file).is_absolute() else ["depth_prior_ros", file]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                ["ros2", "launch", *where, *arguments],
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
        return self.process.wait(120)


@contextmanager
def launched(log: Path, *arguments: str, file: str = "depth.launch.py") -> Iterator[Launched]:
    """Started, and interrupted, or else killed, at the end."""
    launch = Launched(log, file, arguments)
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
    (prefix / "share" / "depth_prior_ros").symlink_to(ROOT)
    for name, module in PROGRAMS.items():
        script = f"#!{sys.executable}\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
        (programs / name).write_text(script, encoding="utf-8")
        (programs / name).chmod(0o755)
    for name, path in (("AMENT_PREFIX_PATH", prefix), ("PYTHONPATH", ROOT)):
        monkeypatch.setenv(name, str(path), prepend=os.pathsep)


@pytest.mark.launch
@pytest.mark.parametrize("file", LAUNCH_FILES, ids=lambda path: path.name)
def test_show_args_lists_every_argument(installed, file: Path):
    shown = subprocess.run(
        ["ros2", "launch", "depth_prior_ros", file.name, "--show-args"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    arguments = {
        "depth.launch.py": launch_arguments.depth_arguments(),
        "replay.launch.py": [*launch_arguments.PLAYER, *launch_arguments.replay_arguments()],
        "several_cameras.launch.py": launch_arguments.several_cameras_arguments(),
        "usb_camera.launch.py": [*launch_arguments.USB, *launch_arguments.usb_camera_arguments()],
    }
    for name, _, description in arguments[file.name]:
        assert f"'{name}':" in shown
        assert description in shown


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_started_by_launch_testing(installed, tmp_path):
    """test/depth_node_launch.py has the checks; launch_testing runs them inside a launch."""
    make_tiny_bundle(tmp_path / "tiny")
    environment = {**os.environ, "TEST_BUNDLE": str(tmp_path / "tiny")}
    command = [sys.executable, "-m", "launch_testing.launch_test", str(TEST_IN_LAUNCH)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=560, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Three while it runs, one after the end.
    for count in ("Ran 3 tests", "Ran 1 test"):
        assert count in done.stdout + done.stderr


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_arguments_reach_the_node(installed, tmp_path):
    make_tiny_bundle(tmp_path / "tiny")
    namespace = f"car_{uuid.uuid4().hex[:8]}"
    arguments = (
        f"bundle:={tmp_path / 'tiny'}",
        "backend:=torch",
        "scale:=camera_height",
        "camera_height:=1",
        "motion.hold_start:=0",
        "scale.file:=2012",
        f"namespace:={namespace}",
        "log_level:=warn",
        "large_images:=true",
        f"image:=/{namespace}/image",
        f"camera_info:=/{namespace}/camera_info",
        f"odom:=/{namespace}/odom",
    )
    with launched(tmp_path / "log", *arguments) as launch, Peer(f"/{namespace}") as peer:
        peer.wait_for_node(launch, 240)
        names = ["bundle", "scale.mode", "scale.camera_height", "max_gap", "scale.file"]
        request = GetParameters.Request(names=names)
        values = peer.call(GetParameters, "depth_node/get_parameters", request).values
        assert values[0].string_value == str(tmp_path / "tiny"), "the command line goes first"
        assert values[1].string_value == "camera_height"
        assert values[2].double_value == 1.0
        assert values[3].double_value == 0.5, "the rest comes from the parameter file"
        assert values[4].string_value == "2012", "text, whatever it looks like"
        assert launch.interrupt() == 0
    assert "process has finished cleanly" in launch.output, launch.output
    assert "Traceback" not in launch.output
    assert "waiting for images" not in launch.output, "an info line in spite of log_level:=warn"
    profile = "_DEFAULT_PROFILES_FILE="
    assert f"{profile}{(ROOT / 'config' / 'fastdds_large_images.xml')}" in launch.output.replace(
        f"{tmp_path}/prefix/share/depth_prior_ros", str(ROOT)
    )


WITHIN = """
from launch import LaunchDescription
from launch.actions import GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import PushRosNamespace

def generate_launch_description():
    file = PythonLaunchDescriptionSource({file!r})
    node = IncludeLaunchDescription(file, launch_arguments={arguments!r})
    return LaunchDescription([GroupAction([PushRosNamespace({pushed!r}), node])])
"""


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_around_the_launch_file_holds(installed, tmp_path):
    """A namespace that another launch file pushed, and a parameter file with simulated time."""
    make_tiny_bundle(tmp_path / "tiny")
    values = {"bundle": str(tmp_path / "tiny"), "backend": "torch", "use_sim_time": True}
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}), encoding="utf-8")
    pushed = f"robot_{uuid.uuid4().hex[:8]}"
    topics = {name: f"/{pushed}/front/{name}" for name in ("image", "camera_info", "odom")}
    arguments = {
        "params_file": str(parameters),
        "namespace": "front",
        "log_level": "warn",
        **topics,
    }
    outer = tmp_path / "outer.launch.py"
    text = WITHIN.format(file=LAUNCH_FILE, arguments=list(arguments.items()), pushed=pushed)
    outer.write_text(text, encoding="utf-8")
    with (
        launched(tmp_path / "log", file=str(outer)) as launch,
        Peer(f"/{pushed}/front") as peer,
    ):
        peer.wait_for_node(launch, 240)
        request = GetParameters.Request(names=["use_sim_time"])
        values = peer.call(GetParameters, "depth_node/get_parameters", request).values
        assert values[0].bool_value, "an argument that was not given goes before the file"
        assert launch.interrupt() == 0
    assert "waiting for images" not in launch.output, "an info line in spite of log_level:=warn"


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_launch_tells_that_the_bundle_is_not_there(installed, tmp_path):
    with launched(tmp_path / "log", f"bundle:={tmp_path / 'nothing'}") as launch:
        launch.process.wait(120)
    assert str(tmp_path / "nothing") in launch.output
    assert "exit code 1" in launch.output


@pytest.mark.launch
@pytest.mark.timeout(120)
def test_a_launch_that_fails_leaves_nothing_running(installed, tmp_path):
    """Neither the node beside an RViz that is missing, nor the cameras before a wrong one."""
    cameras = tmp_path / "cameras.yaml"
    cameras.write_text("cameras: {front: {}, rear: {camera_height: 'high'}}", encoding="utf-8")
    commands = [
        ("several_cameras.launch.py", f"cameras:={cameras}", "rear: camera_height:=high must be a"),
        ("depth.launch.py", "camera_height:=high", "camera_height:=high must be a number"),
        ("depth.launch.py", "camera_hight:=2", "is camera_height meant?"),
        ("replay.launch.py", "bagg:=drive.mcap", "is bag meant?"),
    ]
    if shutil.which("rviz2") is None:
        commands.append(("depth.launch.py", "rviz:=true", "RViz (package rviz2) is not installed"))
    for file, argument, words in commands:
        with launched(tmp_path / "log", argument, file=file) as launch:
            launch.process.wait(60)
            assert words in launch.output
            with pytest.raises(ProcessLookupError):
                os.killpg(launch.process.pid, 0)


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_replay_runs_a_bag_through_and_ends(installed, tmp_path):
    make_tiny_bundle(tmp_path / "tiny")
    bag = write_bag(make_recording(12), tmp_path / "drive.mcap").path
    namespace = f"car_{uuid.uuid4().hex[:8]}"
    arguments = (
        f"bag:={bag}",
        f"bundle:={tmp_path / 'tiny'}",
        f"namespace:={namespace}",
        "backend:=torch",
        "rviz:=false",
        "loop:=false",
        "rate:=0.5",
    )
    log = tmp_path / "log"
    with (
        Peer(f"/{namespace}") as peer,
        launched(log, *arguments, file="replay.launch.py") as launch,
    ):
        launch.process.wait(400)
    assert launch.process.returncode == 0, launch.output
    assert "12 frames played" in launch.output
    assert "export" not in launch.output, "the player has the profile for large images already"
    assert "process has died" not in launch.output, launch.output
    stamps = [nanoseconds_of(message.header.stamp) for message in peer.depth]
    # How many of them is a question of the machine's speed.
    assert stamps
    assert stamps == sorted(set(stamps))
    assert set(stamps) <= {frame.stamp_ns for frame in open_recording(bag).frames}
    assert peer.models


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_several_cameras_are_several_nodes(installed, tmp_path):
    make_tiny_bundle(tmp_path / "tiny")
    names = [f"{side}_{uuid.uuid4().hex[:8]}" for side in ("left", "right")]
    cameras = {
        "all": {"bundle": str(tmp_path / "tiny"), "backend": "torch"},
        "cameras": {name: {"image": f"/{name}/image", "odom": f"/{name}/odom"} for name in names},
    }
    cameras["cameras"][names[1]]["device"] = "cpu"
    (tmp_path / "cameras.yaml").write_text(yaml.safe_dump(cameras), encoding="utf-8")
    argument = f"cameras:={tmp_path / 'cameras.yaml'}"
    with (
        launched(tmp_path / "log", argument, file="several_cameras.launch.py") as launch,
        Peer(f"/{names[0]}") as left,
        Peer(f"/{names[1]}") as right,
    ):
        for number, peer in enumerate((left, right)):
            peer.wait_for_node(launch, 240)
            peer.send(shifted(texture(), 0), 10**9 + number)
        assert nanoseconds_of(left.answer(10**9).header.stamp) == 10**9
        assert nanoseconds_of(right.answer(10**9 + 1).header.stamp) == 10**9 + 1
        assert len(left.depth) == len(right.depth) == 1, "none has the other's"
        request = GetParameters.Request(names=["device"])
        devices = [
            peer.call(GetParameters, "depth_node/get_parameters", request).values[0].string_value
            for peer in (left, right)
        ]
        assert devices == ["auto", "cpu"], "arguments of one camera are not the other's"
        assert launch.interrupt() == 0
    assert launch.output.count("process has finished cleanly") == 2, launch.output


def test_a_ros2_command_line_is_there_or_the_tests_above_say_so(request):
    """Skips must not pass unseen: without launch, every test that needs it has its reason."""
    needing = [item for item in request.session.items if item.get_closest_marker("launch")]
    if shutil.which("ros2") is None:
        for item in needing:
            assert any(
                "ros2" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skip")
            )
