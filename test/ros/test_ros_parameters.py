"""Declarations, the parameter file that is written from them, and how changes are judged."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from rclpy.parameter import Parameter

from depth_prior_ros.motion.gate import GateSettings
from depth_prior_ros.ros import parameter_file
from depth_prior_ros.ros.output_settings import OutputSettings
from depth_prior_ros.ros.parameters import PARAMETERS, Settings, changed, unknown

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = {d.name: d.default for d in PARAMETERS}
NUMBERS = [d for d in PARAMETERS if isinstance(d.default, float)]


def flat(tree: dict, prefix: str = "") -> dict:
    items = {}
    for key, value in tree.items():
        items |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return items


def refusal(state: str = "active", /, **changes: object) -> str:
    """Why the change is refused; fails when it is not."""
    parameters = [Parameter(name.replace("__", "."), value=v) for name, v in changes.items()]
    settings, answer = changed(DEFAULTS, parameters, state)
    assert settings is None
    assert not answer.successful
    return answer.reason


def test_the_parameter_file_is_written_from_the_declarations():
    written = (ROOT / "config" / "depth.yaml").read_text(encoding="utf-8")
    assert written == parameter_file.render(), (
        "run: python -m depth_prior_ros.ros.parameter_file > config/depth.yaml"
    )


def test_the_parameter_file_holds_every_default_with_its_type():
    tree = yaml.safe_load((ROOT / "config" / "depth.yaml").read_text(encoding="utf-8"))
    values = flat(tree["/**"]["ros__parameters"])
    assert values == DEFAULTS
    assert {k: type(v) for k, v in values.items()} == {k: type(v) for k, v in DEFAULTS.items()}


def test_names_that_are_no_parameters_are_told():
    fine = [*DEFAULTS, "use_sim_time", "qos_overrides./depth/image_rect.publisher.depth"]
    assert unknown(fine) == []
    (misspelt,) = unknown([*fine, "scale.camera_heigth"])
    assert "is scale.camera_height meant?" in misspelt
    (strange,) = unknown(["xyzzy"])
    assert "xyzzy" in strange
    assert "meant" not in strange


def test_defaults_are_valid():
    settings = Settings.from_values(DEFAULTS)
    assert settings.gate.start_speed == DEFAULTS["motion.start_speed"]


def test_every_parameter_is_read():
    fields = {field.name for field in dataclasses.fields(Settings)}
    grouped = {
        "gate": [f"motion_{field.name}" for field in dataclasses.fields(GateSettings)],
        "outputs": [field.name for field in dataclasses.fields(OutputSettings)],
    }
    read = fields - set(grouped) | {name for names in grouped.values() for name in names}
    assert {d.attribute for d in PARAMETERS} == read - {"motion_max_gap"}


@pytest.mark.parametrize("declaration", PARAMETERS, ids=lambda d: d.name)
def test_every_parameter_is_described_and_bounded(declaration):
    descriptor = declaration.descriptor()
    assert len(descriptor.description) > 40
    assert descriptor.read_only == (declaration.applies == "start")
    if isinstance(declaration.default, float):
        assert len(descriptor.floating_point_range) == 1
    elif isinstance(declaration.default, int) and not isinstance(declaration.default, bool):
        assert len(descriptor.integer_range) == 1


@given(st.sampled_from(NUMBERS), st.floats())
def test_numbers_are_taken_within_their_range_only(declaration, value):
    inside = math.isfinite(value) and declaration.low <= value <= declaration.high
    assert (declaration.problem(value) == "") == inside


@given(st.floats(0, 100), st.floats(0, 100))
def test_thresholds_are_judged_together(start, stop):
    changes = [
        Parameter("motion.start_speed", value=start),
        Parameter("motion.stop_speed", value=stop),
    ]
    settings, answer = changed(DEFAULTS, changes, "active")
    assert answer.successful == (stop <= start)
    if settings:
        assert (settings.gate.start_speed, settings.gate.stop_speed) == (start, stop)


@given(st.floats(0.001, 3600), st.floats(0, 60), st.floats(0, 60))
def test_every_gap_and_hold_time_in_range_fit_together(max_gap, start, stop):
    values = {"max_gap": max_gap, "motion.hold_start": start, "motion.hold_stop": stop}
    Settings.from_values({**DEFAULTS, **values})


def test_refusals_say_what_would_be_right():
    assert "'single_frame'" in refusal(force_model="both")
    assert "between 0 and 60" in refusal(sync_wait=61.0)
    assert "stop_speed" in refusal(motion__stop_speed=7.0)
    assert "cuda:N" in refusal("unconfigured", device="gpu")
    assert "-1" in refusal(time_budget=-0.5)
    assert "motion.source" in refusal("inactive", scale__mode="odometry", motion__source="image")
    assert "640x192" in refusal(output_size="huge")
    assert "colour.min_depth_m" in refusal(colour__max_depth_m=1.0)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices(device):
    Settings.from_values({**DEFAULTS, "device": device})


@pytest.mark.parametrize("device", ["", "cuda:", "cuda:x", "cpu:0", "cuda:-1"])
def test_devices_that_are_none(device):
    with pytest.raises(ValueError, match="device must be"):
        Settings.from_values({**DEFAULTS, "device": device})


def test_what_is_read_at_a_transition_is_refused_when_it_is_too_late():
    assert "deactivate first" in refusal("active", image_reliability="reliable")
    assert "deactivate first" in refusal("active", image_transport="compressed")
    for state, name, value in (
        ("unconfigured", "bundle", "other"),
        ("active", "bundle", "other"),
        ("inactive", "image_reliability", "reliable"),
        ("active", "force_model", "single_frame"),
        ("active", "use_sim_time", True),
    ):
        settings, answer = changed(DEFAULTS, [Parameter(name, value=value)], state)
        assert answer.successful, answer.reason
        assert settings is not None
