"""Depth made offline: the same as of a replay through the node, and after a kill to the same bytes.

The replays are real: a node in its own process over DDS.
"""

from __future__ import annotations

import hashlib
import html
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from forked_process import fork_replay_nodes
from helpers import make_tiny_bundle
from numpy.typing import NDArray
from test_bag import make_recording
from test_replay import stopping_drive

from depth_prior_ros.bundle import load_bundle
from depth_prior_ros.bundle.derive import replace_references
from depth_prior_ros.recordings import open_recording
from depth_prior_ros.recordings.synthetic.drive import DriveSpec, SyntheticDrive
from rosbag_tools.cli import main
from rosbag_tools.make import write_bag
from rosbag_tools.process import MANIFEST, ProcessOptions, process
from rosbag_tools.replaying.session import ReplayOptions, replay
from rosbag_tools.reports.account import Account
from rosbag_tools.reports.results import load
from rosbag_tools.units import Unit, run_units
from rosbag_tools.work import pack, unpack

SIZE = (96, 32)
COUNT = 16
EVERYTHING = ("npy", "png", "kitti-png", "ply", "bag", "video")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    make_tiny_bundle(path, SIZE)
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(stopping_drive(COUNT), tmp_path_factory.mktemp("bags") / "drive.mcap").path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, bundle: Path, bag: Path) -> Path:
    """The folder of everything, made by the command itself."""
    out = tmp_path_factory.mktemp("made") / "out"
    kinds = [f"--{name}" for name in EVERYTHING]
    command = ["process", str(bag), "--out", str(out), "--bundle", str(bundle), *kinds]
    assert main([*command, "--backend", "torch"]) == 0
    return out


def options(bundle: Path, **other: Any) -> ProcessOptions:
    values = {"bundle": str(bundle), "backend": "torch", "forced": False} | other
    return ProcessOptions(**values)


def hashes(folder: Path) -> dict[str, str]:
    """Of all depth: the reports tell times, which no two runs have in common."""
    told = {"metrics.json", "frames.json", "report.html"}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in told
    }


def depths(folder: Path) -> list[NDArray[np.float32]]:
    return [np.load(path) for path in sorted((folder / "npy").iterdir())]


