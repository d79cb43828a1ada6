"""Time and memory of one training step of every shipped KITTI recipe.

    python benchmarks/training_step.py [RECIPE ...] [--rounds 3] [--json FILE]
        [--set KEY=VALUE] [--gpu-tflops 19.5] [--utilisation 0.3]

The stages are built as `depth_train run` builds them, on random images, so no data is needed. Every
recipe has a process of its own, so that memory is its own.

With a GPU: the recipe's batch and precision; median time of a step, peak of the allocated memory.
Without: one CPU step with a batch of one, and from the count of its operations (PyTorch's own:
convolutions and products of matrices, forward and backward) what a GPU would need for the whole
batch. That is an estimate: operations / (--gpu-tflops * --utilisation). The defaults are an A100
without its tensor cores (19.5 TFLOP/s), and of those 30 %, for networks of many small kernels with
losses that are bound by memory. The memory is estimated from what the backward pass keeps of one
sample, the largest of a batch being that times the batch; weights, gradients and Adam besides.

`figure training_step_seconds_RECIPE` is the measured step of the recipe's last stage.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "config" / "training"
# Triplets of Zhou's split: what makes hours of a step's seconds.
TRIPLETS = 39_810
BYTES_OF_A_WEIGHT = 4 * 4  # weight, gradient, two moments of Adam


@dataclass
class Measured:
    """A step of one stage; seconds and bytes of the device named, operations of one sample."""

    recipe: str
    stage: str
    device: str
    size: tuple[int, int]
    recipe_batch: int
    batch: int
    precision: str
    steps: int
    seconds: float
    peak_bytes: int
    operations: int
    kept_bytes: int
    weights: int


def random_run(path: Path, overrides: list[str]) -> Any:
    """A `training.runs.run.Run` of a recipe that sees random images."""
    import numpy as np
    import torch

    from depth_prior_ros.geometry.camera import Camera
    from training.data.sources import LoadedData
    from training.data.triplets import TripletBatch
    from training.recipes.files import load_recipe
    from training.runs.run import Run

    recipe = load_recipe(path, overrides)
    width, height = recipe.size
    camera = Camera(0.58 * width, 1.92 * height, 0.5 * width, 0.5 * height, width, height)

    class RandomTriplets:
        """Stands for the recorded ones."""

        sequences: tuple[Any, ...] = ()
        skipped: tuple[str, ...] = ()

        def __len__(self) -> int:
            return TRIPLETS

        def batch(
            self, size: int, rng: np.random.Generator, part: slice = slice(None)
        ) -> TripletBatch:
            size = len(range(size)[part])
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            coarse = torch.rand(3 * size, 3, height // 8, width // 8, generator=generator)
            images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
            images = images.unflatten(0, (size, 3))
            K = torch.from_numpy(camera.matrix()).float().repeat(size, 1, 1)
            known = torch.zeros(size, dtype=torch.bool)
            return TripletBatch(images, images, K, torch.eye(4).repeat(size, 2, 1, 1), known)

    class RandomRun(Run):
        """The recipe's stages; only the data is another."""

        def _root(self) -> Path:
            return Path()

        def data(self) -> Any:
            return LoadedData(RandomTriplets(), None)  # type: ignore[arg-type]

        def pairs(self, count: int | None = None) -> None:
            return None

    return RandomRun(recipe, Path())


def measure(path: Path, device: str, rounds: int, changes: list[str]) -> list[Measured]:
    """Every stage of a recipe with `key=value` changes, in this process."""
    from training.recipes.files import load_recipe

    recipe = load_recipe(path, changes)
    on_cpu = device == "cpu"
    overrides = [*changes, f"device={device}", f"threads={os.environ.get('OMP_NUM_THREADS', 1)}"]
    if on_cpu:
        overrides += [f"stages.{i}.batch=1" for i in range(len(recipe.stages))]
        overrides += ["precision=f32"]
    run = random_run(path, overrides)
    system = run.initial_system()
    found = []
    for part, planned in zip(run._parts(), recipe.stages, strict=False):
        system = part.config.prepare(run, system, part.stage)
        stage = part.config.build(run, system)
        for network in stage.networks.values():
            network.train()
        kept, operations = count(stage) if on_cpu else (0, 0)
        seconds, peak = time_steps(stage, device, rounds)
        found.append(
            Measured(
                path.stem,
                part.folder,
                device,
                run.recipe.size,
                planned.batch,
                part.config.batch,
                run.recipe.precision,
                TRIPLETS * planned.epochs // planned.batch or planned.steps,
                seconds,
                peak,
                operations,
                kept,
                sum(p.numel() for p in stage.trained if p.requires_grad),
            )
        )
    return found


def count(stage: Any) -> tuple[int, int]:
    """Bytes that the backward pass keeps, and operations of a step, both of a batch of one."""
    import numpy as np
    from torch import Tensor
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    own = {
        p.untyped_storage().data_ptr() for net in stage.networks.values() for p in net.parameters()
    }
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = stage.loss(stage.draw_batch(np.random.default_rng(0)))
        loss.backward()
    return sum(kept.values()), counter.get_total_flops()


