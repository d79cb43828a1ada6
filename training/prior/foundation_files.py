"""Loading depth models of Hugging Face: safetensors only, nothing fetched unless asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from training.prior.teachers import TeacherError

UNKNOWN_LICENCE = "unknown: look at its card"
_CARD = "README.md"


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
        TeacherError: transformers is not installed, or the model is not there, is no depth model,
            or has no safetensors.
    """
    try:
        import transformers
    except ImportError as error:
        raise TeacherError(
            f"teacher hf:{name}: models of Hugging Face need transformers: "
            "pip install 'depth-prior-ros[foundation]'"
        ) from error
    folder = Path(name).expanduser()
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
            raise TeacherError(f"teacher hf:{name}: {_first_line(error)}") from error
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise TeacherError(
                f"teacher hf:{name}: cannot be opened as a depth-estimation model: "
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
        _licence(place, model.config, options["local_files_only"]),
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
    """Raise TeacherError for a name that is neither in the cache nor to be fetched."""
    from transformers.utils import cached_file

    if name.startswith((".", "/", "~")):
        raise TeacherError(f"teacher hf:{name}: there is no such folder")
    try:
        there = cached_file(name, "config.json", local_files_only=True) is not None
    except (OSError, ValueError):  # not in the cache, or no name that there could be
        there = False
    if not there and not fetch:
        raise TeacherError(
            f"teacher hf:{name}: is not on this machine, and nothing is downloaded unless asked "
            "for: set rich.fetch: true, or download it yourself and name its folder"
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


def _licence(place: str, config: Any, local: bool) -> str:
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
        parts = Path(file).read_text(encoding="utf-8").split("---", 2)
        found = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, Mapping) else {}
