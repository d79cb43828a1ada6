"""One run on one or several processes: who draws what, and what is averaged.

Stages call their networks directly, so no wrapper stands around a network. Instead every process
computes the loss of its share of the batch, and one reduction a step averages gradients and the
loss. That equals DistributedDataParallel without its overlap of reduction and backward pass, and
equals one process with the whole batch as long as a loss is a mean over samples: batch
normalisation uses the statistics of the global batch (:func:`share_batch_statistics`).

`torchrun` starts the processes. What they agree on besides (to stop, which parameters have a
gradient) goes through memory of the host, so that no step waits for a device to be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.errors import TrainingError

T = TypeVar("T")

# One process renders or validates while the others wait for it.
_TIMEOUT = timedelta(hours=6)


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of a run; without arguments, the only one.

    Sample i of a global batch belongs to process ``i % count``, so that the first n samples of the
    global batch are the first ``n / count`` of each share. ``host``: the group of all processes
    that reduces in memory of the host.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host: Any = None

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

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
        return map_tensors(batch, self._slice)

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

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Whether each of ``flags`` is set in any process; reads no device."""
        if self.count == 1:
            return list(flags)
        there = torch.tensor(flags, dtype=torch.uint8)
        torch.distributed.all_reduce(there, torch.distributed.ReduceOp.MAX, self.host)
        return [bool(flag) for flag in there.tolist()]

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
        torch.distributed.all_gather_object(everybody, values, self.host)
        names = list(dict.fromkeys(name for one in everybody for name in one))
        return {
            name: _joined(name, [one[name] for one in everybody if name in one]) for name in names
        }

    def broadcast(self, value: T) -> T:
        """The first process's ``value``, for all."""
        values = [value]
        if self.count > 1:
            torch.distributed.broadcast_object_list(values, group=self.host)
        return values[0]

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier(self.host)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first process does what is inside, then the others: rendering, unpacking."""
        if not self.is_main_process:
            self.barrier()
        yield
        if self.is_main_process:
            self.barrier()

    def average_step(
        self, parameters: Sequence[nn.Parameter], loss: Tensor, stop: bool
    ) -> tuple[Tensor, bool]:
        """Average gradients and the loss, in one reduction.

        Args:
            parameters: their ``grad`` is replaced; one that no process has stays None.
            loss: of this process, shape ().
            stop: whether this process wants to stop.

        Returns:
            The loss of the global batch, and whether any process wants to stop.
        """
        if self.count == 1:
            return loss.detach(), stop
        *there, stop = self.any_of([*(p.grad is not None for p in parameters), stop])
        learning = [p for p, has in zip(parameters, there, strict=True) if has]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
        parts = [loss.detach().reshape(1), *gradients]
        flat = torch.cat([p.reshape(-1).to(parameters[0].dtype) for p in parts]) / self.count
        torch.distributed.all_reduce(flat)
        total, *means = flat.split([p.numel() for p in parts])
        for p, mean in zip(learning, means, strict=True):
            p.grad = torch.empty_like(p).copy_(mean.view_as(p))  # strides as the fused step needs
        return total.reshape(()), stop

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
        low, high = sums.clone(), sums.clone()
        torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
        torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
        # A sum that is not a number equals nothing: differing is what is asked for, both ways.
        for (name, _), differs in zip(named, ((low < high) | (low > high)).tolist(), strict=True):
            if differs:
                raise TrainingError(
                    f"{name} differs between processes: something that is computed over the batch "
                    "was not reduced (see training/loop/distributed.py)"
                )


#: A run on one process.
SINGLE_PROCESS = ProcessGroup()


def start_processes(device: torch.device) -> ProcessGroup:
    """Join the processes that ``torchrun`` started; by itself, the only one.

    Args:
        device: cpu, or cuda; ``torchrun`` gives each process a GPU of its own, and then a number
            (cuda:1) is an error.

    Raises:
        TrainingError: the devices do not suffice for the processes.
    """
    several = "TORCHELASTIC_RUN_ID" in os.environ
    world = int(os.environ["WORLD_SIZE"]) if several else 1
    if device.type == "cuda":
        _check_gpus(device, world)
        if several:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if world == 1:
        return ProcessGroup(device=device)
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=_TIMEOUT)
    host = torch.distributed.new_group(backend="gloo", timeout=_TIMEOUT)
    return ProcessGroup(torch.distributed.get_rank(), world, device, host)


def _check_gpus(device: torch.device, world: int) -> None:
    here, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > found:
        raise TrainingError(f"{here} processes on a machine with {found} GPUs; start as many")
    if world > 1 and device.index is not None:
        raise TrainingError(
            f"device {device} was asked for, but torchrun started {world} processes, each of which "
            "takes a GPU of its own; set device: cuda"
        )


def map_tensors(batch: T, change: Callable[[Tensor], Tensor]) -> T:
    """``batch`` with every tensor in it changed.

    Args:
        batch: a tensor, or a dataclass, dict or tuple of such. Numbers and words stay.
        change: is called with every tensor.

    Raises:
        TypeError: something else is in it.
    """
    value: Any = batch
    if isinstance(value, Tensor):
        return change(value)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {key: map_tensors(entry, change) for key, entry in value.items()}  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(map_tensors(entry, change) for entry in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        new = {f.name: map_tensors(getattr(value, f.name), change) for f in fields(value)}
        return replace(value, **new)  # type: ignore[return-value]
    if value is None or isinstance(value, (int, float, str)):
        return batch
    raise TypeError(f"a batch holds tensors, not {type(value).__name__}")


def to_device(batch: T, device: torch.device) -> T:
    """``batch`` on a device; from pinned memory, nothing waits for the copy."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation by the statistics of the global batch of equal shares.

    As `torch.nn.SyncBatchNorm`, which refuses tensors of a CPU. Gradients flow through the
    statistics of all processes. Evaluation, weights and buffers are those of the layer replaced.
    """

    @classmethod
    def of(cls, layer: _BatchNorm) -> SharedBatchNorm:
        """The same layer, which has a momentum, with the same parameters and buffers."""
        new = cls(layer.num_features, layer.eps, layer.momentum, layer.affine)
        new._parameters, new._buffers = layer._parameters, layer._buffers
        return new.train(layer.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions after samples and channels."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...); in training, wait for the statistics of all processes."""
        if not self.training:
            return super().forward(input)
        dims = [d for d in range(input.dim()) if d != 1]
        x = input if input.dtype == torch.float64 else input.float()
        own = torch.stack(torch.var_mean(x, dims, correction=0))
        variances, means = _of_all_processes(own).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        self._follow(mean.detach(), variance.detach(), len(means) * x.numel() // x.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt()
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        out = x * scale.view(shape) + (self.bias - mean * scale).view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        tracked, means, variances = self.num_batches_tracked, self.running_mean, self.running_var
        assert tracked is not None and means is not None and variances is not None
        assert self.momentum is not None
        tracked.add_(1)
        means.lerp_(mean, self.momentum)
        variances.lerp_(variance * (count / max(1, count - 1)), self.momentum)


class _Sum(torch.autograd.Function):
    """The sum over processes; what every process's loss asks of it is summed on the way back."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient.contiguous())


def _of_all_processes(own: Tensor) -> Tensor:
    """A tensor of every process, stacked; gradients return to the process they are from."""
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    # Sums of one number and zeros are exact, and alike in all processes.
    nothing = torch.zeros_like(own)
    total: Tensor = _Sum.apply(torch.stack([own if i == rank else nothing for i in range(count)]))
    return total


def share_batch_statistics(network: nn.Module, processes: ProcessGroup) -> None:
    """Let the batch normalisation of a network see the global batch; alone, nothing is changed."""
    if processes.count == 1:
        return
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            setattr(network, name, SharedBatchNorm.of(child))
        else:
            share_batch_statistics(child, processes)


def _joined(name: str, values: list[float]) -> float:
    if name.endswith("max"):
        return max(values)
    if name.endswith("min"):
        return min(values)
    return sum(values) / len(values)
