"""What a student looks up in its prior: explicit weights, which the networks never form.

The attentions of `PriorFusion` give sums over all references; here the weights themselves are
wanted, so queries and keys are taken from the fusion and softmax is written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.prior_fusion import FusionConfig
from depth_prior_ros.pipeline.framing import InvalidFrameError, NetworkInput, frame_image
from training.evaluation.sets import EvaluationError

PIXEL_WISE, HINT = "pixel_wise", "hint"
_SKY = 80.0  # metres


class ExplainError(EvaluationError):
    """Nothing can be shown; the message says why and what to do."""


class Queries(NamedTuple):
    """Scaled queries of one image.

    Attributes:
        values: (heads, Q, d) of the branch; one head of the pixel-wise branch.
        shape: (h, w) of the feature map, Q = h * w.
    """

    values: Tensor
    shape: tuple[int, int]


@dataclass(frozen=True)
class Prediction:
    """An image as the student sees it.

    Attributes:
        framed: which window of the image, at the input size.
        queries: of all cells of the feature map.
        depth: (H, W) metres at the input size.
        looked_up: (h, w) of the feature map, depth D_c in metres; None without a pixel-wise branch.
    """

    framed: NetworkInput
    queries: Queries
    depth: NDArray[np.float64]
    looked_up: NDArray[np.float64] | None


@dataclass(frozen=True)
class Lookup:
    """What was looked up at one pixel.

    Attributes:
        pixel: (x, y) in the image.
        box: (x, y, width, height) of the feature map's cell that holds it, in the image's pixels.
        weights: (N,) float64, of sum one.
        looked_up: depth D_c in metres, of the mean inverse depth; of the depth-hint branch what its
            weights would give (the network mixes features there, not depth).
        predicted: the student's depth in metres.
    """

    pixel: tuple[int, int]
    box: tuple[float, float, float, float]
    weights: NDArray[np.float64]
    looked_up: float
    predicted: float

    @property
    def neighbours(self) -> float:
        """Effective number of references: exp of the entropy, 1 to N."""
        return float(np.exp(entropy(self.weights)))

    def top(self, count: int) -> NDArray[np.int64]:
        """The references of largest weight, largest first."""
        return np.argsort(-self.weights, kind="stable")[:count]


def entropy(weights: NDArray[np.float64]) -> Any:
    """Of distributions (..., N) along the last axis, in nats."""
    logs = np.log(np.where(weights > 0, weights, 1.0))
    return -(weights * logs).sum(-1)


class PriorReader:
    """A bundle's student and prior, with the keys projected once.

    Args:
        bundle: a bundle with a prior, its folder or name.
        branch: "pixel_wise" (which gives D_c), "hint" (the mean of its heads) or "hint:K", head K;
            None: the first of them that the fusion has.

    Raises:
        ExplainError: the bundle has no prior, its student no fusion, or the fusion no such branch.
        BundleError: it is damaged.
    """

    def __init__(self, bundle: Bundle | str | Path, branch: str | None = None) -> None:
        bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        if not bundle.has("prior"):
            raise ExplainError(
                f"{bundle.path}: this bundle has no prior, so its student looks nothing up; "
                "`depth_train select` writes bundles with one"
            )
        self.bundle = bundle
        self.student = bundle.student()
        fusion = self.student.fusion
        if fusion is None:
            raise ExplainError(f"{bundle.path}: its student has no prior fusion to read the prior")
        self.fusion = fusion
        self.prior = bundle.prior()
        self.branch = branch or (PIXEL_WISE if fusion.config.pixel_wise else HINT)
        self._heads = _heads(self.branch, fusion.config)
        with torch.no_grad():
            self._keys = self._chosen(fusion.project_keys(self.prior.features))
            self._projected = fusion.project(self.prior)
        self.inverse_depth = self.prior.inverse_depth.double().numpy()

    def __len__(self) -> int:
        return len(self.inverse_depth)

    @property
    def metres(self) -> NDArray[np.float64]:
        """Depth of each reference (N,) in metres, by the bundle's metric factor."""
        units = 1.0 / np.maximum(self.inverse_depth, 1e-9)
        return units * self.bundle.manifest.depth.metres_per_unit

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Run the student on an RGB image (H, W, 3) uint8, framed as the node frames it.

        Raises:
            ExplainError: the image cannot be framed.
        """
        manifest = self.bundle.manifest
        try:
            framed = frame_image(image, None, manifest.camera)
        except InvalidFrameError as error:
            raise ExplainError(str(error)) from error
        pixels = torch.from_numpy(framed.tensor())
        with torch.no_grad():
            queries = self.queries(pixels)
            limits = manifest.depth.min_units, manifest.depth.max_units
            output = self.student(pixels, self._projected, scales=(0,), depth_range=limits)
            _, depth = disparity_to_depth(output.disparity[0].float(), *limits)
        factor, looked_up = manifest.depth.metres_per_unit, output.prior_inverse_depth
        return Prediction(
            framed,
            queries,
            depth[0, 0].double().numpy() * factor,
            None if looked_up is None else factor / looked_up[0, 0].double().numpy(),
        )

    def queries(self, image: Tensor) -> Queries:
        """Queries of an image (1, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            features = self.student.fusion_features(image)
            pixel_wise, hint = self.fusion.scaled_queries(features)
            one = [None if x is None else x[0] for x in (pixel_wise, hint)]
        height, width = features.shape[-2:]
        return Queries(self._chosen(one), (height, width))

    def _chosen(self, branches: Sequence[Tensor | None]) -> Tensor:
        """The heads that are shown, of (pixel-wise, hint)."""
        found = branches[0 if self.branch == PIXEL_WISE else 1]
        assert found is not None  # as `_heads` made sure of
        return found[self._heads]

    def weights(self, queries: Queries, cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights (cells, N) at cells (row-major) of the feature map; rows of sum one."""
        with torch.no_grad():
            chosen = queries.values[:, torch.from_numpy(cells)]
            scores = chosen @ self._keys.transpose(1, 2)
            weights: NDArray[np.float32] = torch.softmax(scores, dim=-1).mean(0).numpy()
        return weights

    def look_up(self, prediction: Prediction, pixel: tuple[int, int]) -> Lookup:
        """What is looked up at a pixel (x, y) of the image.

        Raises:
            ExplainError: it lies outside the image, or outside the window that the student sees.
        """
        x, y = _inside(prediction.framed, pixel)
        (height, width), (rows, columns) = prediction.depth.shape, prediction.queries.shape
        row, column = int(y * rows), int(x * columns)
        weights = self.weights(prediction.queries, np.array([row * columns + column]))[0].astype(
            float
        )
        weights /= weights.sum()
        region = prediction.framed.region
        step = region.width / columns, region.height / rows
        return Lookup(
            pixel,
            (region.x + column * step[0], region.y + row * step[1], *step),
            weights,
            self.bundle.manifest.depth.metres_per_unit / float(weights @ self.inverse_depth),
            float(prediction.depth[int(y * height), int(x * width)]),
        )


def _heads(branch: str, config: FusionConfig) -> slice:
    """The heads that a branch's name means; the pixel-wise branch has one."""
    known = [PIXEL_WISE] if config.pixel_wise else []
    if config.depth_hint:
        known += [HINT, *(f"{HINT}:{k}" for k in range(config.heads))]
    if branch not in known:
        raise ExplainError(f"this bundle's fusion has no branch '{branch}': {', '.join(known)}")
    _, _, number = branch.partition(":")
    return slice(int(number), int(number) + 1) if number else slice(None)


def _inside(framed: NetworkInput, pixel: tuple[int, int]) -> tuple[float, float]:
    """The pixel's centre as shares of the window that the student sees."""
    (x, y), (width, height), region = pixel, framed.source_size, framed.region
    if not (0 <= x < width and 0 <= y < height):
        raise ExplainError(
            f"pixel {x},{y} is outside the image: x from 0 to {width - 1}, y from 0 to {height - 1}"
        )
    right, bottom = region.x + region.width - 1, region.y + region.height - 1
    if not (region.x <= x <= right and region.y <= y <= bottom):
        raise ExplainError(
            f"pixel {x},{y} is cut off before the student sees the image, which has another aspect "
            f"ratio than its input: x from {region.x} to {right}, y from {region.y} to {bottom}"
        )
    return (x + 0.5 - region.x) / region.width, (y + 0.5 - region.y) / region.height


def default_pixels(prediction: Prediction) -> dict[tuple[int, int], str]:
    """A handful of pixels (x, y) of the image and what they probably show."""
    region = prediction.framed.region
    shares = {
        "road": (0.5, 0.92),
        "ahead": (0.44, 0.66),
        "left": (0.1, 0.55),
        "right": (0.9, 0.55),
        "far": _farthest(prediction.depth),
    }
    return {
        (region.x + int(u * region.width), region.y + int(v * region.height)): name
        for name, (u, v) in shares.items()
    }


def _farthest(depth: NDArray[np.float64]) -> tuple[float, float]:
    """Shares (x, y) of the farthest place where the road mostly ends, not in the sky."""
    height, width = depth.shape
    top, left = int(0.4 * height), int(0.25 * width)
    middle = depth[top : int(0.56 * height), left : int(0.75 * width)]
    row, column = np.unravel_index(int(np.where(middle < _SKY, middle, 0).argmax()), middle.shape)
    return (left + int(column) + 0.5) / width, (top + int(row) + 0.5) / height
