"""`depth_train import trunk`: MobileNetV2's weights out of a detector that MediaPipe published.

The npm package `@mediapipe/objectron` (Apache-2.0) holds a detector that was trained on Open Images
V4, packed with other files: the loader names the place of each one. Only its trunk is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depth_prior_ros.models.mobilenet_v2 import MobileNetV2
from training.errors import TrainingError

DATA = "objectron_solution_packed_assets.data"
LOADER = "objectron_solution_packed_assets_loader.js"
DETECTOR = "object_detection_ssd_mobilenetv2_oidv4_fp16.tflite"


def import_trunk(package: Path, out: Path) -> Path:
    """Write the trunk's weights as a recipe's `init.student` reads them.

    Args:
        package: folder with the package's two files `DATA` and `LOADER`.
        out: safetensors file.

    Raises:
        TrainingError: a file is missing or of another kind, or the library `tflite` is missing.
    """
    try:
        model = _detector(package)
        found = list(_convolutions(model))
    except (IndexError, ValueError, AttributeError) as error:
        raise TrainingError(f"{package / DATA} holds no readable detector: {error}") from error
    state = _trunk_of(found)
    temporary = out.with_suffix(".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    from safetensors.torch import save_file

    origin = {"source": f"{DETECTOR} of the npm package @mediapipe/objectron (Apache-2.0)"}
    save_file(state, temporary, metadata=origin)
    temporary.replace(out)
    return out


def _detector(package: Path) -> Any:
    try:
        import tflite
    except ImportError as error:
        raise TrainingError(
            "reading the detector needs the library tflite: pip install tflite"
        ) from error
    for name in (DATA, LOADER):
        if not (package / name).is_file():
            raise TrainingError(
                f"{package / name} does not exist: unpack the npm package @mediapipe/objectron "
                "(npm pack @mediapipe/objectron@0.4.1675468480) and name its folder"
            )
    place = re.search(
        rf'{{[^{{}}]*{re.escape(DETECTOR)}"[^{{}}]*"start":\s*(\d+),\s*"end":\s*(\d+)',
        (package / LOADER).read_text(encoding="utf-8"),
    )
    if place is None:
        raise TrainingError(f"{package / LOADER} does not name {DETECTOR}: another version?")
    content = (package / DATA).read_bytes()[int(place[1]) : int(place[2])]
    if content[4:8] != b"TFL3":
        raise TrainingError(f"{package / DATA}: no TFLite file where the loader says: truncated?")
    return tflite.Model.GetRootAsModel(content, 0)


def _convolutions(model: Any) -> Iterator[tuple[bool, NDArray[np.float32], NDArray[np.float32]]]:
    """Depth-wise or not, weight as TFLite lays it out, bias, in the order of the graph."""
    import tflite

    graph = model.Subgraphs(0)
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    codes = [model.OperatorCodes(o.OpcodeIndex()) for o in operators]
    kinds = [max(c.BuiltinCode(), c.DeprecatedBuiltinCode()) for c in codes]
    kind = tflite.BuiltinOperator
    halves = {
        o.Outputs(0): o.Inputs(0)
        for o, k in zip(operators, kinds, strict=True)
        if k == kind.DEQUANTIZE
    }

    def values(index: int) -> NDArray[np.float32]:
        tensor = graph.Tensors(halves.get(index, index))
        half = tensor.Type() == tflite.TensorType.FLOAT16
        raw = model.Buffers(tensor.Buffer()).DataAsNumpy()
        array = np.frombuffer(raw.tobytes(), np.float16 if half else np.float32)
        return array.reshape(tensor.ShapeAsNumpy()).astype(np.float32)

    for operator, found in zip(operators, kinds, strict=True):
        if found in (kind.CONV_2D, kind.DEPTHWISE_CONV_2D):
            depthwise = found == kind.DEPTHWISE_CONV_2D
            yield depthwise, values(operator.Inputs(1)), values(operator.Inputs(2))


def _trunk_of(
    found: list[tuple[bool, NDArray[np.float32], NDArray[np.float32]]],
) -> dict[str, Tensor]:
    """The trunk's convolutions, which come in its order; box predictors between fit no layer."""
    state: dict[str, Tensor] = {}
    wanted = {n[: -len(".weight")]: t.shape for n, t in MobileNetV2().state_dict().items()
              if n.endswith(".weight")}  # fmt: skip
    names = list(wanted)
    for depthwise, weight, bias in found:
        if not names:
            break
        # TFLite: (O, k, k, I), depth-wise (1, k, k, C); PyTorch: (O, I, k, k) and (C, 1, k, k).
        axes = (3, 0, 1, 2) if depthwise else (0, 3, 1, 2)
        turned = np.ascontiguousarray(weight.transpose(axes))
        if turned.shape == tuple(wanted[names[0]]):
            name = names.pop(0)
            state[f"{name}.weight"] = torch.from_numpy(turned)
            state[f"{name}.bias"] = torch.from_numpy(bias.copy())
    if names:
        raise TrainingError(f"the detector has no convolution for {names[0]}: another version?")
    return state
