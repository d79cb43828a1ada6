"""A teacher that needs no network, and small sources of triplets for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from depth_prior_ros.bundle.files import sha256_of
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings.base import Frame
from training.data.drives import DriveFrames
from training.data.frames import MemoryFrames
from training.data.static import Travel
from training.data.triplets import TripletSource
from training.prior.reference.files import (
    ExtractionSettings,
    ReferenceManifest,
    ShardEntry,
    shard_name,
    write_manifest,
    write_shard,
)
from training.prior.teachers.base import TeacherIdentity, TeacherView

SIZE = (32, 16)


@dataclass
class PictureTeacher:
    """Features are the colours of the three frames at 1/4; depth is made of them.

    ``spoil``: what to put into the features or depth of its n-th look. ``seen``: how many looks.
    """

    name: str = "picture"
    digest: str = "0123456789abcdef"
    channels: int = 9
    size: tuple[int, int] = SIZE
    spoil: dict[int, tuple[str, float]] = field(default_factory=dict)
    seen: int = 0

    @property
    def identity(self) -> TeacherIdentity:
        return TeacherIdentity(
            name=self.name,
            kind="bundle",
            sha256=self.digest * 4,
            stride=4,
            channels=self.channels,
            size=self.size,
            licence="Apache-2.0",
        )

    def look(
        self,
        images: Tensor,
        K: Tensor,
        poses: Tensor | None = None,
        known: Tensor | None = None,
    ) -> TeacherView:
        small = F.avg_pool2d(images.flatten(1, 2), 4)
        features = small.repeat(1, -(-self.channels // 9), 1, 1)[:, : self.channels].clone()
        inverse = small.mean(1, keepdim=True) + 0.1
        what, value = self.spoil.get(self.seen, ("", 0.0))
        self.seen += 1
        if what == "features":
            features[0, 0, 1, 1] = value
        if what == "depth":
            inverse[0, 0, 1, 1] = value
        depth = F.interpolate(1 / inverse, scale_factor=4)
        return TeacherView(features, inverse, depth, None)


def drive(
    name: str, count: int, size: tuple[int, int] = SIZE, weight: float = 1.0, seed: int = 0
) -> DriveFrames:
    """Random pictures; every three that follow each other are a triplet."""
    rng = np.random.default_rng([seed, len(name), *name.encode()])
    pictures = {
        i: rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for i in range(count)
    }
    triplets = [(i - 1, i, i + 1) for i in range(1, count - 1)]
    frames = tuple(
        Frame(
            i,
            i * 100_000_000,
            Camera(20.0, 20.0, size[0] / 2, size[1] / 2, *size),
            partial(pictures.get, i),
        )
        for i in range(count)
    )
    K = frames[0].camera.matrix()
    return DriveFrames(weight, MemoryFrames(pictures), K, {}, triplets, name, Travel(frames), size)


def source(*drives: DriveFrames) -> TripletSource:
    """Of these drives; default: two with 10 and 5 triplets."""
    return TripletSource(list(drives) or [drive("a", 12), drive("b", 7)], 10.0)


def write_random_set(
    folder: Path, shards: int, rows: int, channels: int = 64, seed: int = 0
) -> None:
    """A finished set of random numbers, for speed and memory; one image a shard."""
    identity = TeacherIdentity(
        name="random",
        kind="bundle",
        sha256="a" * 64,
        stride=4,
        channels=channels,
        size=(1024, 320),
        licence="Apache-2.0",
    )
    settings = ExtractionSettings(
        triplets=shards, per_image=max(rows, 1), shard_images=1, seed=0, metres_per_unit=10
    )
    manifest = ReferenceManifest(
        finished=False, teacher=identity.to_dict(), settings=settings, shard_count=shards
    )
    entries, images = [], []
    for number in range(shards):
        rng = np.random.default_rng([seed, number])
        columns = {
            "features": rng.standard_normal((rows, channels), dtype=np.float32),
            "inverse_depth": rng.random(rows, dtype=np.float32) + 0.05,
            "image": np.full(rows, number, np.int32),
            "pixel": np.arange(rows, dtype=np.int32),
        }
        images.append(
            {"drive": "random", "frame": number, "pixels": rows, "median_inverse_depth": 0.5}
        )
        path = folder / shard_name(number)
        write_shard(path, columns, {number: images[-1]}, manifest.key)
        entries.append(
            ShardEntry(
                file=shard_name(number),
                rows=rows,
                bytes=path.stat().st_size,
                sha256=sha256_of(path),
            )
        )
    done = {"finished": True, "shards": entries, "images": images}
    write_manifest(folder, manifest.model_copy(update=done))


def all_features(prior: object) -> Tensor:
    """Features and inverse depth side by side (N, C + 1)."""
    return torch.cat([prior.features, prior.inverse_depth[:, None]], 1)  # type: ignore[attr-defined]
