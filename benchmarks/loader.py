"""How much faster than the usual loader are frames read for training?

    python benchmarks/loader.py [--rounds 7] [--frames 12]

One thread each, the same JPEGs of 1242x375 to 640x192, a training frame's whole way from file to
tensors, colours of every frame changed:

- ours: decode and shrink by area with OpenCV; colours as one matrix and one table on bytes; float
  planes of the plain and of the changed picture (`training.data`).
- usual: as monodepth2 and its descendants load: decode with Pillow, a chain of four Lanczos sizes,
  brightness, contrast, saturation and hue in random order on five levels (the full one too), float
  planes of all of them. Written here from that description. Needs Pillow, which nothing else does.

The frames: of KITTI raw where DEPTH_PRIOR_DATA is set, otherwise of drives/street.mcap, enlarged
with noise and stored as JPEG of quality 92. The two take turns; a figure is the median over rounds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from depth_prior_ros.geometry.camera import Camera  # noqa: E402
from depth_prior_ros.recordings import open_recording  # noqa: E402
from depth_prior_ros.recordings.base import Frame  # noqa: E402
from depth_prior_ros.recordings.image_files import probe_image, read_image  # noqa: E402
from training.data.augmentation import Colours, write_planes  # noqa: E402
from training.data.frames import Window, reader  # noqa: E402

FULL, SIZE = (1242, 375), (640, 192)
LEVELS = 4

try:
    from PIL import Image, ImageEnhance
except ImportError:
    sys.exit("benchmarks/loader.py compares with Pillow, which is missing: pip install pillow")


def ours(files: list[Path], probability: float, seed: int) -> Callable[[int], Any]:
    """Our loader as a function of a frame's number."""
    camera = Camera(721.5, 721.5, 609.6, 172.9, *FULL)
    frames = [Frame(i, i, camera, partial(read_image, f), file=f) for i, f in enumerate(files)]
    read = reader(frames, Window(SIZE))
    rng = np.random.default_rng(seed)

    def load(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture = read(i)
        colours = Colours.draw(rng, probability)
        plain = np.empty((3, SIZE[1], SIZE[0]), np.float32)
        changed = np.empty_like(plain)
        write_planes(picture, plain)
        write_planes(picture, changed, colours)
        return torch.from_numpy(plain), torch.from_numpy(changed)

    return load


def usual(files: list[Path], probability: float, seed: int) -> Callable[[int], Any]:
    """The usual loader as a function of a frame's number."""
    rng = random.Random(seed)

    def load(i: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        with files[i].open("rb") as file, Image.open(file) as opened:
            levels = [opened.convert("RGB")]
        for level in range(LEVELS):
            size = (SIZE[0] >> level, SIZE[1] >> level)
            levels.append(levels[-1].resize(size, Image.Resampling.LANCZOS))
        change = draw_change(rng) if rng.random() < probability else lambda picture: picture
        return [planes(p) for p in levels], [planes(change(p)) for p in levels]

    return load


def draw_change(rng: random.Random) -> Callable[[Image.Image], Image.Image]:
    """Brightness, contrast and saturation in [.8, 1.2], hue within .1 turns, in random order."""
    brightness, contrast, saturation = (rng.uniform(0.8, 1.2) for _ in range(3))
    hue = rng.uniform(-0.1, 0.1)
    steps: list[Callable[[Image.Image], Image.Image]] = [
        lambda p: ImageEnhance.Brightness(p).enhance(brightness),
        lambda p: ImageEnhance.Contrast(p).enhance(contrast),
        lambda p: ImageEnhance.Color(p).enhance(saturation),
        lambda p: turn_hue(p, hue),
    ]
    rng.shuffle(steps)

    def change(picture: Image.Image) -> Image.Image:
        for step in steps:
            picture = step(picture)
        return picture

    return change


def turn_hue(picture: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(round(turns * 255) % 256)  # wraps, as hue does
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def planes(picture: Image.Image) -> torch.Tensor:
    """(3, H, W) float32 in [0, 1], copied into that order."""
    tensor = torch.from_numpy(np.array(picture))
    return tensor.permute(2, 0, 1).contiguous().float().div(255)


def find_frames(count: int, folder: Path) -> tuple[list[Path], str]:
    """JPEG files of full size, and where they are from."""
    data = os.environ.get("DEPTH_PRIOR_DATA")
    if data:
        there = sorted(Path(data).glob("kitti_raw/*/*/image_02/**/*.jpg"))
        whole = list(itertools.islice((f for f in there if probe_image(f) == FULL), count))
        if len(whole) == count:
            return whole, "frames of KITTI raw"
    frames = open_recording(ROOT / "drives" / "street.mcap").frames
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        picture = cv2.resize(frames[i % len(frames)].image(), FULL, interpolation=cv2.INTER_CUBIC)
        # Enlarged pictures are smooth and would decode too fast.
        noisy = picture + rng.normal(0, 6, picture.shape)
        file = folder / f"{i:010d}.jpg"
        bgr = np.ascontiguousarray(noisy.clip(0, 255).astype(np.uint8)[..., ::-1])
        cv2.imwrite(str(file), bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
        files.append(file)
    return files, "frames of drives/street.mcap, enlarged"


def measure(load: Callable[[int], Any], count: int) -> float:
    """Milliseconds a frame."""
    start = time.perf_counter()
    for i in range(count):
        load(i)
    return (time.perf_counter() - start) / count * 1e3


def compare(files: list[Path], rounds: int, probability: float) -> tuple[float, float, float]:
    """Milliseconds a frame of ours and of the usual loader, and the median ratio of rounds."""
    pair = (ours(files, probability, 0), usual(files, probability, 0))
    for load in pair:
        load(0)
    times = [[measure(load, len(files)) for load in pair] for _ in range(rounds)]
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return mine, theirs, statistics.median(b / a for a, b in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        files, origin = find_frames(arguments.frames, Path(folder))
        size = sum(f.stat().st_size for f in files) / len(files) / 1e3
        print(f"{len(files)} {origin}, {FULL[0]}x{FULL[1]}, {size:.0f} kB a JPEG, one thread")
        print(f"{'ms a frame':24}{'usual':>9}{'ours':>9}{'ratio':>9}")
        half = compare(files, arguments.rounds, 0.5)
        always = compare(files, arguments.rounds, 1.0)
    for name, (mine, theirs, ratio) in (("every frame changed", always), ("every other", half)):
        print(f"{name:24}{theirs:9.2f}{mine:9.2f}{ratio:9.2f}")
    print(f"figure loader_ratio {always[2]:.2f}")


if __name__ == "__main__":
    main()
