"""The single-frame network: a trunk, an optional prior fusion at one of its strides, a decoder.

Five numbers may tell it which camera it looks through, and how that is mounted: from one image
alone, height, pitch and focal length cannot be told apart from the size of things. A student that
is told them while it learns on rendered streets can have them fitted, as latent numbers, on a
recording of another camera afterwards, with all weights kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from depth_prior_ros.geometry.warping import (
    MAX_DEPTH,
    MIN_DEPTH,
    depth_to_disparity,
    disparity_to_depth,
)
from depth_prior_ros.models.decoder import DECODERS, FAR_BIAS
from depth_prior_ros.models.episodic_prior import (
    KEY_STRIDES,
    EpisodicConfig,
    EpisodicPrior,
    ProjectedReferences,
    corrected,
    pooled_depth,
)
from depth_prior_ros.models.prior_fusion import (
    FusionConfig,
    Prior,
    PriorFusion,
    ProjectedPrior,
    blend_disparity,
)
from depth_prior_ros.models.trunk import TRUNKS, Features

#: Height, pitch, roll, focal length, principal row; all are zero for KITTI's camera.
NUMBERS = 5
STRIDES = (16, 8)
#: The numbers of a camera whose picture is mirrored are these times its own.
MIRROR = (1.0, 1.0, -1.0, 1.0, 1.0)
_WIDTH = 64
# KITTI's camera: metres above the road; focal length in image widths; principal row in heights.
_HEIGHT, _FOCAL, _ROW = 1.65, 0.581, 0.461
# What counts as one: metres, radians, radians, log of a ratio, image heights.
_UNITS = (0.5, math.radians(2.9), math.radians(1.1), math.log(1.35), 0.035)


def camera_code(
    mount: NDArray[np.float32], K: NDArray[np.float32], size: tuple[int, int]
) -> NDArray[np.float32]:
    """The numbers (5,) of a camera.

    Args:
        mount: height above the road in metres, pitch (up is positive) and roll in radians.
        K: (3, 3), pixels of the input.
        size: width and height of the input.
    """
    width, height = size
    values = (
        float(mount[0]) - _HEIGHT,
        float(mount[1]),
        float(mount[2]),
        math.log(float(K[0, 0]) / width / _FOCAL),
        float(K[1, 2]) / height - _ROW,
    )
    return (np.array(values) / np.array(_UNITS)).astype(np.float32)


class CameraCode(nn.Module):
    """Adds what the numbers and the place in the image say to features at strides 16 and 8.

    At first it adds nothing, so a student that was trained without it can go on with it.

    Args:
        channels: stride -> channels of the trunk's features there.
    """

    def __init__(self, channels: Mapping[int, Sequence[int]]) -> None:
        super().__init__()
        self.channels = {stride: list(channels[stride]) for stride in STRIDES}
        self.hidden, self.added = nn.ModuleDict(), nn.ModuleDict()
        for stride, widths in self.channels.items():
            inputs = sum(widths) + 3 + 2 * NUMBERS
            self.hidden[str(stride)] = nn.Conv2d(inputs, _WIDTH, 1)
            added = nn.Conv2d(_WIDTH, sum(widths), 1)
            nn.init.zeros_(added.weight)
            assert added.bias is not None
            nn.init.zeros_(added.bias)
            self.added[str(stride)] = added

    def forward(self, features: Features, code: Tensor) -> Features:
        """The trunk's features, those at strides 16 and 8 changed; `code` is (B, 5)."""
        result = dict(features)
        for stride, widths in self.channels.items():
            x = torch.cat(features[stride], dim=1)
            hidden = self.hidden[str(stride)](torch.cat([x, _place(x, code)], dim=1))
            changed = x + self.added[str(stride)](F.elu(hidden))
            result[stride] = list(changed.split(widths, dim=1))
        return result


def _place(x: Tensor, code: Tensor) -> Tensor:
    """Row, its square, column, the numbers, and the numbers times row: (B, 3 + 10, h, w)."""
    batch, _, height, width = x.shape
    rows = torch.linspace(-1, 1, height, dtype=x.dtype, device=x.device).view(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, width, dtype=x.dtype, device=x.device).view(1, 1, 1, -1)
    rows = rows.expand(batch, 1, height, width)
    columns = columns.expand(batch, 1, height, width)
    numbers = code.to(x.dtype)[:, :, None, None].expand(batch, NUMBERS, height, width)
    return torch.cat([rows, rows * rows, columns, numbers, numbers * rows], dim=1)


