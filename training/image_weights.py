"""ImageNet weights from a file: what `init:` of a recipe names.

The names inside are timm's. Where timm is installed, this makes a file::

    import timm
    from safetensors.torch import save_file

    net = timm.create_model("hrnet_w18", pretrained=True)  # or hrnet_w18_small, resnet18
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, "hrnet_w18.safetensors")

torchvision names ResNet-18 the same way, so its `resnet18-*.pth` serves as it is. A classifier's
weights may stay in the file. Files of PyTorch (.pth, .pt, .bin) are read without running code that
may be in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

_PYTORCH = (".pth", ".pt", ".bin", ".tar")
# Where training scripts put the weights inside of a checkpoint.
_WRAPPERS = ("state_dict", "model", "model_state_dict")


class ImageWeightsError(ValueError):
    """A file of weights that cannot be used; the message names the file and the cause."""


class TakesImageWeights(Protocol):
    """A network with a part that ImageNet weights fit: Student, PoseNet, CostVolumeNet."""

    def load_image_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load them. Raises ValueError where they do not fit."""


def load_image_weights(path: str | Path, network: TakesImageWeights) -> None:
    """Read a file and load it into the part of a network that ImageNet weights are for.

    That is a student's trunk, the encoder of the pose network "resnet18" (its first convolution
    doubled and halved for two images), and the encoder of the cost-volume network.

    Raises:
        ImageWeightsError: the file cannot be read, or does not fit: the message says which tensors
            are missing, unexpected or misshapen and which network the file seems to be of. The
            network is then as it was.
    """
    state = read_image_weights(path)
    try:
        network.load_image_weights(state)
    except ValueError as error:
        raise ImageWeightsError(f"{path}: {error}") from error


def read_image_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or PyTorch file, by name.

    Raises:
        ImageWeightsError: missing, of another kind, damaged, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageWeightsError(
            f"{path}: no such file; `init` names a file of ImageNet weights, see "
            "training/image_weights.py on how to make one"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _PYTORCH:
        return _tensors(path, _read_pytorch(path))
    raise ImageWeightsError(
        f"{path}: unknown kind of file; convert it to .safetensors (or .pth with tensors only)"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise ImageWeightsError(f"{path}: not readable as safetensors: {error}") from error


def _read_pytorch(path: Path) -> Any:
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ImageWeightsError(
            f"{path}: holds more than tensors, or is damaged, and is not opened (it could run "
            "code); save net.state_dict() alone, best as .safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ImageWeightsError(f"{path}: not readable as a PyTorch file: {error}") from error


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ImageWeightsError(f"{path}: holds {type(content).__name__}, no tensors by name")
    state = {str(k).removeprefix("module."): v for k, v in content.items() if _is_tensor(v)}
    if not state:
        raise ImageWeightsError(f"{path}: holds no tensors by name")
    return state


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
