"""Pairs of frames with exact depth for training, written in shards that can be memory-mapped.

A shard is a folder of .npy files (N pairs of size W x H, previous frame first):

- ``images.npy`` (N, 2, H, W, 3) uint8 RGB
- ``depth.npy`` (N, 2, H, W) float16, metres, 0 = sky
- ``K.npy`` (N, 3, 3) float32, pixels at that size
- ``previous_from_current.npy`` (N, 4, 4) float32, metres
- ``moving.npy`` (N, H, W) uint8, 1 = something that moves by itself, in the current frame

Every shard depends on (seed, number of the shard, size, textures, share of dense traffic,
renderer) only, so an interrupted run goes
on where it stopped and gives the same files.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from depth_prior_ros.recordings.synthetic.choice import open_renderer
from depth_prior_ros.recordings.synthetic.pairs import FRAME_TIME, Pair, iterate

SCHEMA = 1
SCHEMA_DENSE = 2  # some streets have dense traffic
PAIRS_PER_SHARD = 128
_T = TypeVar("_T")


def _fingerprint(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def write_samples(
    out_dir: str | Path,
    count: int,
    size: tuple[int, int] = (320, 96),
    seed: int = 0,
    texture_images: Sequence[str | Path] = (),
    progress: bool = True,
    *,
    processes: int = 1,
    dense: float = 0.0,
    renderer: str = "auto",
) -> Path:
    """Write `count` pairs to `out_dir`; shards that are there already are kept.

    Args:
        out_dir: folder for ``manifest.json`` and ``shard_00000`` and so on.
        count: number of pairs.
        size: (width, height) of the images in pixels.
        seed: everything follows from it, the size, the texture images, `dense` and `renderer`.
        texture_images: real frames to cut textures from (their licence goes to the weights).
        progress: show a progress bar.
        processes: how many draw at the same time; the files are the same whatever it is.
        dense: share of the streets with dense, slow traffic (cars and lorries 4 to 15 m ahead).
        renderer: auto, gl (OpenGL) or raycast (numpy). auto goes on with what drew the folder's
            first pairs; in a new folder it takes OpenGL where it works. The manifest names it.

    Raises:
        ValueError: `out_dir` holds samples made with other arguments, or an argument is wrong.
        RendererUnavailableError: no OpenGL in memory, where it is asked for or drew the folder's
            other pairs; the message names the packages.
    """
    if processes < 1 or not 0 <= dense <= 1:
        raise ValueError(
            f"need processes >= 1 and dense between 0 and 1, got {processes} and {dense}"
        )
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    images = tuple(Path(p) for p in texture_images)
    sizes = [min(PAIRS_PER_SHARD, count - at) for at in range(0, count, PAIRS_PER_SHARD)]
    missing = [(i, wanted) for i, wanted in enumerate(sizes) if _pairs_in(out, i) < wanted]
    drawn_by, note = _drawn_by(out / "manifest.json", renderer, bool(missing))
    if note and progress:
        print(note, file=sys.stderr)
    manifest = {
        "schema": SCHEMA_DENSE if dense else SCHEMA,
        "seed": seed,
        "size": list(size),
        "count": count,
        "pairs_per_shard": PAIRS_PER_SHARD,
        "texture_sources": sorted({str(p.parent) for p in images}),
        "texture_fingerprint": _fingerprint(images),
        "depth_unit": "metres, 0 = sky",
        "frame_time": FRAME_TIME,
        "dense_traffic": dense,
        "renderer": drawn_by,
    }
    _check_manifest(out / "manifest.json", manifest)
    job = _Job(out, size, seed, images, dense, drawn_by)
    if processes > 1 and len(missing) > 1:
        _in_processes(job, missing, min(processes, len(missing)), progress)
    elif missing:
        with closing(_Worker(job)) as worker:
            for shard in _shown(missing, len(missing), progress):
                worker.write(*shard)
    return out


@dataclass(frozen=True)
class _Job:
    """What all shards of a folder have in common."""

    out: Path
    size: tuple[int, int]
    seed: int
    images: tuple[Path, ...]
    dense: float
    renderer: str


class _Worker:
    """Draws shards with a renderer of its own."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._renderer = open_renderer(job.renderer)[0]

    def write(self, shard: int, count: int) -> None:
        """Draw and write a shard, unless it is there in the meantime."""
        job = self._job
        if _pairs_in(job.out, shard) >= count:  # written by another process
            return
        pairs = iterate(
            self._renderer, shard, count, job.size, job.seed, job.images, dense=job.dense
        )
        _write_shard(job.out, shard, list(pairs))

    def close(self) -> None:
        """Give the renderer back."""
        self._renderer.release()


