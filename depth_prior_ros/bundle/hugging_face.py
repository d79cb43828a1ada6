"""Depth models of Hugging Face: safetensors only, nothing fetched unless asked for.

No code of a model's author is run. It has to be known (`_METRIC`, `_INVERSE`) whether a model gives
depth or inverse depth. Needs transformers (extra `foundation`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from depth_prior_ros import strict_yaml
from depth_prior_ros.share import home_path
from depth_prior_ros.untrusted import YAML_BYTES, read_file

UNKNOWN_LICENCE = "unknown: look at its card"
_CARD = "README.md"
# What a model's output is, by model_type: metres, or inverse depth of unknown scale.
_METRIC = ("chmv2", "glpn", "tipsv2_dpt", "zoedepth")
_INVERSE = ("depth_pro", "dpt")
_LARGEST = 16_384  # of any number in a config; the widest of published models is 8192
_FETCHING = (
    "backbone",
    "use_pretrained_backbone",
    "use_timm_backbone",
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
)
_BY_CONFIG = ("depth_anything",)  # config.depth_estimation_type says which of both


class NetworkError(ValueError):
    """A model that cannot be opened; the message says why and what to do."""


class NotHereError(NetworkError):
    """A model that would have to be downloaded first."""


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, float32, and what its files say of its input.

    name: on Hugging Face, or the folder's. kind: its class. sizes: (W, H) of its own input, if any.
    patch: side of a patch. multiple: of which both sides of the input have to be. normalisation:
    mean and standard deviation of the channels. missing: parameters that the files lack.
    """

    model: Any
    name: str
    kind: str
    sizes: tuple[tuple[int, int], ...]
    patch: int
    multiple: int
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    licence: str
    missing: tuple[str, ...] = ()


def load_model(name: str, *, fetch: bool = False) -> Loaded:
    """Load a depth-estimation model by folder or name.

    Args:
        name: a folder with config.json, preprocessor_config.json and safetensors, or a name on
            Hugging Face, which has to be in its cache on this machine.
        fetch: a name may be downloaded.

    Raises:
        NetworkError: transformers is not installed, or the model is not there, is no depth model,
            or has no safetensors.
    """
    try:
        import transformers
    except ImportError as error:
        raise NetworkError(
            f"hf:{name}: models of Hugging Face need transformers: "
            "pip install 'depth-prior-ros[foundation]'"
        ) from error
    folder = home_path(name)
    is_folder = folder.is_dir()
    place = str(folder) if is_folder else name
    if not is_folder:
        _refuse_missing(name, fetch)
    options: dict[str, Any] = {
        "local_files_only": is_folder or not fetch,
        "trust_remote_code": False,
    }
    with _quiet(transformers):
        try:
            processor = _processor(place, options)
            model, info = transformers.AutoModelForDepthEstimation.from_pretrained(
                place, use_safetensors=True, output_loading_info=True, **options
            )
        except ImportError as error:
            raise NetworkError(f"hf:{name}: {_first_line(error)}") from error
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise NetworkError(
                f"hf:{name}: cannot be opened as a depth-estimation model: "
                f"{_first_line(error)} (needed: config.json, preprocessor_config.json and weights "
                "as safetensors)"
            ) from error
    model = model.float().eval().requires_grad_(False)
    patch = _patch(model.config)
    return Loaded(
        model,
        folder.resolve().name if is_folder else name,
        type(model).__name__,
        _sizes(processor, model.config),
        patch,
        _multiple(processor, patch),
        _normalisation(processor),
        licence_of(place, model.config, options["local_files_only"]),
        tuple(sorted(info["missing_keys"])),
    )


