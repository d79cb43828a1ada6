"""From the node's settings to a warmed-up pipeline. Imports the networks: import it late."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from depth_prior_ros.backends.base import Precision
from depth_prior_ros.bundle import load_bundle
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.ros.parameters import Settings

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import Model


def load_pipeline(settings: Settings) -> DepthPipeline:
    """Load and verify the bundle, choose the backend, compile the networks and run them once.

    Raises:
        BundleError, BackendError: naming the cause.
    """
    pipeline = DepthPipeline(
        load_bundle(settings.bundle),
        backend=settings.backend,
        device=settings.device,
        threads=settings.threads,
        precision=cast(Precision, settings.precision),
        gate=settings.gate,
    )
    apply_settings(pipeline, settings)
    pipeline.warm_up()
    pipeline.reset()
    return pipeline


def apply_settings(pipeline: DepthPipeline, settings: Settings) -> None:
    """Take up what may change while the node runs; called between two frames.

    Raises:
        ValueError: for a forced network that the bundle does not have.
    """
    pipeline.force_model = cast("Model | None", settings.force_model or None)
    pipeline.max_gap = settings.max_gap
    pipeline.max_metres = settings.max_depth_m or pipeline.bundle.manifest.depth.max_metres
    pipeline.time_budget_ms = settings.time_budget * 1e3 or None
    pipeline.gate_settings = settings.gate