_worker: _Worker | None = None  # of a process of `_in_processes`


def _start_worker(job: _Job) -> None:
    global _worker
    import cv2

    cv2.setNumThreads(1)  # the processes share the cores among them
    _worker = _Worker(job)


def _work(shard: tuple[int, int]) -> None:
    assert _worker is not None
    _worker.write(*shard)


def _in_processes(
    job: _Job, missing: Sequence[tuple[int, int]], processes: int, progress: bool
) -> None:
    # Processes of their own rather than forks: an OpenGL context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start_worker, (job,))
    try:
        futures = [pool.submit(_work, shard) for shard in missing]
        for future in _shown(as_completed(futures), len(futures), progress):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _drawn_by(manifest: Path, renderer: str, needed: bool) -> tuple[str, str | None]:
    """The renderer of a folder and a note in words about it; see `write_samples`."""
    if manifest.exists() and renderer == "auto":
        renderer = str(json.loads(manifest.read_text()).get("renderer", "gl"))
    if not needed and renderer != "auto":
        return renderer, None
    opened, note = open_renderer(renderer, 16)
    opened.release()
    return opened.name, note


def _shard_path(out: Path, shard: int) -> Path:
    return out / f"shard_{shard:05d}"


def _pairs_in(out: Path, shard: int) -> int:
    """Pairs of a finished shard, 0 where there is none; a smaller count leaves a short last one."""
    file = _shard_path(out, shard) / "K.npy"
    return len(np.load(file, mmap_mode="r")) if file.exists() else 0


def _shown(things: Iterable[_T], count: int, shown: bool) -> Iterable[_T]:
    """The things one by one, with a progress bar."""
    if not shown:
        return things
    from rich.progress import track

    return track(things, total=count, description="rendering shards")


def _check_manifest(path: Path, manifest: dict[str, object]) -> None:
    if path.exists():
        old = json.loads(path.read_text())
        free = ("count", "texture_sources")  # more pairs; the same images in another place
        old = {"dense_traffic": 0.0, "renderer": "gl", **old}  # once there was nothing else
        differing = [k for k in manifest if k not in free and old.get(k) != manifest[k]]
        if differing:
            raise ValueError(
                f"{path.parent} holds samples with other {', '.join(differing)};"
                " choose another folder or delete this one"
            )
        manifest = {**manifest, "count": max(int(old["count"]), int(str(manifest["count"])))}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    temporary.replace(path)


def _write_shard(out: Path, shard: int, pairs: list[Pair]) -> None:
    temporary = out / f".shard_{shard:05d}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name in ("images", "depth", "K", "previous_from_current", "moving"):
        np.save(temporary / f"{name}.npy", np.stack([getattr(p, name) for p in pairs]))
    if 0 < _pairs_in(out, shard) < len(pairs):  # a short one, of which these are the rest too
        shutil.rmtree(_shard_path(out, shard))
    try:
        temporary.rename(_shard_path(out, shard))
    except OSError:
        # Another process has just finished the same shard; the two are equal.
        if not _shard_path(out, shard).exists():
            raise
        shutil.rmtree(temporary)
