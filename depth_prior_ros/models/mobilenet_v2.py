"""MobileNetV2 (Sandler et al., arXiv 1801.04381) without batch norm: a trunk for small machines.

Batch normalisation is folded into the convolutions: rendered and real batches then share no
statistics in training, and several processes have none to exchange. A file of weights names its
tensors ``stem.0``, ``blocks.N.expand.0`` (not in block 0), ``blocks.N.depth.0`` and
``blocks.N.project.0``, each with ``.weight`` and ``.bias``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.models.trunk import (
    TRUNKS,
    Features,
    Trunk,
    check_image,
    draw_weight,
    fit_weights,
)

#: Expansion, channels, repeats and stride of the groups of blocks (table 2 of the paper).
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM = 32
#: The last block at each stride: the features there are its output, which is linear.
_LAST_BLOCKS = {2: 0, 4: 2, 8: 5, 16: 12, 32: 16}
_CHANNELS = {2: 16, 4: 24, 8: 32, 16: 96, 32: 320}
# Mean and deviation that torchvision and timm normalise images with.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCH_NORM_EPSILON = 1e-5


class _Convolution(nn.Sequential):
    """Convolution with bias; of stride 2, padded at the right and the bottom or at all sides."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, same: bool
    ) -> None:
        self_padded = same and stride == 2
        padding = 0 if self_padded else kernel // 2
        super().__init__(nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups))
        self.self_padded = self_padded

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride); H and W are even."""
        if self.self_padded:
            x = F.pad(x, (0, 1, 0, 1))
        output: Tensor = self[0](x)
        return output


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the input is added where the shape stays (3.4)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, same: bool) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = _Convolution(inputs, width, 1, 1, 1, same) if expansion != 1 else None
        self.depth = _Convolution(width, width, 3, stride, width, same)
        self.project = _Convolution(width, outputs, 1, 1, 1, same)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depth(y)))
        return x + y if self.adds else y


@TRUNKS.register("mobilenet_v2")
class MobileNetV2(Trunk):
    """The trunk: 1,795,936 parameters.

    Args:
        padding: of convolutions of stride 2: "same" as TensorFlow's SAME pads even sides (right and
            bottom only), or "symmetric" as PyTorch's models do. Weights belong to one of them.

    Attributes:
        channels: stride -> channels of the features there, one map each.

    Raises:
        ValueError: another padding.
    """

    def __init__(self, padding: str = "same") -> None:
        super().__init__()
        if padding not in ("same", "symmetric"):
            raise ValueError(f"unknown padding {padding!r}: choose 'same' or 'symmetric'")
        same = padding == "same"
        self.padding = padding
        self.stem = _Convolution(3, _STEM, 3, 2, 1, same)
        blocks, inputs = [], _STEM
        for expansion, outputs, repeats, stride in _GROUPS:
            for place in range(repeats):
                step = stride if place == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, step, expansion, same))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.channels = {stride: [width] for stride, width in _CHANNELS.items()}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # fan in: of a depthwise filter, nine values
                draw_weight(module, "fan_in")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Features:
        """Features of `image` (B, 3, H, W), RGB in [0, 1], at strides 2 to 32.

        Raises:
            ValueError: a wrong shape, or a side that is no multiple of 32.
        """
        check_image(image)
        x = F.relu6(self.stem(2 * image - 1))
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return {stride: [maps[number]] for stride, number in _LAST_BLOCKS.items()}

    def layers_to(self, stride: int) -> list[nn.Module]:
        """Stem and blocks up to the features at `stride`: what a recipe may keep as it is.

        Raises:
            ValueError: no features at that stride.
        """
        if stride not in _LAST_BLOCKS:
            raise ValueError(f"no features at stride {stride}: choose one of {sorted(_CHANNELS)}")
        return [self.stem, *self.blocks[: _LAST_BLOCKS[stride] + 1]]

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load weights with this module's names, or torchvision's or timm's ImageNet weights.

        Of the latter two, batch normalisation and the normalisation of the image are folded in.

        Raises:
            ValueError: a tensor is missing, unknown, or has another shape; or the weights were
                trained with another padding than this trunk's.
        """
        named = _from_torchvision(state) or _from_timm(state)
        if named is None:
            fit_weights(self, state, "mobilenet_v2", ignored=("classifier.",))
            return
        if self.padding != "symmetric":
            raise ValueError(
                "torchvision's and timm's MobileNetV2 pad at all sides: choose the trunk "
                "mobilenet_v2_symmetric for these weights"
            )
        fit_weights(self, _normalised_input(named), "mobilenet_v2")


