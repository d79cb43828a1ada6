"""A trunk that costs next to nothing, for tests whose matter is what is done with a network.

python test/tiny_trunk.py ...    is `depth_train ...` with this trunk known
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

from depth_prior_ros.models.trunk import TRUNKS, Features, Trunk

TINY_TRUNK = "test_tiny"


@TRUNKS.register(TINY_TRUNK)
class TinyTrunk(Trunk):
    """Two 3x3 convolutions a stride: 0.1 M parameters."""

    channels = {2: [12], 4: [16], 8: [24], 16: [32], 32: [48]}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(c[0] for c in self.channels.values())]
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
                nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
            )
            for a, b in pairwise(widths)
        )  # fmt: skip

    def forward(self, image: Tensor) -> Features:
        features: Features = {}
        x = image - 0.45
        for stride, level in zip(self.channels, self.levels, strict=True):
            x = level(x)
            features[stride] = [x]
        return features

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """By its own names: nobody has published any."""
        self.load_state_dict({name: state[name] for name in self.state_dict()})


if __name__ == "__main__":
    from training.commands.cli import main

    sys.exit(main())
