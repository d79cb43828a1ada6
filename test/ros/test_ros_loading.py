"""From parameters to the pipeline: what is set is what runs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from helpers import METRES_PER_UNIT, TINY_SIZE, make_tiny_bundle

from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.ros.loading import apply_settings, carry_scale, load_pipeline, scale_of
from depth_prior_ros.ros.parameters import PARAMETERS, Settings
from depth_prior_ros.scale import CameraHeightScale, OdometryScale

DEFAULTS = {d.name: d.default for d in PARAMETERS}
MEASURED = {"mode": "odometry", "state": "measured", "spread": 0.1, "samples": 50}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    make_tiny_bundle(path, TINY_SIZE)
    return path


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> DepthPipeline:
    return load_pipeline(settings(bundle))


def settings(bundle: Path, **changes: Any) -> Settings:
    values = {name.replace("__", "."): value for name, value in changes.items()}
    return Settings.from_values(
        {**DEFAULTS, "bundle": str(bundle), "backend": "torch", "device": "cpu", **values}
    )


def test_parameters_of_the_pipeline_name_attributes_that_it_has(pipeline):
    names = [declared.pipeline for declared in PARAMETERS if declared.pipeline]
    assert "max_gap" in names
    assert all(hasattr(type(pipeline), name) or name in DepthPipeline.__doc__ for name in names)


def test_defaults_are_those_of_the_bundle_and_the_pipeline(pipeline):
    assert pipeline.max_metres == pipeline.bundle.manifest.depth.max_metres
    assert pipeline.scale.metres_per_unit == METRES_PER_UNIT
    assert pipeline.force_model is None
    assert pipeline.time_budget_ms == "auto"
    assert pipeline.output_size == "model"
    assert pipeline.previous_stamp_ns is None, "what warmed it up is forgotten"


@pytest.mark.parametrize(
    ("name", "value", "attribute", "expected"),
    [
        ("force_model", "multi_frame", "force_model", "multi_frame"),
        ("max_gap", 2.5, "max_gap", 2.5),
        ("max_depth_m", 33.0, "max_metres", 33.0),
        ("time_budget", 0.25, "time_budget_ms", 250.0),
        ("time_budget", 0.0, "time_budget_ms", None),
        ("failure_pause", 7, "guard.failure_pause", 7),
        ("output_size", "320x96", "output_size", (320, 96)),
        ("output_size", "input", "output_size", "input"),
        ("fit", "pad", "fit", "pad"),
        ("motion.pose_source", "odometry", "pose_source", "odometry"),
        ("motion.min_pose_ratio", 0.5, "min_pose_ratio", 0.5),
        ("motion.start_speed", 3.0, "gate_settings.start_speed", 3.0),
        ("scale.metres_per_unit", 5.0, "scale.metres_per_unit", 5.0),
    ],
)
def test_a_change_reaches_the_pipeline_and_can_be_taken_back(
    pipeline, bundle, name, value, attribute, expected
):
    def actual() -> Any:
        found: Any = pipeline
        for part in attribute.split("."):
            found = getattr(found, part)
        return found

    before, as_it_was = settings(bundle), actual()
    changed = settings(bundle, **{name.replace(".", "__"): value})
    apply_settings(pipeline, changed, before)
    assert actual() == expected
    apply_settings(pipeline, before, changed)
    assert actual() == as_it_was


def test_every_scale_parameter_reaches_the_scale(pipeline, bundle):
    chosen = settings(
        bundle,
        scale__mode="camera_height",
        scale__camera_height=1.6,
        scale__camera_pitch_deg=3.0,
        scale__ignore_bottom=0.1,
        scale__window=20.0,
        scale__rate=0.1,
        scale__limit=3.0,
    )
    scale = scale_of(chosen, pipeline.bundle)
    assert isinstance(scale, CameraHeightScale)
    numbers = {**vars(scale), **vars(scale._filter)}
    found = [v for v in numbers.values() if dataclasses.is_dataclass(v)]
    values = {k: v for part in found for k, v in dataclasses.asdict(part).items()}
    assert values["window"] == 20.0
    assert (values["rate"], values["first_rate"]) == pytest.approx((0.1, 0.6))
    assert values["limit"] == 3.0
    assert values["pitch"] == pytest.approx(math.radians(3.0))
    assert values["ignore_bottom"] == 0.1
    assert 1.6 in numbers.values()


def test_what_was_measured_outlives_a_change_of_the_filter(pipeline, bundle):
    before = settings(bundle, scale__mode="odometry")
    pipeline.scale = scale_of(before, pipeline.bundle)
    pipeline.scale.restore({**MEASURED, "metres_per_unit": 30.0})
    calmer = settings(bundle, scale__mode="odometry", scale__window=60.0)
    apply_settings(pipeline, calmer, before)
    assert isinstance(pipeline.scale, OdometryScale)
    assert pipeline.scale.metres_per_unit == pytest.approx(30.0)
    # Not so for limits that leave it out, nor for another way of measuring.
    narrow = settings(bundle, scale__mode="odometry", scale__limit=1.1)
    apply_settings(pipeline, narrow, calmer)
    assert pipeline.scale.metres_per_unit == METRES_PER_UNIT
    apply_settings(pipeline, settings(bundle), narrow)
    assert pipeline.scale.status.mode == "auto"
    # A factor that is given holds; taken back, auto begins with the bundle's.
    given = settings(bundle, scale__metres_per_unit=7.0)
    apply_settings(pipeline, given, settings(bundle))
    status = pipeline.scale.status
    assert (status.state, status.metres_per_unit) == ("fixed", 7.0)
    apply_settings(pipeline, settings(bundle), given)
    assert pipeline.scale.metres_per_unit == METRES_PER_UNIT


def test_a_change_of_something_else_leaves_the_scale_alone(pipeline, bundle):
    scale = pipeline.scale
    apply_settings(pipeline, settings(bundle, max_gap=1.0), settings(bundle))
    assert pipeline.scale is scale


@pytest.mark.slow
def test_the_factor_is_carried_to_the_same_bundle_only(bundle, tmp_path):
    make_tiny_bundle(tmp_path / "other", TINY_SIZE, seed=1)
    chosen = settings(bundle, scale__mode="odometry")
    old, new = load_pipeline(chosen), load_pipeline(chosen)
    other = load_pipeline(dataclasses.replace(chosen, bundle=str(tmp_path / "other")))
    old.scale.restore({**MEASURED, "metres_per_unit": 30.0})
    carry_scale(old, new)
    carry_scale(old, other)
    assert new.scale.metres_per_unit == pytest.approx(30.0)
    assert other.scale.metres_per_unit == METRES_PER_UNIT
