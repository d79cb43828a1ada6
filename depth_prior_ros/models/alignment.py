"""Direct image alignment: the motion between two frames, refined against a depth map.

A pose network guesses how long a step was from the looks of two images, and is easily a third off
on a road it has not seen. Cost volumes need better: hypotheses lie around the single-frame
depth, and only a motion in the unit of that depth puts the true match among them. So the network's
pose is only the start, and a few Gauss-Newton steps make the previous frame, warped by the
single-frame depth, look like the current one (dense visual odometry: Kerl et al., ICRA 2013;
refining the pose beside the depth: DualRefine, CVPR 2023, section 3.3). It has no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from depth_prior_ros.geometry.warping import Pose, project, rays, warp

# Levels of the pyramid, coarse to fine: (reduction of the input, iterations).
LEVELS = ((4, 6), (2, 4))
_HUBER = 0.05  # grey levels in [0, 1]; beyond, a pixel counts as an outlier
_NEAREST = 0.02  # network units: points closer to the previous camera are not used
_OVERLAP = 0.25  # of the pixels have to be seen by both frames
_DAMPING = 1e-3
_CONVERGED = 1e-3  # of the cost: a full step that lowers it by less is a sample's last on a level
_HOPELESS = 1e4  # damping beyond which no step is left to try
_LENGTHS = (0.2, 5.0)  # of the motion to begin with: no unit is off by more, only a wrong rotation


@dataclass(frozen=True)
class _Level:
    """One pyramid level: (B, 1, h, w) current grey image, (B, 3, h, w) previous grey image and its
    gradients, (B, 3, h, w) points of the current view, K (B, 3, 3)."""

    current: Tensor
    previous: Tensor
    points: Tensor
    K: Tensor


@dataclass(frozen=True)
class _Residual:
    """Where a motion puts the points, how the images differ there, and what that costs (B,)."""

    points: Tensor
    gradient: Tensor
    difference: Tensor
    weight: Tensor
    cost: Tensor


class Alignment:
    """Two frames and the depth of one: what their pyramid takes is computed once for all motions.

    Args:
        current: image (B, 3, H, W) in [0, 1].
        previous: image of the frame before, same shape.
        depth: of the current view (B, 1, H, W), network units; it decides a motion's scale.
        K: intrinsics (B, 3, 3) in pixels of the full image.
    """

    def __init__(self, current: Tensor, previous: Tensor, depth: Tensor, K: Tensor) -> None:
        with torch.no_grad():
            self._grey = tuple(i.float().mean(1, keepdim=True) for i in (current, previous))
            self._inverse, self._K = 1 / depth.float(), K.detach().float()
        self._levels: dict[int, _Level] = {}
        self._costs: dict[tuple[int, bytes], Tensor] = {}

    @torch.no_grad()
    def refine(
        self,
        previous_from_current: Pose,
        levels: tuple[tuple[int, int], ...] = LEVELS,
        *,
        length_only: bool = False,
        ask: bool = True,
    ) -> Pose:
        """See `align_motion`.

        ask: stop where nothing gets better, and remember what the motion costs. Both read from the
        device, which has to be waited for; the motion is the same without.
        """
        with self._exactly():
            pose = Pose(previous_from_current.matrix.detach().float())
            length_of = pose.translation if length_only else None
            for reduction, iterations in levels:
                level = self._level(reduction)
                pose, cost = _align_level(level, pose, iterations, length_of, ask)
                if ask:
                    self._costs[_named(pose, reduction)] = cost
        return pose

    @torch.no_grad()
    def costs(self, motions: Sequence[Pose], reduction: int = 2) -> Tensor:
        """What `align_motion` lowers, for each of several motions.

        Returns:
            (M, B): robust mean difference of the grey images; inf where too little overlaps.
        """
        with self._exactly():
            return torch.stack([self._cost(Pose(m.matrix.float()), reduction) for m in motions])

    def _cost(self, pose: Pose, reduction: int) -> Tensor:
        """(B,); a motion that was refined or asked for before is known."""
        name = _named(pose, reduction)
        if name not in self._costs:
            level = self._level(reduction)
            grey = replace(level, previous=level.previous[:, :1])  # a cost takes no gradient
            self._costs[name] = _residual(grey, pose).cost
        return self._costs[name]

    def _level(self, reduction: int) -> _Level:
        if reduction not in self._levels:
            here, there = (F.avg_pool2d(grey, reduction) for grey in self._grey)
            inverse = F.avg_pool2d(self._inverse, reduction)
            self._levels[reduction] = _level(here, there, inverse, self._K, reduction)
        return self._levels[reduction]

    def _exactly(self) -> torch.autocast:
        return torch.autocast(device_type=self._K.device.type, enabled=False)


def align_motion(
    current: Tensor,
    previous: Tensor,
    depth: Tensor,
    K: Tensor,
    previous_from_current: Pose,
    levels: tuple[tuple[int, int], ...] = LEVELS,
    *,
    length_only: bool = False,
) -> Pose:
    """Refine a motion so that the previous image explains the current one; no gradient.

    A step is kept only where it lowers the robust photometric cost of that sample, so that a motion
    never leaves worse than it came; without texture or overlap it stays what it was. A change of
    brightness common to all pixels is taken out.

    Args:
        current, previous, depth, K: see `Alignment`.
        previous_from_current: the motion to begin with (B, 4, 4), network units.
        levels: (reduction, iterations) from coarse to fine.
        length_only: rotation and direction stay, which odometry knows well; the translation alone
            becomes as long as the depth's unit asks for, a fifth to five times of what it was.

    Returns:
        The refined motion (B, 4, 4), float32.
    """
    # A step of training does not wait for its device; a CPU has nothing to wait for.
    ask = depth.device.type == "cpu"
    return Alignment(current, previous, depth, K).refine(
        previous_from_current, levels, length_only=length_only, ask=ask
    )


def _level(here: Tensor, there: Tensor, inverse: Tensor, K: Tensor, reduction: int) -> _Level:
    """Of grey images and inverse depth (B, 1, h, w) at the level; K is of the full image."""
    small = K / reduction
    # Averaging r pixels puts pixel i at r i + (r - 1) / 2 of the full image.
    small[:, :2, 2] = (K[:, :2, 2] - (reduction - 1) / 2) / reduction
    small[:, 2, 2] = 1
    points = rays(small, *here.shape[-2:]) / inverse
    dx = F.pad((there[..., 2:] - there[..., :-2]) / 2, (1, 1))
    dy = F.pad((there[..., 2:, :] - there[..., :-2, :]) / 2, (0, 0, 1, 1))
    there = torch.cat([there, dx, dy], dim=1)
    return _Level(here, there, points, small)


def _named(pose: Pose, reduction: int) -> tuple[int, bytes]:
    return reduction, pose.matrix.cpu().numpy().tobytes()


def _align_level(
    level: _Level,
    pose: Pose,
    iterations: int,
    length_of: Tensor | None = None,
    ask: bool = True,
) -> tuple[Pose, Tensor]:
    """The motion, and its cost (B,).

    length_of: translations (B, 3) of which only the length may change. ask: see `Alignment.refine`.
    """
    best = _residual(level, pose)
    damping = best.cost.new_full((len(best.cost), 1, 1), _DAMPING)
    going = best.cost.isfinite()  # a motion without overlap has no gradient that could be trusted
    for _ in range(iterations):
        if ask and not bool(going.any()):
            break
        tried = _step(level, best, damping, length_of) @ pose
        after = _residual(level, tried)
        better = going & (after.cost < best.cost)  # False for NaN, too
        if length_of is not None:
            better = better & _same_way(tried.translation, length_of)
        full = damping.flatten() <= _DAMPING  # a short step that gains little says nothing
        going = going & ~(better & full & (after.cost > (1 - _CONVERGED) * best.cost))
        pose = Pose(torch.where(better[:, None, None], tried.matrix, pose.matrix))
        damping = torch.where(better[:, None, None], damping * 0.3, damping * 10)
        going = going & (damping.flatten() < _HOPELESS)
        best = _chosen(better, after, best, ask)
    return pose, best.cost


def _chosen(better: Tensor, after: _Residual, best: _Residual, ask: bool = True) -> _Residual:
    """Sample by sample (B,), the one or the other."""
    if ask and bool(better.all()):
        return after
    if ask and not bool(better.any()):
        return best
    return _Residual(
        *(
            torch.where(better.view(-1, *[1] * (old.ndim - 1)), new, old)
            for new, old in zip(vars(after).values(), vars(best).values(), strict=True)
        )
    )


def _same_way(translation: Tensor, start: Tensor) -> Tensor:
    """(B,) whether a translation (B, 3) is a plausible length of the one to begin with.

    A rotation that is off by a degree is explained by a step of another length, or backwards.
    """
    ratio = (translation * start).sum(1) / start.square().sum(1)
    return (ratio >= _LENGTHS[0]) & (ratio <= _LENGTHS[1])  # False for NaN, too


def _residual(level: _Level, pose: Pose) -> _Residual:
    batch, _, height, width = level.points.shape
    moved = pose.transform(level.points.reshape(batch, 3, -1)).reshape(batch, 3, height, width)
    pixels, z = project(moved, level.K)
    x, y = pixels[:, :1], pixels[:, 1:]
    within = (x == x.clamp(1, width - 2)) & (y == y.clamp(1, height - 2))
    # As float: sums and products with booleans take PyTorch several times as long.
    seen = ((z > _NEAREST) & within).float()
    sampled = warp(level.previous, pixels)
    count = seen.sum((1, 2, 3), keepdim=True)
    difference = sampled[:, :1] - level.current
    brightness = (difference * seen).sum((1, 2, 3), keepdim=True) / count.clamp(min=1)
    difference = difference - brightness
    size = difference.abs()
    near = size.clamp(max=_HUBER)
    robust = near * (size - near / 2)
    cost = (robust * seen).sum((1, 2, 3)) / count.flatten().clamp(min=1)
    cost = cost.masked_fill(count.flatten() < _OVERLAP * height * width, torch.inf)
    weight = seen / (size / _HUBER).clamp(min=1)
    return _Residual(moved, sampled[:, 1:], difference, weight, cost)


def _step(level: _Level, at: _Residual, damping: Tensor, direction: Tensor | None = None) -> Pose:
    """A Levenberg-Marquardt step, as the motion (B, 4, 4) to put in front of the current one.

    direction: (B, 3), the only one to go in.
    """
    fx, fy = level.K[:, 0, 0].view(-1, 1, 1), level.K[:, 1, 1].view(-1, 1, 1)
    x, y, z = at.points.unbind(1)
    z = z.clamp(min=_NEAREST)
    along_x, along_y = at.gradient[:, 0] * fx / z, at.gradient[:, 1] * fy / z
    along_z = -(along_x * x + along_y * y) / z
    if direction is None:
        turn = (along_z * y - along_y * z, along_x * z - along_z * x, along_y * x - along_x * y)
        jacobian = torch.stack([along_x, along_y, along_z, *turn], dim=1).flatten(2)
    else:  # one unknown moves the three of the translation
        way = F.normalize(direction, dim=1)[..., None, None]
        moved = along_x * way[:, 0] + along_y * way[:, 1] + along_z * way[:, 2]
        jacobian = moved.flatten(1)[:, None]
    weighted = jacobian * at.weight.flatten(2)
    normal = weighted @ jacobian.mT
    gradient = weighted @ at.difference.flatten(2).mT
    diagonal = torch.diag_embed(normal.diagonal(dim1=1, dim2=2))
    floor = 1e-6 * torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    # Without the check, which reads from the device: a step that is not finite is never taken.
    change = -torch.linalg.solve_ex(normal + damping * diagonal + floor, gradient)[0][..., 0]
    if direction is None:
        return Pose.from_axis_angle(change[:, 3:], change[:, :3])
    straight = torch.eye(3, dtype=normal.dtype, device=normal.device).expand(len(normal), 3, 3)
    return Pose.from_rotation_translation(straight, change * way[..., 0, 0])
