"""The protocol that every backend keeps.

"Native" is whatever the backend computes with: torch tensors on its device, or numpy arrays.
What one compiled network returns may be handed to another one as it is, so that features that stay
from frame to frame never leave the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["f32", "bf16"]


class BackendError(RuntimeError):
    """A backend that cannot be had, or a network that it cannot compile."""


class Compiled(Protocol):
    """A network ready to run: native tensors in, native tensors out, both positional."""

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run once."""


class Backend(Protocol):
    """One way to run networks. Not thread-safe: one thread at a time."""

    @property
    def name(self) -> str:
        """`torch`, `openvino` or `onnxruntime`."""

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

    def to_native(self, array: NDArray[np.float32]) -> Any:
        """Hand a numpy array to the backend."""

    def to_numpy(self, native: Any) -> NDArray[np.float32]:
        """Fetch a native tensor; waits for its computation."""

    def synchronize(self) -> None:
        """Wait until everything submitted is done (for timing)."""

    def free_memory(self) -> None:
        """Give cached memory back after running out of it."""
