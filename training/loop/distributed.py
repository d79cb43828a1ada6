"""One run on one or several processes: who draws what, and what is averaged.

Stages call their networks directly, so no wrapper stands around a network. Instead every process
computes the loss of its share of the batch, and one reduction a step averages gradients, BatchNorm
statistics and the loss. That equals DistributedDataParallel without its overlap of reduction and
backward pass, and equals one process with the whole batch as long as a loss is a mean over samples.
What is a maximum or a masked mean over the batch goes through :class:`Processes`.

Lightning Fabric starts the processes that ``torchrun`` made, picks their devices, and reduces.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from training.errors import TrainingError

T = TypeVar("T")

# One process renders or validates while the others wait for it.
_TIMEOUT = timedelta(hours=6)


@dataclass(frozen=True)
class Processes:
    """This process among those of a run; without arguments, the only one.

    Sample i of a global batch belongs to process ``i % count``, so that the first n samples of the
    global batch are the first ``n / count`` of each share.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fabric: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 for what is computed inside, if the run was started with it."""
        return nullcontext() if self.fabric is None else self.fabric.autocast()

    def part(self, size: int) -> int:
        """How many of ``size`` samples of the global batch are this process's.

        Raises:
            TrainingError: the samples cannot be divided evenly.
        """
        if size % self.count:
            raise TrainingError(
                f"{size} samples of a batch cannot be divided evenly among {self.count} processes; "
                f"set every batch of the recipe to a multiple of {self.count}"
            )
        return size // self.count

    def slice(self, size: int) -> slice:
        """Which of ``size`` samples of the global batch are this process's; see `part`."""
        self.part(size)
        return slice(self.rank, None, self.count)

    def take(self, batch: T) -> T:
        """This process's share of a global batch.

        Args:
            batch: a tensor, or a dataclass, dict or tuple of such; samples are the first
                dimension. Plain numbers and words stay as they are.
        """
        if self.count == 1:
            return batch
        return _each(batch, self._slice)

    def _slice(self, tensor: Tensor) -> Tensor:
        self.part(tensor.shape[0])
        return tensor[self.rank :: self.count]

    def draw(self, size: int, make: Callable[[int], Tensor]) -> Tensor:
        """Random numbers that do not depend on how many processes there are.

        Args:
            size: samples of this process.
            make: draws for so many samples from a generator that all processes seeded alike;
                samples are the first dimension.

        Returns:
            This process's ``size`` of them.
        """
        return self.take(make(size * self.count))

    def all_max(self, tensor: Tensor) -> Tensor:
        """The largest of every element over all processes, without gradient."""
        return self._reduced(tensor, "max")

    def all_min(self, tensor: Tensor) -> Tensor:
        """The smallest of every element over all processes, without gradient."""
        return self._reduced(tensor, "min")

    def all_mean(self, tensor: Tensor) -> Tensor:
        """The mean of every element over all processes, without gradient."""
        return self._reduced(tensor, "mean")

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum of every element over all processes, without gradient."""
        return self._reduced(tensor, "sum")

    def _reduced(self, tensor: Tensor, how: str) -> Tensor:
        tensor = tensor.detach()
        if self.count == 1:
            return tensor
        return self.fabric.all_reduce(tensor.clone().contiguous(), reduce_op=how)

    def masked_mean(self, total: Tensor, weight: Tensor) -> Tensor:
        """A mean over what a mask keeps of the global batch, to be used in a loss.

        Args:
            total: this process's sum over the kept elements, with gradient, shape ().
            weight: how many were kept, or the sum of their weights, shape ().

        Returns:
            A value whose mean over processes is the masked mean of the global batch, and whose
            averaged gradient is its gradient; 0 where nothing is kept anywhere.
        """
        everywhere = self.all_mean(weight.to(total))
        safe = torch.where(everywhere > 0, everywhere, torch.ones_like(everywhere))
        return total / safe

    def gather(self, tensor: Tensor) -> Tensor:
        """The global batch (B, ...) of all shares (B / count, ...), without gradient."""
        tensor = tensor.detach()
        if self.count == 1:
            return tensor
        tensor = tensor.contiguous()
        shares = [torch.empty_like(tensor) for _ in range(self.count)]
        torch.distributed.all_gather(shares, tensor)
        return torch.stack(shares, 1).flatten(0, 1)

    def mean_values(self, values: dict[str, float]) -> dict[str, float]:
        """Figures to be logged, averaged over the processes that have them.

        Names that end in ``max`` or ``min`` are reduced so.
        """
        if self.count == 1:
            return values
        everybody: list[dict[str, float]] = [{} for _ in range(self.count)]
        torch.distributed.all_gather_object(everybody, values)
        names = list(dict.fromkeys(name for one in everybody for name in one))
        return {
            name: _joined(name, [one[name] for one in everybody if name in one]) for name in names
        }

    def broadcast(self, value: T) -> T:
        """The first process's ``value``, for all."""
        return value if self.count == 1 else self.fabric.broadcast(value)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            self.fabric.barrier()

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """The first process does what is inside, then the others: rendering, unpacking."""
        if not self.is_first:
            self.barrier()
        yield
        if self.is_first:
            self.barrier()

    def average_step(
        self,
        parameters: Sequence[nn.Parameter],
        modules: Sequence[nn.Module],
        loss: Tensor,
        stop: bool,
    ) -> tuple[Tensor, bool]:
        """Average gradients, BatchNorm statistics and the loss, in one reduction.

        Args:
            parameters: their ``grad`` is replaced; one that no process has stays None.
            modules: networks whose BatchNorm statistics are averaged.
            loss: of this process, shape ().
            stop: whether this process wants to stop.

        Returns:
            The loss of the global batch, and whether any process wants to stop.
        """
        if self.count == 1:
            return loss.detach(), stop
        statistics = [s for module in modules for s in _statistics(module)]
        dtype = parameters[0].dtype
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        there = [0.0 if p.grad is None else 1.0 for p in parameters]
        flags = torch.tensor([*there, float(stop)], dtype=dtype, device=loss.device)
        parts = [loss.detach().reshape(1), flags, *gradients, *statistics]
        flat = self.all_mean(torch.cat([p.reshape(-1).to(dtype) for p in parts]))
        means = flat.split([p.numel() for p in parts])
        anywhere = (means[1] > 0).tolist()
        for p, mean, has in zip(parameters, means[2:], anywhere, strict=False):
            if p.grad is not None:
                p.grad.copy_(mean.view_as(p))
            elif has:
                p.grad = mean.view_as(p).clone()
        for buffer, mean in zip(statistics, means[2 + len(gradients) :], strict=True):
            buffer.copy_(mean.view_as(buffer))
        return means[0].reshape(()), bool(anywhere[-1])

    def check_alike(self, networks: dict[str, nn.Module]) -> None:
        """Make sure that all processes hold the same weights and buffers.

        Raises:
            TrainingError: names the first tensor that differs.
        """
        if self.count == 1:
            return
        named = [
            (f"{network}.{name}", tensor)
            for network, module in networks.items()
            for name, tensor in module.state_dict().items()
        ]
        sums = torch.stack([t.detach().double().sum() for _, t in named])
        low, high = self.all_min(sums), self.all_max(sums)
        # A sum that is not a number equals nothing: differing is what is asked for, both ways.
        for (name, _), differs in zip(named, ((low < high) | (low > high)).tolist(), strict=True):
            if differs:
                raise TrainingError(
                    f"{name} differs between processes: something that is computed over the batch "
                    "was not reduced (see training/loop/distributed.py)"
                )


