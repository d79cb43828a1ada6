from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import METRES_PER_UNIT, TINY_SIZE, shifted, texture, tiny_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline_scenes import MOVING, STANDING, TENTH, drive, models, restart, view

from depth_prior_ros.bundle import Bundle, build_network, save_bundle
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.models.mism import MultiFrameNet
from depth_prior_ros.motion.gate import Motion
from depth_prior_ros.pipeline import DepthPipeline, InvalidFrameError, ModelFailedError
from depth_prior_ros.pipeline.framing import frame_image
from depth_prior_ros.pipeline.guard import MultiFrameGuard
from depth_prior_ros.pipeline.runtime import MultiFrameTensors
from depth_prior_ros.scale import FixedScale

REASONS = {
    *("moving", "first_frame", "stationary", "gap", "time_jump", "resolution", "pose", "forced"),
    *("budget", "memory", "model_failed"),
}


# -- which model, and why --------------------------------------------------------------------------


def test_a_drive_with_a_stop(pipeline: DepthPipeline) -> None:
    results = drive(pipeline, [MOVING] * 3 + [STANDING] * 6 + [MOVING] * 4)
    found = models(results)
    assert found[:3] == ["single_frame first_frame", "multi_frame moving", "multi_frame moving"]
    assert found[6:9] == ["single_frame stationary"] * 3
    assert found[9:] == ["single_frame stationary"] * 2 + ["multi_frame moving"] * 2
    assert [r.stamp_ns for r in results] == [i * TENTH for i in range(13)]
    assert pipeline.motion_state == "moving"


def test_without_odometry_the_pictures_tell(pipeline: DepthPipeline) -> None:
    big = texture(640, 192)
    steps = [0, 1, 2, 3, 4] + [4] * 8 + [5, 6, 7, 8]
    found = [
        pipeline.process(shifted(big, 4.0 * step), i * TENTH, motion).active_model
        for i, step in enumerate(steps)
        for motion in [None if i % 2 else Motion(math.nan, "twist")]
    ]
    assert found[0] == "single_frame first_frame"
    assert found[1:5] == ["multi_frame moving"] * 4
    assert found[9:13] == ["single_frame stationary"] * 4
    assert found[-1] == "multi_frame moving"


def test_a_gap(pipeline: DepthPipeline) -> None:
    drive(pipeline, [MOVING] * 3)
    assert pipeline.process(view(3), 9 * TENTH, MOVING).active_model == "single_frame gap"
    assert pipeline.process(view(4), 10 * TENTH, MOVING).active_model == "multi_frame moving"
    pipeline.max_gap = 2.0
    assert pipeline.process(view(5), 20 * TENTH, MOVING).active_model == "multi_frame moving"


@pytest.mark.parametrize("stamp", [2 * TENTH, TENTH, 0, -5 * TENTH])
def test_stamps_that_stand_still_or_run_backwards(pipeline: DepthPipeline, stamp: int) -> None:
    drive(pipeline, [MOVING] * 3)
    assert pipeline.process(view(3), stamp, MOVING).active_model == "single_frame time_jump"
    # The frame before the jump is gone, the one at the jump is the new predecessor.
    result = pipeline.process(view(4), stamp + TENTH, MOVING)
    assert result.active_model == "multi_frame moving"


def test_another_resolution(pipeline: DepthPipeline) -> None:
    drive(pipeline, [MOVING] * 3)
    found = [pipeline.process(view(i, (384, 128)), i * TENTH, MOVING).active_model for i in (3, 4)]
    assert found == ["single_frame resolution", "multi_frame moving"]


def test_gate_settings_may_change_on_the_way(pipeline: DepthPipeline) -> None:
    drive(pipeline, [MOVING] * 3)
    original = pipeline.gate_settings
    pipeline.gate_settings = replace(original, start_speed=20.0, stop_speed=15.0, hold_stop=0.0)
    assert pipeline.process(view(3), 3 * TENTH, MOVING).reason == "stationary"
    pipeline.gate_settings = replace(original, hold_start=0.0)
    assert pipeline.process(view(4), 4 * TENTH, MOVING).reason == "moving"


