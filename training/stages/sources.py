"""Which pictures explain a frame: those before and after, its stereo partner, or all three.

The modes M, S and MS of monodepth2 (section 4). The stereo partner is one more source, with a
motion that is known, in metres; the minimum over the sources and the auto-mask take it as the
others, as monodepth2's code does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.batch import TripletBatch
from training.losses.views import Views
from training.recipes.data import Mode


def motion_sources(images: Tensor, mode: Mode) -> Tensor:
    """Previous and next frame (2, B, 3, H, W) of triplets (B, 3, 3, H, W); none in mode S."""
    before, _, after = images.unbind(1)
    return torch.stack([before, after])[: 0 if mode == "S" else 2]


def views_of(batch: TripletBatch, K: Tensor, sources: Tensor, poses: Tensor) -> Views:
    """The sources of a batch, and the stereo partner behind them where it has one.

    Args:
        batch: of the target frames.
        K: intrinsics of targets and sources in pixels (B, 3, 3).
        sources: previous and next frame (2, B, 3, H, W); none in mode S.
        poses: source_from_target (2, B, 4, 4), network units.
    """
    if batch.partner is None:
        return Views.of(sources, K, poses)
    assert batch.partner_pose is not None
    assert batch.partner_K is not None
    images = torch.cat([sources, batch.partner[None]])
    motions = torch.cat([poses, batch.partner_pose[None].to(poses)])
    through = [K[None].expand(len(sources), -1, -1, -1), batch.partner_K[None]]
    return Views.of(images, K, motions, torch.cat(through))
