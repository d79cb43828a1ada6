"""What the tests of priors in bundles share: bundles with one, and bundles forged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from helpers import tiny_manifest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.bundle import (
    Bundle,
    PriorSources,
    PriorSpec,
    TeacherIdentity,
    build_network,
    save_bundle,
)
from depth_prior_ros.models.prior_fusion import Prior

DIGEST = "ab" * 32
OTHER = "cd" * 32
PIXELS = 16
IMAGES = [
    {"drive": "one", "frame": 3, "stamp": 1.5, "median_inverse_depth": 0.1},
    {"drive": "never", "frame": 0},
    {"drive": "two", "frame": 8},
]
Change = Callable[[dict[str, Any]], None]


def teacher_of_prior(**changes: Any) -> TeacherIdentity:
    values = {
        "name": "tiny",
        "kind": "bundle",
        "sha256": DIGEST,
        "stride": 4,
        "channels": 32,
        "size": [192, 64],
        "licence": "Apache-2.0",
    }
    return TeacherIdentity.of(values | changes)


def spec_of_prior(**changes: Any) -> PriorSpec:
    values = {
        "pixels": PIXELS,
        "channels": 32,
        "note": "made up",
        "teacher": teacher_of_prior(),
        "selection": {"method": "attention", "pixels": 640, "images": 20, "seed": 1},
    }
    return PriorSpec(**(values | changes))


def some_prior(seed: int = 7) -> Prior:
    generator = torch.Generator().manual_seed(seed)
    return Prior(
        torch.randn(PIXELS, 32, generator=generator), torch.rand(PIXELS, generator=generator) + 0.1
    )


def some_sources() -> PriorSources:
    image = np.where(np.arange(PIXELS) % 3 == 0, 2, 0)
    return PriorSources(image, np.arange(PIXELS) * 48, IMAGES)


def save(path: Path, **changes: Any) -> Bundle:
    manifest = tiny_manifest(trunk=TINY_TRUNK).model_copy(update={"prior": spec_of_prior()})
    torch.manual_seed(11)
    values: dict[str, Any] = {
        "manifest": manifest,
        "student": build_network(manifest, "student"),
        "prior": some_prior(),
        "prior_sources": some_sources(),
    }
    return save_bundle(path, **(values | changes))


def forge(
    bundle: Bundle,
    *,
    tensors: Change | None = None,
    metadata: Change | None = None,
    manifest: Change | None = None,
    file: str = "prior.safetensors",
) -> None:
    """Change a bundle as somebody does who knows how to hash files and seal a manifest."""
    path = bundle.path / file
    with safe_open(path, framework="pt") as opened:
        words: dict[str, Any] = dict(opened.metadata() or {})
    content: dict[str, Any] = load_file(path)
    for change, what in ((tensors, content), (metadata, words)):
        if change is not None:
            change(what)
    save_file(content, path, words or None)
    sealed = bundle.path / "bundle.yaml"
    data = yaml.safe_load(sealed.read_text().rpartition("sha256: ")[0])
    data["files"][file] = hashlib.sha256(path.read_bytes()).hexdigest()
    if manifest is not None:
        manifest(data)
    body = yaml.safe_dump(data, sort_keys=False)
    sealed.write_text(f"{body}sha256: {hashlib.sha256(body.encode()).hexdigest()}\n")


def put(*place: str, value: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        for step in place[:-1]:
            data = data[step]
        data[place[-1]] = value

    return change


def value_at(name: str, value: float) -> Change:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name].view(-1)[5] = value

    return change


def drop(*names: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        for name in names:
            data.pop(name, None)

    return change
