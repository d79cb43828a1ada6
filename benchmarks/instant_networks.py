"""Networks that answer at once, to measure everything around them.

`InstantBackend` runs every network once, when it is compiled, and gives that answer ever after:
right in shape and type, for no time. As a program it is the depth node with such networks:

    python benchmarks/instant_networks.py --ros-args -p bundle:=lite
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


class InstantBackend:
    """A `depth_prior_ros.backends.Backend` of numpy arrays."""

    name = "instant"
    device = "cpu"

    def compile(self, module: Any, example_inputs: tuple[NDArray[np.float32], ...]) -> Any:
        """Run `module` once on its examples; what it said is what every call returns."""
        import torch

        torch.set_num_threads(1)
        with torch.inference_mode():
            output = module.cpu().eval()(*(torch.from_numpy(a) for a in example_inputs))
        outputs = (output,) if isinstance(output, torch.Tensor) else tuple(output)
        answer = tuple(o.float().numpy().copy() for o in outputs)
        return lambda *_: answer

    def to_native(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """As the backends for a CPU: nothing is copied."""
        return array

    def to_numpy(self, native: NDArray[np.float32]) -> NDArray[np.float32]:
        return native

    def synchronize(self) -> None:
        """Nothing runs elsewhere."""

    def free_memory(self) -> None:
        """Nothing is cached."""


def use_instant_networks() -> None:
    """From now on every pipeline of this process is given them."""
    from depth_prior_ros.pipeline import runtime

    assert hasattr(runtime, "make_backend"), "backends are made elsewhere now"
    runtime.make_backend = lambda *_, **__: InstantBackend()


if __name__ == "__main__":
    from depth_prior_ros.ros.node import main

    use_instant_networks()
    sys.exit(main())