def test_forced_models(pipeline: DepthPipeline) -> None:
    pipeline.force_model = "single_frame"
    assert set(models(drive(pipeline, [MOVING] * 3))) == {"single_frame forced"}
    pipeline.reset()
    pipeline.force_model = "multi_frame"
    found = models(drive(pipeline, [STANDING] * 3))
    assert found == ["single_frame first_frame"] + ["multi_frame forced"] * 2
    assert pipeline.process(view(3), 20 * TENTH, STANDING).active_model == "single_frame gap"
    with pytest.raises(ValueError, match="force_model"):
        pipeline.force_model = "both"  # type: ignore[assignment]


def test_forcing_does_not_change_the_depth(pipeline: DepthPipeline) -> None:
    free = drive(pipeline, [MOVING] * 3)
    pipeline.reset()
    pipeline.force_model = "multi_frame"
    forced = drive(pipeline, [MOVING] * 3)
    np.testing.assert_array_equal(free[2].depth, forced[2].depth)
    pipeline.reset()
    pipeline.force_model = "single_frame"
    single = drive(pipeline, [MOVING] * 3)
    assert np.abs(single[2].depth - forced[2].depth).max() > 0.01


def test_a_bundle_without_multi_frame(tmp_path_factory: pytest.TempPathFactory) -> None:
    manifest = tiny_manifest()
    manifest = manifest.model_copy(
        update={
            "prior": None,
            "architecture": manifest.architecture.model_copy(
                update={"student": {**manifest.architecture.student, "fusion": None}}
            ),
        }
    )
    path = tmp_path_factory.mktemp("single") / "b"
    bundle = save_bundle(path, manifest, student=build_network(manifest, "student"))
    pipeline = DepthPipeline(bundle, "torch", "cpu")
    pipeline.warm_up()
    assert set(models(drive(pipeline, [MOVING] * 3))) == {"single_frame forced"}
    with pytest.raises(ValueError, match="no multi-frame"):
        pipeline.force_model = "multi_frame"


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("shapes do not match"), "model_failed"),
        (MemoryError(), "memory"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: not enough memory"), "memory"),
    ],
)
def test_a_failing_network_costs_the_refinement_only(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """The real pipeline with the real network, made to raise on one frame."""
    pipeline = DepthPipeline(bundle, "torch", "cpu", guard=MultiFrameGuard(failure_pause=3))
    match = MultiFrameNet.match
    calls = 0

    def fail_third(self: MultiFrameNet, *args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return match(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(MultiFrameNet, "match", fail_third)
    results = drive(pipeline, [MOVING] * 9)
    assert models(results) == (
        ["single_frame first_frame"]
        + ["multi_frame moving"] * 2
        + [f"single_frame {reason}"] * 4
        + ["multi_frame moving"] * 2
    )
    failed = results[3]
    assert failed.error is not None
    assert type(error).__name__ in failed.error
    assert [r.error for r in results if r is not failed] == [None] * 8
    pipeline.reset()
    pipeline.force_model = "single_frame"
    single = drive(pipeline, [MOVING] * 4)[3]
    np.testing.assert_array_equal(failed.depth, single.depth)


def test_an_answer_without_a_number_is_a_failure(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a moving frame without any depth: the single-frame network's takes its place."""
    pipeline = DepthPipeline(bundle, "torch", "cpu")
    multi = pipeline.networks.multi
    monkeypatch.setattr(
        pipeline.networks,
        "multi",
        lambda *args: MultiFrameTensors(*(part * math.nan for part in multi(*args))),
    )
    results = drive(pipeline, [MOVING] * 3)
    assert models(results)[1:] == ["single_frame model_failed"] * 2
    assert results[1].error is not None
    assert "holds no number" in results[1].error
    assert np.isfinite(results[1].depth).any()


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf])
def test_a_single_frame_answer_without_a_number_is_a_failure(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Not a picture without any depth; the pipeline goes on as though the frame had never been."""
    pipeline = DepthPipeline(bundle, "torch", "cpu")
    drive(pipeline, [MOVING] * 2)
    single = pipeline.networks.single

    def empty(native: Any) -> Any:
        inverse, rest = single(native)
        return torch.full_like(inverse, value), rest

    monkeypatch.setattr(pipeline.networks, "single", empty)
    pipeline.force_model = "single_frame"
    with pytest.raises(ModelFailedError, match="holds no number"):
        pipeline.process(view(2), 2 * TENTH, MOVING)
    with pytest.raises(ModelFailedError, match="holds no number"):
        pipeline.infer(view(2), order="rgb")
    with pytest.raises(ModelFailedError, match="another bundle"):
        pipeline.warm_up()
    monkeypatch.undo()
    pipeline.force_model = None
    assert pipeline.previous_stamp_ns == TENTH
    assert pipeline.process(view(2), 2 * TENTH, MOVING).active_model == "multi_frame moving"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_pose_that_is_not_finite(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    drive(pipeline, [MOVING] * 2)
    pose = np.eye(4)
    pose[0, 3] = value
    monkeypatch.setattr(pipeline.networks, "pose", lambda *_: pose)
    result = pipeline.process(view(2), 2 * TENTH, MOVING)
    assert result.active_model == "single_frame pose"
    assert "not finite" in (result.error or "")
    pipeline.force_model = "multi_frame"
    assert pipeline.process(view(3), 3 * TENTH, MOVING).active_model == "single_frame pose"
    monkeypatch.undo()
    pipeline.force_model = None
    assert pipeline.process(view(4), 4 * TENTH, MOVING).active_model == "multi_frame moving"


def test_a_pose_that_contradicts_odometry(pipeline: DepthPipeline) -> None:
    """The tiny bundle's pose network always says about one metre."""
    drive(pipeline, [MOVING] * 2)
    fast = Motion(150.0, "odometry")
    result = pipeline.process(view(2), 2 * TENTH, fast)
    assert result.active_model == "single_frame pose"
    assert "15.000 m" in (result.error or "")
    # Without a speed there is nothing to contradict.
    assert pipeline.process(view(3), 3 * TENTH, None).model == "multi_frame"


def test_a_time_budget(bundle: Bundle) -> None:
    guard = MultiFrameGuard(budget_pause=4)
    pipeline = DepthPipeline(bundle, "torch", "cpu", time_budget_ms=1e-3, guard=guard)
    found = models(drive(pipeline, [MOVING] * 14))
    assert found[1:6] == ["multi_frame moving"] * 5
    assert found[6:10] == ["single_frame budget"] * 4
    assert found[10:] == ["multi_frame moving"] * 4
    pipeline.reset()
    pipeline.time_budget_ms = 1e6
    assert set(models(drive(pipeline, [MOVING] * 12))[1:]) == {"multi_frame moving"}


# -- work that is not done twice -------------------------------------------------------------------


class Counted:
    """Counts the images that features are computed of."""

    def __init__(self, pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[bytes] = []
        original = pipeline.networks.features

        def features(image: torch.Tensor) -> tuple:
            self.seen.append(image.numpy().tobytes())
            return original(image)

        monkeypatch.setattr(pipeline.networks, "features", features)


def test_features_are_computed_once_per_frame(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(pipeline, monkeypatch)
    drive(pipeline, [MOVING] * 7)
    assert len(counted.seen) == 7
    assert len(set(counted.seen)) == 7


def test_a_standing_vehicle_computes_no_features(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(pipeline, monkeypatch)
    results = drive(pipeline, [STANDING] * 5)
    assert counted.seen == []
    assert "features" not in results[-1].timings
    drive(pipeline, [MOVING] * 3, start=5)
    # Two frames hold the gate; the third needs its own and its predecessor's.
    assert len(counted.seen) == 2


def test_a_reused_image_buffer_does_no_harm(pipeline: DepthPipeline) -> None:
    """Cameras hand the same memory over again and again."""
    frames = [shifted(texture(*TINY_SIZE), 2.0 * i) for i in range(4)]
    expected = [pipeline.process(f, i * TENTH) for i, f in enumerate(frames)]
    assert models(expected)[1:] == ["multi_frame moving"] * 3
    pipeline.reset()
    buffer = np.empty_like(frames[0])
    for i, frame in enumerate(frames):
        buffer[:] = frame
        result = pipeline.process(buffer, i * TENTH)
        assert result.active_model == expected[i].active_model
        np.testing.assert_array_equal(result.depth, expected[i].depth)
        buffer[:] = 0


def test_results_belong_to_the_caller(pipeline: DepthPipeline) -> None:
    first = pipeline.process(view(0), 0, MOVING)
    kept = first.depth.copy()
    drive(pipeline, [MOVING] * 3, start=1)
    np.testing.assert_array_equal(first.depth, kept)
    assert first.depth.flags.writeable


def test_the_same_frames_give_the_same_depth(pipeline: DepthPipeline) -> None:
    motions = [MOVING] * 3 + [STANDING] * 4 + [MOVING] * 3
    first = drive(pipeline, motions)
    pipeline.reset()
    second = drive(pipeline, motions)
    assert models(first) == models(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.depth, b.depth)


def test_what_the_multi_frame_network_is_given(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames in temporal order, the motion turned round, the trained focal length."""
    networks = pipeline.networks
    pose = np.eye(4)
    angle = 0.1
    pose[:3, :3] = [
        [math.cos(angle), 0, math.sin(angle)],
        [0, 1, 0],
        [-math.sin(angle), 0, math.cos(angle)],
    ]
    pose[:3, 3] = [0.01, 0.02, -0.05]
    posed, given = [], []
    multi = networks.multi
    monkeypatch.setattr(networks, "pose", lambda *images: posed.append(images) or pose)
    monkeypatch.setattr(networks, "multi", lambda *args: given.append(args) or multi(*args))
    camera = Camera(500.0, 500.0, 90.0, 30.0, 192, 64)
    tensors = []
    for i in range(2):
        result = pipeline.process(view(i), i * TENTH, MOVING, camera)
        pixels = frame_image(view(i), camera, pipeline.bundle.manifest.camera)
        tensors.append(pixels.tensor())
    assert result.model == "multi_frame"
    for image, tensor in zip(posed[0], tensors, strict=True):
        np.testing.assert_array_equal(image.numpy(), tensor)
    current, previous, previous_from_current, K, inverse = given[0]
    for features, tensor in ((previous, tensors[0]), (current, tensors[1])):
        np.testing.assert_array_equal(features[0], networks.features(torch.from_numpy(tensor))[0])
    np.testing.assert_allclose(previous_from_current @ pose, np.eye(4), atol=1e-12)
    trained = pipeline.bundle.manifest.camera
    np.testing.assert_allclose(K, [[trained.fx, 0, 45.0], [0, trained.fy, 15.0], [0, 0, 1]])
    expected, _ = networks.single(torch.from_numpy(tensors[1]))
    np.testing.assert_array_equal(inverse, expected)


# -- units, cameras, ranges ------------------------------------------------------------------------


def test_depth_is_in_metres(pipeline: DepthPipeline) -> None:
    framed = pipeline.process(view(0), 0, confidence=True)
    assert framed.confidence is not None
    image = view(0)
    assert image.shape == (64, 192, 3)
    assert framed.depth.shape == framed.confidence.shape == (32, 96)
    assert framed.depth.dtype == framed.confidence.dtype == np.float32
    student, prior = pipeline.bundle.student(), pipeline.bundle.prior()
    import cv2

    small = cv2.resize(image, (96, 32), interpolation=cv2.INTER_AREA)
    tensor = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        sigmoid = student(tensor, prior).disparity[0][0, 0].numpy()
    units = 1 / (0.01 + 9.99 * sigmoid)
    np.testing.assert_allclose(framed.depth, np.where(units * 20 > 80, np.inf, units * 20), 1e-4)


@pytest.mark.parametrize("model", ["single_frame", "multi_frame"])
def test_metric_factor_and_focal_length_scale_depth(pipeline: DepthPipeline, model: str) -> None:
    pipeline.max_metres = math.inf
    pipeline.force_model = model  # type: ignore[assignment]
    trained = pipeline.bundle.manifest.camera.scaled(192, 64)

    def depth(camera: Camera | None) -> NDArray[np.float32]:
        pipeline.reset()
        pipeline.process(view(0), 0, MOVING, camera)
        return pipeline.process(view(1), TENTH, MOVING, camera).depth

    plain = depth(None)
    np.testing.assert_array_equal(depth(trained), plain)
    longer = replace(trained, fx=trained.fx * 1.5, fy=trained.fy * 1.5)
    np.testing.assert_allclose(depth(longer), 1.5 * plain, rtol=1e-5)
    # The camera may be told at another size of the same picture.
    np.testing.assert_allclose(depth(longer.scaled(1920, 640)), 1.5 * plain, rtol=1e-5)
    pipeline.scale = FixedScale(3 * METRES_PER_UNIT)
    np.testing.assert_allclose(depth(trained), 3 * plain, rtol=1e-5)


def test_the_camera_of_the_depth_image(pipeline: DepthPipeline) -> None:
    camera = Camera(400.0, 410.0, 100.0, 30.0, 192, 64)
    result = pipeline.process(view(0), 0, None, camera)
    assert result.camera == camera.scaled(96, 32)
    assert (result.region.x, result.region.y) == (0, 0)
    assert (result.region.width, result.region.height) == (192, 64)
    assert pipeline.process(view(1), TENTH).camera == pipeline.bundle.manifest.camera


def test_another_aspect_ratio_uses_the_middle(pipeline: DepthPipeline) -> None:
    picture = texture(320, 240)
    image = shifted(picture, 0)
    camera = Camera(300.0, 300.0, 160.0, 120.0, 320, 240)
    result = pipeline.process(image, 0, None, camera)
    region = result.region
    assert (region.x, region.width, region.height) == (0, 320, 107)
    assert region.y == (240 - 107) // 2
    assert result.camera.cy == pytest.approx((120 - region.y) * 32 / 107)
    inner = image[region.y : region.y + region.height]
    pipeline.reset()
    alone = pipeline.process(
        np.ascontiguousarray(inner), 0, None, camera.cropped(0, region.y, 320, 107)
    )
    np.testing.assert_array_equal(alone.depth, result.depth)


def test_beyond_range_is_infinite_and_nonsense_is_unknown(
    pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = np.array([[1.0, 4.0, 4.1, 100.0, math.nan, math.inf, -1.0, 0.0]], np.float32)
    inverse = np.ones((1, 1, 32, 96), np.float32)
    with np.errstate(divide="ignore"):
        inverse[0, 0, 0, :8] = 1 / units
    inverse[0, 0, 0, 5] = math.inf
    inverse[0, 0, 1, :3] = [math.nan, -0.5, 0.0]
    tensors = (torch.from_numpy(inverse), torch.ones(1, 1, 32, 96))
    monkeypatch.setattr(pipeline.networks, "single", lambda _: tensors)
    result = pipeline.process(view(0), 0, confidence=True)
    np.testing.assert_array_equal(
        result.depth[0, :8],
        np.array([20, 80, math.inf, math.inf, math.nan, math.nan, math.nan, math.nan], np.float32),
    )
    assert np.isnan(result.depth[1, :3]).all()
    assert result.confidence is not None
    assert (result.confidence[np.isnan(result.depth)] == 0).all()
    assert (result.confidence[~np.isnan(result.depth)] > 0).all()


def test_timings_name_what_ran(pipeline: DepthPipeline) -> None:
    results = drive(pipeline, [MOVING] * 2)
    parts = {"preprocess", "motion", "single", "postprocess", "total"}
    assert set(results[0].timings) == parts
    assert set(results[1].timings) == parts | {"features", "pose", "multi"}
    for result in results:
        spent = sum(v for name, v in result.timings.items() if name != "total")
        assert 0 < spent <= result.timings["total"]


def test_warm_up_leaves_no_trace(pipeline: DepthPipeline) -> None:
    assert pipeline.warm_up() > 0
    assert pipeline.process(view(0), 0, MOVING).reason == "first_frame"


def test_a_warm_up_without_memory_for_multi_frame(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = DepthPipeline(bundle, "torch", "cpu")

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(MultiFrameNet, "match", fail)
    assert pipeline.warm_up() > 0
    assert models(drive(pipeline, [MOVING] * 2))[1] == "single_frame memory"
    monkeypatch.setattr(pipeline.networks, "single", fail)
    with pytest.raises(MemoryError):
        pipeline.warm_up()


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "cause"),
    [
        (np.zeros((0, 96, 3), np.uint8), "empty"),
        (np.zeros((32, 0, 3), np.uint8), "empty"),
        (np.zeros((64, 192), np.uint8), "shape"),
        (np.zeros((64, 192, 4), np.uint8), "shape"),
        (np.zeros((64, 192, 3), np.float32), "type"),
        ([[1, 2, 3]], "type"),
        (None, "type"),
        (np.zeros((8, 192, 3), np.uint8), "size"),
    ],
)
def test_images_that_are_refused(pipeline: DepthPipeline, image: NDArray, cause: str) -> None:
    drive(pipeline, [MOVING] * 2)
    with pytest.raises(InvalidFrameError) as caught:
        pipeline.process(image, 2 * TENTH, MOVING)
    assert caught.value.cause == cause
    # As though it had never been: the next frame still finds its predecessor.
    assert pipeline.process(view(3), 3 * TENTH, MOVING).active_model == "multi_frame moving"


def test_a_camera_of_another_picture_is_refused(pipeline: DepthPipeline) -> None:
    with pytest.raises(InvalidFrameError, match="another aspect ratio") as caught:
        pipeline.process(view(0), 0, None, Camera(300.0, 300.0, 160.0, 120.0, 320, 240))
    assert caught.value.cause == "camera"


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(16, 400),
    height=st.integers(16, 400),
    zoom=st.floats(0.2, 5.0),
)
def test_any_size_gives_depth_with_a_camera_that_fits(
    shared: DepthPipeline, width: int, height: int, zoom: float
) -> None:
    restart(shared)
    camera = Camera(zoom * width, zoom * width, width / 2, height / 2, width, height)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = shared.process(image, 0, None, camera)
    region = result.region
    assert result.depth.shape == (32, 96)
    assert 0 <= region.x <= region.x + region.width <= width
    assert 0 <= region.y <= region.y + region.height <= height
    assert abs(region.width / region.height / 3 - 1) < max(0.06, 1 / min(region.height, height))
    # The centre of the region is the centre of the depth image, wherever the camera points.
    ray = ((region.x + region.width / 2) - camera.cx) / camera.fx
    assert (48 - result.camera.cx) / result.camera.fx == pytest.approx(ray, abs=1e-9)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    frames=st.lists(
        st.tuples(
            st.one_of(st.integers(1, 10**9), st.integers(-(10**10), 10**10)),
            st.one_of(st.none(), st.floats(-40, 40), st.just(math.nan)),
            st.sampled_from([None, None, None, (96, 32), (128, 96)]),
        ),
        min_size=1,
        max_size=12,
    ),
    forced=st.sampled_from([None, None, "single_frame", "multi_frame"]),
)
def test_every_frame_gets_an_answer(
    shared: DepthPipeline,
    frames: list[tuple[int, float | None, tuple[int, int] | None]],
    forced: str | None,
) -> None:
    """Whatever stamps, speeds and sizes come: a depth image, a model, a reason of the list."""
    restart(shared)
    shared.force_model = forced  # type: ignore[assignment]
    stamp, previous = 0, None
    for index, (step, speed, size) in enumerate(frames):
        stamp += step
        image = view(index, size)
        result = shared.process(image, stamp, Motion(speed, "odometry"), confidence=True)
        assert result.depth.shape == (32, 96)
        assert not (result.depth <= 0).any()
        assert result.confidence is not None
        assert ((result.confidence >= 0) & (result.confidence <= 1)).all()
        assert result.reason in REASONS
        if result.model == "multi_frame":
            assert result.reason in ("moving", "forced")
            assert previous is not None
            assert 0 < stamp - previous[0] <= 0.5e9
            assert previous[1] == image.shape
        else:
            assert result.reason != "moving"
        previous = (stamp, image.shape)


# -- guard -----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    pause=st.integers(0, 10),
    failures=st.lists(st.booleans(), max_size=80),
)
def test_a_pause_has_its_length(pause: int, failures: list[bool]) -> None:
    guard = MultiFrameGuard(failure_pause=pause)
    left = 0
    for fails in failures:
        fault = guard.fault()
        if left > 0:
            assert fault == "model_failed"
            left -= 1
            continue
        assert fault is None
        if fails:
            guard.failed("model_failed")
            left = pause
