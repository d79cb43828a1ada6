"""The one interface of all networks that look at several frames: depth, features, confidence.

`MultiFrameNet` (MISM) and `CostVolumeNet` (ManyDepth) implement it. A vehicle calls `features` and
`match`; training calls `match_many` and, where it learns, `observe`; RPrDepth's reference pixels
are read by `tap`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from depth_prior_ros.geometry import Pose

#: (b, ...) of this process -> all processes' (processes * b, ...), in the global batch's order.
Gather = Callable[[Tensor], Tensor]


class Features(NamedTuple):
    """Features of one frame.

    Attributes:
        matching: (B, C, H / 4, W / 4), compared between frames.
        context: what only the current frame's is used of; its shape is the network's affair
            (`feature_shapes`).
    """

    matching: Tensor
    context: Tensor


class Lookup(NamedTuple):
    """Another frame to compare with, past or future.

    Attributes:
        matching: its features (B, C, H / 4, W / 4).
        lookup_from_current: motion (B, 4, 4), translation in network units.
        valid: (B,) boolean, False where the frame is missing; None: there for all samples.
    """

    matching: Tensor
    lookup_from_current: Pose
    valid: Tensor | None = None


class TeacherOutput(Protocol):
    """What any of these networks returns, at least; depth in network units."""

    @property
    def depth(self) -> Tensor:
        """(B, 1, H, W)."""

    @property
    def depth_quarter(self) -> Tensor:
        """(B, 1, H / 4, W / 4)."""

    @property
    def confidence(self) -> Tensor:
        """(B, 1, H / 4, W / 4) in [0, 1]; not calibrated."""

    @property
    def hypotheses(self) -> Tensor:
        """(B, D, H / 4, W / 4) depths that were compared."""

    @property
    def best(self) -> Tensor:
        """(B, 1, H / 4, W / 4) index of the best matching hypothesis; at 0 or D - 1 the range is
        too narrow."""

    @property
    def depths(self) -> dict[int, Tensor]:
        """scale -> depth (B, 1, H / 2**scale, W / 2**scale), of the scales that were asked for."""


class Teacher(Protocol):
    """A network that refines a single-frame depth by comparing frames.

    Attributes:
        size: (H, W) of the input.
        architecture: what `build_multi_frame` builds it again from.
        training_buffers: names in the state dict that training needs to go on and a bundle does
            not keep.
        tap_channels: stride -> channels of the features that `tap` returns.
        uses_single_depth: whether hypotheses lie around the single-frame depth.
        lookup_gradient: whether lookup frames' features learn; where not, compute them under
            `torch.no_grad()`.
    """

    size: tuple[int, int]
    architecture: dict[str, Any]
    training_buffers: tuple[str, ...]
    tap_channels: Mapping[int, int]
    uses_single_depth: bool
    lookup_gradient: bool

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales that `match_many` can return."""

    def feature_shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(C, h, w) of `Features.matching` and of `Features.context`."""

    def features(self, image: Tensor) -> Features:
        """Features of a frame (B, 3, H, W), RGB in [0, 1]."""

    def match(
        self,
        current: Features,
        previous_matching: Tensor,
        previous_from_current: Tensor,
        K: Tensor,
        single_depth: Tensor,
    ) -> TeacherOutput:
        """Depth from the frame before: its matching features and the motion (B, 4, 4)."""

    def match_many(
        self,
        current: Features,
        lookups: Sequence[Lookup],
        K: Tensor,
        single_depth: Tensor,
        scales: Sequence[int] = (0,),
    ) -> TeacherOutput:
        """Depth from several frames, each present or missing for each sample."""

    def tap(self, current: Features, output: Any, stride: int) -> Tensor:
        """Features (B, C, H / stride, W / stride) of the current frame, C of `tap_channels`."""

    def load_image_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights by timm's names. Raises ValueError where they do not fit."""

    def observe(
        self, multi_depth: Tensor, single_depth: Tensor, gather: Gather | None = None
    ) -> None:
        """After a training step: let the range of hypotheses follow. Nothing in eval mode."""


def check_tap(stride: int, tap_channels: Mapping[int, int]) -> None:
    """Raise ValueError for a stride at which a teacher has no features."""
    if stride not in tap_channels:
        raise ValueError(
            f"this teacher has no features at stride {stride}: choose one of {sorted(tap_channels)}"
        )
