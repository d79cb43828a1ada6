"""Checkpoints: one safetensors file with networks, optimiser and progress, written atomically.

``last.safetensors`` is what a run goes on from; ``best.safetensors`` holds the networks at the best
validation figure, without the optimiser.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

LAST = "last.safetensors"
BEST = "best.safetensors"
FAILED_BATCH = "failed_batch.safetensors"


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
) -> None:
    """Write everything that a run needs to go on exactly as if it had not stopped.

    Raises:
        CheckpointError: it cannot be written, on a full disk for example; the checkpoint before is
            untouched.
    """
    tensors = network_tensors(networks)
    if optimiser is not None:
        tensors |= _optimiser_tensors(optimiser)
    try:
        _write(path, tensors, {"progress": json.dumps(progress)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be written: {error}; once that is mended (a full disk?) the "
            "same command goes on from the checkpoint before"
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
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, copies, {key: str(value) for key, value in about.items()})
    except (OSError, SafetensorError) as error:
        return f"the batch could not be kept: {error}"
    return f"the batch is kept in {path}"


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that either it or its predecessor is there, whole."""
    temporary = path.with_suffix(".partial")
    try:
        save_file(tensors, str(temporary), metadata=metadata)
        with temporary.open("rb+") as file:  # on the disk before it takes the older one's place
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError):
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut; some network file systems cannot."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(number)
    finally:
        os.close(number)


def load_checkpoint(
    path: Path, networks: dict[str, nn.Module], optimiser: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Load into ``networks`` (and ``optimiser``) and return the progress that was saved.

    Raises:
        CheckpointError: the file is damaged, or belongs to other networks.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            progress = json.loads((file.metadata() or {}).get("progress", "{}"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {error}; without it this stage begins again"
        ) from error
    for name, module in networks.items():
        prefix = f"net.{name}."
        own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(f"checkpoint {path} holds another '{name}': {error}") from error
    if optimiser is not None:
        _load_optimiser(optimiser, tensors)
    return progress


def _load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optim."):
            _, index, entry = key.split(".", 2)
            state.setdefault(int(index), {})[entry] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
