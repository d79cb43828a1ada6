"""What each row of a comparison costs: time of a frame, parameters, size on disk."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.progress import Progress, quiet
from training.comparison.rows import Row

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline.runtime import Networks

_ROUNDS = 15
_WARM_UP = 2


def measure_cost(
    rows: Sequence[Row],
    backend: str = "auto",
    device: str = "auto",
    *,
    rounds: int = _ROUNDS,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Time every row's first bundle on one thread, the rows in turn, on an image of noise.

    A single-frame row is its student with its prior; a multi-frame row all of its networks, as for
    a frame on a vehicle whose predecessor was kept. Time without decoding and resizing.

    Returns:
        `machine`, `backend` and by row `milliseconds` (median), `ratio` to the first row (median of
        the ratios of each round), `parameters` of the networks, `references` of the prior, and
        `megabytes` of the files.

    Raises:
        BundleError, BackendError: a bundle cannot be run.
    """
    from depth_prior_ros.pipeline.runtime import compile_networks

    runs: dict[str, _Timed] = {}
    for number, row in enumerate(rows):
        progress("compiling", number, len(rows))
        bundle = next(iter(row.bundles.values()))
        networks, _ = compile_networks(bundle, backend, device, threads=1)
        runs[row.name] = _Timed(bundle, networks, row.model == "multi_frame")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-_WARM_UP, rounds):
        progress("timing", max(turn, 0), rounds)
        for name, run in runs.items():
            elapsed = run.once()
            if turn >= 0:
                times[name].append(elapsed * 1e3)
    first = times[rows[0].name]
    found = {
        name: {
            "milliseconds": median(times[name]),
            "ratio": median(t / f for t, f in zip(times[name], first, strict=True)),
            **run.size(),
        }
        for name, run in runs.items()
    }
    kind = next(iter(runs.values())).networks.backend.name
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, one thread used"
    return {"machine": machine, "backend": kind, "rows": found}


class _Timed:
    """One row, ready to be run."""

    def __init__(self, bundle: Bundle, networks: Networks, multi: bool) -> None:
        self.bundle, self.networks, self.multi = bundle, networks, multi
        width, height = bundle.manifest.input_size
        rng = np.random.default_rng(0)
        native = networks.backend.to_native
        images = [rng.random((1, 3, height, width), dtype=np.float32) for _ in range(2)]
        self.before, self.now = (native(image) for image in images)
        self.kept = networks.features(self.before) if multi else None
        self.K = bundle.manifest.camera.matrix()

    def once(self) -> float:
        """Seconds of one frame."""
        networks = self.networks
        start = time.perf_counter()
        inverse, _ = networks.single(self.now)
        if self.kept is not None:
            mine = networks.features(self.now)
            step = rigid_inverse(networks.pose(self.before, self.now))
            if networks.aligns:
                step = networks.refine(self.before, self.now, step, self.K, inverse)
            networks.multi(mine, self.kept, step, self.K, inverse)
        networks.backend.synchronize()
        return time.perf_counter() - start

    def size(self) -> dict[str, Any]:
        """Parameters, reference pixels, and megabytes of the files."""
        bundle = self.bundle
        names = ["student", "multi_frame", "pose"] if self.multi else ["student"]
        networks = [getattr(bundle, name)() for name in names]
        files = [*names, *(["prior"] if bundle.has("prior") else [])]
        spec = bundle.manifest.prior
        return {
            "parameters": sum(p.numel() for net in networks for p in net.parameters()),
            "references": spec.pixels if spec is not None and bundle.has("prior") else 0,
            "megabytes": sum((bundle.path / f"{f}.safetensors").stat().st_size for f in files)
            / 1e6,
        }


def cost_table(cost: Mapping[str, Any]) -> list[str]:
    """The section of the table about cost, as Markdown lines."""
    lines = ["", f"## Cost ({cost['backend']}, {cost['machine']})", ""]
    lines += ["| | ms a frame | ratio | parameters | references | MB |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, row in cost["rows"].items():
        lines.append(
            f"| {name} | {row['milliseconds']:.1f} | {row['ratio']:.2f} | "
            f"{row['parameters'] / 1e6:.2f} M | {row['references']:,} | {row['megabytes']:.1f} |"
        )
    return lines
