from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.scale import (
    FixedScale,
    OdometryScale,
    ScaleFileError,
    ScaleSight,
    load_scale,
    save_scale,
)

CAMERA = Camera(721.5, 721.5, 609.6, 172.9, 1242, 375)
STORED: dict[str, Any] = {
    "mode": "odometry",
    "state": "held",
    "metres_per_unit": 12.345678901234567,
    "spread": 0.0625,
    "samples": 97,
}


def save(path: Path, **changes: Any) -> None:
    save_scale(path, {**STORED, **changes}, bundle="abc", camera=CAMERA)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "made" / "front.yaml"
    save(path)
    loaded = load_scale(path, bundle="abc", camera=CAMERA)
    assert {key: loaded[key] for key in STORED} == STORED
    assert [file.name for file in path.parent.iterdir()] == ["front.yaml"]


def test_a_scale_goes_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "scale.yaml"
    first, second = (OdometryScale(FixedScale(10.0, "the bundle")) for _ in range(2))
    for _ in range(50):
        first.observe(
            ScaleSight(0, None, CAMERA, True, units_travelled=0.07, metres_travelled=1, seconds=0.1)
        )
    save_scale(path, first.store(), bundle="abc", camera=CAMERA)
    second.restore(load_scale(path, bundle="abc", camera=CAMERA))
    assert second.metres_per_unit == first.metres_per_unit == pytest.approx(1 / 0.07)
    assert second.status.state == "held"


def test_the_same_camera_at_another_size_or_calibrated_again(tmp_path: Path) -> None:
    save(tmp_path / "scale.yaml")
    for camera in (CAMERA.scaled(621, 187), replace(CAMERA, fx=725.0), None):
        load_scale(tmp_path / "scale.yaml", bundle="abc", camera=camera)


def test_of_another_bundle_or_camera(tmp_path: Path) -> None:
    path = tmp_path / "scale.yaml"
    save(path)
    with pytest.raises(ScaleFileError, match="another bundle"):
        load_scale(path, bundle="abd", camera=CAMERA)
    for wrong in (replace(CAMERA, fx=800.0), replace(CAMERA, fy=800.0)):
        with pytest.raises(ScaleFileError, match="another camera"):
            load_scale(path, bundle="abc", camera=wrong)


def test_no_file_is_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_scale(tmp_path / "scale.yaml", bundle="abc", camera=CAMERA)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        "format: 2\nmetres_per_unit: 3.0\n",
        "format: 1\n",
        "format: 1\nmetres_per_unit: .nan\n",
        "format: 1\nmetres_per_unit: -1.0\n",
        "format: 1\nmetres_per_unit: yes\n",
        "format: 1\nmetres_per_unit: 1.0\nspread: wide\n",
        "format: 1\nmetres_per_unit: 1.0\nbundle: abc\ncamera: 7\n",
        "format: 1\nmetres_per_unit: 1.0\nbundle: abc\ncamera: {fx_per_width: a}\n",
        "!!python/object/apply:os.system ['true']",
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scale.yaml"
    path.write_text(text)
    with pytest.raises(ScaleFileError, match=r"scale\.yaml"):
        load_scale(path, bundle="abc", camera=CAMERA)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_loaded(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "scale.yaml"
    path.write_bytes(content)
    with pytest.raises(ScaleFileError):
        load_scale(path, bundle="abc", camera=CAMERA)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScaleFileError, match="cannot be read"):
        load_scale(tmp_path, bundle="abc", camera=CAMERA)
    with pytest.raises(OSError, match="not a regular file"):
        save(tmp_path)
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*"))  # nothing is left behind


def test_nonsense_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "scale.yaml"
    save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="metres_per_unit"):
        save(path, metres_per_unit=float("nan"))
    assert path.read_bytes() == before


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "scale.yaml"
    save(path)
    done = threading.Event()

    def write() -> None:
        for i in range(20):
            save(path, samples=i)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set():
        load_scale(path, bundle="abc", camera=CAMERA)
        reads += 1
    writer.join()
    assert reads > 0 and yaml.safe_load(path.read_text())["samples"] == 19
