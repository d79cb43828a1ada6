"""The measured factor between two runs of the node: read with the first frame, written at the end.

Kept per bundle and camera, so that the file of another vehicle or network does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from depth_prior_ros.scale import ScaleFileError, load_scale, save_scale

if TYPE_CHECKING:
    from depth_prior_ros.camera import Camera
    from depth_prior_ros.pipeline import DepthPipeline


class ScaleKeeper:
    """Keeps the factor of one pipeline in a file.

    Args:
        path: the file; empty: nothing is kept.
        log: the node's logger.
    """

    def __init__(self, path: str, log: Any) -> None:
        self._path = path
        self._log = log
        self._camera: Camera | None = None

    def begin(self, pipeline: DepthPipeline, camera: Camera) -> None:
        """Take the stored factor up; called with the camera of the first frame."""
        self._camera = camera
        if not self._path or pipeline.scale.status.state != "searching":
            return
        try:
            stored = load_scale(self._path, bundle=pipeline.bundle.digest, camera=camera)
            pipeline.scale.restore(stored)
        except FileNotFoundError:
            return
        except (ScaleFileError, ValueError) as error:
            self._log.warning(f"stored scale not taken up: {error}")
        else:
            factor = pipeline.scale.metres_per_unit
            self._log.info(f"scale taken up from {self._path}: {factor:.4g} m per unit")

    def end(self, pipeline: DepthPipeline) -> None:
        """Write the factor, where one was measured, as that of the camera it was measured with."""
        if not self._path or self._camera is None:
            return  # no frame since the node became active: the file says all there is to say
        if pipeline.scale.status.state not in ("measured", "held"):
            return
        stored = pipeline.scale.store()
        try:
            save_scale(self._path, stored, bundle=pipeline.bundle.digest, camera=self._camera)
        except (OSError, ValueError) as error:
            self._log.warning(f"scale not stored: {error}")
