"""A data set out of a recording: the same frames again, and after a kill the same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_bag import CAMERA, LENS, START, header, make_recording, smooth, write, write_messages
from test_replay import stopping_drive

from depth_prior_ros.atomic_files import alone_in
from depth_prior_ros.recordings import RecordingError, StoredRecording, open_recording
from depth_prior_ros.recordings.bag_topics import CAMERA_INFO, COMPRESSED_IMAGE
from depth_prior_ros.recordings.extracted import read_lines, read_manifest
from rosbag_tools.cli import main
from rosbag_tools.extract import ExtractOptions, extract, strided

COUNT = 16


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def same(found: StoredRecording, expected: StoredRecording) -> None:
    """What training and evaluation read is the same, bit for bit."""
    assert found.name == expected.name
    assert found.depth_source == expected.depth_source
    assert len(found) == len(expected)
    for a, b in zip(found.frames, expected.frames, strict=True):
        assert (a.index, a.stamp_ns, a.camera, a.speed) == (b.index, b.stamp_ns, b.camera, b.speed)
        np.testing.assert_array_equal(a.image(), b.image())
        for one, other in ((a.pose, b.pose), (a.depth(), b.depth()), (a.moving(), b.moving())):
            np.testing.assert_array_equal(one, other)


def compressed_lens_bag(path: Path) -> Path:
    """Three JPEGs through a lens."""
    from rosbags.typesys import Stores, get_typestore

    roi = get_typestore(Stores.ROS2_HUMBLE).types["sensor_msgs/msg/RegionOfInterest"]
    infos, images = [], []
    for number in range(3):
        stamp = START + number * 100_000_000
        region = roi(0, 0, 0, 0, False)
        infos.append((stamp, {"header": header(stamp), "roi": region, **LENS}))
        jpeg = cv2.imencode(".jpg", cv2.cvtColor(smooth(number), cv2.COLOR_RGB2BGR))[1]
        data = {"format": "rgb8; jpeg compressed bgr8", "data": jpeg.ravel()}
        images.append((stamp, {"header": header(stamp), **data}))
    topics = {
        "/front/camera_info": (CAMERA_INFO, infos),
        "/front/image_raw/compressed": (COMPRESSED_IMAGE, images),
    }
    return write_messages(path, topics)


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_a_bag_and_its_data_set_are_the_same_recording(tmp_path: Path, format: str) -> None:
    bag = write(tmp_path, stopping_drive(COUNT))
    command = ["extract", str(bag), "--out", str(tmp_path / "set"), "--format", format]
    assert main(command) == 0
    out = tmp_path / "set" / "made"
    expected = open_recording(bag)
    same(open_recording(out), expected)
    for frame, line in zip(expected.frames, read_lines(out), strict=True):
        data = (out / "images" / line.file("images")).read_bytes()
        assert hashlib.sha256(data).hexdigest() == line.sha256["images"]
        assert frame.load_stored is not None
        assert (data == frame.load_stored()) == (format == "jpeg"), "recorded bytes are kept"
    manifest = read_manifest(out)
    sha256 = hashlib.sha256(bag.read_bytes()).hexdigest()
    assert manifest.source["files"] == {"made.mcap": sha256}
    assert manifest.static_spans == [(10, 15)], "four slow frames in a row, from 7 on"
    before = hashes(out)
    assert main(command) == 0, "a finished one is left as it is"
    assert hashes(out) == before
    assert main([*command, "--stride", "2"]) == 1, "and never mixed with another"


def test_jpegs_of_a_lens_stay_as_recorded_and_are_rectified_on_reading(tmp_path: Path) -> None:
    bag = compressed_lens_bag(tmp_path / "bag")
    recording = open_recording(bag)
    extract(bag, recording, tmp_path / "kept", ExtractOptions())
    found = open_recording(tmp_path / "kept")
    same(found, recording)
    assert found.frames[0].file is None, "the file shows another picture"
    view = read_manifest(tmp_path / "kept").views[0]
    assert view.camera == CAMERA
    assert view.lens is not None
    assert view.lens.coefficients == (-0.3, 0.1, 0.001, -0.002)
    line = read_lines(tmp_path / "kept")[0]
    raw = cv2.imread(str(tmp_path / "kept/images" / line.file("images")))[..., ::-1]
    assert np.abs(raw.astype(int) - smooth(0)).mean() < 3, "the picture with its distortion"
    # For tools that know no lens.
    extract(bag, recording, tmp_path / "flat", ExtractOptions(format="png", rectified=True))
    flat = open_recording(tmp_path / "flat")
    same(flat, recording)
    assert flat.frames[0].file is not None


def test_a_killed_extraction_ends_in_the_same_bytes(tmp_path: Path) -> None:
    recording = stopping_drive(COUNT)
    # Without speeds the pictures say whether the vehicle stands: their state is kept, too.
    recording.frames = [dataclasses.replace(frame, speed=None) for frame in recording.frames]
    bag = write(tmp_path, recording)
    options = ExtractOptions(checkpoint=3)

    def die(done: int, total: int) -> None:
        if done in (8, 11):
            raise KeyboardInterrupt

    extract(bag, open_recording(bag), tmp_path / "whole", options)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            extract(bag, open_recording(bag), tmp_path / "cut", options, die)
        with pytest.raises(RecordingError, match="was not finished; give the same command again"):
            open_recording(tmp_path / "cut")
    resumed = extract(bag, open_recording(bag), tmp_path / "cut", options)
    assert resumed.new < resumed.frames == COUNT
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    assert all(line.static is not None for line in read_lines(tmp_path / "cut")[3:])


def test_a_frame_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        cv2.imwrite(str(folder / f"{number}.jpg"), smooth(number))
    data = bytearray((folder / "2.jpg").read_bytes())
    data[200:-2] = bytes(len(data) - 202)
    (folder / "2.jpg").write_bytes(data)
    recording = open_recording(folder, camera=CAMERA)
    frame = recording.frames[2]
    (folder / "2.jpg").write_bytes(data[:-20])  # cut off while the data set is made
    assert frame.index == 2
    extract(folder, recording, tmp_path / "set", ExtractOptions())
    found = open_recording(tmp_path / "set")
    assert [frame.index for frame in found.frames] == [0, 1, 3]
    assert [str(s) for s in found.skipped] == [f"frame 2: {folder / '2.jpg'}: truncated"]
    assert found.gap_before(2)


def test_a_stride_bridges_no_gap() -> None:
    recording = make_recording(14, skip=(5,))
    assert strided(recording, 1) == [(i, f.index) for i, f in enumerate(recording.frames)]
    kept = strided(recording, 2)
    assert [recording.frames[i].index for i, _ in kept] == [0, 2, 4, 6, 8, 10, 12]
    assert [number for _, number in kept] == [0, 1, 2, 4, 5, 6, 7], "4 and 6 are no neighbours"


def test_a_damaged_data_set_says_where(tmp_path: Path) -> None:
    bag = write(tmp_path, make_recording(4))
    extract(bag, open_recording(bag), tmp_path / "set", ExtractOptions())
    (tmp_path / "set/images/000001.jpg").unlink()
    found = open_recording(tmp_path / "set")
    assert [str(entry) for entry in found.skipped] == ["frame 1: 000001.jpg is missing"]
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    manifest["views"][0]["camera"]["fx"] = -1
    (tmp_path / "set/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RecordingError, match=r"views\.0\.camera.*focal lengths must be positive"):
        open_recording(tmp_path / "set")
    (tmp_path / "set/frames.jsonl").write_text('{"index": 1}\n')
    manifest["views"][0]["camera"]["fx"] = 100
    (tmp_path / "set/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RecordingError, match=r"frames\.jsonl: cannot be read \(source_index"):
        open_recording(tmp_path / "set")


def test_two_shells_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag, out = write(tmp_path, stopping_drive(4)), tmp_path / "out"
    (out / "made").mkdir(parents=True)
    with alone_in(out / "made"):
        assert main(["extract", str(bag), "--out", str(out)]) == 1
        assert "is in use by another run" in capsys.readouterr().err
        assert main(["process", str(bag), "--out", str(out / "made")]) == 1
        assert "is in use by another run" in capsys.readouterr().err
    assert not any((out / "made").iterdir())
    assert main(["extract", str(bag), "--out", str(out)]) == 0
