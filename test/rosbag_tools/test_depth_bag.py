"""The command line of depth_bag."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from test_bag import START, make_recording, smooth
from test_bag_kinds import camera, write
from test_recordings import write_drive, write_sequence

from depth_prior_ros.recordings import open_recording
from depth_prior_ros.share import demo_bag
from rosbag_tools.cli import build_parser, main
from rosbag_tools.make import write_bag

COMMANDS = ("info", "make", "render", "process", "replay", "report", "check", "demo")


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from rosbag_tools.cli import build_parser; build_parser().format_help();"
        "heavy = {'torch', 'numpy', 'cv2', 'rosbags', 'rclpy', 'rich'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert command in capsys.readouterr().out


def test_info_of_a_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = write_bag(make_recording(5, skip=(3,)), tmp_path / "made.mcap").path
    assert main(["info", str(bag)]) == 0
    out = capsys.readouterr().out
    for part in ("/camera/image_raw/compressed", "4 frames of 64x24", "1 gaps", "(exact)"):
        assert part in out
    assert "3.5 m/s" in out
    assert "1 missing" in out
    assert "std_msgs/msg/String" not in out
    assert main(["info", str(bag), "--full"]) == 0
    assert "std_msgs/msg/String" in capsys.readouterr().out


def test_the_embedded_drive_has_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["info", "street"]) == 0
    assert "street: 80 frames" in capsys.readouterr().out
    for command in ("process", "extract"):
        parsed = build_parser().parse_args([command, "street", "--out", "street"])
        assert parsed.recordings[0].name == "street.mcap" and str(parsed.out) == "street"
    assert main(["info", "strait"]) == 1
    assert f"{tmp_path / 'strait'}: no such file or folder" in capsys.readouterr().err


def test_a_home_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "~nosuchuser/drive.mcap"]) == 1
    assert "there is no such home folder" in capsys.readouterr().err


def test_make_of_a_drive_names_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drive = write_drive(tmp_path, [0, 1, 3])
    (drive / "image_02" / "data" / "0000000001.png").write_bytes(b"")
    out = tmp_path / "drive.mcap"
    assert main(["make", "--kitti-raw", str(drive), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "0000000001.png: empty" in said
    assert "frame 2: missing" in said
    assert [frame.index for frame in open_recording(out).frames] == [0, 1]  # 0.3 s apart
    assert "2 images, 1 depth maps" in said


def test_make_of_a_sequence_has_odometry(tmp_path: Path) -> None:
    out = tmp_path / "bags" / "sequence.mcap"
    sequence = write_sequence(tmp_path, 4)
    assert main(["make", "--kitti-odometry", str(sequence), "--out", str(out)]) == 0
    again = open_recording(out)
    assert [frame.speed for frame in again.frames] == pytest.approx([10.0] * 4)
    assert again.frames[3].pose[:3, 3] == pytest.approx([0, 0, 3])


def test_make_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        assert cv2.imwrite(str(folder / f"{number}.png"), smooth(number))
    command = ["make", "--images", str(folder), "--out", str(tmp_path / "bag")]
    assert main(command) == 1
    assert "intrinsics" in capsys.readouterr().err
    assert main([*command, "--intrinsics", "40,40,31.5,11.5", "--rate", "20"]) == 0
    again = open_recording(tmp_path / "bag")
    assert again.frames[1].stamp_ns - again.frames[0].stamp_ns == 50_000_000
    assert again.frames[0].camera.fx == 40


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["info", "nowhere.mcap"], "nowhere.mcap"),
        (["make", "--kitti-raw", "nowhere", "--out", "x.mcap"], "nowhere"),
        (["make", "--images", "nowhere", "--intrinsics", "1,2,3,4", "--out", "x"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["replay", "nowhere.mcap", "--out", "x"], "nowhere"),
    ],
)
def test_errors_are_one_line_that_names_the_culprit(
    arguments: list[str],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("depth_bag: ")
    assert word in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["make", "--out", "x.mcap"],
        ["replay", "bag", "--out", "x", "--rate", "-1"],
        ["replay", "bag", "--out", "x", "--rate", "1", "--lockstep"],
        ["render", "--out", "x", "--size", "640"],
        ["make", "--images", "x", "--out", "y", "--intrinsics", "1,2"],
        ["make", "--images", "x", "--out", "y", "--quality", "0"],
    ],
)
def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2


@pytest.mark.slow
@pytest.mark.data
def test_bag_of_a_real_drive(data_dir: Path, tmp_path: Path) -> None:
    drive = data_dir / "kitti_raw/2011_09_26/2011_09_26_drive_0052_sync"
    out = tmp_path / "52.mcap"
    assert main(["make", "--kitti-raw", str(drive), "--out", str(out)]) == 0
    original, again = open_recording(drive), open_recording(out)
    assert len(again.frames) == 78
    assert again.depth_source == "lidar"
    for i in (0, 40, 77):
        assert (again.frames[i].image() == original.frames[i].image()).all()
        assert (again.frames[i].depth() == original.frames[i].depth()).all()


@pytest.mark.parametrize("command", ["process", "replay", "demo"])
def test_no_look_up_without_references_is_told(
    command: str,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("replay", "demo", "show_results"):
        monkeypatch.setattr(f"rosbag_tools.replaying.session.{name}", lambda *_: None)
    for name in ("_do_recordings", "_open"):
        monkeypatch.setattr(f"rosbag_tools.cli.{name}", lambda *_: None)
    recording = [] if command == "demo" else ["street"]
    line = "references: the bundle has none, so --no-look-up changes nothing\n"
    for bundle, option, said in (
        (str(tiny_bundle), ["--no-look-up"], line),
        (str(tiny_bundle), [], ""),
        ("lite", ["--no-look-up"], ""),
        ("nowhere", ["--no-look-up"], ""),  # refused by what opens it to use it
    ):
        given = [*recording, "--out", str(tmp_path / "out"), "--bundle", bundle, *option]
        assert main([command, *given]) == 0
        assert capsys.readouterr().out == said


def test_the_embedded_drive_is_what_the_demo_needs() -> None:
    path = demo_bag()
    assert path.stat().st_size <= 6_000_000
    recording = open_recording(path)
    assert len(recording.frames) == 80
    assert recording.skipped == []
    assert recording.depth_source == "exact"
    assert {frame.camera.size for frame in recording.frames} == {(640, 192)}
    assert all(frame.has_depth and frame.pose is not None for frame in recording.frames)
    standing = [frame.stamp_ns for frame in recording.frames if frame.speed == 0]
    assert standing[-1] - standing[0] >= 2_000_000_000
    # the stop lies in the middle: it drives before and after
    assert recording.frames[0].speed > 3
    assert recording.frames[-1].speed > 3
    depth = recording.frames[40].depth()
    assert depth is not None
    assert 0.5 < (depth > 0).mean() < 1


def test_names_of_strangers_reach_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topics = camera("/fr\x1b]0;title\x07ont")
    topics["/\u202egps"] = ("std_msgs/msg/String", [(START, {"data": "x"})])
    bag = write(tmp_path / "bag", topics)
    for options in ([], ["--full"]):
        assert main(["info", str(bag), *options]) == 0
        out = "".join(capsys.readouterr())
        assert r"/fr\x1b]0;title\x07ont/image_raw" in out
        assert all(line.isprintable() for line in out.splitlines())
    assert main(["info", str(bag), "--image-topic", "/x"]) == 1
    said = capsys.readouterr().err
    assert said.rstrip("\n").isprintable()
    assert r"\u202egps" in said


@pytest.mark.parametrize("command", [["play"], ["replay", "--out", "out"]])
def test_without_ros_a_replay_says_what_to_install(command: list[str], tmp_path: Path) -> None:
    names = ("rclpy", "builtin_interfaces", "sensor_msgs", "std_msgs", "nav_msgs")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({names!r}));"
        f"from rosbag_tools.cli import main; sys.exit(main({[*command, 'street']!r}))"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "needs rclpy" in done.stderr and "source a ROS 2 installation" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_a_killed_rendering_left_is_removed(tmp_path: Path) -> None:
    run = [sys.executable, "-c", "import sys; from rosbag_tools.cli import main; sys.exit(main())"]
    options = ["render", "--out", "r.mcap", "--size", "96x32", "--frames"]
    first = subprocess.Popen([*run, *options, "80"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob(".r*.partial*")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    first.kill()
    first.wait()
    assert list(tmp_path.iterdir())
    subprocess.run([*run, *options, "3"], cwd=tmp_path, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r.mcap"]
