"""Make3D, Cityscapes, nuScenes, folders with intrinsics, in small files of their layout."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from data_set_files import (
    mat_element,
    write_city,
    write_image,
    write_make3d,
    write_mat,
    write_nuscenes,
)

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.points import project_points
from depth_prior_ros.recordings import (
    CorruptFrameError,
    Recording,
    RecordingError,
    open_recording,
)
from depth_prior_ros.recordings.cityscapes import _read_array, open_cityscapes
from depth_prior_ros.recordings.folder import camera_from_values
from depth_prior_ros.recordings.kitti import read_calibration
from depth_prior_ros.recordings.make3d import open_make3d, read_matlab
from depth_prior_ros.recordings.nuscenes import NEAREST, open_nuscenes

# --- MATLAB ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_of_a_mat_file(tmp_path: Path, compressed: bool):
    file = tmp_path / "a.mat"
    first, second = np.arange(24.0).reshape(2, 3, 4), np.ones((5, 1))
    write_mat(file, compressed, first=first, longer_name=second)
    np.testing.assert_array_equal(read_matlab(file, "first"), first)
    np.testing.assert_array_equal(read_matlab(file, "longer_name"), second)
    with pytest.raises(CorruptFrameError, match="no third in it, only first, longer_name"):
        read_matlab(file, "third")


def test_small_elements_and_integers_of_a_mat_file(tmp_path: Path):
    """MATLAB packs up to four bytes into the tag, and stores whole doubles as bytes."""
    body = mat_element(6, struct.pack("<II", 6, 0)) + mat_element(5, struct.pack("<2i", 2, 2))
    body += struct.pack("<HH4s", 1, 1, b"d") + struct.pack("<HH4B", 2, 4, 1, 2, 3, 4)
    write_mat(tmp_path / "a.mat")
    with (tmp_path / "a.mat").open("ab") as file:
        file.write(mat_element(14, body))
    np.testing.assert_array_equal(read_matlab(tmp_path / "a.mat", "d"), [[1, 3], [2, 4]])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "no MATLAB file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", "version 7.3"),
        (b"x" * 300, "no MATLAB file"),
    ],
)
def test_what_is_no_mat_file_is_refused(tmp_path: Path, content: bytes, cause: str):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(CorruptFrameError, match=cause):
        read_matlab(tmp_path / "a.mat", "a")


@pytest.mark.parametrize("compressed", [True, False])
def test_a_mat_file_that_is_cut_off_is_refused(tmp_path: Path, compressed: bool):
    file = tmp_path / "a.mat"
    write_mat(file, compressed, a=np.random.default_rng(0).random((9, 9)))
    whole = file.read_bytes()
    for length in (130, 140, 180, len(whole) - 30):
        file.write_bytes(whole[:length])
        with pytest.raises(CorruptFrameError):
            read_matlab(file, "a")


# --- Make3D ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["Gridlaserdata", "Test134Depth/Gridlaserdata"])
def test_make3d_is_cropped_as_in_the_papers(tmp_path: Path, folder: str):
    write_make3d(tmp_path, ("10.21op2-p-015t000", "op1-p-046t000"), folder)
    recording = open_recording(tmp_path)
    assert isinstance(recording, Recording) and len(recording.frames) == 2
    assert recording.depth_source == "lidar" and recording.gap_before(1)
    frame = recording.frames[0]
    image, depth = frame.image(), frame.depth()
    assert image.shape == (852, 1704, 3) and depth is not None and depth.shape == (21, 305)
    assert image[0, 0, 0] == pytest.approx(710 * 255 / 2272, abs=2)
    assert image[-1, 0, 0] == pytest.approx(1561 * 255 / 2272, abs=2)
    assert (depth[0, 0], depth[-1, 0]) == (18.0, 38.0)
    assert depth[3, 7] == 0  # not a number
    assert frame.camera.size == (1704, 852)
    assert frame.camera.cy == pytest.approx(1110.7 - 710, abs=0.1)


def test_make3d_names_what_it_leaves_out(tmp_path: Path):
    write_make3d(tmp_path, ("a", "b", "c"))
    (tmp_path / "Test134" / "img-a.jpg").unlink()
    write_image(tmp_path / "Test134" / "img-b.jpg", 170, 227)
    recording = open_make3d(tmp_path)
    assert len(recording.frames) == 1
    reasons = " ".join(map(str, recording.skipped))
    assert "no img-a.jpg" in reasons and "170x227 instead of 1704x2272" in reasons
    write_mat(tmp_path / "Gridlaserdata" / "depth_sph_corr-c.mat", Position3DGrid=np.ones((5, 4)))
    with pytest.raises(CorruptFrameError, match=r"not \(55, 305, 4\)"):
        recording.frames[0].depth()
    (tmp_path / "Test134" / "img-c.jpg").unlink()
    with pytest.raises(RecordingError, match="Gridlaserdata"):
        open_make3d(tmp_path)


# --- Cityscapes -----------------------------------------------------------------------------------


def test_cityscapes_without_its_bonnet(tmp_path: Path):
    write_city(tmp_path, "berlin_000000_000019")
    write_city(tmp_path, "bonn_000001_000019")
    recording = open_recording(tmp_path)
    assert recording.name == "cityscapes_test" and recording.depth_source == "stereo"
    assert len(recording.frames) == 2 and recording.gap_before(1)
    frame = recording.frames[1]
    image, depth = frame.image(), frame.depth()
    assert image.shape == (96, 256, 3) and depth is not None and depth.shape == (96, 256)
    assert depth[0, 0] == pytest.approx(20.0, rel=1e-3)  # 2262.5 * 0.2 / 22.625
    assert (depth[64:] == 0).all()  # raw 0 is no disparity
    expected = Camera(2262.5 / 8, 2265.3 / 8, 1096.98 / 8, 513.137 / 8, 256, 96)
    assert frame.camera == expected


def test_cityscapes_with_the_published_depth(tmp_path: Path):
    names = ("bonn_000001_000019", "berlin_000000_000019")  # not in the order of the files
    for number, name in enumerate(names):
        write_city(tmp_path, name)
        (tmp_path / "gt_depths").mkdir(exist_ok=True)
        depth = np.full((128, 256), 5.0 + number, np.float32)
        depth[0, 0] = np.inf
        np.save(tmp_path / "gt_depths" / f"{number:03d}_depth.npy", depth)
    with pytest.raises(RecordingError, match=r"list of its images: put test_files\.txt"):
        open_cityscapes(tmp_path)
    lines = "".join(f"{name.split('_')[0]} {name}\n" for name in names)
    (tmp_path / "gt_depths" / "test_files.txt").write_text(lines)
    berlin, bonn = open_cityscapes(tmp_path).frames
    for frame, value in ((bonn, 5.0), (berlin, 6.0)):
        depth = frame.depth()
        assert depth is not None and depth.shape == (96, 256)
        assert depth[0, 0] == 0 and depth[5, 5] == value
    (tmp_path / "gt_depths" / "001_depth.npy").write_bytes(b"rubbish")
    with pytest.raises(CorruptFrameError, match="001_depth"):
        berlin.depth()


@pytest.mark.parametrize(
    "values",
    [np.zeros((2, 3, 4)), np.array([["a"]]), np.zeros((2, 2), complex), np.zeros((2, 2), object)],
    ids=["three axes", "letters", "complex", "objects"],
)
def test_an_array_that_is_no_depth(tmp_path: Path, values: np.ndarray):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(CorruptFrameError, match=r"x\.npy"):
        _read_array(tmp_path / "x.npy")


@pytest.mark.parametrize("shape", [b"(2, 2000000000), }", b"(2, 2), (         "])
def test_an_array_whose_header_is_odd(tmp_path: Path, shape: bytes):
    np.save(tmp_path / "x.npy", np.zeros((2, 2), np.float32))
    data = (tmp_path / "x.npy").read_bytes()
    old = b"(2, 2), }".ljust(len(shape))
    assert old in data
    (tmp_path / "x.npy").write_bytes(data.replace(old, shape))
    with pytest.raises(CorruptFrameError, match=r"x\.npy"):
        _read_array(tmp_path / "x.npy")


def test_calibrations_of_strangers(tmp_path: Path):
    """A pipe would be waited for, and brackets by the thousand overflow the parser's stack."""
    os.mkfifo(tmp_path / "calib.txt")
    with pytest.raises(RecordingError, match=r"calib\.txt: .*not a regular file"):
        read_calibration(tmp_path / "calib.txt")
    write_city(tmp_path, "bonn_0_19")
    place = tmp_path / "camera" / "test" / "bonn" / "bonn_0_19_camera.json"
    place.write_text("[" * 100_000)
    with pytest.raises(RecordingError, match="nested too deep"):
        open_cityscapes(tmp_path)
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(RecordingError, match="not a regular file"):
        open_cityscapes(tmp_path)


