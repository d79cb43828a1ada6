"""Declarations, the files that are written from them, and how changes are checked."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

import rclpy
from rclpy.context import Context
from rclpy.parameter import Parameter

from depth_prior_ros.ros.lifecycle_node import DepthNode
from depth_prior_ros.ros.parameters import PARAMETERS, Declaration, Settings, documents
from depth_prior_ros.ros.parameters.declaration import declarations, parameter
from depth_prior_ros.ros.parameters.node import changed, descriptor, unknown

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


def test_file_and_page_are_written_from_the_declarations(tmp_path):
    for name in ("config/depth.yaml", "docs/parameters.md"):
        (tmp_path / name).parent.mkdir()
    documents.write(tmp_path)
    for name in ("config/depth.yaml", "docs/parameters.md"):
        written = (tmp_path / name).read_text(encoding="utf-8")
        assert written == (ROOT / name).read_text(encoding="utf-8"), "run: make parameters"
    assert len(list(tmp_path.rglob("*"))) == 4, "no temporary file is left"


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


def test_defaults_are_valid_and_all_that_is_not_said():
    settings = Settings.from_values(DEFAULTS)
    assert settings == Settings() == Settings.from_values({"max_gap": DEFAULTS["max_gap"]})
    assert settings.gate.start_speed == DEFAULTS["motion.start_speed"]
    with pytest.raises(ValueError, match="is max_gap meant"):
        Settings.from_values({"max_gapp": 1.0})


@dataclasses.dataclass
class Example:
    some_gain: float = parameter(0.5, "Gain of something.", limits=(0, 2), unit="1/s")
    kind: str = parameter("a", "Kind of something.", "start", choices=("a", "b"), section="Some")


def test_a_declaration_is_made_of_a_field():
    assert declarations(Example, ("some",)) == (
        Declaration(
            "some_gain", "some.gain", 0.5, "Gain of something.", "frame", (0, 2), "1/s", (), "", ""
        ),
        Declaration(
            "kind", "kind", "a", "Kind of something.", "start", None, "", ("a", "b"), "", "Some"
        ),
    )
    gain, _ = declarations(Example, ())
    assert gain.name == "some_gain"
    assert gain.description.startswith("Gain of something. Unit: 1/s. Can be changed")


@pytest.mark.parametrize("declared", PARAMETERS, ids=lambda d: d.name)
def test_every_parameter_is_described_and_bounded(declared):
    shown = descriptor(declared)
    assert len(shown.description) > 40
    assert shown.read_only == (declared.applies == "start")
    assert len(shown.floating_point_range) == (declared.kind is float)
    assert len(shown.integer_range) == (declared.kind is int)
    assert type(getattr(Settings(), declared.attribute)) is declared.kind


@given(st.sampled_from(NUMBERS), st.floats())
def test_numbers_are_taken_within_their_range_only(declared, value):
    low, high = declared.limits
    if math.isfinite(value) and low <= value <= high:
        assert declared.check(value) == declared.parse(repr(value)) == value
    else:
        with pytest.raises(ValueError, match=f"^{declared.name} must"):
            declared.check(value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_gap", "2", 2.0),
        ("threads", "3", 3),
        ("autostart", "False", False),
        ("points.organized", "1", True),
        ("scale.file", "1.0", "1.0"),
        ("force_model", "multi_frame", "multi_frame"),
    ],
)
def test_what_is_typed_becomes_a_value_of_the_declared_type(name, text, value):
    (declared,) = (d for d in PARAMETERS if d.name == name)
    assert (declared.parse(text), type(declared.parse(text))) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text"),
    [("max_gap", "long"), ("threads", "2.5"), ("autostart", "maybe"), ("fit", "cut"), ("fit", "")],
)
def test_what_is_typed_wrongly_is_refused_by_name(name, text):
    (declared,) = (d for d in PARAMETERS if d.name == name)
    with pytest.raises(ValueError, match=f"^{name} must be .*{text!r}"):
        declared.parse(text)


@contextlib.contextmanager
def depth_node(*arguments: str) -> Iterator[DepthNode]:
    context = Context()
    rclpy.init(context=context)
    node = DepthNode("parameters", context=context, cli_args=["--ros-args", *arguments])
    try:
        yield node
    finally:
        node.destroy_node()
        context.try_shutdown()


def test_an_integer_is_taken_where_a_double_is_declared(tmp_path):
    """In a parameter file, on the command line, and while the node runs."""
    file = tmp_path / "mine.yaml"
    file.write_text("/**: {ros__parameters: {max_gap: 1, scale: {window: 20}}}", encoding="utf-8")
    with depth_node("--params-file", str(file), "-p", "time_budget:=0") as node:
        assert node.settings == Settings(max_gap=1.0, scale_window=20.0, time_budget=0.0)
        answer = node.set_parameters_atomically([Parameter("mount.x", value=2)])
        assert answer.successful, answer.reason
        assert node.settings.mount_x == node.get_parameter("mount.x").value == 2.0
        assert node.get_parameter("max_gap").type_ == Parameter.Type.DOUBLE
        refused = node.set_parameters_atomically([Parameter("max_gap", value=4000)])
        assert "out of range" in refused.reason
        refused = node.set_parameters_atomically([Parameter("threads", value=2.0)])
        assert "Wrong parameter type" in refused.reason


def test_an_integer_that_is_out_of_range_ends_the_start():
    refused = pytest.raises((ValueError, rclpy.exceptions.ParameterException), match="max_gap")
    with refused, depth_node("-p", "max_gap:=4000"):
        pass


@given(st.floats(0, 100), st.floats(0, 100))
def test_thresholds_are_checked_together(start, stop):
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
