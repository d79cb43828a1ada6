"""~/adapt: the thread that fits beside the one that infers, and the service over DDS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

import torch
from helpers import TOLD, import_student, make_told_bundle, texture
from ros_helpers import (
    BUNDLE_SIZE,
    PATIENCE,
    Robot,
    camera_info_of,
    node_and_peer,
    view,
    wait_until,
)
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from depth_prior_ros.adaptation.factor import unit_depth
from depth_prior_ros.adaptation.keyframes import CELL, Keyframe, MatchedKeyframe
from depth_prior_ros.bundle import Bundle, CameraCodeSpec, FactorSpec
from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.pipeline.framing import frame_image
from depth_prior_ros.pipeline.results import MatchedFrame
from depth_prior_ros.ros.adapting import Adapter
from depth_prior_ros.ros.loading import apply_settings, scale_of
from depth_prior_ros.ros.parameters import Settings
from depth_prior_ros.ros.services import RefusedError
from depth_prior_ros.scale import BASELINE

pytestmark = pytest.mark.timeout(900)  # waits are long on busy machines, and end early

OTHER = 1.5
DRIVEN = 50  # frames


class Log:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, text: str) -> None:
        self.said.append(text)

    warning = info


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_told_bundle(tmp_path_factory.mktemp("bundles") / "told", BUNDLE_SIZE)


@pytest.fixture
def pipeline(bundle: Bundle) -> DepthPipeline:
    return DepthPipeline(bundle, "torch")


def drive(pipeline: DepthPipeline, told: tuple[float, ...], metres: float | None = 2.0) -> None:
    """Show the pipeline's witness frames whose depth the student makes, told a camera."""
    assert pipeline.witness is not None
    student, trained = pipeline.bundle.student(), pipeline.bundle.manifest.camera
    unit = pipeline.bundle.manifest.depth.metres_per_unit
    for n in range(12):
        picture = texture(trained.width, trained.height, seed=n, margin=0)
        framed = frame_image(picture, trained, trained)
        with torch.no_grad():
            code = torch.tensor([told])
            disparity = student(torch.from_numpy(framed.tensor()), code=code).disparity[0]
        inverse = disparity_to_depth(disparity)[0][0, 0].numpy()
        parallax = np.full((trained.height // 4, trained.width // 4), 9.0, np.float32)
        step = None if metres is None else metres
        pipeline.witness(
            MatchedFrame(n * 10**9, framed, inverse, inverse, parallax, 1.0, 5.0, step, 2.0 / unit)
        )


def watched(pipeline: DepthPipeline, **settings: Any) -> tuple[Adapter, Log, Settings]:
    log = Log()
    adapter = Adapter(lambda: log)
    values = Settings(adapt_niceness=0, **settings)  # the suite leaves nothing over
    adapter.watch(pipeline, values)
    adapter.meet(pipeline, pipeline.bundle.manifest.camera, values)
    return adapter, log, values


def finished(adapter: Adapter) -> str:
    wait_until(lambda: adapter.status()["adapt.state"] != "running", "the fit to end")
    return adapter.status()["adapt.outcome"]


def test_what_is_better_is_told_between_frames_and_the_next_run_knows_it(
    pipeline: DepthPipeline, bundle: Bundle, tmp_path: Path
) -> None:
    file, camera = tmp_path / "adapted.yaml", bundle.manifest.camera
    adapter, log, settings = watched(pipeline, adapt_file=str(file))
    drive(pipeline, TOLD)
    assert "12 keyframes" in adapter.begin(pipeline, camera, settings)
    with pytest.raises(RefusedError, match="under way"):
        adapter.begin(pipeline, camera, settings)
    assert finished(adapter).startswith("better, and kept"), adapter.status()
    assert pipeline.told is None, "not before a frame"
    adapter.take_up(pipeline, settings)
    told = pipeline.told
    assert isinstance(told, CameraCodeSpec) and "metres by odometry" in told.source
    assert np.linalg.norm(np.subtract(told.numbers, TOLD)) < np.linalg.norm(TOLD)
    assert adapter.status()["adapt.told"] == told.source
    # The next run, and one with another camera.
    again, log, _ = watched(DepthPipeline(bundle, "torch"), adapt_file=str(file))
    assert again.status()["adapt.told"] == told.source
    assert str(file) in log.said[0]
    strange = replace(camera, fx=OTHER * camera.fx, fy=OTHER * camera.fy)
    further = DepthPipeline(bundle, "torch")
    third, log = Adapter(lambda: log), log
    third.watch(further, settings)
    third.meet(further, strange, settings)
    assert further.told is None and "another field of view" in log.said[-1]


def test_what_was_told_goes_with_the_bundle_and_not_to_another_camera(
    pipeline: DepthPipeline, bundle: Bundle
) -> None:
    adapter, _, settings = watched(pipeline)
    camera = bundle.manifest.camera
    drive(pipeline, TOLD)
    adapter.begin(pipeline, camera, settings)
    assert "adapt.file is empty" in finished(adapter)
    adapter.take_up(pipeline, settings)
    reloaded = DepthPipeline(bundle, "torch")
    adapter.watch(reloaded, settings)
    adapter.meet(reloaded, camera, settings)
    assert reloaded.told == pipeline.told is not None
    assert adapter.status()["adapt.keyframes"] == "12"
    adapter.meet(reloaded, replace(camera, fx=OTHER * camera.fx, fy=OTHER * camera.fy), settings)
    assert reloaded.told is None and adapter.status()["adapt.keyframes"] == "0"


def test_what_is_not_better_changes_nothing(pipeline: DepthPipeline, tmp_path: Path) -> None:
    file = tmp_path / "adapted.yaml"
    adapter, _, settings = watched(pipeline, adapt_file=str(file))
    drive(pipeline, (0.0,) * 5)
    adapter.begin(pipeline, pipeline.bundle.manifest.camera, settings)
    assert finished(adapter).startswith("not better")
    adapter.take_up(pipeline, settings)
    assert pipeline.told is None and not file.exists()


def test_deactivating_cancels_and_the_outcome_is_remembered(pipeline: DepthPipeline) -> None:
    adapter, _, settings = watched(pipeline)
    drive(pipeline, TOLD)
    adapter.begin(pipeline, pipeline.bundle.manifest.camera, settings)
    adapter.cancel("the node was deactivated")
    assert adapter.status()["adapt.outcome"] == "cancelled: the node was deactivated"
    assert adapter.status()["adapt.keyframes"] == "12"
    adapter.take_up(pipeline, settings)
    assert pipeline.told is None
    adapter.forget("the node was cleaned up")
    assert adapter.status()["adapt.outcome"] == "cancelled: the node was deactivated"
    assert adapter.status()["adapt.state"] == "off"


@pytest.mark.parametrize(
    ("settings", "metres", "words"),
    [
        ({"adapt_seconds": 0.0}, 2.0, "adapt.seconds is 0"),
        ({}, None, "metres need odometry or a speed, or the camera's height"),
        ({"scale_camera_height": 1.5}, None, "no flat road"),
    ],
)
def test_what_is_missing_is_said(
    pipeline: DepthPipeline, settings: dict[str, Any], metres: float | None, words: str
) -> None:
    adapter, _, values = watched(pipeline, **settings)
    if pipeline.witness is not None:
        drive(pipeline, TOLD, metres)
    with pytest.raises(RefusedError, match=words):
        adapter.begin(pipeline, pipeline.bundle.manifest.camera, values)


@pytest.fixture(scope="module")
def imported(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The student as a network of unknown unit."""
    pytest.importorskip("onnx")
    return import_student(bundle, tmp_path_factory.mktemp("imported"), "scale_invariant")


def keep(adapter: Adapter, pipeline: DepthPipeline, unit: float) -> None:
    """Keyframes in the adapter's memory whose depth is the network's own, `unit` metres a unit."""
    camera = pipeline.bundle.manifest.camera
    assert adapter._memory is not None
    for n in range(12):
        picture = texture(camera.width, camera.height, seed=n, margin=0)
        seen = Keyframe(n * 10**9, picture, camera, np.zeros((0, 0), np.float32))
        depth = (
            unit * unit_depth(pipeline.networks, seen, 1.0)[CELL // 2 :: CELL, CELL // 2 :: CELL]
        )
        adapter._memory._kept.append(
            MatchedKeyframe(n * 10**9, picture, camera, depth, BASELINE, BASELINE)
        )


def test_an_imported_network_gets_a_factor_where_measuring_would_begin(
    imported: Bundle, tmp_path: Path
) -> None:
    pipeline, unit = DepthPipeline(imported, "onnxruntime"), 2.5
    camera, file = imported.manifest.camera, tmp_path / "adapted.yaml"
    asked = {"adapt_file": str(file), "scale_mode": "odometry"}
    adapter, _, settings = watched(pipeline, **asked)
    pipeline.scale = scale_of(settings, imported)
    keep(adapter, pipeline, unit)
    assert "followed points" in adapter.begin(pipeline, camera, settings)
    outcome = finished(adapter)
    assert outcome.startswith("better, and kept: factor: 2."), outcome
    adapter.take_up(pipeline, settings)
    told, status = pipeline.told, pipeline.scale.status
    assert isinstance(told, FactorSpec) and told.metres_per_unit == pytest.approx(unit, rel=0.03)
    assert (status.mode, status.state) == ("odometry", "searching")
    assert status.metres_per_unit == told.metres_per_unit
    # Where another parameter of the scale changes it is still the beginning.
    changed = replace(settings, scale_window=5.0)
    apply_settings(pipeline, changed, settings)
    assert pipeline.scale.metres_per_unit == pytest.approx(told.metres_per_unit)
    # The next run begins with it, and so does one that measures nothing.
    again = DepthPipeline(imported, "onnxruntime")
    fixed, _, plain = watched(again, adapt_file=str(file))
    assert again.scale.status.state == "fixed" and again.told == told
    # Another camera: nobody knows a factor in mode auto, so that it stays, in words.
    strange = replace(camera, fx=OTHER * camera.fx, fy=OTHER * camera.fy)
    fixed.meet(again, strange, plain)
    assert again.told is None and again.scale.metres_per_unit == told.metres_per_unit


def test_a_measured_factor_goes_before_a_fitted_one(imported: Bundle) -> None:
    pipeline = DepthPipeline(imported, "onnxruntime")
    adapter, _, settings = watched(pipeline, scale_mode="odometry")
    pipeline.scale = scale_of(settings, imported)
    measured = {"metres_per_unit": 4.0, "state": "measured", "spread": 0.05}
    pipeline.scale.restore(measured)
    keep(adapter, pipeline, 2.5)
    adapter.begin(pipeline, imported.manifest.camera, settings)
    assert finished(adapter).startswith("better")
    adapter.take_up(pipeline, settings)
    status = pipeline.scale.status
    assert (status.state, status.metres_per_unit) == ("held", 4.0)
    pipeline.scale.reset()
    assert pipeline.scale.metres_per_unit == pytest.approx(2.5, rel=0.03)


def test_what_cannot_be_fitted_of_an_imported_network_is_said(
    bundle: Bundle, imported: Bundle, tmp_path: Path
) -> None:
    camera = imported.manifest.camera
    adapter, _, settings = watched(pipeline := DepthPipeline(imported, "onnxruntime"))
    with pytest.raises(RefusedError, match=r"no keyframe.*followed points"):
        adapter.begin(pipeline, camera, settings)
    given = replace(settings, scale_metres_per_unit=3.0)
    with pytest.raises(RefusedError, match=r"scale\.metres_per_unit gives the factor.*to 0"):
        adapter.begin(pipeline, camera, given)
    affine = DepthPipeline(import_student(bundle, tmp_path, "affine_invariant"), "onnxruntime")
    adapter, _, settings = watched(affine)
    assert affine.witness is None
    with pytest.raises(RefusedError, match=r"in every picture.*camera_height or odometry"):
        adapter.begin(affine, camera, settings)


def test_a_refused_call_leaves_depth_as_it_is_to_the_bit(bundle: Bundle) -> None:
    running = node_and_peer(bundle=bundle.path, backend="torch", force_model="single_frame")
    with running as (process, peer):
        peer.wait_for_node(process)
        robot = Robot(process=process, peer=peer, stamp=10**12)
        before = robot.answered(view())
        answer = peer.call(Trigger, "depth_node/adapt", Trigger.Request(), PATIENCE)
        assert not answer.success and "no keyframe" in answer.message
        np.testing.assert_array_equal(robot.answered(view()), before)
        wait_until(lambda: peer.status().get("adapt.state") == "idle", "the diagnostics")
        assert process.interrupt() == 0


Seen = tuple[np.ndarray, np.ndarray, float]


@pytest.fixture(scope="module")
def street() -> tuple[Camera, list[Seen]]:
    """A drive, rendered, 1.1 m above the road, 4 degrees downwards: picture, depth and speed."""
    from depth_prior_ros.recordings.synthetic.drive import DriveSpec, SyntheticDrive

    spec = DriveSpec(frames=DRIVEN + 15, stop=False, camera_height=1.1, camera_pitch_deg=4.0)
    drive = SyntheticDrive(21, (416, 128), spec, supersample=1, street="town")
    try:
        return drive.camera, [(f.image(), f.depth(), f.speed) for f in drive.frames]
    except Exception as error:
        pytest.skip(f"needs OpenGL: {error}")
    finally:
        drive.close()


@pytest.mark.slow
def test_a_drive_with_another_mount_gives_metres(street: tuple[Camera, list[Seen]]) -> None:
    """`lite` with a known speed, over DDS."""
    camera, frames = street
    protocol = PROTOCOLS["synthetic"]

    def info() -> Any:
        return camera_info_of(camera, Header(frame_id="camera"))

    running = node_and_peer(bundle="lite", diagnostics_period=0.1, adapt_niceness=0)
    with running as (process, peer):
        peer.wait_for_node(process)
        robot = Robot(process=process, peer=peer, stamp=10**12)

        def errors() -> float:
            assert robot.set(force_model="single_frame")[0].successful
            found = []
            for image, truth, speed in frames[DRIVEN::5]:
                depth = robot.answered(image, info=info(), speed=speed)
                found.append(protocol.pixels(depth, truth).errors("none").abs_rel)
            assert robot.set(force_model="")[0].successful
            return float(np.mean(found))

        before = errors()
        robot.after_a_gap()
        for image, _, speed in frames[:DRIVEN]:
            robot.answered(image, info=info(), speed=speed)
        answer = peer.call(Trigger, "depth_node/adapt", Trigger.Request(), PATIENCE)
        assert answer.success, answer.message
        outcome = wait_until(
            lambda: peer.status().get("adapt.outcome"),
            "the outcome",
            5 * PATIENCE,
        )
        assert outcome.startswith("better"), outcome
        robot.after_a_gap()
        after = errors()
        assert after < 0.6 * before, (before, after)
        assert process.interrupt() == 0