def test_cityscapes_names_what_it_leaves_out(tmp_path: Path):
    for name in ("bonn_0_19", "bonn_1_19", "bonn_2_19"):
        write_city(tmp_path, name, "val")
    (tmp_path / "camera" / "val" / "bonn" / "bonn_0_19_camera.json").unlink()
    (tmp_path / "disparity" / "val" / "bonn" / "bonn_1_19_disparity.png").unlink()
    recording = open_cityscapes(tmp_path)
    assert recording.name == "cityscapes_val"
    assert [frame.has_depth for frame in recording.frames] == [False, True]
    assert recording.notes == ["1 images have no depth"]
    assert "bonn_0_19_camera.json" in str(recording.skipped[0])
    with pytest.raises(RecordingError, match="leftImg8bit/train"):
        open_cityscapes(tmp_path, split="train")


# --- nuScenes -------------------------------------------------------------------------------------


def test_nuscenes_projects_the_sweep_through_the_vehicles_motion(tmp_path: Path):
    write_nuscenes(tmp_path)
    recording = open_recording(tmp_path)
    assert recording.name == "nuscenes_mini" and recording.depth_source == "lidar"
    assert len(recording.frames) == 12 and not recording.skipped
    assert [f.has_depth for f in recording.frames] == [True, False, False] * 4
    assert [i for i in range(12) if recording.gap_before(i)] == [6]  # the other scene
    for i in (0, 3):
        depth = recording.frames[i].depth()
        assert depth is not None and depth.shape == (90, 160)
        assert np.argwhere(depth > 0).tolist() == [[45, 80]]
        # The camera is 1 m ahead of the vehicle, which is at x = i.
        assert depth[45, 80] == pytest.approx(30 - 1 - i, abs=1e-4)
    pose = recording.frames[4].pose
    assert pose is not None
    np.testing.assert_allclose(pose[:3, 3], [5, 0, 1.5], atol=1e-9)
    np.testing.assert_allclose(pose[:3, 2], [1, 0, 0], atol=1e-9)  # looks along x
    assert recording.frames[4].speed == pytest.approx(12.0, rel=1e-3)
    assert recording.frames[0].camera == Camera(60, 60, 80, 45, 160, 90)


