"""Attention-guided selection over a whole reference set: memory, time, and how exact it is.

    python benchmarks/prior_selection.py [--references 2600000] [--images 20] [--threads N]

A synthetic reference set of --references x 64, half precision, is written to a temporary folder in
the format that `depth_train reference` writes (340 MB). A student with a fusion at 1/16 (480
queries of a 640x192 image; 4 heads, width 64) looks at --images images, and `select` keeps the
25,000 references with the most attention, by two passes over the set.

Operations are those of the scores alone: two per channel, query, reference and pass, of both
branches. Beside their rate stands the rate of large single-precision matrix products by as many
threads of this machine, measured right before and after. Exponentials, 2 per score, come on top.

On a small set the weights are compared with softmax of the whole matrix in double precision.
Peak memory is the whole process's, the mapped part of the set included.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from depth_prior_ros.bundle.files import sha256_of
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior, PriorFusion
from depth_prior_ros.models.student import Student
from depth_prior_ros.progress import ProgressBar
from training.prior.reference.files import (
    ReferenceManifest,
    Settings,
    ShardEntry,
    shard_name,
    write_manifest,
    write_shard,
)
from training.prior.reference.set import ReferenceSet
from training.prior.selection.selection import feature_maps, select
from training.prior.selection.statistics import Queries, mean_weights, split
from training.prior.teachers.base import TeacherIdentity

CHANNELS = 64
PER_IMAGE = 1300
SHARD_IMAGES = 50
KEEP = 25_000
SIZE = (192, 640)
# Standard deviation of the scores over references: some stand out, many count a little.
SPREAD = 2.0
PRODUCT = 2048


def write_set(folder: Path, references: int, seed: int) -> ReferenceSet:
    """A finished reference set of random features around 64 means, 1,300 an image."""
    images = math.ceil(references / PER_IMAGE)
    shards = math.ceil(images / SHARD_IMAGES)
    identity = TeacherIdentity(
        name="synthetic",
        kind="bundle",
        sha256="0" * 64,
        stride=4,
        channels=CHANNELS,
        size=(1024, 320),
        licence="Apache-2.0",
    )
    settings = Settings(
        triplets=images,
        per_image=PER_IMAGE,
        shard_images=SHARD_IMAGES,
        seed=seed,
        metres_per_unit=10,
    )
    manifest = ReferenceManifest(
        finished=False, teacher=identity.to_dict(), settings=settings, shard_count=shards
    )
    means = np.random.default_rng([seed, 0]).standard_normal((64, CHANNELS), dtype=np.float32)
    entries: list[ShardEntry] = []
    records: list[dict[str, Any]] = []
    for number in range(shards):
        rng = np.random.default_rng([seed, 1, number])
        first = number * SHARD_IMAGES * PER_IMAGE
        rows = np.arange(first, min(references, first + SHARD_IMAGES * PER_IMAGE))
        features = means[rng.integers(64, size=len(rows))]
        features = features + rng.standard_normal(features.shape, dtype=np.float32)
        image = (rows // PER_IMAGE).astype(np.int32)
        columns = {
            "features": features / np.float32(math.sqrt(2)),
            "inverse_depth": rng.random(len(rows), dtype=np.float32) + np.float32(0.05),
            "image": image,
            "pixel": (rows % PER_IMAGE).astype(np.int32),
        }
        mine = {
            int(n): {"drive": "synthetic", "frame": int(n), "pixels": int((image == n).sum())}
            for n in np.unique(image)
        }
        records += mine.values()
        path = folder / shard_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, columns, mine, manifest.key)
        size = path.stat().st_size
        entries.append(
            ShardEntry(file=shard_name(number), rows=len(rows), bytes=size, sha256=sha256_of(path))
        )
    done = {"finished": True, "shards": entries, "images": records}
    write_manifest(folder, manifest.model_copy(update=done))
    return ReferenceSet.open(folder)


@torch.no_grad()
def make_student(images: list[Tensor], references: Prior) -> Student:
    """A random student whose scores have a standard deviation of about `SPREAD`."""
    config = FusionConfig(stride=16, reference_channels=CHANNELS, width=64, heads=4)
    student = Student("hrnet_w18", "diffnet", config).eval()
    fusion = student.fusion
    assert fusion is not None
    queries = fusion.scaled_queries(next(feature_maps(student, images)))
    keys = fusion.project_keys(references.features)
    for layer, q, k in zip((fusion.query, fusion.hint_query), queries, keys, strict=True):
        assert q is not None and k is not None
        factor = SPREAD / float((q[0] @ k.transpose(1, 2)).std(-1).mean())
        layer.weight *= factor
        assert layer.bias is not None
        layer.bias *= factor
    return student


@torch.no_grad()
def naive(fusion: PriorFusion, maps: list[Tensor], prior: Prior) -> Tensor:
    """W_avg by softmax of the whole matrix, double precision."""
    fusion = fusion.double()
    total = torch.zeros(len(prior.features), dtype=torch.float64)
    keys = fusion.project_keys(prior.features.double())
    for features in maps:
        for q, k in zip(fusion.scaled_queries(features.double()), keys, strict=True):
            if q is not None and k is not None:
                total += torch.softmax(q[0] @ k.transpose(1, 2), -1).mean((0, 1)) / len(maps)
    fusion.float()
    return total


def product_rate(threads: int, seconds: float = 1.0) -> float:
    """Operations per second of large matrix products, one in each of ``threads`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def work(_: int) -> float:
        a = torch.randn(PRODUCT, PRODUCT)
        torch.mm(a, a)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            torch.mm(a, a)
            count += 1
        return 2 * PRODUCT**3 * count / (time.perf_counter() - start)

    with ThreadPoolExecutor(threads) as pool:
        rates = list(pool.map(work, range(threads)))
    torch.set_num_threads(before)
    return sum(rates)


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def difference(student: Student, images: list[Tensor], references: ReferenceSet) -> float:
    """Largest difference to the naive form on 4,000 references and 3 images."""
    assert student.fusion is not None
    prior = references.sample(np.random.default_rng(1), 4000)
    maps = list(feature_maps(student, images[:3]))
    chunked = mean_weights(student.fusion, maps, split(prior, 999))
    exact = naive(student.fusion, maps, prior)
    print(
        f"{len(prior.features):,} references, {len(maps)} images, softmax of the whole matrix in "
        f"double precision: weights up to {float(exact.max()):.1e}, largest difference "
        f"{float((chunked - exact).abs().max()):.1e}"
    )
    return float((chunked - exact).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description="Selection over a whole reference set.")
    parser.add_argument("--references", type=int, default=2_600_000)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    threads = options.threads
    torch.set_num_threads(threads)
    torch.manual_seed(options.seed)
    print(f"PyTorch {torch.__version__}, {threads} threads, {processor()}")
    images = [torch.rand(3, *SIZE) for _ in range(options.images)]
    with tempfile.TemporaryDirectory() as folder:
        references = write_set(Path(folder), options.references, options.seed)
        student = make_student(images, references.rows(range(min(len(references), 2000))))
        wrong = difference(student, images, references)
        rates = [product_rate(threads)]
        before = peak_gib()
        with ProgressBar() as progress:
            start = time.perf_counter()
            keep = min(KEEP, len(references))
            found = select(
                student, references, images, keep=keep, threads=threads, progress=progress
            )
            seconds = time.perf_counter() - start
        rates.append(product_rate(threads))
        assert student.fusion is not None
        queries = Queries.of(student.fusion, feature_maps(student, images))
    report(len(references), queries, seconds, statistics.mean(rates), rates)
    print(
        f"kept {len(found.indices):,}: {found.share:.1%} of the attention; peak memory "
        f"{peak_gib():.2f} GiB ({before:.2f} GiB before the selection)"
    )
    print(f"figure prior_selection_seconds {seconds:.1f}")
    print(f"figure prior_selection_memory_gib {peak_gib():.2f}")
    rate = 2 * queries.operations * len(references) / seconds
    print(f"figure prior_selection_gflops {rate / 1e9:.1f}")
    print(f"figure prior_selection_rate_share {rate / statistics.mean(rates):.2f}")
    print(f"figure prior_selection_difference {wrong:.1e}")


def report(
    references: int, queries: Queries, seconds: float, product: float, rates: list[float]
) -> None:
    """What was done in how long, beside large matrix products."""
    operations = 2 * queries.operations * references
    shapes = [b.shape for b in queries.branches if b is not None]
    scores = 2 * references * sum(heads * count for heads, count, _ in shapes)
    print(
        f"{references:,} references x {CHANNELS}, {shapes[0][1]:,} queries, "
        f"{sum(s[0] for s in shapes)} rows of weights each\n"
        f"two passes: {seconds:.1f} s, {operations / 1e12:.2f} T operations in products and "
        f"{scores / 1e9:.0f} G exponentials\n"
        f"{operations / seconds / 1e9:.1f} GFLOP/s in products, {scores / seconds / 1e9:.2f} G "
        f"exponentials/s; matrix products of {PRODUCT} alone: "
        f"{' and '.join(f'{r / 1e9:.1f}' for r in rates)} GFLOP/s, "
        f"share {operations / seconds / product:.2f}"
    )


if __name__ == "__main__":
    main()
