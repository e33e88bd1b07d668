"""Every intermediate value of a saved file: runs marked copies of it whose inner values are outputs."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from jumpout_export.onnxfile.data import copy_data
from jumpout_export.onnxfile.load import inlined
from jumpout_export.runtime.marked import with_outputs
from jumpout_export.runtime.session import Level, open_session

if TYPE_CHECKING:
    from onnx import ModelProto

# Values of so many bytes are fetched per run, at least one value; more take more runs.
BYTES_PER_RUN = 1 << 28


@dataclass(frozen=True)
class FileValue:
    """A value inside a file."""

    name: str  # in the graph
    where: str  # name and node for a person, for example `relu_1` (Relu node_Relu_3)
    tensor: Tensor  # the value, floating point, on the CPU
    is_output: bool  # whether it is an output of the graph


def file_values(
    path: Path, model: ModelProto, provider: str, level: Level, inputs: list[Tensor], bytes_per_run: int = BYTES_PER_RUN
) -> Iterator[FileValue]:
    """Yields the outputs of the graph, whatever their type, and every floating-point value inside of it.

    Local functions are inlined; what is in a subgraph of an If, Loop or Scan is not seen. The copies are written to a
    temporary folder with the external data beside them.

    Args:
        path: the file.
        model: its protobuf, without external data.
        provider: its name, such as `cpu`.
        level: of ONNX Runtime's optimizations.
        inputs: in the graph's order.
        bytes_per_run: bound on the values that are held at once.
    """
    model = inlined(model)
    nodes = {name: f"{node.op_type} {node.name or name}" for node in model.graph.node for name in node.output if name}
    outputs = [value.name for value in model.graph.output]
    sizes = _sizes(model, inputs)
    inner = {name: sizes.get(name, bytes_per_run) for name in nodes if name not in outputs and sizes.get(name) != 0}
    with tempfile.TemporaryDirectory() as folder:
        copy_data(path, model, Path(folder))
        for number, names in enumerate(_chunks(inner, bytes_per_run)):
            session = open_session(_marked(model, names, Path(folder)), provider, level)
            for name, tensor in zip(session.outputs, session.run(inputs), strict=True):
                is_output = name in outputs
                if (number == 0) if is_output else tensor.is_floating_point():
                    yield FileValue(name, f"`{name}` ({nodes.get(name, 'an input')})", tensor, is_output)


def _sizes(model: ModelProto, inputs: list[Tensor]) -> dict[str, int]:
    """Bytes of every value whose shape can be inferred; 0 for one that is not floating point."""
    from onnx import TensorProto, shape_inference

    fixed = copy.deepcopy(model)
    del fixed.graph.value_info[:]
    for value, tensor in zip(fixed.graph.input, inputs, strict=True):
        for axis, size in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=True):
            axis.dim_value = size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    widths = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.DOUBLE: 8}
    sizes = {}
    for value in shape_inference.infer_shapes(fixed, data_prop=True).graph.value_info:
        kind = value.type.tensor_type
        axes = kind.shape.dim
        if kind.elem_type not in widths:
            sizes[value.name] = 0
        elif kind.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            sizes[value.name] = max(1, math.prod(axis.dim_value for axis in axes) * widths[kind.elem_type])
    return sizes


def _chunks(sizes: dict[str, int], most: int) -> Iterator[list[str]]:
    """The names in order, in groups of at most so many bytes; at least one group, for the graph's own outputs."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > most:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def _marked(model: ModelProto, names: list[str], folder: Path) -> Path:
    file = folder / "marked.onnx"
    file.write_bytes(with_outputs(model, names).SerializeToString())
    return file