def _processor(place: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the model's files say of its input.

    Read as it stands there: to import every image processor that transformers has takes longer
    than all the rest. Only where a normalisation is left to the processor's class that is asked.
    """
    from transformers.utils import cached_file

    local = options["local_files_only"]
    try:
        text = Path(cached_file(place, "preprocessor_config.json", local_files_only=local))
        found = json.loads(text.read_text(encoding="utf-8"))
    except OSError:
        text = Path(cached_file(place, "processor_config.json", local_files_only=local))
        found = json.loads(text.read_text(encoding="utf-8"))["image_processor"]
    if not isinstance(found, Mapping):
        raise ValueError("its image processor is no mapping of keys to values")
    if found.get("do_normalize") and not (found.get("image_mean") and found.get("image_std")):
        from transformers import AutoImageProcessor

        whole = AutoImageProcessor.from_pretrained(place, **options)
        found = {**found, "image_mean": whole.image_mean, "image_std": whole.image_std}
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _refuse_missing(name: str, fetch: bool) -> None:
    """Raise NetworkError for a name that is neither in the cache nor to be fetched."""
    from transformers.utils import cached_file

    if name.startswith((".", "/", "~")):
        raise NetworkError(f"hf:{name}: there is no such folder")
    try:
        there = cached_file(name, "config.json", local_files_only=True) is not None
    except (OSError, ValueError):  # not in the cache, or no name that there could be
        there = False
    if not there and not fetch:
        raise NotHereError(
            f"hf:{name}: is not on this machine, and nothing is downloaded unless asked for: "
            "download it yourself and name its folder"
        )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the library's notes and its bar over the reading of weights."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _sides(size: Any) -> tuple[int, int] | None:
    """(W, H) of what a config calls a size: a number, a pair (H, W), or a mapping."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[1]), int(size[0])
    if not isinstance(size, Mapping):
        return None
    width, height = size.get("width"), size.get("height")
    return (int(width), int(height)) if width and height else None


def _sizes(processor: Mapping[str, Any], config: Any) -> tuple[tuple[int, int], ...]:
    inner = getattr(config, "backbone_config", None)
    named = [processor.get("size")]
    named += [getattr(one, "image_size", None) for one in (config, inner) if one is not None]
    found = [_sides(size) for size in named if size is not None]
    return tuple(dict.fromkeys(size for size in found if size is not None))


def _patch(config: Any) -> int:
    inner = getattr(config, "backbone_config", None)
    for one in (inner, config):
        patch = getattr(one, "patch_size", None)
        if patch:
            return int(patch[0] if isinstance(patch, list | tuple) else patch)
    return 32


def _multiple(processor: Mapping[str, Any], patch: int) -> int:
    asked = [processor.get(name) for name in ("ensure_multiple_of", "size_divisor")]
    return math.lcm(patch, *(max(1, int(value or 1)) for value in asked))  # ZoeDepth says 1 / 32


def _normalisation(processor: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not mean or not std or not processor.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(map(float, mean)), tuple(map(float, std))


def licence_of(place: str, config: Any, local: bool) -> str:
    """The licence that the model's card or config names."""
    card = _card(place, local)
    licence = card.get("license") or getattr(config, "license", None)
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    if licence == "other":
        licence = card.get("license_name") or card.get("license_link")
    return str(licence) if licence else UNKNOWN_LICENCE


def _card(place: str, local: bool) -> Mapping[str, Any]:
    """What stands between the lines of dashes at the head of the model's card."""
    from transformers.utils import cached_file

    try:
        file = cached_file(place, _CARD, local_files_only=local)
        text = read_file(Path(file), YAML_BYTES).decode("utf-8")
        parts = text.split("---", 2)
        found = strict_yaml.parse(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, ValueError):  # of YAML, too
        return {}
    return found if isinstance(found, Mapping) else {}


def gives_depth(loaded: Loaded) -> bool:
    """Whether a model's output is depth in metres; otherwise it is inverse depth."""
    kind = loaded.model.config.model_type
    if kind in _BY_CONFIG:
        return getattr(loaded.model.config, "depth_estimation_type", "relative") == "metric"
    if kind not in (*_METRIC, *_INVERSE):
        raise NetworkError(
            f"{loaded.name}: it is not known what a {kind} model returns; known are "
            f"{', '.join(sorted((*_METRIC, *_INVERSE, *_BY_CONFIG)))}"
        )
    return kind in _METRIC


def settle_missing(loaded: Loaded, probe: Callable[[], Sequence[Tensor]]) -> None:
    """Make sure that weights which the files lack change nothing, and zero them.

    Published DPT weights lack a layer that is built and never used. ``probe`` runs the model on
    one and the same picture. Raises NetworkError.
    """
    if not loaded.missing:
        return
    seen = []
    parameters = dict(loaded.model.named_parameters())
    with torch.no_grad():
        for value in (1.0, 0.0):
            for name in loaded.missing:
                if name in parameters:
                    parameters[name].fill_(value)
            seen.append(probe())
    if not all(torch.equal(a, b) for a, b in zip(*seen, strict=True)):
        raise NetworkError(
            f"{loaded.name}: its weights lack {len(loaded.missing)} tensors "
            f"({sorted(loaded.missing)[0]}, ...); the files are not those of a depth model"
        )


def config_of(loaded: Loaded) -> dict[str, Any]:
    """What `build_model` takes, as plain data."""
    found: dict[str, Any] = json.loads(loaded.model.config.to_json_string(use_diff=True))
    return found


def build_model(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """A depth-estimation model of transformers: pixels (B, 3, h, w) to what it predicts, (B, h, w).

    Args:
        config: from `config_of`.
        state: its weights, by name.

    Raises:
        NetworkError: transformers is not installed, does not know the model, or the weights are not
            those of it.
    """
    try:
        import transformers
    except ImportError as error:
        raise NetworkError(
            "this network needs transformers: pip install 'depth-prior-ros[foundation]'"
        ) from error
    values = dict(config)
    _check_config(values)
    try:
        kind = values.pop("model_type")
        built = transformers.AutoModelForDepthEstimation.from_config(
            transformers.AutoConfig.for_model(kind, **values), trust_remote_code=False
        )
        built.load_state_dict(state, strict=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise NetworkError(
            f"cannot be built as a depth-estimation model: {_first_line(error)}"
        ) from error
    return PredictedDepth(built.float().eval().requires_grad_(False))


def _check_config(values: Any, key: str = "") -> None:
    """Refuse what would fetch or run something, and sizes of no depth network, at any depth.

    Raises NetworkError.
    """
    if isinstance(values, Mapping):
        for name, value in values.items():
            if name in _FETCHING and value:
                raise NetworkError(
                    f"the model's config names something that would have to be fetched ({name})"
                )
            _check_config(value, str(name))
    elif isinstance(values, (list, tuple)):
        for value in values:
            _check_config(value, key)
    elif isinstance(values, int) and not isinstance(values, bool) and values > _LARGEST:
        raise NetworkError(f"the model's config has {key} {values}, more than {_LARGEST}")


class PredictedDepth(nn.Module):
    """Of what a model of transformers returns the depth alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, h, w) to predicted depth (B, h, w)."""
        depth: Tensor = self.model(pixel_values=pixels).predicted_depth
        return depth
