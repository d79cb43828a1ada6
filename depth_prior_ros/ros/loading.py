"""From the node's settings to a warmed-up pipeline. Imports the networks: import it late.

The measured factor between two runs of the node: read with the first frame, written at the end.

Kept per bundle and camera, so that the file of another vehicle or network does no harm.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from depth_prior_ros.bundle import load_bundle
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.pipeline.pipeline import first_shift
from depth_prior_ros.pipeline.results import parse_output_size
from depth_prior_ros.pipeline.sharing import NetworkPool
from depth_prior_ros.ros.parameters import PARAMETERS, Settings
from depth_prior_ros.ros.parameters.settings import FIRST_RATE_RATIO
from depth_prior_ros.scale import (
    FilterSettings,
    Scale,
    ScaleFileError,
    load_scale,
    make_scale,
    same_view,
    save_scale,
)
from depth_prior_ros.share import home_path

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle, Told
    from depth_prior_ros.geometry.camera import Camera
    from depth_prior_ros.pipeline import DepthPipeline


class ScaleKeeper:
    """Keeps the factor of one pipeline in a file.

    Args:
        path: the file; empty: nothing is kept.
        log: the node's logger.
    """

    def __init__(self, path: str, log: Any) -> None:
        self._path = path
        if path:
            # A home that does not exist is said where the file is read or written.
            with contextlib.suppress(FileNotFoundError):
                self._path = str(home_path(path).absolute())
        self._log = log
        self._camera: Camera | None = None

    def begin(self, pipeline: DepthPipeline, camera: Camera) -> None:
        """Take the stored factor up; called with the camera of the first frame, and with another.

        What was measured belongs to the camera that it was measured with: it is stored as that
        camera's, and one with another field of view begins anew.
        """
        before, self._camera = self._camera, camera
        if before is not None and not same_view(before, camera):
            self._store(pipeline, before)
            if pipeline.scale.status.state in ("measured", "held"):
                self._log.info("another camera: its scale is measured anew")
                pipeline.scale.reset()
        if not self._path or not pipeline.scale.status.preliminary:
            return
        try:
            stored = load_scale(self._path, bundle=pipeline.bundle.digest, camera=camera)
            pipeline.scale.restore(stored)
        except FileNotFoundError:
            return
        except (OSError, ScaleFileError, ValueError) as error:
            self._log.warning(f"stored scale not taken up: {error}")
        else:
            factor = pipeline.scale.metres_per_unit
            self._log.info(f"scale taken up from {self._path}: {factor:.4g} m per unit")

    def end(self, pipeline: DepthPipeline) -> None:
        """Write the factor, where one was measured, as that of the camera it was measured with."""
        if self._camera is not None:
            self._store(pipeline, self._camera)
        # Without a frame since the node became active the file says all there is to say.

    def _store(self, pipeline: DepthPipeline, camera: Camera) -> None:
        if not self._path or pipeline.scale.status.state not in ("measured", "held"):
            return
        stored = pipeline.scale.store()
        try:
            save_scale(self._path, stored, bundle=pipeline.bundle.digest, camera=camera)
        except (OSError, ValueError) as error:
            self._log.warning(f"scale not stored: {error}")


def load_pipeline(settings: Settings, pool: NetworkPool | None = None) -> DepthPipeline:
    """Load and verify the bundle, choose the backend, compile the networks and run them once.

    pool: of networks that are shared with the other cameras of this process.

    Raises:
        BundleError, BackendError, ValueError: naming the cause.
    """
    bundle = load_bundle(settings.bundle)
    pipeline = DepthPipeline(
        bundle,
        backend=settings.backend,
        device=settings.device,
        threads=settings.threads,
        precision=settings.precision,
        fallback=settings.backend_fallback,
        look_up=settings.look_up,
        gate=settings.gate,
        scale=scale_of(settings, bundle),
        pool=pool,
    )
    apply_settings(pipeline, settings)
    pipeline.warm_up()
    pipeline.reset()
    return pipeline


def apply_settings(
    pipeline: DepthPipeline, settings: Settings, before: Settings | None = None
) -> None:
    """Take up what may change while the node runs; called between two frames.

    Args:
        pipeline: to be changed.
        settings: to take up.
        before: those that the pipeline has; None: the scale is left as it is.

    Raises:
        ValueError: for a forced network that the bundle does not have.
    """
    for declared in PARAMETERS:
        if declared.pipeline:
            setattr(pipeline, declared.pipeline, getattr(settings, declared.attribute))
    pipeline.force_model = settings.force_model or None
    pipeline.max_metres = settings.max_depth_m or pipeline.bundle.manifest.depth.max_metres
    automatic = settings.time_budget < 0
    pipeline.time_budget_ms = "auto" if automatic else settings.time_budget * 1e3 or None
    pipeline.gate_settings = settings.gate
    pipeline.guard.failure_pause = settings.failure_pause
    pipeline.output_size = parse_output_size(settings.output_size)
    if before is not None and _scale_settings(settings) != _scale_settings(before):
        scale = scale_of(settings, pipeline.bundle, pipeline.told)
        if settings.scale_mode == before.scale_mode != "fixed":
            # What was measured is not lost, unless the new limits leave it out.
            with contextlib.suppress(ValueError):
                scale.restore(pipeline.scale.store())
        pipeline.scale = scale


def carry_scale(old: DepthPipeline, new: DepthPipeline) -> None:
    """Let a pipeline of the same bundle go on with the factor that another has measured."""
    same = old.bundle.digest == new.bundle.digest
    if same and old.scale.status.mode == new.scale.status.mode != "fixed":
        with contextlib.suppress(ValueError):
            new.scale.restore(old.scale.store())


def scale_of(settings: Settings, bundle: Bundle, told: Told | None = None) -> Scale:
    """The scale that the settings ask for, at its beginning.

    told: what the bundle was fitted to its camera by, in place of its own factor. Raises ValueError
    as `make_scale`.
    """
    manifest = bundle.manifest.with_told(told)
    depth = manifest.depth
    given = settings.scale_metres_per_unit
    # Who gives a factor means it.
    mode = "fixed" if settings.scale_mode == "auto" and given else settings.scale_mode
    return make_scale(
        mode,
        fixed=given or depth.metres_per_unit,
        source="scale.metres_per_unit" if given else depth.metres_per_unit_source,
        camera_height=settings.scale_camera_height or None,
        settings=FilterSettings(
            window=settings.scale_window,
            rate=settings.scale_rate,
            first_rate=FIRST_RATE_RATIO * settings.scale_rate,
            limit=settings.scale_limit,
        ),
        road=settings.road,
        mounted_later=bool(settings.tf_base_frame),
        known=bool(given) or manifest.has_metres,
        shift=first_shift(bundle) if manifest.affine else None,
        pose_network=bundle.has("pose") and bundle.has("multi_frame"),
    )


def _scale_settings(settings: Settings) -> list[object]:
    names = [d.attribute for d in PARAMETERS if d.name.startswith("scale.")]
    return [getattr(settings, name) for name in names if name != "scale_file"]
