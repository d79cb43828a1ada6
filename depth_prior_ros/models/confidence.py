"""What the single-frame network says of its own depth, as a second output of exported files.

The node's confidence is another one, calibrated and made on demand: `depth_prior_ros.confidence`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A relative step of inverse depth between neighbours at which confidence falls to 1 / e.
_EDGE = 0.1


def single_frame_confidence(inverse_depth: Tensor) -> Tensor:
    """How flat the inverse depth is around a pixel.

    Depth edges are where single-frame networks bleed, and this says no more than that a pixel lies
    near one. It is not calibrated against errors.

    Args:
        inverse_depth: (B, 1, H, W), positive.

    Returns:
        (B, 1, H, W) in (0, 1]: exp(-s / 0.1), s the larger of the mean relative differences to the
        neighbours left and right, and above and below.
    """
    padded = F.pad(inverse_depth, (1, 1, 1, 1), mode="replicate")
    horizontal = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]).abs()
    vertical = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]).abs()
    step = torch.maximum(horizontal, vertical) / (2 * inverse_depth)
    return torch.exp(-step / _EDGE)