def test_nuscenes_keyframes_alone_do_not_follow_each_other(tmp_path: Path):
    write_nuscenes(tmp_path, sweeps_on_disk=False)
    recording = open_recording(tmp_path)
    assert len(recording.frames) == 4
    assert [recording.gap_before(i) for i in range(4)] == [False, True, True, True]
    assert "4 frames between keyframes: no file" in str(recording.skipped[0])


def test_nuscenes_scenes_cameras_and_errors(tmp_path: Path):
    write_nuscenes(tmp_path)
    one = open_nuscenes(tmp_path, scenes=["scene-0001"], camera="CAM_BACK")
    assert len(one.frames) == 6
    assert "CAM_BACK" in str(one.frames[0].file) and "1_0" in str(one.frames[0].file)
    with pytest.raises(RecordingError, match="no scene scene-9; there is"):
        open_nuscenes(tmp_path, scenes=["scene-9"])
    with pytest.raises(RecordingError, match="no frame of CAM_LEFT"):
        open_nuscenes(tmp_path, camera="CAM_LEFT")
    (tmp_path / "samples/CAM_FRONT/1_3.jpg").write_bytes(b"")
    (tmp_path / "samples/LIDAR_TOP/1_0.pcd.bin").write_bytes(b"123456")
    damaged = open_nuscenes(tmp_path, scenes=["scene-0001"])
    assert len(damaged.frames) == 5 and "1_3.jpg" in str(damaged.skipped[0])
    with pytest.raises(CorruptFrameError, match="not 5 a point"):
        damaged.frames[0].depth()
    (tmp_path / "v1.0-mini/ego_pose.json").write_text("[]")
    with pytest.raises(RecordingError, match="do not fit together"):
        open_recording(tmp_path)
    (tmp_path / "v1.0-mini/ego_pose.json").write_text("[")
    with pytest.raises(RecordingError, match="not JSON"):
        open_recording(tmp_path)


def test_the_nearest_point_of_a_pixel_counts():
    camera = Camera(60, 60, 80, 45, 160, 90)
    points = np.array([[0, 0, 9.0], [0.0001, 0, 4.0], [0, 0, 7.0], [0, 0, 0.5], [99, 0, 5.0]])
    depth = project_points(points, np.eye(4), camera, NEAREST)
    assert depth[45, 80] == 4 and (depth > 0).sum() == 1


