"""`depth_train` with BatchNorm frozen, for test_distributed.py: every process of several normalises
by the statistics of its own share, which is the one thing that is not as on one process."""

from __future__ import annotations

import sys

from torch.nn.modules.batchnorm import _BatchNorm

from training.commands.cli import main


def stay_frozen(layer: _BatchNorm, mode: bool = True) -> _BatchNorm:
    layer.training = False
    return layer


if __name__ == "__main__":
    _BatchNorm.train = stay_frozen
    sys.exit(main())
