"""What a trunk is: an image to features by stride; and the names under which trunks are found.

A new trunk is one module of this room: a `Trunk` and a function that builds it, under
`@TRUNKS.register(name)`. It can be had in recipes and bundles from then on.

The one rule all networks share about what they accept.

ImageNet weights in timm's naming: do they fit a network, and if not, why, in words.

Here are state dicts only; `training.runs.initialise` reads files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from depth_prior_ros.registry import Registry

#: Every side of a network input is a multiple of this, the deepest stride of the trunks.
SIDE_MULTIPLE = 32


def check_size(height: int, width: int, name: str = "image") -> None:
    """Raise ValueError unless both sides are positive multiples of 32."""
    if height <= 0 or width <= 0 or height % SIDE_MULTIPLE or width % SIDE_MULTIPLE:
        raise ValueError(
            f"{name} is {width}x{height} (width x height): both sides must be positive multiples "
            f"of {SIDE_MULTIPLE}; resize it first, for example to 320x96 or 640x192"
        )


def check_image(image: Tensor, name: str = "image", channels: int = 3) -> None:
    """Raise ValueError unless `image` is (B, channels, H, W) with sides that the networks take.

    Does nothing while a graph is traced for export: there the example input was checked before.
    """
    if torch.jit.is_tracing():
        return
    if image.dim() != 4:
        raise ValueError(f"{name} has shape {tuple(image.shape)}: expected (B, {channels}, H, W)")
    if image.shape[1] != channels:
        raise ValueError(f"{name} has {image.shape[1]} channels: expected {channels}")
    check_size(int(image.shape[2]), int(image.shape[3]), name)


def draw_weight(convolution: nn.Conv2d, mode: Literal["fan_in", "fan_out"]) -> None:
    """He initialisation; nothing for a network on "meta", whose tensors have shapes alone: to draw
    no numbers there PyTorch imports its compiler, a second at the start of every program."""
    if not convolution.weight.is_meta:
        nn.init.kaiming_normal_(convolution.weight, mode=mode, nonlinearity="relu")


# How many names of a kind an error lists before it says "...".
_NAMED = 3
# Share of the tensors, by name and shape, that have to agree for a state dict to be of a trunk.
_ALIKE = 0.9


def recognise(state: Mapping[str, Tensor]) -> str:
    """Which trunk a state dict seems to belong to, for error messages: "resnet18" etc."""
    if not state:
        return "nothing (it is empty)"
    given = {(name, tensor.shape) for name, tensor in state.items()}
    for name, build in TRUNKS.items():
        wanted = _tensors(build)
        if len(given & wanted) >= _ALIKE * len(given | wanted):
            return name
    first = ", ".join(sorted(state)[:_NAMED])
    return f"a network unknown here (its first tensors are {first})"


@functools.cache
def _tensors(build: Callable[[], nn.Module]) -> frozenset[tuple[str, torch.Size]]:
    """Name and shape of everything that a trunk holds."""
    with torch.device("meta"):
        return frozenset((key, tensor.shape) for key, tensor in build().state_dict().items())


def fit_weights(
    module: nn.Module, state: Mapping[str, Tensor], name: str, ignored: Sequence[str] = ()
) -> None:
    """Load `state` into `module`, every tensor of it, or leave the module as it was.

    Args:
        module: the network.
        state: tensors by timm's names.
        name: what the network is called, for the error.
        ignored: beginnings of names that are left out, such as a classifier's.

    Raises:
        ValueError: tensors are missing, unknown or of another shape; the message lists some of
            each and says which network the tensors seem to be of.
    """
    given = {k: v for k, v in state.items() if not k.startswith(tuple(ignored))}
    wanted = module.state_dict()
    # Left out by files of very old versions of PyTorch; only a momentum of None reads it.
    counters = {k for k in set(wanted) - set(given) if k.endswith(".num_batches_tracked")}
    missing = sorted(set(wanted) - set(given) - counters)
    unknown = sorted(set(given) - set(wanted))
    shapes = [
        f"{k} has shape {tuple(given[k].shape)} where {tuple(wanted[k].shape)} is needed"
        for k in sorted(set(given) & set(wanted))
        if given[k].shape != wanted[k].shape
    ]
    problems = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (("missing", missing), ("unexpected", unknown), ("misshapen", shapes))
        if names
    ]
    if problems:
        raise ValueError(
            f"these weights do not fit {name}: {'; '.join(problems)}. They seem to be of "
            f"{recognise(state)}"
        )
    with torch.no_grad():
        module.load_state_dict({**{k: wanted[k] for k in counters}, **given}, strict=True)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


#: stride -> tensors (B, C_i, H / stride, W / stride).
Features = dict[int, list[Tensor]]


class Trunk(nn.Module):
    """The encoder of a single-frame network.

    Attributes:
        channels: stride -> channels of each of its feature maps, for strides 2, 4, 8, 16 and 32.
    """

    channels: dict[int, list[int]]

    def forward(self, image: Tensor) -> Features:
        """Features of `image` (B, 3, H, W), RGB in [0, 1], sides multiples of 32."""
        raise NotImplementedError

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights by timm's names, without those of its classifier (`fit_weights`).

        Raises ValueError where they do not fit.
        """
        raise NotImplementedError

    def layers_to(self, stride: int) -> list[nn.Module]:
        """The layers up to the features at `stride`: what a recipe may keep as it is.

        Raises ValueError where there are no features at that stride, or for a trunk that does not
        tell its layers apart.
        """
        raise ValueError("this trunk cannot be frozen in part")


TRUNKS: Registry[Callable[[], Trunk]] = Registry("trunk", __package__)


def check_features(features: Features, channels: dict[int, list[int]]) -> None:
    """Raise ValueError unless `features` has the strides and channels that `channels` names."""
    if torch.jit.is_tracing():
        return
    found = {stride: [tensor.shape[1] for tensor in level] for stride, level in features.items()}
    if found != channels:
        raise ValueError(f"features have channels {found}: this decoder was built for {channels}")