#: A run on one process.
ALONE = Processes()


def start_processes(device: torch.device, precision: str = "fp32") -> Processes:
    """Join the processes that ``torchrun`` started; by itself, the only one.

    Args:
        device: cpu, or cuda; ``torchrun`` gives each process a GPU of its own, and then a number
            (cuda:1) is an error.
        precision: fp32 or bf16, for :meth:`Processes.autocast`.

    Raises:
        TrainingError: the devices do not suffice for the processes.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    for name in ("lightning_fabric", "lightning.fabric"):  # no banner of each process
        logging.getLogger(name).setLevel(logging.WARNING)
    world, here = _world(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices: int | list[int] = here
    if device.type == "cuda":
        _check_gpus(device, world, here)
        if world == 1:
            devices = [device.index or 0]
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=world // here,
        strategy=_strategy(device) if world > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        plugins=[TorchElasticEnvironment() if world > 1 else LightningEnvironment()],
    )
    fabric.launch()
    return Processes(fabric.global_rank, fabric.world_size, fabric.device, fabric)


def _world() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def _strategy(device: torch.device) -> Any:
    from lightning_fabric.strategies import DDPStrategy

    backend = "nccl" if device.type == "cuda" else "gloo"
    return DDPStrategy(process_group_backend=backend, timeout=_TIMEOUT)


def _check_gpus(device: torch.device, world: int, here: int) -> None:
    found = torch.cuda.device_count()
    if here > found:
        raise TrainingError(f"{here} processes on a machine with {found} GPUs; start as many")
    if world > 1 and device.index is not None:
        raise TrainingError(
            f"device {device} was asked for, but torchrun started {world} processes, each of which "
            "takes a GPU of its own; set device: cuda"
        )


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(entry, change) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_each(entry, change) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _each(getattr(value, f.name), change) for f in fields(value)}
        )
    if value is None or isinstance(value, (int, float, str)):
        return value
    raise TypeError(f"a batch holds tensors, not {type(value).__name__}")


def _statistics(module: nn.Module) -> list[Tensor]:
    """Running means and variances of all BatchNorm layers."""
    return [
        statistic
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for statistic in (layer.running_mean, layer.running_var)
        if statistic is not None
    ]


def _joined(name: str, values: list[float]) -> float:
    if name.endswith("max"):
        return max(values)
    if name.endswith("min"):
        return min(values)
    return sum(values) / len(values)
