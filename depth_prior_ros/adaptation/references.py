"""References for a look-up, out of frames of one camera whose depth is known in metres."""

from __future__ import annotations

import torch
from torch import Tensor

from depth_prior_ros.models.episodic_prior import STRIDE, EpisodicPrior, References
from depth_prior_ros.models.student import Student


@torch.no_grad()
def make_references(
    student: Student,
    images: Tensor,
    depth_metres: Tensor,
    count: int,
    seed: int = 0,
    *,
    metres_per_unit: float,
) -> References:
    """Draw pixels with known depth out of frames, evenly over all that are known.

    Args:
        student: whose trunk gives the keys' features; in eval mode, it stays as it is.
        images: (N, 3, H, W), RGB in [0, 1], as the student sees them.
        depth_metres: (N, 1, H / 8, W / 8), 0 = unknown; as the student's output is before the
            pipeline stretches it to the focal length of another camera.
        count: how many at most, within the look-up's capacity.
        seed: decides which.
        metres_per_unit: of the bundle.

    Raises:
        ValueError: another shape, or no known depth.
    """
    cells = (images.shape[2] // STRIDE, images.shape[3] // STRIDE)
    if depth_metres.shape != (len(images), 1, *cells):
        raise ValueError(
            f"depth of shape {tuple(depth_metres.shape)} for {len(images)} images: expected "
            f"({len(images)}, 1, {cells[0]}, {cells[1]})"
        )
    known = (depth_metres > 0).flatten().nonzero().flatten()
    if not len(known):
        raise ValueError("references need depth in metres: none of these frames has any")
    generator = torch.Generator().manual_seed(seed)
    drawn = (
        known[torch.randperm(len(known), generator=generator)[:count].to(known.device)]
        .sort()
        .values
    )
    frames = drawn // (cells[0] * cells[1])
    parts = []
    for number in frames.unique().tolist():
        keys = EpisodicPrior.key_features(student.trunk(images[number : number + 1]))
        inside = drawn[frames == number] % (cells[0] * cells[1])
        parts.append(at_cells(keys, depth_metres[number : number + 1] / metres_per_unit, inside))
    return References.join(parts)


def at_cells(keys: Tensor, depth: Tensor, cells: Tensor) -> References:
    """The references at some cells of one image.

    Args:
        keys: (1, C, h, w), of `EpisodicPrior.key_features`.
        depth: (1, 1, h, w), network units, known at those cells.
        cells: (n,), row-major.
    """
    height, width = keys.shape[2:]
    rows = (cells // width + 0.5) * 2 / height - 1
    columns = (cells % width + 0.5) * 2 / width - 1
    position = torch.stack([rows, columns], dim=1).to(keys.dtype)
    features = keys[0].flatten(1)[:, cells].T
    return References(features, position, 1 / depth.flatten()[cells])
