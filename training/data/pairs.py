"""Rendering the synthetic pairs that a recipe asks for.

Pairs of synthetic frames with exact depth and motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.models.student import MIRROR, camera_code
from depth_prior_ros.recordings.synthetic.renderer import RendererUnavailableError
from depth_prior_ros.recordings.synthetic.samples import write_samples
from training.data.augmentation import (
    Colours,
    mirror_intrinsics,
    mirror_pose,
    write_planes,
)
from training.loop.distributed import to_device
from training.losses.supervised import FAR_UNITS
from training.recipes.base import RecipeError
from training.recipes.data import Synthetic

_COLUMNS = ("images", "depth", "K", "previous_from_current")
_MOUNT = "mount"  # pairs that were rendered long ago lack it


def _open_shard(shard: Path) -> dict[str, np.ndarray]:
    try:
        mount = [_MOUNT] if (shard / f"{_MOUNT}.npy").is_file() else []
        return {name: np.load(shard / f"{name}.npy", mmap_mode="r") for name in [*_COLUMNS, *mount]}
    except (OSError, ValueError, EOFError) as error:
        raise RecipeError(
            f"{shard} is damaged ({error}); remove it, and it is rendered again"
        ) from error


class SampleSet:
    """Pairs written by ``write_samples``, memory-mapped.

    Raises:
        RecipeError: no shard lies in the folder, or one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._shards = [_open_shard(shard) for shard in sorted(folder.glob("shard_*"))]
        if not self._shards:
            raise RecipeError(f"{folder} holds no synthetic samples (no shard_* folder)")
        self._ends = np.cumsum([len(shard["K"]) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Columns of one pair: images, depth, K, previous_from_current, mount where it is known."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[number - 1]) if number else 0)
        return {name: column[row] for name, column in self._shards[number].items()}


@dataclass
class PairBatch:
    """A batch of pairs (previous, current).

    inputs: (B, 2, 3, H, W) with changed colours. depth: of the current frame (B, 1, H, W) in
    network units, 0 = sky or beyond ``FAR_UNITS``. K: (B, 3, 3) in pixels.
    previous_from_current: (B, 4, 4) in network units. code: (B, 5), what the student is told of
    the cameras; None where the pairs were rendered before mounts were written.
    """

    inputs: Tensor
    depth: Tensor
    K: Tensor
    previous_from_current: Pose
    code: Tensor | None = None

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on another device."""
        return to_device(self, device)


@dataclass
class PairSource:
    """Draws from a set of rendered pairs. Either frame of a pair may be the current one.

    ``count`` bounds the pairs that are drawn from: a folder may hold more than a recipe asks for.
    """

    samples: SampleSet
    metres_per_unit: float
    count: int

    @classmethod
    def open(cls, folder: Path, metres_per_unit: float, count: int | None = None) -> PairSource:
        """Open a folder written by ``write_samples``, and draw from its first ``count`` pairs."""
        samples = SampleSet(folder)
        return cls(samples, metres_per_unit, min(count or len(samples), len(samples)))

    def batch(
        self,
        size: int,
        rng: np.random.Generator,
        first: int | None = None,
        part: slice = slice(None),
    ) -> PairBatch:
        """Draw ``size`` pairs, mirrored half the time, in either order of time.

        Args:
            size: number of pairs drawn.
            rng: decides everything.
            first: draw from that many pairs at the start of the set only.
            part: which of the drawn pairs are returned (a process's share); default: all.
        """
        count = min(first or self.count, self.count)
        drawn = [self._draw(int(i), rng) for i in rng.integers(count, size=size)]
        which = torch.from_numpy(rng.random(size) < 0.5)
        colours = [Colours.draw(rng, probability=0.8) for _ in range(size)]
        inputs = torch.stack([_planes(d[0], c) for d, c in zip(drawn, colours, strict=True)])
        depth, K, poses = (torch.stack(column) for column in list(zip(*drawn, strict=True))[1:4])
        inputs = torch.where(which[:, None, None, None, None], inputs.flip(-1), inputs)
        depth = torch.where(which[:, None, None, None], depth.flip(-1), depth)
        K = torch.where(which[:, None, None], mirror_intrinsics(K, inputs.shape[-1]), K)
        pose = torch.where(which[:, None, None], mirror_pose(Pose(poses)).matrix, poses)
        inputs = _degrade(inputs, rng)
        code = None
        if all(d[4] is not None for d in drawn):
            code = torch.stack([torch.from_numpy(d[4]) for d in drawn])
            code = torch.where(which[:, None], code * torch.tensor(MIRROR), code)[part]
        return PairBatch(inputs[part], depth[part], K[part], Pose(pose[part]), code)

    def _draw(
        self, index: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, Tensor, Tensor, Tensor, np.ndarray | None]:
        sample = self.samples[index]
        images, depth = sample["images"], sample["depth"]
        pose = Pose(torch.from_numpy(np.array(sample["previous_from_current"], dtype=np.float32)))
        current = 1
        if rng.random() < 0.5:  # time runs backwards: twice as many views, and reverse gear
            images, pose, current = images[::-1], pose.inverse(), 0
        matrix = pose.matrix.clone()
        matrix[:3, 3] /= self.metres_per_unit
        truth = torch.from_numpy(depth[current].astype(np.float32)) / self.metres_per_unit
        truth[truth > FAR_UNITS] = 0
        K = torch.from_numpy(np.array(sample["K"], dtype=np.float32))
        height, width = depth.shape[1:]
        mount = sample.get(_MOUNT)
        code = None if mount is None else camera_code(mount, sample["K"], (width, height))
        return images, truth[None], K, matrix, code


def _planes(images: np.ndarray, colours: Colours | None) -> Tensor:
    """Pictures (2, H, W, 3) uint8 as (2, 3, H, W) in [0, 1], colours changed."""
    count, height, width, channels = images.shape
    out = np.empty((count, channels, height, width), np.float32)
    for picture, planes in zip(images, out, strict=True):
        write_planes(picture, planes, colours)
    return torch.from_numpy(out)


def _degrade(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Some samples grey, blurred or noisy, as cameras are: (B, 2, 3, H, W)."""
    out = images.clone()
    for i in range(images.shape[0]):
        if rng.random() < 0.3:
            out[i] = out[i].mean(1, keepdim=True)
        if rng.random() < 0.3:
            small = F.avg_pool2d(out[i], 3, stride=1, padding=1, count_include_pad=False)
            out[i] = out[i] + (small - out[i]) * float(rng.random())
        if rng.random() < 0.5:
            noise = torch.from_numpy(rng.standard_normal(out[i].shape, dtype=np.float32))
            out[i] = out[i] + noise * float(rng.uniform(0, 0.03))
    return out.clamp(0, 1)


def ensure_samples(
    synthetic: Synthetic, size: tuple[int, int], root: Path, count: int | None = None
) -> Path:
    """Render what is missing of the first ``count`` pairs (default: all); return their folder.

    Raises:
        RecipeError: a texture drive without images, a folder with other samples, no OpenGL.
    """
    textures = [path for drive in synthetic.textures for path in _texture_images(root / drive)]
    folder = Path(synthetic.folder)
    wanted = min(count or synthetic.count, synthetic.count)
    try:
        write_samples(
            folder,
            wanted,
            size=size,
            seed=synthetic.seed,
            texture_images=textures,
            processes=synthetic.processes,
            dense=synthetic.dense,
            cameras=synthetic.cameras,
            frames_per_street=synthetic.frames_per_street,
        )
    except (RendererUnavailableError, ValueError) as error:
        raise RecipeError(f"data.synthetic: {error}") from error
    return folder


def _texture_images(drive: Path) -> list[Path]:
    images = sorted(drive.glob("image_0*/**/*"))
    found = [path for path in images if path.suffix in (".jpg", ".png")]
    if not found:
        raise RecipeError(f"data.synthetic.textures: no image in {drive}/image_0*")
    return found
