"""What networks begin with: random numbers, ImageNet weights, or another run's checkpoint.

ImageNet weights from a file: what `init:` of a recipe names.

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

import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.models.matching import PadsMap
from depth_prior_ros.models.prior_fusion import FusionConfig
from depth_prior_ros.share import bundle_path
from depth_prior_ros.untrusted import NETWORK_BYTES, UntrustedFileError, check_regular
from training.recipes.base import RecipeError

if TYPE_CHECKING:
    from training.recipes.recipe import Recipe
    from training.stages.system import System

_PYTORCH = (".pth", ".pt", ".bin", ".tar")
# Where training scripts put the weights inside of a checkpoint.
_WRAPPERS = ("state_dict", "model", "model_state_dict")


class ImageWeightsError(ValueError):
    """A file of weights that cannot be used; the message names the file and the cause."""


def read_image_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or PyTorch file, by name, for a network's `load_image_weights`.

    That loads them into a student's trunk, the encoder of the pose network "resnet18" (its first
    convolution doubled and halved for two images), or the encoder of the cost-volume network.

    Raises:
        ImageWeightsError: missing, of another kind, damaged, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageWeightsError(
            f"{path}: no such file; `init` names a file of ImageNet weights, see "
            "training/runs/initialise.py on how to make one"
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
        check_regular(path)
        return dict(load_file(path))
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a type that torch has not
        raise ImageWeightsError(f"{path}: not readable as safetensors: {error}") from error


def _read_pytorch(path: Path) -> Any:
    import pickle

    import torch

    try:
        check_regular(path)
        _check_packed(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ImageWeightsError(
            f"{path}: holds more than tensors, or is damaged, and is not opened (it could run "
            "code); save net.state_dict() alone, best as .safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ImageWeightsError(f"{path}: not readable as a PyTorch file: {error}") from error


def _check_packed(path: Path) -> None:
    """Raise UntrustedFileError where a file (a zip archive) becomes too large."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > NETWORK_BYTES:
        raise UntrustedFileError(
            f"{path}: unpacks to {size:,} bytes, {NETWORK_BYTES:,} are the most"
        )


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ImageWeightsError(f"{path}: holds {type(content).__name__}, no tensors by name")
    state = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        raise ImageWeightsError(f"{path}: holds no tensors by name")
    return state


# Settings of a fusion that its weights do not tell, by their names in a recipe.
_SILENT = ("heads", "depth_input", "normalise", "activation")


def initialise(system: System, recipe: Recipe) -> str:
    """Load what ``start`` or ``init`` of a recipe name; says in words what was done.

    Raises:
        RecipeError: a file is missing, damaged, or made for other networks.
    """
    if recipe.start is not None and not Path(recipe.start).is_file():
        note = _start_with_bundle(system, load_bundle(recipe.start), recipe.start_networks)
        return "; ".join([note, *_load_files(system, recipe)])
    if recipe.start is not None:
        start_from(Path(recipe.start), system, fresh_fusion=not _selects_at_once(recipe))
        return f"the networks begin with {recipe.start}"
    if recipe.prior is not None:
        _begin_with_bundle(system, load_bundle(recipe.prior))
        return f"the networks begin with the bundle {recipe.prior}, which is rounded to half"
    loaded = _load_files(system, recipe)
    if not loaded:
        return "no trained weights to begin with (init, start): the networks start at random"
    return f"{'; '.join(loaded)}; the rest starts at random"


def _load_files(system: System, recipe: Recipe) -> list[str]:
    """The encoders' weights that ``init`` names; a sentence for each network that has some."""
    files = {name: path for name, path in recipe.init if path is not None}
    for name, path in files.items():
        network = system.networks[name]
        try:
            network.load_image_weights(read_image_weights(Path(path)))  # type: ignore[operator]
        except (OSError, ValueError) as error:
            raise RecipeError(f"init.{name}: {error}") from error
    return [f"weights of {path} for {name}" for name, path in files.items()]


def _start_with_bundle(system: System, bundle: Bundle, wanted: tuple[str, ...]) -> str:
    """Begin with those of a bundle's networks that are built as the recipe's are.

    A student may lack the camera code, which adds nothing at first, or the look-up of references,
    or have a look-up or a prior fusion that the recipe's has not, which is left out. The PADS map
    belongs to an input size, so it begins anew at another one.

    Raises:
        RecipeError: none of the networks is.
    """
    taken, left = [], []
    for part, network in system.networks.items():
        if part not in wanted or not bundle.has(part):  # type: ignore[arg-type]
            continue
        state = getattr(bundle, part)().state_dict()
        if isinstance(network, PadsMap):
            state = _of_this_size(state, network)
        own = network.state_dict()
        for part_of in ("fusion.", "episodic."):
            if not any(name.startswith(part_of) for name in own):
                state = {name: t for name, t in state.items() if not name.startswith(part_of)}
        fits = all(name in own and own[name].shape == t.shape for name, t in state.items())
        new = {name for name, _ in network.named_parameters()} - set(state)
        if fits and all(name.startswith(("camera_code.", "episodic.")) for name in new):
            network.load_state_dict(state, strict=False)
            taken.append(part)
        else:
            left.append(part)
    if not taken:
        raise RecipeError(
            f"start: no network of the bundle {bundle.path} is built as the recipe's ("
            f"{', '.join(left)})"
        )
    others = f" ({', '.join(left)}: built otherwise, not taken over)" if left else ""
    return f"{', '.join(taken)} begin with the bundle {bundle.path}{others}"