def time_steps(stage: Any, device: str, rounds: int) -> tuple[float, int]:
    """Median seconds of a step, and the peak of memory in bytes."""
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    optimiser = torch.optim.Adam(stage.trained, lr=stage.config.learning_rate)
    cuda = device != "cpu"
    wait: Callable[[], None] = torch.cuda.synchronize if cuda else lambda: None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(rounds + 1):
        wait()
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        loss, _ = stage.loss(stage.draw_batch(rng))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stage.trained, stage.config.clip)
        optimiser.step()
        wait()
        times.append(time.perf_counter() - start)
    if not torch.isfinite(loss):
        raise RuntimeError(f"{stage.name}: the loss of random images is {loss.item()}")
    peak = torch.cuda.max_memory_allocated() if cuda else _resident()
    return statistics.median(times[1:]), peak  # the first one warms up


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_own_process(path: Path, device: str, rounds: int, changes: list[str]) -> list[Measured]:
    """Measure a recipe in a fresh process, whose memory nothing else has touched."""
    command = [sys.executable, __file__, str(path), "--one", "--device", device]
    command += ["--rounds", str(rounds), *(f"--set={change}" for change in changes)]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if result.returncode:
        raise RuntimeError(f"{path}: {result.stderr.strip()[-2000:]}")
    rows = json.loads(result.stdout.splitlines()[-1])
    return [Measured(**{**row, "size": tuple(row["size"])}) for row in rows]


def report(rows: list[Measured], rate: float) -> None:
    """The table, then one figure a recipe. `rate`: operations a second of the assumed GPU."""
    if rows[0].device == "cpu":
        _report_cpu(rows, rate)
    else:
        head = f"{'recipe':<20} {'stage':<20} {'size':>9} {'batch':>5} "
        print(head + f"{'s a step':>9} {'GB':>6} {'h':>7}")
        for r in rows:
            size = f"{r.size[0]}x{r.size[1]}"
            hours = r.seconds * r.steps / 3600
            print(
                f"{r.recipe:<20} {r.stage:<20} {size:>9} {r.batch:>5} {r.seconds:>9.3f} "
                f"{r.peak_bytes / 1e9:>6.1f} {hours:>7.1f}"
            )
        print("measured on the GPU; h: hours of all steps of the stage")
    for r in {r.recipe: r for r in rows}.values():
        print(f"figure training_step_seconds_{r.recipe} {r.seconds:.3f}")
        if r.device == "cpu":
            estimate = r.operations * r.recipe_batch / rate
            print(f"figure training_step_gpu_estimate_seconds_{r.recipe} {estimate:.3f}")


def _report_cpu(rows: list[Measured], rate: float) -> None:
    print("measured on a CPU, batch of one        | estimated for a GPU, the recipe's batch")
    print(
        f"{'recipe':<20} {'stage':<18} {'size':>9} {'s a step':>9} {'GB':>5} {'GFLOP':>7} | "
        f"{'batch':>5} {'~s':>6} {'~GB':>6} {'~h':>6}"
    )
    for r in rows:
        size = f"{r.size[0]}x{r.size[1]}"
        estimate = r.operations * r.recipe_batch / rate
        memory = r.kept_bytes * r.recipe_batch + r.weights * BYTES_OF_A_WEIGHT
        print(
            f"{r.recipe:<20} {r.stage:<18} {size:>9} {r.seconds:>9.2f} {r.peak_bytes / 1e9:>5.1f} "
            f"{r.operations / 1e9:>7.0f} | {r.recipe_batch:>5} {estimate:>6.2f} "
            f"{memory / 1e9:>6.1f} {estimate * r.steps / 3600:>6.1f}"
        )
    print(
        f"~ ESTIMATES, not measurements: operations / ({rate / 1e12:.2f} TFLOP/s assumed to be "
        f"sustained); h: hours of all steps of the stage with {TRIPLETS:,} triplets"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", type=Path, help="default: config/training/kitti_*")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps; one more warms up")
    parser.add_argument("--device", default="auto", help="cpu or cuda; auto: CUDA where there is")
    parser.add_argument("--gpu-tflops", type=float, default=19.5, help="of the assumed GPU")
    parser.add_argument("--utilisation", type=float, default=0.3, help="assumed share of them")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipes"
    )
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        rows = measure(options.recipes[0], options.device, options.rounds, options.set)
        print(json.dumps([asdict(row) for row in rows]))
        return
    device = options.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    recipes = options.recipes or sorted(RECIPES.glob("kitti_*.yaml"))
    rows = []
    for path in recipes:
        print(f"{path.stem} ...", file=sys.stderr)
        rows += in_own_process(path, device, options.rounds, options.set)
    report(rows, options.gpu_tflops * 1e12 * options.utilisation)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