@dataclass(frozen=True)
class StudentOutput:
    """What a student returns.

    Attributes:
        disparity: scale -> sigmoid disparity (B, 1, H / 2**scale, W / 2**scale) in [0, 1], float32;
            `geometry.disparity_to_depth` makes depth of it. With references scale 0 is corrected by
            them, alone, and may leave that range.
        prior_inverse_depth: (B, 1, h, w) reference inverse depth of the prior, network units; None
        where no prior was fused, or without the pixel-wise branch.
        entropy: (B, 1, h, w) normalised entropy of the affinity; None unless asked for.
        prior_weight: (B, 1, h, w) weight of the looked-up depth in the disparity; None where the
            fusion does not blend.
    """

    disparity: dict[int, Tensor]
    prior_inverse_depth: Tensor | None = None
    entropy: Tensor | None = None
    prior_weight: Tensor | None = None


class Student(nn.Module):
    """Image to disparity: any trunk with any decoder.

    | trunk | decoder | parameters | GMAC at 640x192 |
    |---|---|---|---|
    | hrnet_w18 | diffnet | 10,869,100 | 11.84 (DIFFNet) |
    | hrnet_w18 | ra_depth | 9,978,849 | 10.56 (RA-Depth, MISM) |
    | resnet18 | monodepth2 | 14,329,236 | 8.01 (monodepth2) |

    Args:
        trunk: one of `TRUNKS`.
        decoder: one of `DECODERS`; "ra_depth" has scale 0 only.
        fusion: sizes of the prior fusion, None for a plain student.
        far_bias: logit that the disparity heads start with.
        camera_code: whether it is told its camera, see `CameraCode`.
        episodic: sizes of the look-up of references, see `models.episodic_prior`; None: none.

    Raises:
        ValueError: an unknown name, a stride of the fusion that the trunk has not, or a look-up for
            a decoder without a map at 1/8.
    """

    def __init__(
        self,
        trunk: str = "hrnet_w18",
        decoder: str = "diffnet",
        fusion: FusionConfig | None = None,
        far_bias: float = FAR_BIAS,
        camera_code: bool = False,
        episodic: EpisodicConfig | None = None,
    ) -> None:
        super().__init__()
        self.trunk = TRUNKS[trunk]()
        self.decoder = DECODERS[decoder](self.trunk.channels, far_bias=far_bias)
        # Last, and with the random state put back, so that one seed gives the same trunk and
        # decoder, and whatever is built after them, with fusion and without.
        with torch.random.fork_rng(devices=[]):
            self.fusion = None if fusion is None else self._build_fusion(fusion, trunk)
            self.camera_code = CameraCode(self.trunk.channels) if camera_code else None
            self.episodic = None if episodic is None else self._build_episodic(episodic, decoder)
        self.architecture: dict[str, Any] = {
            "trunk": trunk,
            "decoder": decoder,
            "fusion": None if fusion is None else fusion.to_dict(),
        }
        if camera_code:
            self.architecture["camera_code"] = True
        if episodic is not None:
            self.architecture["episodic"] = episodic.to_dict()

    def _build_episodic(self, config: EpisodicConfig, decoder: str) -> EpisodicPrior:
        eighth = self.decoder.EIGHTH
        if eighth is None:
            raise ValueError(f"episodic: decoder {decoder} has no map at 1/8 that looks up")
        keys = sum(sum(self.trunk.channels[stride]) for stride in KEY_STRIDES)
        return EpisodicPrior(eighth, keys, config)

    def _build_fusion(self, config: FusionConfig, trunk: str) -> PriorFusion:
        if config.stride not in self.trunk.channels:
            strides = ", ".join(str(stride) for stride in sorted(self.trunk.channels))
            raise ValueError(f"{trunk} has no features at stride {config.stride}: only {strides}")
        return PriorFusion(sum(self.trunk.channels[config.stride]), config)

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales that the decoder has: (0, 1, 2, 3), or (0,) of "ra_depth"."""
        return self.decoder.scales

    def load_image_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights by timm's names into the trunk; the rest is left as it is.

        Raises:
            ValueError: they do not fit; the message says what is missing, unexpected or misshapen
                and which network they seem to be of.
        """
        self.trunk.load_weights(state)

    def forward(
        self,
        image: Tensor,
        prior: Prior | ProjectedPrior | None = None,
        *,
        scales: Sequence[int] | None = None,
        entropy: bool = False,
        depth_range: tuple[float, float] = (MIN_DEPTH, MAX_DEPTH),
        code: Tensor | None = None,
        references: ProjectedReferences | None = None,
    ) -> StudentOutput:
        """Predict disparity for `image` (B, 3, H, W), RGB in [0, 1], sides multiples of 32.

        Args:
            image: the image.
            prior: reference pixels for the fusion; without them a student with fusion runs as the
                plain one (for training before there is a prior).
            scales: which of `self.scales` to compute; None: all of them.
            entropy: return the entropy of the affinity, too.
            depth_range: smallest and largest depth that the disparity stands for, network units:
                what is looked up is mixed in as depth.
            code: (B, 5) numbers of the camera; None: KITTI's.
            references: what it looks up of its own camera, for every image or for all of them, see
                `EpisodicPrior.project`; scale 0 is corrected by them. None: nothing.

        Raises:
            ValueError: an image of a wrong shape, a prior for a student without fusion, references
                for one without look-up, or a scale that the decoder has not.
        """
        features = self.features(image, code)
        return self.decode(
            features,
            prior,
            scales=scales,
            entropy=entropy,
            depth_range=depth_range,
            references=references,
        )

    def decode(
        self,
        features: Features,
        prior: Prior | ProjectedPrior | None = None,
        *,
        scales: Sequence[int] | None = None,
        entropy: bool = False,
        depth_range: tuple[float, float] = (MIN_DEPTH, MAX_DEPTH),
        references: ProjectedReferences | None = None,
    ) -> StudentOutput:
        """Disparity of features that are told the camera already; see `forward`."""
        fused = None
        if prior is not None:
            fused = self._fusion()(self.at_fusion(features), prior, entropy=entropy)
            features = self.with_fused(features, fused.features)
        disparity, maps = self.decoder.with_maps(features, scales)
        if fused is not None:
            disparity = {s: blend_disparity(d, fused, *depth_range) for s, d in disparity.items()}
        if references is not None and 0 in disparity:
            inverse, _ = disparity_to_depth(disparity[0], *depth_range)
            depth = 1 / self.look_up(inverse, maps, references)
            disparity = {**disparity, 0: depth_to_disparity(depth, *depth_range)}
        if fused is None:
            return StudentOutput(disparity)
        return StudentOutput(disparity, fused.inverse_depth, fused.entropy, fused.weight)

    def look_up(
        self, inverse: Tensor, maps: Mapping[int, Tensor], found: ProjectedReferences
    ) -> Tensor:
        """Inverse depth (B, 1, H, W) as references correct it; `maps` of the decoder.

        Raises:
            ValueError: a student without look-up.
        """
        if self.episodic is None:
            raise ValueError("this student looks no references up: build it with episodic")
        return corrected(inverse, self.episodic(maps[3], pooled_depth(inverse), found))

    def features(self, image: Tensor, code: Tensor | None = None) -> Features:
        """The trunk's features of `image` (B, 3, H, W), told the camera where the student is.

        Raises:
            ValueError: an image of a wrong shape, or a code for a student that takes none.
        """
        return self.told(self.trunk(image), code)

    def told(self, features: Features, code: Tensor | None = None) -> Features:
        """The trunk's features as they are where the student is told a camera's `code` (B, 5).

        Raises:
            ValueError: a code for a student that takes none.
        """
        if self.camera_code is not None:
            like = features[32][0]
            code = like.new_zeros((len(like), NUMBERS)) if code is None else code
            return self.camera_code(features, code)
        if code is not None:
            raise ValueError("this student is not told its camera: build it with camera_code")
        return features

    def fusion_features(self, image: Tensor) -> Tensor:
        """F_s (B, C, h, w) of `image` (B, 3, H, W) at the fusion's stride: what looks up the prior.

        Raises:
            ValueError: an image of a wrong shape, or a student without fusion.
        """
        self._fusion()
        return self.at_fusion(self.features(image))

    def at_fusion(self, features: Features) -> Tensor:
        """The trunk's features at the fusion's stride in one tensor (B, C, h, w)."""
        return torch.cat(features[self._fusion().config.stride], dim=1)

    def with_fused(self, features: Features, fused: Tensor) -> Features:
        """The trunk's features with `fused` (B, C, h, w) in place of those at the stride."""
        stride = self._fusion().config.stride
        return {**features, stride: list(fused.split(self.trunk.channels[stride], dim=1))}

    def _fusion(self) -> PriorFusion:
        if self.fusion is None:
            raise ValueError("this student has no prior fusion: build it with one, or pass none")
        return self.fusion


def build_student(architecture: Mapping[str, Any]) -> Student:
    """Build a randomly initialised student from a bundle's or recipe's description.

    Args:
        architecture: `trunk`, `decoder`, `fusion` (mapping or None), optionally `far_bias`,
            `camera_code` and `episodic` (mapping or None).

    Raises:
        ValueError: an unknown key or name.
    """
    values = dict(architecture)
    known = {"trunk", "decoder", "fusion", "far_bias", "camera_code", "episodic"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown student settings: {unknown}")
    fusion = values.pop("fusion", None)
    if fusion is not None and not isinstance(fusion, FusionConfig):
        fusion = FusionConfig.from_dict(fusion)
    episodic = values.pop("episodic", None)
    if episodic is not None and not isinstance(episodic, EpisodicConfig):
        episodic = EpisodicConfig.from_dict(episodic)
    return Student(fusion=fusion, episodic=episodic, **values)
