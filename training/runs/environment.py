"""What a run is made with, kept beside its results: commit, seed, versions, machine."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from depth_prior_ros.atomic_files import write_json

# Those that can change a figure; OpenCV goes by either name.
_PACKAGES = (
    "depth_prior_ros",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "pydantic",
    "safetensors",
    "torch",
)


def keep_environment(path: Path, seed: int, device: torch.device, precision: str) -> None:
    """Note in a JSON file what this start of a run is made with.

    The file holds a list: a run that goes on with other versions, another commit or on another
    machine adds an entry, so that a difference in its figures can be explained.
    """
    entries = _entries(path)
    entry = environment(seed, device) | {"precision": precision}
    if entries[-1:] == [entry]:
        return
    write_json(path, [*entries, entry])


def _entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return []
    return entries if isinstance(entries, list) else []


def environment(seed: int, device: torch.device) -> dict[str, Any]:
    """Commit, seed, versions and machine as plain values."""
    cuda = device.type == "cuda"
    return {
        "git": git_hash(),
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "processes": torch.distributed.get_world_size() if _several() else 1,
        "threads": torch.get_num_threads(),
        "packages": {name: v for name in _PACKAGES if (v := _version(name))},
    }


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_hash() -> str | None:
    """The commit of the checkout, with ``-dirty`` where files were changed; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: a repository around it is somebody else's
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
