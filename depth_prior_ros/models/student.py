"""The single-frame network: a trunk, an optional prior fusion at one of its taps, a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depth_prior_ros.models.diffnet import DECODERS, FAR_BIAS, SCALES
from depth_prior_ros.models.hrnet import Features, build_trunk
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior, PriorFusion, ProjectedPrior


@dataclass(frozen=True)
class StudentOutput:
    """What a student returns.

    Attributes:
        disparity: scale -> sigmoid disparity (B, 1, H / 2**scale, W / 2**scale) in [0, 1], float32;
            `geometry.disparity_to_depth` makes depth of it.
        prior_inverse_depth: (B, 1, h, w) reference inverse depth of the prior at the tap, network
            units; None where no prior was fused.
        entropy: (B, 1, h, w) normalised entropy of the affinity; None unless asked for.
    """

    disparity: dict[int, Tensor]
    prior_inverse_depth: Tensor | None = None
    entropy: Tensor | None = None


class Student(nn.Module):
    """Image to disparity. DIFFNet (trunk "hrnet_w18", decoder "diffnet") has 10,869,100 parameters.

    Args:
        trunk: "hrnet_w18" or "hrnet_w18_small".
        decoder: "diffnet" or "light".
        fusion: sizes of the prior fusion, None for a plain student.
        far_bias: logit that the disparity heads start with.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(
        self,
        trunk: str = "hrnet_w18",
        decoder: str = "diffnet",
        fusion: FusionConfig | None = None,
        far_bias: float = FAR_BIAS,
    ) -> None:
        super().__init__()
        if decoder not in DECODERS:
            raise ValueError(f"unknown decoder {decoder!r}: choose one of {sorted(DECODERS)}")
        self.trunk = build_trunk(trunk)
        self.decoder = DECODERS[decoder](self.trunk.channels, far_bias=far_bias)
        # Last, so that one seed gives the same trunk and decoder with fusion and without.
        self.fusion = (
            None if fusion is None else PriorFusion(sum(self.trunk.channels[fusion.tap]), fusion)
        )
        self.architecture: dict[str, Any] = {
            "trunk": trunk,
            "decoder": decoder,
            "fusion": None if fusion is None else fusion.to_dict(),
        }

    def forward(
        self,
        image: Tensor,
        prior: Prior | ProjectedPrior | None = None,
        *,
        scales: Sequence[int] = SCALES,
        entropy: bool = False,
    ) -> StudentOutput:
        """Predict disparity for `image` (B, 3, H, W), RGB in [0, 1], sides multiples of 32.

        Args:
            image: the image.
            prior: reference pixels for the fusion; without them a student with fusion runs as the
                plain one (for training before there is a prior).
            scales: which of the scales 0 to 3 to compute.
            entropy: return the entropy of the affinity, too.

        Raises:
            ValueError: an image of a wrong shape, or a prior for a student without fusion.
        """
        features = self.trunk(image)
        if prior is None:
            return StudentOutput(self.decoder(features, scales))
        if self.fusion is None:
            raise ValueError("this student has no prior fusion: build it with one, or pass none")
        tap = self.fusion.config.tap
        fused = self.fusion(torch.cat(features[tap], dim=1), prior, entropy=entropy)
        sizes = self.trunk.channels[tap]
        mixed: Features = {**features, tap: list(fused.features.split(sizes, dim=1))}
        return StudentOutput(self.decoder(mixed, scales), fused.inverse_depth, fused.entropy)


def build_student(architecture: Mapping[str, Any]) -> Student:
    """Build a randomly initialised student from a bundle's or recipe's description.

    Args:
        architecture: `trunk`, `decoder`, `fusion` (mapping or None), optionally `far_bias`.

    Raises:
        ValueError: an unknown key or name.
    """
    values = dict(architecture)
    unknown = sorted(set(values) - {"trunk", "decoder", "fusion", "far_bias"})
    if unknown:
        raise ValueError(f"unknown student settings: {unknown}")
    fusion = values.pop("fusion", None)
    if fusion is not None and not isinstance(fusion, FusionConfig):
        fusion = FusionConfig.from_dict(fusion)
    return Student(fusion=fusion, **values)
