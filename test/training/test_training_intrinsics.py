"""Intrinsics follow every resize, crop and mirroring; impossible ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from training_files import SMALL, write_moving_drive

from depth_prior_ros.geometry.camera import Camera
from training.data.augmentation import mirror_intrinsics
from training.data.drives import camera_of, check_camera
from training.data.frames import Window
from training.data.sources import load_data
from training.data.triplets import TripletSource
from training.recipes.base import RecipeError
from training.recipes.data import Data, Intrinsics

KITTI = {"fx": 0.58, "fy": 1.92, "cx": 0.49, "cy": 0.46}


def images(root: Path, count: int = 5, size: tuple[int, int] = (124, 38)) -> Path:
    folder = root / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        picture = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i:04d}.jpg"), picture)
    return folder


def load(root: Path, **drive: Any) -> TripletSource:
    data = Data.model_validate({"drives": [{"path": "images", **drive}]})
    return load_data(root, data, SMALL, 10.0).training


# --- resize, crop, mirror -------------------------------------------------------------------------


cameras = st.builds(
    Camera,
    fx=st.floats(200, 900),
    fy=st.floats(200, 900),
    cx=st.floats(150, 450),
    cy=st.floats(60, 140),
    width=st.just(600),
    height=st.just(200),
)
shares = st.floats(0, 0.4)


@given(
    cameras,
    st.tuples(shares, shares, shares, shares),
    st.tuples(st.integers(16, 700), st.integers(16, 300)),
    st.tuples(st.floats(-4, 4), st.floats(-2, 2), st.floats(5, 60)),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_point_is_seen_where_the_picture_shows_it(
    camera: Camera,
    crop: tuple[float, float, float, float],
    size: tuple[int, int],
    point: tuple[float, float, float],
    mirrored: bool,
) -> None:
    """A point's pixel, cropped, scaled and mirrored by hand, is its pixel by the new intrinsics."""
    window = Window(size, crop)
    x, y, width, height = window.box(camera.width, camera.height)
    pixel = camera.matrix() @ np.array(point) / point[2]
    expected = (pixel[:2] - (x, y)) * (size[0] / width, size[1] / height)
    try:
        K = camera.cropped(x, y, width, height).scaled(*size).matrix()
    except ValueError:  # the principal point is far outside what is left
        return
    seen = np.array(point)
    if mirrored:
        expected[0] = size[0] - 1 - expected[0]
        K = mirror_intrinsics(torch.from_numpy(K)[None], size[0])[0].numpy()
        seen[0] = -seen[0]
    np.testing.assert_allclose((K @ seen / seen[2])[:2], expected, atol=1e-6)


@given(cameras, st.integers(16, 700))
@settings(max_examples=25, deadline=None)
def test_mirroring_twice_is_nothing_and_agrees_with_the_camera(camera: Camera, width: int) -> None:
    resized = camera.scaled(width, 96)
    K = torch.from_numpy(resized.matrix())[None]
    once = mirror_intrinsics(K, width)
    np.testing.assert_allclose(once[0].numpy(), resized.flipped().matrix())
    torch.testing.assert_close(mirror_intrinsics(once, width), K)


def test_batches_mirror_pictures_and_intrinsics_together(tmp_path: Path) -> None:
    drive = write_moving_drive(tmp_path)
    data = Data.model_validate({"drives": [{"path": str(drive.relative_to(tmp_path))}]})
    source = load_data(tmp_path, data, SMALL, 10.0).training
    batch = source.batch(32, np.random.default_rng(0))
    centre = 61 * SMALL[0] / 124
    left, right = {round(centre, 3)}, {round(SMALL[0] - 1 - centre, 3)}
    found = [round(float(cx), 3) for cx in batch.K[:, 0, 2]]
    assert set(found) == left | right
    # The picture moves to the left; in the mirror, to the right.
    for images, cx in zip(batch.images.numpy(), found, strict=True):
        before, now = images[0].mean(0), images[1].mean(0)
        (shift, _), _ = cv2.phaseCorrelate(before, now, np.ones_like(now))
        assert (shift < 0) == (cx in left)


# --- folders of images ----------------------------------------------------------------------------