def _begin_with_bundle(system: System, bundle: Bundle) -> None:
    """The networks of a bundle; those that it lacks stay as they are."""
    _refuse_other_fusion(system, bundle)
    for part in ("student", "pose", "multi_frame"):
        if bundle.has(part):
            state = getattr(bundle, part)().state_dict()
            _load(system.networks[part], state, f"prior: bundle {bundle.path}, network '{part}'")


def _refuse_other_fusion(system: System, bundle: Bundle) -> None:
    """Raise RecipeError where a bundle's fusion would read its prior in another way than before."""
    fusion = system.student.fusion
    values = bundle.manifest.architecture.student.get("fusion")
    if fusion is None or not values:
        return  # what is missing on one side is found by the weights
    had, wanted = FusionConfig.from_dict(values), fusion.config
    other = [name for name in _SILENT if getattr(had, name) != getattr(wanted, name)]
    if other:
        pairs = ", ".join(f"{n}: {getattr(wanted, n)}, not {getattr(had, n)}" for n in other)
        raise RecipeError(
            f"networks.fusion ({pairs}): the student of bundle {bundle.path} reads its prior in "
            "another way; set what it has"
        )


def look_for(key: str, path: str) -> None:
    """Refuse a checkpoint that is not there, with what would be one.

    Raises:
        RecipeError: names the key of the recipe and the file.
    """
    file = Path(path)
    if file.is_file():
        return
    if key == "start":
        with suppress(FileNotFoundError):
            bundle_path(path)
            return
    bundle = "; a bundle will not do" if file.is_dir() else ""
    parts = file.parts
    run = (
        f"; run that recipe first ({parts[1]})" if parts[:1] == ("runs",) and len(parts) > 2 else ""
    )
    raise RecipeError(
        f"{key}: {path} is not a checkpoint: the last.safetensors of a stage of another run is "
        f"wanted{bundle}{run}; {key}=null goes without"
    )


def _selects_at_once(recipe: Recipe) -> bool:
    """Whether a prior is selected before any stage has trained the student that looks it up."""
    for stage in recipe.stages:
        if stage.reads_prior or stage.selects:
            return stage.selects
    return False


def start_from(
    path: Path, system: System, key: str = "start", *, fresh_fusion: bool = True
) -> None:
    """Load all networks from a checkpoint (last.safetensors); buffers it lacks stay as they are.

    A PADS map belongs to its input size: with ``start``, one of another size is left out, and the
    map begins anew. ``key`` of the recipe names the file in errors. A prior's fusion that the
    checkpoint lacks begins as a part that changes nothing, where ``fresh_fusion`` allows it.

    Raises:
        RecipeError: the file cannot be read or belongs to other networks.
    """
    try:
        check_regular(path)
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError) as error:
        raise RecipeError(f"{key}: checkpoint {path} cannot be read: {error}") from error
    for name, network in system.networks.items():
        prefix = f"net.{name}."
        own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        if key == "start" and isinstance(network, PadsMap):
            own = _of_this_size(own, network)
        _load(network, own, f"{key}: checkpoint {path}, network '{name}'", fresh_fusion)


def _of_this_size(tensors: dict[str, Tensor], network: PadsMap) -> dict[str, Tensor]:
    """Without the PADS map and what is collected for its next step, if it has another size."""
    if "delta" not in tensors or tensors["delta"].shape == network.delta.shape:
        return tensors
    map_of_size = ("delta", *network.training_buffers)
    return {name: tensor for name, tensor in tensors.items() if name not in map_of_size}


def _load(
    network: nn.Module, tensors: dict[str, Tensor], where: str, fresh_fusion: bool = True
) -> None:
    try:
        missing, unknown = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise RecipeError(f"{where} has other shapes than the recipe's: {error}") from error
    parameters = {name for name, _ in network.named_parameters()}
    new = ("fusion.",) if fresh_fusion else ()
    lost = [n for n in missing if n in parameters and not n.startswith(new)] + unknown
    if lost:
        raise RecipeError(f"{where} is another one than the recipe's: {', '.join(lost[:3])}")
