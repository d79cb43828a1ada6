"""A network as an ONNX file, for the backends that read ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from depth_prior_ros.backends.base import BackendError

_OPSET = 17


def export_onnx(
    module: nn.Module,
    example_inputs: tuple[NDArray[np.float32], ...],
    path: Path,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> None:
    """Write `module` to `path` with the shapes of `example_inputs`. Raises BackendError.

    Inputs without names are called input0, input1, ...

    Uses the exporter by tracing: it needs the onnx package but not onnxscript, and takes seconds
    where the newer one takes half a minute.
    """
    tensors = tuple(torch.from_numpy(array) for array in example_inputs)
    module = module.cpu().eval()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The exporter is deprecated, and tracing warns of every shape taken as constant.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                tensors,
                str(path),
                dynamo=False,
                opset_version=_OPSET,
                do_constant_folding=True,
                input_names=list(input_names or (f"input{i}" for i in range(len(tensors)))),
                output_names=None if output_names is None else list(output_names),
            )
    except Exception as error:
        raise BackendError(
            f"{type(module).__name__} cannot be exported to ONNX: {error}"
        ) from error
    finally:
        logger.setLevel(level)