@TRUNKS.register("mobilenet_v2_symmetric")
def mobilenet_v2_symmetric() -> MobileNetV2:
    """MobileNetV2 padded as torchvision's and timm's."""
    return MobileNetV2("symmetric")


def fold_batch_norm(
    weight: Tensor,
    norm: Mapping[str, Tensor],
    epsilon: float = _BATCH_NORM_EPSILON,
) -> tuple[Tensor, Tensor]:
    """Weight (O, I, k, k) and bias (O,) of a convolution that does its batch norm's work, too.

    Args:
        weight: of the convolution, which has no bias.
        norm: `weight`, `bias`, `running_mean`, `running_var`, each (O,).
        epsilon: what the batch norm adds to the variance.
    """
    # In float64, so that folding adds no rounding of its own.
    scale = norm["weight"].double() / (norm["running_var"].double() + epsilon).sqrt()
    bias = norm["bias"].double() - norm["running_mean"].double() * scale
    return (weight.double() * scale[:, None, None, None]).float(), bias.float()


def _fold(state: Mapping[str, Tensor], convolution: str, norm: str, name: str) -> dict[str, Tensor]:
    parts = {
        part: state[f"{norm}.{part}"]
        for part in ("weight", "bias", "running_mean", "running_var")
        if f"{norm}.{part}" in state
    }
    if len(parts) < 4 or f"{convolution}.weight" not in state:
        return {}  # named as missing by `fit_weights`
    weight, bias = fold_batch_norm(state[f"{convolution}.weight"], parts)
    return {f"{name}.0.weight": weight, f"{name}.0.bias": bias}


def _from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Folded and renamed; None where the names are not torchvision's `mobilenet_v2`."""
    if "features.1.conv.0.0.weight" not in state:
        return None
    result = _fold(state, "features.0.0", "features.0.1", "stem")
    for number in range(sum(repeats for _, _, repeats, _ in _GROUPS)):
        layers = [("depth", "0.0", "0.1"), ("project", "1", "2")]
        if number:
            layers = [("expand", "0.0", "0.1"), ("depth", "1.0", "1.1"), ("project", "2", "3")]
        for part, convolution, norm in layers:
            at = f"features.{number + 1}.conv"
            result |= _fold(state, f"{at}.{convolution}", f"{at}.{norm}", f"blocks.{number}.{part}")
    return result


def _from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Folded and renamed; None where the names are not timm's `mobilenetv2_100`."""
    if "conv_stem.weight" not in state or "blocks.1.0.conv_pwl.weight" not in state:
        return None
    result = _fold(state, "conv_stem", "bn1", "stem")
    number = 0
    for group, (expansion, _, repeats, _) in enumerate(_GROUPS):
        layers: Sequence[tuple[str, str, str]] = (
            [
                ("expand", "conv_pw", "bn1"),
                ("depth", "conv_dw", "bn2"),
                ("project", "conv_pwl", "bn3"),
            ]
            if expansion != 1
            else [("depth", "conv_dw", "bn1"), ("project", "conv_pw", "bn2")]
        )
        for place in range(repeats):
            for part, convolution, norm in layers:
                at = f"blocks.{group}.{place}"
                name = f"blocks.{number}.{part}"
                result |= _fold(state, f"{at}.{convolution}", f"{at}.{norm}", name)
            number += 1
    return result


def _normalised_input(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stem takes 2 x - 1 instead of (x - mean) / deviation.

    Beyond the frame zeros then mean .5 instead of the mean: the outermost row and column differ.
    """
    weight = state.get("stem.0.weight")
    if weight is None or weight.shape[1] != 3:
        return state
    mean, deviation = torch.tensor(_MEAN).double(), torch.tensor(_DEVIATION).double()
    offset = (weight.double() * ((0.5 - mean) / deviation)[:, None, None]).sum((1, 2, 3))
    scaled = weight.double() * (0.5 / deviation)[:, None, None]
    return {
        **state,
        "stem.0.weight": scaled.float(),
        "stem.0.bias": (state["stem.0.bias"].double() + offset).float(),
    }
