"""What every process of test_distributed.py does: python -m torch.distributed.run ... FOLDER."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.geometry.warping import Pose, disparity_to_depth, view_synthesis
from training.loop.checkpoint import LAST, load_checkpoint
from training.loop.distributed import ProcessGroup, share_batch_statistics, start_processes
from training.loop.trainer import Trainer, TrainerConfig, TrainingError
from training.losses.masked import masked_mean
from training.stages.base import TrainingConfig

STEPS, BATCH, MULTI = 10, 4, 2
WIDTH, HEIGHT = 64, 32
ONE_PROCESS_SENDS, ONE_PROCESS_FAILS = 4, 3


class Nets(nn.Module):
    """A picture to `outputs` maps of a quarter of its size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            # A bias before batch normalisation has no gradient but noise, which Adam would enlarge.
            nn.Conv2d(inputs, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ELU(),
            nn.Conv2d(8, outputs, 3, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TinyTeacher:
    """Student, pose and multi-frame depth on random pictures.

    Has what may depend on the number of processes: batch statistics, a mask with noise that breaks
    ties, a mean over the masked pixels, a part of the batch, and a map that follows a maximum over
    the batch. The networks are of its own, because the project's work in float32 in parts.
    """

    name = "tiny teacher"

    def __init__(self, processes: ProcessGroup, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.config = TrainingConfig(kind="test", steps=STEPS, learning_rate=1e-3, warm_up=2)
        self.student, self.pose, self.multi = Nets(3, 1), Nets(6, 3), Nets(7, 1)
        self.multi.register_buffer("delta", torch.ones(1, 1, HEIGHT // 4, WIDTH // 4))
        self.networks: dict[str, nn.Module] = {
            "student": self.student.to(dtype),
            "pose": self.pose.to(dtype),
            "multi": self.multi.to(dtype),
        }
        self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for network in self.networks.values():
            share_batch_statistics(network, processes)
        self.trained = [p for network in self.networks.values() for p in network.parameters()]
        self.processes, self.dtype = processes, dtype
        self.before: Callable[[int], None] = lambda _: None
        self.step, self.factor = 0, 1.0
        self.last_batch: dict[str, Tensor] = {}

    def at_step(self, step: int) -> None:
        self.step = step

    def draw_batch(self, rng: np.random.Generator) -> Tensor:
        images = torch.from_numpy(rng.random((BATCH, 2, 3, HEIGHT, WIDTH))).to(self.dtype)
        return self.processes.take(images)

    def loss(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.before(self.step)
        self.last_batch = {"images": images}
        before, now = images.unbind(1)
        disparity = F.interpolate(self.student(now).sigmoid(), scale_factor=4, mode="bilinear")
        _, depth = disparity_to_depth(disparity)
        move = 0.1 * self.pose(torch.cat([before, now], 1)).mean((2, 3))
        turn = torch.eye(3, dtype=self.dtype).expand(len(now), 3, 3)
        K = now.new_tensor([[40.0, 0, 32], [0, 60.0, 16], [0, 0, 1]]).expand(len(now), 3, 3)
        rebuilt, _ = view_synthesis(before, depth, K, Pose.from_rotation_translation(turn, move))
        error = (rebuilt - now).abs().mean(1)
        noise = self.processes.draw(len(now), lambda n: torch.rand(n, HEIGHT, WIDTH))
        mask = error < (before - now).abs().mean(1) + 0.1 * noise.to(self.dtype) - 0.05
        loss = masked_mean(error, mask)
        m = self.processes.part(MULTI)
        loss = loss + self._multi(now[:m], before[:m], disparity[:m].detach())
        values = {
            "auto_mask_share": mask.double().mean(),
            "map_max": self.multi.delta.max(),
        }
        return self.factor * loss, values

    def _multi(self, now: Tensor, before: Tensor, single: Tensor) -> Tensor:
        multi = self.multi(torch.cat([now, before, single], 1)).sigmoid()
        ratio = multi / F.interpolate(single, scale_factor=0.25)
        largest = self.processes.gather(ratio).amax(0, keepdim=True)
        self.multi.delta.lerp_(largest, 0.1)
        return (multi * self.multi.delta).square().mean()

    def validate(self) -> dict[str, float]:
        return {"figure": self.multi.delta.mean().item()}

    def pictures(self) -> dict[str, np.ndarray]:
        return {}


def train(folder: Path, processes: ProcessGroup, stage: TinyTeacher) -> dict:
    settings = TrainerConfig(
        seed=1, stage_number=0, checkpoint_every=4, validate_every=5, log_every=1
    )
    return Trainer(stage, folder, settings, processes=processes).run()


def collectives(p: ProcessGroup) -> None:
    """Every process checks what it gets from the others."""
    assert p.count == 2
    own = torch.tensor([float(p.rank), 3.0])
    assert p.any_of([bool(p.rank), False, True]) == [True, False, True]
    batch = torch.arange(12.0).view(6, 2)
    assert torch.equal(p.gather(p.take(batch)), batch)
    values = {"mean": float(p.rank), "map_max": float(p.rank)} | ({"rare": 7.0} if p.rank else {})
    assert p.mean_values(values) == {"mean": 0.5, "map_max": 1.0, "rare": 7.0}
    assert p.broadcast({"rank": p.rank}) == {"rank": 0}
    order = Path(sys.argv[1]) / "order"
    with p.main_process_first():
        if p.is_main_process:
            order.write_text("done")
        assert order.is_file()
    layer = nn.BatchNorm1d(1)
    p.check_alike({"net": layer})
    layer.running_mean.fill_(p.rank)
    try:
        p.check_alike({"net": layer})
        raise AssertionError("processes that differ were not noticed")
    except TrainingError as error:
        assert "net.running_mean differs" in str(error)
    with_gradient, without = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    if p.rank:  # a branch that only one process took
        with_gradient.grad = torch.ones(2)
    loss, stop = p.average_step([with_gradient, without], own[0], stop=bool(p.rank))
    assert loss.item() == 0.5 and stop
    assert with_gradient.grad is not None and with_gradient.grad.tolist() == [0.5, 0.5]
    assert without.grad is None


def interrupted(folder: Path, processes: ProcessGroup) -> str:
    """One process is asked to stop; all do, after the same step, and go on later."""
    stage = TinyTeacher(processes, torch.float64)

    def send(step: int) -> None:
        if step == ONE_PROCESS_SENDS and processes.rank == 1:
            signal.raise_signal(signal.SIGTERM)

    stage.before = send
    try:
        train(folder, processes, stage)
    except KeyboardInterrupt as stop:
        train(folder, processes, TinyTeacher(processes, torch.float64))
        return str(stop)
    return "was not interrupted"


def failed(folder: Path, processes: ProcessGroup) -> str:
    """The batch of one process makes its loss infinite."""
    stage = TinyTeacher(processes, torch.float32)

    def spoil(step: int) -> None:
        stage.factor = float("inf") if step == ONE_PROCESS_FAILS and processes.rank == 1 else 1.0

    stage.before = spoil
    try:
        train(folder, processes, stage)
    except TrainingError as error:
        return str(error)
    return "did not fail"


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    processes = start_processes(torch.device("cpu"))
    collectives(processes)
    for name, dtype in (("double", torch.float64), ("single", torch.float32)):
        stage = TinyTeacher(processes, dtype)
        train(folder / name, processes, stage)
        # What the next stage does at once; the first process has to have written it.
        assert load_checkpoint(folder / name / LAST, stage.networks)["step"] == STEPS
    said = [interrupted(folder / "interrupted", processes), failed(folder / "failed", processes)]
    (folder / f"said_{processes.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
