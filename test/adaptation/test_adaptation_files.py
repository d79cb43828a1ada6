"""What a node was adapted to, kept for the next run of the same bundle and camera."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from depth_prior_ros.adaptation.files import load_adaptation, save_adaptation
from depth_prior_ros.adaptation.keyframes import AdaptationError
from depth_prior_ros.bundle import CameraCodeSpec, CameraSpec, FactorSpec, Told
from depth_prior_ros.geometry.camera import Camera

CAMERA = Camera(720.0, 720.0, 620.0, 187.0, 1242, 375)
TOLD = CameraCodeSpec(
    numbers=(1.0, -0.5, 0.25, 0.0, 2.0), camera=CameraSpec.of(CAMERA), source="a drive"
)


FACTOR = FactorSpec(metres_per_unit=3.25, camera=CameraSpec.of(CAMERA), source="a drive")


def load(path: Path, **changes: Any) -> Told:
    asked = {"bundle": "a", "camera": CAMERA, "metres_per_unit": 10.0}
    return load_adaptation(path, **{**asked, **changes})


@pytest.fixture(params=[TOLD, FACTOR], ids=["numbers", "factor"])
def told(request: pytest.FixtureRequest) -> Told:
    fitted: Told = request.param
    return fitted


@pytest.fixture
def file(tmp_path: Path, told: Told) -> Path:
    path = tmp_path / "folder" / "adapted.yaml"
    save_adaptation(path, told, bundle="a", metres_per_unit=10.0)
    return path


def test_the_next_run_is_told_the_same(file: Path, told: Told) -> None:
    assert load(file) == told
    half = Camera(360.0, 360.0, 310.0, 93.5, 621, 187)
    assert load(file, camera=half) == told, "the same camera at another size"
    with pytest.raises(FileNotFoundError):
        load(file.with_name("none"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bundle": "b"}, "another bundle"),
        ({"camera": replace(CAMERA, fx=900.0, fy=900.0)}, "another field of view"),
        ({"camera": replace(CAMERA, cy=240.0)}, "cy over height"),
        ({"metres_per_unit": 11.0}, "10 m per unit"),
    ],
)
def test_what_belongs_to_something_else_is_refused(
    file: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(AdaptationError, match=words) as caught:
        load(file, **changes)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("1.0", ".nan", 1).replace("3.25", ".nan"),
        lambda text: text.replace("format: 1", "format: 9"),
        lambda text: text.replace("numbers", "names").replace("metres_per_unit: 3", "names: 3"),
        lambda text: "[" * 1000,
        lambda text: "",
    ],
)
def test_a_damaged_file_is_refused_in_words(file: Path, change: Any) -> None:
    file.write_text(change(file.read_text()))
    with pytest.raises(AdaptationError, match=r"adapted\.yaml"):
        load(file)
