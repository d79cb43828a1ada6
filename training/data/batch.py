"""Batches, as the losses and the networks get them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from training.loop.distributed import to_device


def _unknown() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass
class StepBatch:
    """What a step on real frames is computed from.

    triplets: recorded frames. pairs: rendered ones for rehearsal, a `PairBatch`. prior: the
    reference pixels that the student looks up in this step, where another part is drawn each time.
    """

    triplets: TripletBatch
    pairs: Any = None
    prior: Any = None


@dataclass
class TripletBatch:
    """A batch of triplets; image order is previous, current, next.

    images: (B, 3, 3, H, W), as recorded; inputs: the same with changed colours, for the networks.
    K: (B, 3, 3) in pixels. poses: previous_from_current and next_from_current (B, 2, 4, 4) in
    network units, the identity where they were not recorded; known: (B,) whether they were.
    travel: metres from previous to current and from current to next (B, 2), by recorded poses or
    speeds; NaN where neither was recorded.

    drive and triplet: (B,) int64, which triplet of which drive of its source is shown (the one that
    replaced a corrupt one); -1 where unknown. mirrored: (B,) bool, whether images, K and poses are
    those of the mirrored scene. teacher_images: (B, 3, 3, H2, W2), the same frames at a second,
    larger size, as recorded (mirrored like ``images``), with teacher_K (B, 3, 3) in its pixels;
    None where the source has one size only. partner: (B, 3, H, W), the stereo partner of the
    current frame as recorded, with partner_K (B, 3, 3) in its pixels and partner_pose (B, 4, 4),
    partner_from_current in network units; None in mode M. teacher_depth: (B, 1, H2, W2) and
    teacher_motions (B, 2, 4, 4), like ``poses``: what the prior's teacher says of the triplets;
    None where nobody asked.
    """

    images: Tensor
    inputs: Tensor
    K: Tensor
    poses: Tensor
    known: Tensor
    travel: Tensor = field(default_factory=lambda: torch.empty(0, 2))
    drive: Tensor = field(default_factory=_unknown)
    triplet: Tensor = field(default_factory=_unknown)
    mirrored: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    teacher_images: Tensor | None = None
    teacher_K: Tensor | None = None  # noqa: N815  as K
    teacher_depth: Tensor | None = None
    teacher_motions: Tensor | None = None
    partner: Tensor | None = None
    partner_K: Tensor | None = None  # noqa: N815  as K
    partner_pose: Tensor | None = None

    def __post_init__(self) -> None:
        count, device = len(self.known), self.known.device
        if len(self.travel) != count:
            self.travel = torch.full((count, 2), torch.nan, device=device)
        if len(self.drive) != count:
            self.drive = torch.full((count,), -1, device=device)
        if len(self.triplet) != count:
            self.triplet = torch.full((count,), -1, device=device)
        if len(self.mirrored) != count:
            self.mirrored = torch.zeros(count, dtype=torch.bool, device=device)

    def to(self, device: torch.device) -> TripletBatch:
        """The same batch on another device."""
        return to_device(self, device)