@pytest.mark.slow
def test_the_depth_is_that_of_a_replay_in_lockstep(
    made: Path, bag: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_replay_nodes(monkeypatch)
    published: dict[int, NDArray[np.float32]] = {}
    answered = Account.answered

    def keep(self: Account, position: int, depth: NDArray[np.float32], *other: Any) -> Any:
        published[position] = depth
        return answered(self, position, depth, *other)

    monkeypatch.setattr(Account, "answered", keep)
    wanted = ReplayOptions(bundle=str(bundle), backend="torch")
    expected = replay(open_recording(bag), tmp_path / "replay", wanted, "test")
    found = depths(made)
    assert len(found) == len(published) == COUNT
    for position, depth in published.items():
        np.testing.assert_allclose(found[position], depth, rtol=1e-6, atol=0)
    offline = load(made)
    assert offline.metrics.keys() == expected.metrics.keys()
    for name in ("depth", "absolute", "baselines", "switches", "models", "protocol"):
        assert offline.metrics[name] == expected.metrics[name], name
    assert [(f.model, f.reason, f.abs_rel) for f in offline.frames] == [
        (f.model, f.reason, f.abs_rel) for f in expected.frames
    ]


@pytest.mark.slow
def test_switched_off_references_change_nothing_offline_and_in_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_replay_nodes(monkeypatch)
    drive = SyntheticDrive(8, (416, 128), DriveSpec(frames=3), supersample=1)
    try:
        street = write_bag(drive, tmp_path / "a.mcap").path
    finally:
        drive.close()
    plain = replace_references(load_bundle("lite"), tmp_path / "plain", None, None).path
    common = ["--backend", "torch", "--no-forced"]
    depth, errors = {}, {}
    for name, bundle, words in (
        ("looks", "lite", []),
        ("off", "lite", ["--no-look-up"]),
        ("none", str(plain), []),
    ):
        own = [str(street), "--bundle", bundle, *common, *words, "--out"]
        assert main(["process", *own, str(tmp_path / name)]) == 0
        depth[name] = depths(tmp_path / name)
        assert main(["process", *own, str(tmp_path / name)]) == 0  # nothing is left to do
        assert main(["replay", *own, str(tmp_path / f"{name}_replay")]) == 0
        errors[name] = [frame.abs_rel for frame in load(tmp_path / f"{name}_replay").frames]
    otherwise = [
        "process",
        str(street),
        "--bundle",
        "lite",
        *common,
        "--out",
        str(tmp_path / "off"),
    ]
    assert main(otherwise) == 1  # what was begun without look-up does not go on with it
    np.testing.assert_array_equal(depth["off"], depth["none"])
    known = np.isfinite(depth["looks"]) & np.isfinite(depth["none"])
    looks, none = (np.stack(depth[name])[known] for name in ("looks", "none"))
    assert np.abs(looks / none - 1).mean() > 0.02
    assert errors["off"] == errors["none"] != errors["looks"]
    spec = load_bundle("lite").manifest.references
    assert spec is not None
    for name, words in (
        ("looks", f"looked up: 512 pixels of {spec.source}"),
        ("off", "not looked up: switched off with --no-look-up"),
        ("none", "the bundle has none"),
    ):
        for folder in (tmp_path / name, tmp_path / f"{name}_replay"):
            found = load(folder)
            assert found.run["references"] == found.metrics["references"] == words, folder


@pytest.mark.slow
def test_references_of_another_camera_are_named_with_their_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run that goes on where another one ended."""
    recording = make_recording(4, size=SIZE, depth=False)
    own = load_bundle("lite").manifest.camera.scaled(*SIZE)
    longer = replace(own, fx=1.6 * own.fx, fy=1.6 * own.fy)
    recording.frames = [
        replace(frame, camera=own if frame.index < 3 else longer) for frame in recording.frames
    ]
    wanted = options(Path("lite"), checkpoint=1)
    answered, done = Account.answered, []

    def stop(self: Account, position: int, *other: Any) -> Any:
        done.append(position)
        if position == 2:
            raise RuntimeError("stopped")
        return answered(self, position, *other)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="stopped"):
        patched.setattr(Account, "answered", stop)
        process(tmp_path, recording, tmp_path / "out", wanted, "")
    assert process(tmp_path, recording, tmp_path / "out", wanted, "").new < len(recording.frames)
    up, left_out = load(tmp_path / "out").metrics["references"].split("; not ")
    assert up.startswith("looked up: 512 pixels") and up.endswith(", in 3 of 4 frames")
    assert left_out.startswith("looked up: the bundle's references are of another camera")
    assert left_out.endswith(", in 1 of 4 frames")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "references are of another camera" in html.unescape(page)


@pytest.mark.slow
def test_the_files_say_the_same_depth(made: Path, bag: Path) -> None:
    everything = depths(made)
    for number, depth in enumerate(everything):
        known = np.isfinite(depth)
        for folder, steps in (("png", 1000), ("kitti_png", 256)):
            path = made / folder / f"{number:06d}.png"
            stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            fits = known & (depth * steps < 65535)
            assert stored.dtype == np.uint16
            assert np.abs(stored[fits] / steps - depth[fits]).max() <= 0.51 / steps
            assert not stored[~fits].any()
    manifest = json.loads((made / MANIFEST).read_text())
    camera = manifest["depth_camera"]
    head, _, body = (made / "ply" / "000003.ply").read_bytes().partition(b"end_header\n")
    known = np.isfinite(everything[3])
    assert f"element vertex {known.sum()}".encode() in head
    points = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    x, y, z = points["xyz"].T.astype(np.float64)
    v, u = np.nonzero(known)
    np.testing.assert_allclose(x / z * camera["fx"] + camera["cx"], u, atol=1e-3)
    np.testing.assert_allclose(y / z * camera["fy"] + camera["cy"], v, atol=1e-3)
    np.testing.assert_array_equal(z.astype(np.float32), everything[3][known])


def test_the_bag_has_the_input_beside_the_depth(made: Path, bag: Path) -> None:
    from rosbags.highlevel import AnyReader

    def messages(path: Path) -> list[tuple[str, int, bytes]]:
        with AnyReader([path]) as reader:
            return [(c.topic, time, bytes(raw)) for c, time, raw in reader.messages()]

    found, original = messages(made / "depth.mcap"), messages(bag)
    added = {t for t, _, _ in found} - {t for t, _, _ in original}
    assert added == {
        "/depth/image_rect",
        "/depth/camera_info",
        "/depth/confidence",
        "/depth_node/active_model",
        "/depth_node/scale",
    }
    assert [entry for entry in found if entry[0] not in added] == original
    assert [time for _, time, _ in found] == sorted(time for _, time, _ in found)
    with AnyReader([made / "depth.mcap"]) as reader:
        chosen = [c for c in reader.connections if c.topic == "/depth/image_rect"]
        everything = depths(made)
        for depth, (connection, time, raw) in zip(everything, reader.messages(chosen), strict=True):
            message = reader.deserialize(raw, connection.msgtype)
            stamp = message.header.stamp
            assert stamp.sec * 10**9 + stamp.nanosec == time
            pixels = message.data.view("<f4").reshape(message.height, message.width)
            np.testing.assert_array_equal(pixels, depth)


def test_every_frame_of_the_video_shows_image_and_depth(made: Path, bag: Path) -> None:
    from rosbag_tools.reports.pictures import colour_depth

    video = cv2.VideoCapture(str(made / "depth.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(10, rel=0.01)
    recording = open_recording(bag)
    for number, depth in enumerate(depths(made)):
        read, picture = video.read()
        assert read, number
        rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(float)
        height = depth.shape[0]  # wide pictures: one above the other
        image = recording.frames[number].image().astype(float)
        assert np.abs(rgb[:height] - image).mean() < 12
        assert np.abs(rgb[height : 2 * height] - colour_depth(depth)).mean() < 25
    assert not video.read()[0]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(
    made: Path, bag: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path;"
        "from depth_prior_ros.recordings import open_recording;"
        "from rosbag_tools.process import process, ProcessOptions;"
        "bag, out, bundle, *kinds = sys.argv[1:];"
        "options = ProcessOptions(tuple(kinds), bundle, 'torch', forced=False, checkpoint=3);"
        "slow = lambda done, total: time.sleep(1000 if done == 11 else 0);"
        "process(Path(bag), open_recording(bag), Path(out), options, '', slow)"
    )
    arguments = [sys.executable, "-c", code, str(bag), str(out), str(bundle), *EVERYTHING]
    process_ = subprocess.Popen(arguments)
    deadline = time.monotonic() + 120
    while len(list(out.glob("npy/*.npy"))) < 10:  # the last checkpoint is after 9 frames
        assert process_.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process_.send_signal(signal.SIGKILL)
    process_.wait()
    recording = open_recording(bag)
    found = process(bag, recording, out, options(bundle, outputs=EVERYTHING, checkpoint=3), "test")
    assert 0 < found.new < COUNT  # it went on, and did not begin anew
    assert hashes(out) == hashes(made)
    again, before = load(out), load(made)
    for name in ("absolute", "switches", "models", "frames_in"):
        assert again.metrics[name] == before.metrics[name]
    assert again.metrics["depth"]["all"] == before.metrics["depth"]["all"]


def test_a_second_run_has_nothing_to_do_and_another_bundle_is_refused(
    made: Path, bag: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = [f"--{name}" for name in EVERYTHING]
    command = ["process", str(bag), "--out", str(made), *kinds, "--backend", "torch"]
    assert main([*command, "--bundle", str(bundle)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    other = tmp_path / "other"
    make_tiny_bundle(other, SIZE, seed=5)
    assert main([*command, "--bundle", str(other)]) == 1
    assert "another bundle" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_and_a_video_of_it_side_by_side(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = make_recording(5, size=SIZE)
    folder = tmp_path / "images"
    folder.mkdir()
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"FFV1"), 10, SIZE)
    for frame in recording.frames:
        picture = cv2.cvtColor(frame.image(), cv2.COLOR_RGB2BGR)
        assert cv2.imwrite(str(folder / f"{frame.index}.png"), picture)
        writer.write(picture)
    writer.release()
    (tmp_path / "broken.mcap").write_bytes(b"nothing")
    inputs = [str(folder), str(tmp_path / "film.avi"), str(tmp_path / "broken.mcap")]
    command = ["process", *inputs, "--out", str(tmp_path / "out"), "--bundle", str(bundle)]
    lens = ["--intrinsics", "60,60,47.5,15.5", "--backend", "torch", "--jobs", "2"]
    assert main([*command, *lens]) == 1  # one of three cannot be read
    assert "broken.mcap" in capsys.readouterr().err
    one, two = depths(tmp_path / "out" / "images"), depths(tmp_path / "out" / "film")
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.05)  # FFV1 keeps YUV, not RGB


def lose_once(path: Path, told: Any) -> str:
    """Ends its process the first time."""
    import os

    told(1, 2)
    if not path.exists():
        path.touch()
        os._exit(9)
    return path.name


@pytest.mark.slow
def test_what_a_lost_process_had_in_hand_is_done_again(tmp_path: Path) -> None:
    units = [Unit(name, tmp_path / name) for name in ("a", "b")]
    assert [outcome.result for outcome in run_units(lose_once, units, jobs=2)] == ["a", "b"]


def test_state_goes_through_a_file_unchanged() -> None:
    tree = {"a": [1, 2.5, None, "x", {"b": np.arange(6.0).reshape(2, 3)}], "c": np.array([True])}
    (found,) = unpack(pack(tree))
    assert found["a"][:4] == [1, 2.5, None, "x"]
    np.testing.assert_array_equal(found["a"][4]["b"], tree["a"][4]["b"])  # type: ignore[index]
    assert found["c"].dtype == bool


@pytest.mark.slow
def test_check_sees_a_wrong_metric_factor_by_itself(
    made: Path, bag: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from depth_prior_ros.bundle import load_bundle, rewrite_manifest

    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)

    def result(name: str, factor: float) -> Path:
        changed = load_bundle(copy)
        depth = changed.manifest.depth
        update = {"metres_per_unit": depth.metres_per_unit * factor}
        rewrite_manifest(changed, depth=depth.model_copy(update=update))
        process(bag, open_recording(bag), tmp_path / name, options(copy), "test")
        return tmp_path / name

    ratio = load(made).metrics["depth"]["all"]["ratio_median"]
    against = ["--against", str(tmp_path / "baseline.json")]
    assert main(["check", str(result("right", ratio)), *against, "--accept"]) == 0
    assert main(["check", str(tmp_path / "right"), *against]) == 0
    capsys.readouterr()
    assert main(["check", str(result("wrong", 1.2)), *against]) == 1
    lines = capsys.readouterr().out.splitlines()
    worse = [line.split()[0] for line in lines if line.rstrip().endswith("worse")]
    assert worse == ["metric_abs_rel"]  # scaling by medians hides it
