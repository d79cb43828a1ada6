"""Checkpoints: one safetensors file with networks, optimiser and progress, written atomically."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from depth_prior_ros.atomic_files import write_safetensors
from depth_prior_ros.untrusted import check_regular, printable
from training.loop.weight_average import WeightAverage

LAST = "last.safetensors"
FAILED_BATCH = "failed_batch.safetensors"
_AVERAGE = "average."


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file and the cause."""


def network_tensors(networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers of all networks, named ``net.<network>.<name>``."""
    return {
        f"net.{network}.{name}": tensor.detach().cpu().contiguous()
        for network, module in networks.items()
        for name, tensor in module.state_dict().items()
    }


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {
        f"optim.{index}.{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, entries in state.items()
        for key, value in entries.items()
    }


def save_checkpoint(
    path: Path,
    networks: dict[str, nn.Module],
    optimiser: torch.optim.Optimizer | None,
    progress: dict[str, Any],
    average: WeightAverage | None = None,
) -> None:
    """Write everything that a run needs to go on exactly as if it had not stopped.

    Raises:
        CheckpointError: it cannot be written, on a full disk for example; the checkpoint before is
            untouched.
    """
    tensors = network_tensors(networks)
    if optimiser is not None:
        tensors |= _optimiser_tensors(optimiser)
    if average is not None:
        tensors |= {f"{_AVERAGE}{k}": t.cpu().contiguous() for k, t in average.tensors().items()}
    about = {"progress": json.dumps(progress)}
    about["sha256"] = _digest(tensors, about["progress"])
    try:
        write_safetensors(path, tensors, about)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path} {error.strerror}; once that is mended (a full disk?) the same "
            "command goes on from the checkpoint before"
        ) from error


def save_batch(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """Keep the batch on which training failed, for whoever looks for the cause.

    Args:
        path: safetensors file to write.
        tensors: what the stage drew.
        about: where it happened; goes into the file's metadata as text.

    Returns:
        A sentence for people: where the batch is, or why it could not be kept. A full disk must not
        hide the failure itself, so nothing is raised.
    """
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    try:
        write_safetensors(path, copies, {key: str(value) for key, value in about.items()})
    except OSError as error:
        return f"the batch could not be kept: {error}"
    return f"the batch is kept in {path}"


def load_checkpoint(
    path: Path,
    networks: dict[str, nn.Module],
    optimiser: torch.optim.Optimizer | None = None,
    average: WeightAverage | None = None,
) -> dict[str, Any]:
    """Load into ``networks``, ``optimiser`` and ``average``; return the saved progress.

    Raises:
        CheckpointError: the file is damaged, or belongs to other networks.
    """
    tensors, progress = _read(path)
    for name, module in networks.items():
        prefix = f"net.{name}."
        own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            cause = printable(" ".join(str(error).split()), 400)
            raise CheckpointError(f"checkpoint {path} holds another '{name}': {cause}") from error
    try:
        if optimiser is not None:
            _load_optimiser(optimiser, tensors)
        if average is not None:
            prefix = _AVERAGE
            own = {k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)}
            average.load(own)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {path} holds another optimiser or average: "
            f"{printable(' '.join(str(error).split()), 400)}"
        ) from error
    return progress


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors and the progress, with the hash compared. Raises CheckpointError."""
    remedy = "without it this stage begins again"
    try:
        check_regular(path)
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            about = file.metadata() or {}
        progress = json.loads(about.get("progress", "{}"))
    # KeyError: a type of numbers that torch has not
    except (OSError, SafetensorError, ValueError, RecursionError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint {printable(path)} cannot be read: {printable(error)}; {remedy}"
        ) from error
    # Checkpoints of earlier versions have no hash.
    found = _digest(tensors, about.get("progress", "{}"))
    if set(about) - {"format"} != {"progress"} and about.get("sha256") != found:
        raise CheckpointError(f"checkpoint {path} is damaged: its sha256 does not match; {remedy}")
    if not isinstance(progress, dict) or not isinstance(progress.get("step", 0), int):
        raise CheckpointError(f"checkpoint {path} is damaged: its progress is no mapping; {remedy}")
    return tensors, progress


def _digest(tensors: dict[str, Tensor], progress: str) -> str:
    """sha256 over names, types, shapes and numbers of all tensors, and the progress."""
    digest = hashlib.sha256(progress.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(numbers.numpy().data)
    return digest.hexdigest()


def _load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optim."):
            _, index, entry = key.split(".", 2)
            state.setdefault(int(index), {})[entry] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    # A fused step goes through memory without asking for strides; files hold plain ones.
    for parameter, entries in optimiser.state.items():
        for entry, value in entries.items():
            if value.shape == parameter.shape and parameter.dim():
                entries[entry] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
