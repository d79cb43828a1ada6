"""What must change no figure: the metric factor after scaling by medians, other models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.evaluation.evaluate import FrameResult, evaluate
from depth_prior_ros.evaluation.frames import EvaluationSet
from depth_prior_ros.evaluation.predictors import NetworkPredictor
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.share import demo_bag
from training.comparison.compare import ERRORS, evaluate_frames, prepare
from training.evaluation.evaluation import evaluate_set
from training.evaluation.sets import drive_set, eigen_drive_sets, kitti_2015_set

FACTORS = (0.5, 1.0, 2.0, 4.0)
SCALED = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")


def with_factor(bundle: Bundle, factor: float) -> Bundle:
    """The same networks, `factor` times as many metres a unit; the range stays."""
    depth = bundle.manifest.depth
    depth = depth.model_copy(update={"metres_per_unit": depth.metres_per_unit * factor})
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"depth": depth}))


def first_frames(chosen: EvaluationSet, count: int) -> EvaluationSet:
    return replace(chosen, positions=chosen.positions[:count])


def scaled(frames: list[FrameResult]) -> list[float]:
    """All that is quoted after scaling by medians, frame by frame, parts included."""
    errors = [e for f in frames for e in (f.errors, *f.parts.values())]
    return [getattr(e, name) for e in errors for name in SCALED]


def metric(frames: list[FrameResult]) -> float:
    return float(np.mean([frame.metric.abs_rel for frame in frames]))


def every_way(
    bundle: Bundle, chosen: EvaluationSet, pipeline: DepthPipeline, factor: float
) -> Iterator[tuple[str, list[float], float | None]]:
    """(name, scaled figures, AbsRel in metres) of every way that a set is evaluated in."""
    report = evaluate_set(pipeline, chosen, keep=False)
    for name, frames in report.rows.items():
        if frames:
            yield f"evaluate {name}", scaled(frames), metric(frames)
    prepared = prepare("group", chosen, bundle.manifest.input_size)
    models = ["single_frame", "multi_frame"] if prepared.consecutive else ["single_frame"]
    for model in models:
        kept = evaluate_frames(pipeline, prepared, model)  # type: ignore[arg-type]
        assert kept["fell_back"] == 0
        yield f"compare {model}", [f[name] for f in kept["frames"] for name in ERRORS], None
    prior = bundle.prior() if bundle.has("prior") else None
    metres_per_unit = bundle.manifest.depth.metres_per_unit * factor
    references = bundle.references_for(chosen.recording.frames[0].camera, bundle.manifest.told)
    network = NetworkPredictor(
        bundle.student(), prior=prior, metres_per_unit=metres_per_unit, references=references
    )
    found = evaluate(network, prepared.frames, chosen.protocol)
    yield "validation", scaled(found), metric(found)


def of_each_factor(bundle: Bundle, backend: str) -> dict[float, DepthPipeline]:
    return {f: DepthPipeline(with_factor(bundle, f), backend, "cpu") for f in FACTORS}


@pytest.fixture(scope="module")
def shipped() -> dict[float, DepthPipeline]:
    """Compiled once for all sets: that takes longer than a set."""
    return of_each_factor(load_bundle("lite"), "auto")


def check_invariance(
    bundle: Bundle, chosen: EvaluationSet, pipelines: dict[float, DepthPipeline]
) -> None:
    first = {name: (s, m) for name, s, m in every_way(bundle, chosen, pipelines[1.0], 1.0)}
    for factor in FACTORS:
        if factor == 1:
            continue
        for name, found, metres in every_way(bundle, chosen, pipelines[factor], factor):
            expected, before = first[name]
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, err_msg=name)
            assert metres is None or metres != pytest.approx(before, rel=1e-3), name
    single = np.array(first["evaluate single_frame"][0])
    np.testing.assert_allclose(first["validation"][0], single, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_the_metric_factor_changes_no_figure_after_scaling(bundle: Bundle) -> None:
    chosen = first_frames(drive_set(demo_bag()), 4)
    image = chosen.recording.frames[0]
    far = with_factor(bundle, 4.0)
    published = DepthPipeline(far, "torch", "cpu").process(image.image(), 0, None, image.camera)
    assert np.isinf(published.depth).any()  # the range takes something
    check_invariance(bundle, chosen, of_each_factor(bundle, "torch"))


def test_what_else_is_evaluated_changes_nothing(bundle: Bundle) -> None:
    chosen = first_frames(drive_set(demo_bag()), 4)
    pipeline = DepthPipeline(bundle, "torch", "cpu", max_metres=25.0)
    both = evaluate_set(pipeline, chosen).rows
    assert (pipeline.force_model, pipeline.max_metres) == (None, 25.0)
    for model in ("single_frame", "multi_frame"):
        alone = evaluate_set(pipeline, chosen, [model]).rows  # type: ignore[list-item]
        assert list(alone) == [model]
        assert scaled(alone[model]) == scaled(both[model])
        assert metric(alone[model]) == metric(both[model])
    pipeline.max_metres = 80.0
    again = evaluate_set(pipeline, chosen).rows["all"]
    assert scaled(again) == scaled(both["all"]) and metric(again) != metric(both["all"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_shipped_bundle_on_rendered_frames(shipped: dict[float, DepthPipeline]) -> None:
    check_invariance(load_bundle("lite"), first_frames(drive_set(demo_bag()), 4), shipped)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["kitti_2015", "0052"])
def test_the_shipped_bundle_on_recordings(
    data_dir: Path, name: str, shipped: dict[float, DepthPipeline]
) -> None:
    drives = eigen_drive_sets(data_dir, listed_only=False)
    chosen = kitti_2015_set(data_dir) if name == "kitti_2015" else None
    chosen = chosen or next(one for one in drives if "_0052_" in one.name)
    check_invariance(load_bundle("lite"), first_frames(chosen, 6), shipped)
