"""Pictures of what the networks of a stage see: rows of a few fixed training frames."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from depth_prior_ros.pages.colours import colour_inverse_depth
from training.data.triplets import TripletBatch, TripletSource
from training.stages.system import LookupFrame, System

_ROWS = 4


def fixed_batch(system: System, triplets: TripletSource) -> TripletBatch:
    """The same few triplets whenever it is asked for."""
    return triplets.batch(_ROWS, np.random.default_rng(7)).to(system.device)


@torch.no_grad()
def multi_depth(system: System, batch: TripletBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Single-frame depth, multi-frame depth, and its nearest hypothesis, (B, 1, ...) each.

    From the frames that the multi-frame network looks up, with the pose network's motion.
    """
    before, now, after = batch.images.unbind(1)
    single = system.single_depth(now)
    views = []
    for place in system.lookup:
        other = before if place < 0 else after
        motion = system.motion(other, now).inverse() if place < 0 else system.motion(now, other)
        views.append(system.aligned(now, LookupFrame(other, motion), batch.K, single))
    multi = system.multi(now, views, batch.K, single)
    return single, multi.depth, multi.hypotheses.amin(1, keepdim=True)


@torch.no_grad()
def system_pictures(system: System, triplets: TripletSource) -> dict[str, np.ndarray]:
    """Image, S, M and the nearest hypothesis side by side; and the PADS map."""
    if not system.matches:
        return {}
    batch = fixed_batch(system, triplets)
    single, multi, nearest = multi_depth(system, batch)
    size = (batch.images.shape[-1], batch.images.shape[-2])
    rows = []
    for i in range(len(single)):
        image = (batch.images[i, 1].permute(1, 2, 0).cpu().numpy() * 255).astype(np.uint8)
        maps = [colour_inverse_depth(_inverse(m[i], size)) for m in (single, multi, nearest)]
        rows.append(np.hstack([image, *maps]))
    found = {"multi/frame_single_multi_nearest": np.vstack(rows)}
    delta = getattr(system.multi_frame, "delta", None)
    if delta is not None:
        found["multi/pads_map"] = heat(delta[0, 0].cpu().numpy(), size)
    return found


def _inverse(depth: Tensor, size: tuple[int, int]) -> np.ndarray:
    inverse = (1 / depth[0]).cpu().numpy()
    return cv2.resize(inverse, size, interpolation=cv2.INTER_LINEAR)


def heat(values: np.ndarray, size: tuple[int, int], high: float = 2.0) -> np.ndarray:
    """A map (h, w) from 0 (dark) to ``high`` (bright) as a picture of ``size`` (W, H), RGB."""
    grey = (np.clip(values / high, 0, 1) * 255).astype(np.uint8)
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_NEAREST)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) with what the mask (H, W) removes in red."""
    out = image.copy()
    out[~mask] = (0.4 * out[~mask] + np.array([153, 0, 0])).astype(np.uint8)
    return out
