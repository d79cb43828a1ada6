"""The protocol that every backend keeps, and the names under which backends are found.

A new backend is a module of this room that imports its library when one is made: names are shown
on command lines and in ROS parameters, where nothing heavy is loaded.

"Native" is whatever the backend computes with: torch tensors on its device, or numpy arrays.
What one compiled network returns may be handed to another one as it is, so that features that stay
from frame to frame never leave the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

from depth_prior_ros.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

Precision = Literal["f32", "bf16", "f16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

DeviceKind = Literal["cpu", "cuda"]
Purpose = Literal["cpu", "cuda", "cuda_onnx"]
"""What `auto` looks for a backend for: a CPU; CUDA; on CUDA, an ONNX file, which PyTorch does not
run."""


class BackendError(RuntimeError):
    """A backend that is not available, or a network that it cannot compile."""


class Compiled(Protocol):
    """A network ready to run: native tensors in, native tensors out, both positional."""

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run once."""


class Backend(Protocol):
    """One way to run networks. Not thread-safe: one thread at a time.

    Made with `(device, threads, precision)`; raises BackendError where it does not run so.

    Attributes:
        packages: what has to be installed, by the top-level names of import.
        precisions: what it computes in; a precision that a CPU lacks is refused when it is made.
        faster_on_cpu: those that are faster than f32 on a CPU; `auto` tries no others there.
        devices: what it can be made for.
        auto_rank: for each purpose that `auto` may choose it for, its place in the order in which
            backends are tried: the smallest number first, with room between them. For a purpose
            that is not there `auto` never chooses it; by name it can be had on all its devices.
    """

    packages: ClassVar[tuple[str, ...]]
    precisions: ClassVar[tuple[Precision, ...]]
    faster_on_cpu: ClassVar[tuple[Precision, ...]]
    devices: ClassVar[tuple[DeviceKind, ...]]
    auto_rank: ClassVar[Mapping[Purpose, int]]

    def __init__(self, device: str, threads: int, precision: Precision) -> None: ...

    @property
    def name(self) -> str:
        """The one it is registered under."""

    @property
    def device(self) -> str:
        """`cpu`, or a CUDA device such as `cuda:0`."""

    @property
    def precision(self) -> Precision:
        """What the networks are computed in."""

    def compile(
        self, module: nn.Module, example_inputs: tuple[NDArray[np.float32], ...]
    ) -> Compiled:
        """Make `module` (tensors in, a tensor or a tuple of tensors out) ready to run.

        The shapes of `example_inputs` are fixed from then on. Raises BackendError.
        """

    def compile_onnx(self, data: bytes) -> Compiled:
        """Make the bytes of an ONNX file ready to run.

        Raises BackendError where they cannot be run, or the backend reads no such files.
        """

    def to_native(self, array: NDArray[np.float32]) -> Any:
        """Hand a numpy array to the backend."""

    def to_numpy(self, native: Any) -> NDArray[np.float32]:
        """Fetch a native tensor; waits for its computation."""

    def synchronize(self) -> None:
        """Wait until everything submitted is done (for timing)."""

    def free_memory(self) -> None:
        """Give cached memory back after running out of it."""


BACKENDS: Registry[type[Backend]] = Registry("backend", __package__)