# --- image folders with intrinsics ----------------------------------------------------------------

NORMALISED = "units: normalised\nfx: 0.58\nfy: 1.92\ncx: 0.5\ncy: 0.5\n"
PIXELS = "units: pixels\nfx: 58\nfy: 57.6\ncx: 50\ncy: 15\nwidth: 100\nheight: 30\n"


def folder_with(tmp_path: Path, text: str, size: tuple[int, int] = (200, 60)) -> Path:
    write_image(tmp_path / "000.png", *size)
    (tmp_path / "intrinsics.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("text", [NORMALISED, PIXELS])
def test_intrinsics_of_both_units_hold_for_resized_images(tmp_path: Path, text: str):
    recording = open_recording(folder_with(tmp_path, text))
    camera = recording.frames[0].camera
    assert camera.size == (200, 60)
    expected = [[116.0, 0, 100], [0, 115.2, 30], [0, 0, 1]]
    np.testing.assert_allclose(camera.matrix(), expected, rtol=1e-12)


def test_intrinsics_as_json_elsewhere(tmp_path: Path):
    write_image(tmp_path / "images" / "000.png", 200, 60)
    values = {"units": "pixels", "fx": 116, "fy": 115, "cx": 100, "cy": 30}
    (tmp_path / "k.json").write_text(json.dumps(values))
    recording = open_recording(tmp_path / "images", intrinsics=tmp_path / "k.json")
    assert recording.frames[0].camera == Camera(116, 115, 100, 30, 200, 60)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (PIXELS.replace("pixels", "normalised"), "are in pixels where normalised are expected"),
        (NORMALISED.replace("normalised", "pixels"), "are normalised where pixels are expected"),
        (NORMALISED.replace("normalised", "percent"), "units 'percent' are unknown"),
        (NORMALISED.replace("units: normalised\n", ""), "units missing"),
        (NORMALISED + "k1: 0.1\n", "'k1' is unknown"),
        (NORMALISED.replace("0.58", "wide"), "'wide' is not a number"),
        (NORMALISED.replace("0.58", "-0.58"), "focal lengths must be positive"),
        (PIXELS.replace("width: 100\n", ""), "width and height"),
        (PIXELS.replace("height: 30", "height: 90"), "another aspect ratio"),
        ("[1, 2", "cannot be read as YAML or JSON"),
        ("just words", "expected"),
    ],
)
def test_intrinsics_that_do_not_fit_are_refused(tmp_path: Path, text: str, cause: str):
    with pytest.raises(RecordingError, match=cause):
        open_recording(folder_with(tmp_path, text))


def test_intrinsics_as_plain_values():
    assert camera_from_values([0.5, 1.5, 0.5, 0.5], "normalised", (400, 100)).fx == 200
    with pytest.raises(RecordingError, match=r"recipe: .* in pixels where normalised"):
        camera_from_values([721, 721, 609, 172], "normalised", (1242, 375), "recipe")
    with pytest.raises(RecordingError, match="got 3 numbers"):
        camera_from_values([1, 1, 1], "pixels", (40, 40))
    # A principal point in pixels betrays them even where the focal length is short.
    with pytest.raises(RecordingError, match="in pixels where normalised"):
        camera_from_values([50, 50, 48, 16], "normalised", (96, 32))


# --- KITTI raw ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("camera", [0, 1, 2, 3])
def test_every_camera_of_kitti_raw(tmp_path: Path, camera: int, suffix: str):
    drive = tmp_path / "2011_09_26" / "2011_09_26_drive_0001_sync"
    lines = [
        f"P_rect_{i:02d}: {30 + i} 0 31 0 0 {30 + i} 9.5 0 0 0 1 0\nS_rect_{i:02d}: 62 19"
        for i in range(4)
    ]
    for i in range(4):
        write_image(drive / f"image_{i:02d}" / "data" / f"0000000000{suffix}", 62, 19)
    (drive.parent / "calib_cam_to_cam.txt").write_text("\n".join(lines))
    recording = open_recording(drive, camera=f"image_{camera:02d}")
    assert recording.frames[0].camera == Camera(30 + camera, 30 + camera, 31, 9.5, 62, 19)
    assert f"image_{camera:02d}" in str(recording.frames[0].file)
    assert recording.frames[0].image().shape == (19, 62, 3)
