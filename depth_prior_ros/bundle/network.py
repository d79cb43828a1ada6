"""An imported network in a bundle: its file, checked before any library runs it.

ONNX is data: a graph of the format's own operators. What would lead out of it is refused: weights
in other files, and operators of libraries that would have to be loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_prior_ros.bundle.files import TensorFile
from depth_prior_ros.bundle.manifest import BundleError
from depth_prior_ros.untrusted import INPUT_PIXELS

if TYPE_CHECKING:
    from depth_prior_ros.bundle.manifest import NetworkSpec

# The format's own operators, by the names of their domains.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


@dataclass(frozen=True)
class Graph:
    """What an ONNX file takes and gives: shapes by name, None for a side that is not fixed.

    Attributes:
        inputs: in order, without weights. outputs: likewise.
    """

    inputs: dict[str, tuple[int | None, ...]]
    outputs: dict[str, tuple[int | None, ...]]

    def picture_input(self) -> str | None:
        """Name of the only input of the shape (1, 3, H, W); None where there is not one."""
        fit = [n for n, shape in self.inputs.items() if len(shape) == 4 and shape[1] in (3, None)]
        return fit[0] if len(fit) == 1 else None


def read_graph(path: Path, data: bytes) -> Graph:
    """Inputs and outputs of an ONNX file. ``path``: for messages.

    Raises:
        BundleError: it is no ONNX file, or one that leads out of itself; or onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise BundleError(
            path, "ONNX files need the package onnx: pip install 'depth-prior-ros[cpu]'"
        ) from error
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own
        raise BundleError(path, f"not readable as ONNX: {error}") from error
    if not model.graph.output or not model.graph.node:
        raise BundleError(path, "not readable as ONNX: it holds no network")
    if model.functions:
        raise BundleError(path, "defines operators of its own, which are not read")
    for graph in _graphs(model.graph):
        for tensor in _tensors(graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise BundleError(
                    path,
                    "keeps weights in another file; save it as one (onnx.save(onnx.load(FILE), "
                    "NEW_FILE))",
                )
        for node in graph.node:
            if node.domain not in _DOMAINS:
                raise BundleError(path, f"uses operators of {node.domain}, which are not ONNX's")
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {v.name: _shape(v) for v in model.graph.input if v.name not in weights}
    return Graph(inputs, {v.name: _shape(v) for v in model.graph.output})


def check_network(path: Path, data: bytes, spec: NetworkSpec) -> None:
    """Raise BundleError unless a file is the network that the manifest speaks of.

    A model of Hugging Face is compared with its weights when it is built, which needs transformers.
    """
    if spec.format == "hugging_face":
        for name, tensor in TensorFile.of(path, data).tensors.items():
            if not tensor.isfinite().all():
                raise BundleError(path, f"tensor {name} holds NaN or infinite values")
        return
    graph = read_graph(path, data)
    if spec.input not in graph.inputs:
        raise BundleError(path, f"has no input {spec.input}, but {', '.join(graph.inputs)}")
    if spec.output not in graph.outputs:
        raise BundleError(path, f"has no output {spec.output}, but {', '.join(graph.outputs)}")
    expected = (1, 3, spec.size[1], spec.size[0])
    found = graph.inputs[spec.input]
    fits = len(found) == 4 and all(a in (None, b) for a, b in zip(found, expected, strict=True))
    if not fits:
        raise BundleError(
            path, f"its input {spec.input} is {_words(found)}, not {_words(expected)}"
        )
    others = set(graph.inputs) - {spec.input}
    if others != set(spec.fill):
        raise BundleError(
            path,
            f"takes {sorted(others)} beside the picture; values are given for {sorted(spec.fill)}",
        )
    for name in others:
        fill_shape(path, graph, name)


def fill_shape(path: Path, graph: Graph, name: str) -> tuple[int, ...]:
    """Shape of a further input, which must be fixed and small. Raises BundleError."""
    sides = [side for side in graph.inputs[name] if side is not None]
    if len(sides) < len(graph.inputs[name]) or math.prod(sides) > INPUT_PIXELS:
        raise BundleError(path, f"its input {name} has no fixed shape that could be filled")
    return tuple(sides)


def _words(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if side is None else str(side) for side in shape)


def _shape(value: Any) -> tuple[int | None, ...]:
    sides = value.type.tensor_type.shape.dim
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in sides
    )


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those within its operators (branches, loops)."""
    waiting = [graph]
    while waiting:
        found = waiting.pop()
        yield found
        for node in found.node:
            for attribute in node.attribute:
                waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _tensors(graph: Any) -> Iterator[Any]:
    sparse = list(graph.sparse_initializer)
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
