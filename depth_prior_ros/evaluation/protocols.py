"""The protocols (range, crop, scaling) under which depth metrics are quoted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.evaluation.metrics import ComparedPixels, DepthErrors, Scaling, TruthPixels
from depth_prior_ros.recordings import Recording
from depth_prior_ros.registry import Registry

_ROOM = "depth_prior_ros.evaluation"
PROTOCOLS: Registry[Protocol] = Registry("protocol", _ROOM)
CROPS: Registry[Callable[[int, int], NDArray[np.bool_]]] = Registry("crop", _ROOM)
"""(height, width) -> mask (height, width), True inside."""


@dataclass(frozen=True)
class Protocol:
    """How predictions are compared with the truth of one data set.

    `min_depth` and `max_depth` (metres) bound the truth that counts and clamp the prediction, after
    it was scaled; without `cap_truth` truth beyond `max_depth` counts, too. `crop`: one of CROPS.
    `stretch`: the whole image is squeezed into the network's input, as the papers do, instead of
    its middle being cut out, as a vehicle does. `log10`: the papers quote the RMSE of the decimal
    logarithm.
    """

    name: str
    min_depth: float = 1e-3
    max_depth: float = 80.0
    crop: str | None = None
    scaling: Scaling = "median"
    cap_truth: bool = True
    stretch: bool = False
    log10: bool = False

    def errors(self, prediction: NDArray[Any], truth: NDArray[Any]) -> DepthErrors:
        """Compare a predicted depth image (h, w) with the truth (H, W), metres, 0 = none.

        See `TruthPixels.compare`. Raises NoValidPixelsError where nothing can be compared.
        """
        return self.pixels(prediction, truth).errors(self.scaling)

    def pixels(self, prediction: NDArray[Any], truth: NDArray[Any]) -> ComparedPixels:
        """The compared pixels of a prediction (h, w) and the truth (H, W)."""
        return self.truth(truth).compare(prediction)

    def truth(
        self, truth: NDArray[Any], window: tuple[int, int, int, int] | None = None
    ) -> TruthPixels:
        """The pixels that count of a true depth image (H, W), or of its window (x, y, w, h).

        The crop is that of the whole image.
        """
        if truth.ndim != 2:
            raise ValueError(f"depth images have two axes, got shape {truth.shape}")
        wanted = truth > self.min_depth
        wanted &= truth < self.max_depth if self.cap_truth else np.isfinite(truth)
        if self.crop is not None:
            wanted &= CROPS[self.crop](*truth.shape)
        if window is not None:
            truth, wanted = cut(truth, window), cut(wanted, window)
        index = np.flatnonzero(wanted).astype(np.int32)
        expected = truth.reshape(-1)[index]
        if expected.dtype != np.float64:
            expected = expected.astype(np.float32)
        return TruthPixels(truth.shape, index, expected, self.min_depth, self.max_depth)


def cut(picture: NDArray[Any], window: tuple[int, int, int, int]) -> NDArray[Any]:
    """The window (x, y, width, height) of a picture (H, W, ...)."""
    x, y, width, height = window
    return picture[y : y + height, x : x + width]


@CROPS.register("garg")
def garg_mask(height: int, width: int) -> NDArray[np.bool_]:
    """The crop of Garg et al. (2016)."""
    mask = np.zeros((height, width), dtype=bool)
    top, bottom = int(0.40810811 * height), int(0.99189189 * height)
    left, right = int(0.03594771 * width), int(0.96405229 * width)
    mask[top:bottom, left:right] = True
    return mask


@CROPS.register("cityscapes")
def cityscapes_mask(height: int, width: int) -> NDArray[np.bool_]:
    """Rows from 256 of 768, columns 192 to 1856 of 2048: no sky, no edges of the rectification.

    ManyDepth's, for truth whose bottom quarter (of 1024 rows) is gone already.
    """
    mask = np.zeros((height, width), dtype=bool)
    mask[round(height / 3) :, round(width * 192 / 2048) : round(width * 1856 / 2048)] = True
    return mask


def _protocol(name: str, **values: Any) -> None:
    PROTOCOLS.register(name)(Protocol(name, **values))


# KITTI 2015 scene flow: depth from published disparity; dense enough to need no crop.
_protocol("kitti2015")
# Eigen et al.: projected LiDAR, Garg's crop, 80 m.
_protocol("eigen", crop="garg")
# The accumulated LiDAR of KITTI's depth benchmark (Uhrig et al.): in the peers' code there is no
# crop, and all truth counts, also the little beyond 80 m.
_protocol("eigen_improved", cap_truth=False)
# Make3D's central crop against its laser grid, up to 70 m.
_protocol("make3d", max_depth=70.0, stretch=True, log10=True)
# ManyDepth's crop of what is left of Cityscapes without its bottom quarter.
_protocol("cityscapes", crop="cityscapes", stretch=True)
# A projected sweep; no protocol that everybody follows: whole image, 80 m.
_protocol("nuscenes")
# Rendered drives: exact everywhere.
_protocol("synthetic")
_OF_SOURCE = {"lidar": "eigen", "stereo": "kitti2015", "exact": "synthetic"}


def protocol_for(recording: Recording) -> Protocol | None:
    """How to evaluate a recording's depth, by where it comes from; None where it has none."""
    source = recording.depth_source
    return PROTOCOLS[_OF_SOURCE[source]] if source else None
