"""A run on two processes is the run of one with the same global batch."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import distributed_worker as worker
import pytest
import tiny_trunk
import torch
from safetensors.torch import load_file
from test_resume import recipe

from depth_prior_ros.geometry.warping import Pose
from training.commands.cli import main
from training.errors import TrainingError
from training.loop.distributed import (
    SINGLE_PROCESS,
    ProcessGroup,
    SharedBatchNorm,
    share_batch_statistics,
    start_processes,
)

# Of losses and weights, relative, after ten steps of Adam: what summing in another order leaves.
# In float32 it may move a pixel over the edge of the mask, one of about 5,000.
TOLERANCE = {"double": (1e-12, 1e-12), "single": (5e-4, 5e-3)}
# Of a recipe, in float32.
RECIPE_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 2e-3


@dataclass
class Batch:
    images: torch.Tensor
    pose: Pose
    words: str = "kept"


def numbers(batch: int) -> torch.Tensor:
    return torch.arange(batch, dtype=torch.float32)


def test_shares_are_the_batch() -> None:
    poses = torch.eye(4).expand(6, 4, 4) * numbers(6)[:, None, None]
    batch = Batch(numbers(6), Pose(poses))
    shares = [ProcessGroup(rank, 3).take(batch) for rank in range(3)]
    assert [s.images.tolist() for s in shares] == [[0, 3], [1, 4], [2, 5]]
    assert [s.pose.matrix[:, 0, 0].tolist() for s in shares] == [[0, 3], [1, 4], [2, 5]]
    assert shares[0].words == "kept"
    assert SINGLE_PROCESS.take(batch) is batch


def test_the_first_samples_are_the_first_of_every_share() -> None:
    """multi_batch: the multi-frame network sees the first n samples of the global batch."""
    processes = [ProcessGroup(rank, 2) for rank in range(2)]
    parts = [p.take(numbers(8))[: p.part(4)].tolist() for p in processes]
    assert sorted(parts[0] + parts[1]) == [0, 1, 2, 3]


def test_random_numbers_do_not_depend_on_the_processes() -> None:
    def draw(processes: ProcessGroup) -> torch.Tensor:
        torch.manual_seed(3)
        return processes.draw(4 // processes.count, lambda n: torch.randn(n, 2))

    whole = draw(SINGLE_PROCESS)
    assert torch.equal(draw(ProcessGroup(0, 2)), whole[0::2])
    assert torch.equal(draw(ProcessGroup(1, 2)), whole[1::2])


@pytest.mark.parametrize("size", [1, 5])
def test_a_batch_that_cannot_be_divided_is_refused(size: int) -> None:
    with pytest.raises(TrainingError, match=rf"{size} samples .* 2 processes; .* multiple of 2"):
        ProcessGroup(1, 2).take(numbers(size))


def test_alone_nothing_is_changed() -> None:
    p = start_processes(torch.device("cpu"))
    assert (p.rank, p.count, p.is_main_process, p.device.type) == (0, 1, True, "cpu")
    x = numbers(3).requires_grad_()
    assert torch.equal(p.gather(x), x) and not p.gather(x).requires_grad
    assert p.any_of([True, False]) == [True, False]
    layer = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    share_batch_statistics(layer, p)
    assert type(layer[0]) is torch.nn.BatchNorm1d
    assert p.mean_values({"a": 1.0}) == {"a": 1.0} and p.broadcast("a") == "a"


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("dims", [2, 3])
def test_shared_batch_normalisation_is_pytorchs(dims: int) -> None:
    """Value, gradients and running statistics, in training and evaluation."""
    kind = torch.nn.BatchNorm2d if dims == 2 else torch.nn.BatchNorm3d
    own = torch.nn.Sequential(kind(3)).double()
    torch.nn.init.uniform_(own[0].weight)
    torch.nn.init.uniform_(own[0].bias)
    shared = copy.deepcopy(own)
    share_batch_statistics(shared, ProcessGroup(0, 2))
    assert type(shared[0]) is SharedBatchNorm
    for mode in (True, True, False):
        x = torch.randn(4, 3, *[5] * dims, dtype=torch.float64)
        results = []
        for net in (own.train(mode), shared.train(mode)):
            net.zero_grad()
            leaf = x.clone().requires_grad_()
            out = net(leaf * 3 + 1)
            out.pow(3).mean().backward()
            results.append([out, leaf.grad, net[0].weight.grad, net[0].bias.grad])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(own.state_dict(), shared.state_dict())


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainingError, match="4 processes on a machine with 2 GPUs"):
        start_processes(torch.device("cuda"))


def start(script: str, arguments: list[str], processes: int) -> subprocess.CompletedProcess:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(several if processes > 1 else []), script, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    start(worker.__file__, [str(folder)], processes=2)
    return folder


def largest_difference(a: Path, b: Path) -> float:
    """Of the weights, relative to the largest of each tensor."""
    first, second = load_file(a / "last.safetensors"), load_file(b / "last.safetensors")
    assert first.keys() == second.keys()
    nets = [name for name in first if name.startswith("net.")]
    return max(
        (
            (first[n].double() - second[n].double()).abs().max() / first[n].double().abs().max()
        ).item()
        for n in nets
        if first[n].double().abs().max() > 0
    )


def losses(folder: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(s) for s in (folder / "metrics.jsonl").read_text().splitlines()]
    return [v[name] for v in lines if name in v]


def worst_loss(a: Path, b: Path, name: str = "loss") -> float:
    pairs = list(zip(losses(a, name), losses(b, name), strict=True))
    assert len(pairs) == worker.STEPS and pairs[0] != pairs[-1]
    return max(abs(one - two) / abs(one) for one, two in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [("double", torch.float64), ("single", torch.float32)])
def test_two_processes_equal_one(
    two_processes: Path, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    worker.train(tmp_path, SINGLE_PROCESS, worker.TinyTeacher(SINGLE_PROCESS, dtype))
    worst = worst_loss(tmp_path, two_processes / name)
    weights = largest_difference(tmp_path, two_processes / name)
    print(f"{name}: losses within {worst:.1e}, weights within {weights:.1e}")
    of_losses, of_weights = TOLERANCE[name]
    assert worst < of_losses and weights < of_weights


@pytest.mark.slow
def test_all_processes_stop_after_the_same_step_and_go_on(two_processes: Path) -> None:
    for rank in range(2):
        said, _ = json.loads((two_processes / f"said_{rank}.json").read_text())
        assert said.startswith(f"stopped after step {worker.ONE_PROCESS_SENDS + 1};")
    assert losses(two_processes / "interrupted") == losses(two_processes / "double")
    assert largest_difference(two_processes / "interrupted", two_processes / "double") == 0


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_and_keeps_every_batch(two_processes: Path) -> None:
    for rank, name in enumerate(["failed_batch", "failed_batch_of_process_1"]):
        _, said = json.loads((two_processes / f"said_{rank}.json").read_text())
        path = two_processes / "failed" / f"{name}.safetensors"
        assert f"loss is inf at step {worker.ONE_PROCESS_FAILS}" in said and str(path) in said
        assert load_file(path)["images"].shape[0] == worker.BATCH // 2


@pytest.mark.slow
def test_a_recipe_on_two_processes_equals_one(tmp_path: Path) -> None:
    """The whole way, `depth_train run` with the project's networks."""
    # Weights hardly move: Adam makes steps of one length out of gradients that are rounding alone.
    keys = ("batch=4", "steps=10", "learning_rate=1e-8")
    overrides = [f"stages.{i}.{key}" for i in range(3) for key in keys]
    overrides += ["stages.0.multi_batch=2", "stages.1.rounds=1"]
    # Refining the motion of untrained networks goes anywhere from any rounding.
    overrides.append("networks.multi_frame.align_motion=false")
    arguments = ["run", str(recipe(tmp_path)), *overrides, "--out"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    done = start(tiny_trunk.__file__, [*arguments, str(tmp_path / "two")], processes=2)
    assert done.stderr.count("step 1 of 10") == 3, "three stages, told by one process"
    for stage in ("0_teacher", "1_mutual", "2_prior"):
        folders = tmp_path / "one" / stage, tmp_path / "two" / stage
        worst, gradient = worst_loss(*folders), worst_loss(*folders, "gradient_norm")
        print(f"{stage}: losses within {worst:.1e}, norms of gradients within {gradient:.1e}")
        assert worst < RECIPE_TOLERANCE and gradient < GRADIENT_TOLERANCE
    (entry,) = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert entry["processes"] == 2
    names = [
        sorted(f.name for f in (tmp_path / run / "bundle").iterdir()) for run in ("one", "two")
    ]
    assert names[0] == names[1]