def test_pixels_and_normalised_intrinsics_are_the_same_camera(tmp_path: Path) -> None:
    images(tmp_path)
    pixels = {k: v * (124 if k.endswith("x") else 38) for k, v in KITTI.items()}
    doubled = {k: 2 * v for k, v in pixels.items()}
    given = (
        {**KITTI, "unit": "normalised"},
        pixels,
        {**pixels, "size": [124, 38]},
        {**doubled, "size": [248, 76]},
    )
    K = [load(tmp_path, intrinsics=values).sequences[0].K for values in given]
    for other in K[1:]:
        np.testing.assert_allclose(other, K[0])
    np.testing.assert_allclose(K[0][0], [0.58 * SMALL[0], 0, 0.49 * SMALL[0]])


def test_one_unit_where_the_other_is_expected_is_refused() -> None:
    with pytest.raises(ValidationError, match="say unit: normalised"):
        Intrinsics.model_validate(KITTI)
    pixels = {"fx": 721.5, "fy": 721.5, "cx": 609.6, "cy": 172.9, "unit": "normalised"}
    with pytest.raises(ValidationError, match="say unit: pixels"):
        Intrinsics.model_validate(pixels)
    with pytest.raises(ValidationError, match="say unit: pixels"):
        Intrinsics.model_validate({**KITTI, "cx": 62.0, "unit": "normalised"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fx": 12.0, "fy": 12.0}, "focal length is 0.0968 image widths"),
        ({"fx": 1300.0, "fy": 1300.0}, "focal length is 10.5 image widths"),
        ({"fy": 200.0}, "differ by more than a factor 2"),
        ({"cx": 130.0}, "principal point .* lies outside the image"),
        ({"cy": -1.0}, "principal point .* lies outside the image"),
        ({"cx": 700.0}, "far outside"),
    ],
)
def test_impossible_intrinsics_are_refused(
    tmp_path: Path, change: dict[str, float], message: str
) -> None:
    images(tmp_path)
    intrinsics = {"fx": 72.0, "fy": 72.0, "cx": 61.0, "cy": 17.0} | change
    with pytest.raises(RecipeError, match=f"drive images: .*{message}"):
        load(tmp_path, intrinsics=intrinsics)


def test_intrinsics_of_another_image_size_are_refused(tmp_path: Path) -> None:
    """Those of 1242x375, given for images of half that size without saying so."""
    with pytest.raises(RecipeError, match="lies outside the image"):
        camera_of(Intrinsics(fx=721.5, fy=721.5, cx=609.6, cy=172.9), (600, 181), "here")
    images(tmp_path)
    with pytest.raises(RecipeError, match="another aspect ratio"):
        given = {"fx": 72.0, "fy": 72.0, "cx": 61.0, "cy": 17.0, "size": [124, 76]}
        load(tmp_path, intrinsics=given)


def test_impossible_calibration_of_a_drive_is_refused(tmp_path: Path) -> None:
    drive = write_moving_drive(tmp_path)
    calibration = drive.parent / "calib_cam_to_cam.txt"
    calibration.write_text(calibration.read_text().replace("72.15", "7.215"))
    with pytest.raises(RecipeError, match=r"drive_0001_sync: intrinsics are impossible.*0\.0582"):
        data = Data.model_validate({"drives": [{"path": str(drive.relative_to(tmp_path))}]})
        load_data(tmp_path, data, SMALL, 10.0)


def test_a_folder_without_intrinsics_says_where_to_give_them(tmp_path: Path) -> None:
    images(tmp_path)
    with pytest.raises(RecipeError, match=r"in the recipe: intrinsics: \{fx"):
        load(tmp_path)


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    images(tmp_path)
    with pytest.raises(RecipeError, match="camera chooses"):
        load(tmp_path, camera="image_03")
    drive = write_moving_drive(tmp_path)
    given = {"fx": 72.0, "fy": 72.0, "cx": 61.0, "cy": 17.0}
    with pytest.raises(RecipeError, match="folders of images, videos and bags only"):
        load(tmp_path, path=str(drive.relative_to(tmp_path)), intrinsics=given)
    with pytest.raises(ValidationError, match="leave a tenth"):
        load(tmp_path, crop=(0.5, 0, 0.5, 0))


def test_ordinary_cameras_pass() -> None:
    check_camera(Camera(721.5, 721.5, 609.6, 172.9, 1242, 375), "kitti")
    check_camera(Camera(1156.5, 1151.3, 671.3, 389.2, 1280, 720), "dash camera")
    check_camera(Camera(300, 300, 640, 400, 1280, 800), "wide angle")
