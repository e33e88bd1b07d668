"""Where an ONNX file rounds to integers: its QuantizeLinear and DequantizeLinear nodes, and what they do to values."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jumpout_export.onnxfile.constants import Array
from jumpout_export.onnxfile.load import inlined
from jumpout_export.onnxfile.walk import constants_of, sites

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Operators of ONNX and of ONNX Runtime that round to integers or compute with them: QLinearConv, MatMulInteger,
# DynamicQuantizeLinear, QGemm, MatMulNBits.
_ROUNDING = re.compile(r"[Qq]uantize|^QLinear|Integer|^QGemm$|^QAttention$|^MatMulNBits$")
# Integers that a value is rounded to, by the name of ONNX's type: the smallest and the largest.
_RANGES = {
    "INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-32768, 32767), "UINT16": (0, 65535),
    "INT4": (-8, 7), "UINT4": (0, 15), "INT32": (-(2**31), 2**31 - 1),
}  # fmt: skip


def quantized_operators(model: ModelProto) -> dict[str, int]:
    """Returns the operators of a file that round values to integers, and how many nodes of each it has."""
    found = Counter(site.node.op_type for site in sites(model) if _ROUNDING.search(site.node.op_type))
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Grid:
    """The values that a tensor may have: scale * (integer - zero point)."""

    scale: Array  # (), (channels,), or a shape with blocks, float64
    zero_point: Array  # of the same shape, int64
    low: int  # the smallest integer
    high: int  # the largest
    kind: str  # ONNX's name of the integers' type
    axis: int = 1  # along which there is a scale for each index, where there are several
    block: int = 0  # so many values along the axis share one, 0 for one each

    def along(self, values: Array, like: Array) -> Array:
        """Returns one number per scale as an array that goes with a tensor of the grid."""
        if values.ndim == 0 or values.size == 1:
            return values.reshape(())
        axis = self.axis + (like.ndim if self.axis < 0 else 0)
        if self.block:
            return np.repeat(values, self.block, axis).take(np.arange(like.shape[axis]), axis)
        return values.reshape([-1 if index == axis else 1 for index in range(like.ndim)])

    def value(self, integers: Array) -> Array:
        """Returns what stands for some integers."""
        integers = integers.astype(np.float64)
        return (integers - self.along(self.zero_point, integers)) * self.along(self.scale, integers)

    def ends(self, like: Array) -> tuple[Array, Array]:
        """Returns the smallest and the largest value that goes to an integer unclipped: half a step beyond the ends."""
        scale, zero = self.along(self.scale, like), self.along(self.zero_point, like)
        return (self.low - 0.5 - zero) * scale, (self.high + 0.5 - zero) * scale

    @property
    def cuts_at_zero(self) -> bool:
        """Whether nothing below zero can be told from zero, as behind a ReLU."""
        return bool((self.zero_point == self.low).all())

    def same(self, other: Grid) -> bool:
        """Whether another one has the same scales and zero points."""
        return np.array_equal(self.scale, other.scale, equal_nan=True) and np.array_equal(
            self.zero_point, other.zero_point
        )


@dataclass(frozen=True)
class Activation:
    """A tensor of the data that is rounded."""

    name: str  # what is rounded
    rounded: str  # the integers
    result: str  # the first value that is made of them directly; empty if there is none
    grid: Grid
    node: str  # name of the QuantizeLinear


@dataclass(frozen=True)
class RoundedWeight:
    """A constant that is kept as integers, or is rounded before it is used."""

    name: str  # of the constant
    result: str  # the value that the network reads
    integers: Array
    grid: Grid
    reader: str  # the node that reads it, for a person
    own: Array | None = None  # the constant itself where it is floating point

    def value(self) -> Array:
        """Returns it as the network reads it, float64."""
        return self.grid.value(self.integers)


@dataclass
class QuantizedFile:
    """What a file rounds.

    Attributes:
        model: with all its data, local functions inlined.
        operators: those that round, with their numbers of nodes.
        problems: why it cannot be judged, as phrases.
        activations: in the order of the file.
        weights: in the order of the file.
        grids: of every QuantizeLinear and DequantizeLinear, by a name for a person.
        pairs: those of a DequantizeLinear and of the QuantizeLinear whose integers it reads, with a name.
    """

    model: ModelProto
    operators: dict[str, int]
    problems: list[str] = field(default_factory=list)
    activations: list[Activation] = field(default_factory=list)
    weights: list[RoundedWeight] = field(default_factory=list)
    grids: dict[str, Grid] = field(default_factory=dict)
    pairs: list[tuple[str, Grid, Grid]] = field(default_factory=list)

    @property
    def inner(self) -> list[NodeProto]:
        """The nodes that round activations or weights."""
        return [node for node in self.model.graph.node if node.op_type in (_QUANTIZE, _DEQUANTIZE)]


def read_quantized(path: Path, model: ModelProto) -> QuantizedFile:
    """Returns what a file rounds.

    Args:
        path: the file; external data is read from its folder.
        model: its protobuf, without external data; it is not changed.
    """
    import onnx

    whole = type(model)()
    whole.CopyFrom(model)
    onnx.load_external_data_for_model(whole, str(path.parent))
    whole = inlined(whole)
    found = QuantizedFile(whole, quantized_operators(whole))
    found.problems = _other_forms(found)
    if not found.problems:
        _Reader(found).read()
    return found


def _other_forms(file: QuantizedFile) -> list[str]:
    nodes = Counter(node.op_type for node in file.model.graph.node)
    if not file.operators:
        return ["it holds no QuantizeLinear: it is not quantized; verify it without quantized=True (--quantized)"]
    others = [name for name in file.operators if name not in (_QUANTIZE, _DEQUANTIZE)]
    if others:
        form = "quantize_static(..., quant_format=QuantFormat.QDQ)"
        judged = f"only the form with QuantizeLinear and DequantizeLinear can be judged, in ONNX Runtime {form}"
        return [f"{', '.join(others)}: {judged}"]
    inside = [name for name, number in file.operators.items() if nodes[name] != number]
    return [f"{', '.join(inside)} in a subgraph: only those of the main graph can be judged"] if inside else []


class _Reader:
    def __init__(self, file: QuantizedFile) -> None:
        self._file, graph = file, file.model.graph
        self._tensors = {name: tensor for name, tensor in constants_of(graph).items() if tensor is not None}
        self._made = {name: node for node in graph.node for name in node.output if name}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def read(self) -> None:
        for node in self._file.inner:
            try:
                grid = self._grid(node)
            except _NotReadError as error:
                self._file.problems.append(str(error))
                continue
            self._file.grids[f"`{node.input[0]}` ({node.op_type})"] = grid
            if node.op_type == _QUANTIZE and node.input[0] not in self._tensors:
                results = [one.output[0] for one in self._readers.get(node.output[0], []) if one.op_type == _DEQUANTIZE]
                self._file.activations.append(
                    Activation(node.input[0], node.output[0], next(iter(results), ""), grid, node.name)
                )
            elif node.op_type == _DEQUANTIZE:
                self._dequantized(node, grid)

    def _dequantized(self, node: NodeProto, grid: Grid) -> None:
        origin = self._origin(node.input[0])
        if origin is None:
            self._file.problems.append(f"`{node.input[0]}` is integers that no QuantizeLinear makes")
            return
        name, quantizer = origin
        if quantizer is None:
            self._weight(node, name, grid, None)
            return
        with_grid = self._grid(quantizer)
        self._file.pairs.append((f"`{quantizer.input[0]}`", with_grid, grid))
        if quantizer.input[0] in self._tensors and quantizer.output[0] == node.input[0]:
            self._weight(node, quantizer.input[0], grid, with_grid)

    def _weight(self, node: NodeProto, name: str, grid: Grid, before: Grid | None) -> None:
        values = _array(self._tensors[name])
        integers, own = values, None
        if before is not None:
            own = values.astype(np.float64)
            with np.errstate(all="ignore"):
                wanted = np.rint(own / before.along(before.scale, own)) + before.along(before.zero_point, own)
            integers = np.nan_to_num(wanted).clip(before.low, before.high)
        readers = [f"{one.op_type} {one.name or one.output[0]}" for one in self._readers.get(node.output[0], [])]
        self._file.weights.append(
            RoundedWeight(name, node.output[0], integers, grid, next(iter(readers), "nothing"), own)
        )

    def _origin(self, name: str) -> tuple[str, NodeProto | None] | None:
        """The integer constant, or the QuantizeLinear, behind integers that were moved about at the most."""
        while True:
            if name in self._tensors:
                return (name, None)
            node = self._made.get(name)
            if node is None or not node.input:
                return None
            if node.op_type == _QUANTIZE:
                return (name, node)
            name = node.input[0]

    def _grid(self, node: NodeProto) -> Grid:
        from onnx import TensorProto, helper

        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        where = f"{node.op_type} {node.name or node.output[0]}"
        if node.input[1] not in self._tensors:
            raise _NotReadError(f"{where}: its scale is no constant")
        scale = _array(self._tensors[node.input[1]]).astype(np.float64)
        zero = node.input[2] if len(node.input) > 2 else ""
        if zero and zero not in self._tensors:
            raise _NotReadError(f"{where}: its zero point is no constant")
        if zero:
            kind = self._tensors[zero].data_type
        elif node.op_type == _QUANTIZE:
            kind = attributes.get("output_dtype", 0) or TensorProto.UINT8
        else:
            origin = self._tensors.get(node.input[0])
            before = self._origin(node.input[0]) if origin is None else None
            if before is not None and before[1] is not None:
                return self._grid(before[1])
            kind = origin.data_type if origin is not None else TensorProto.UINT8
        name = TensorProto.DataType.Name(kind)
        if name not in _RANGES:
            raise _NotReadError(f"{where}: {name.lower()} cannot be judged, but for {', '.join(_RANGES).lower()}")
        points = _array(self._tensors[zero]).astype(np.int64) if zero else np.zeros(scale.shape, np.int64)
        if points.shape != scale.shape and points.size != scale.size:
            raise _NotReadError(f"{where}: it has {scale.size} scales and {points.size} zero points")
        low, high = _RANGES[name]
        axis, block = int(attributes.get("axis", 1)), int(attributes.get("block_size", 0))
        return Grid(scale, points.reshape(scale.shape), low, high, name, axis, block)


class _NotReadError(Exception):
    """A node that rounds in a way that is not judged."""


def _array(tensor: Any) -> Array:
    from onnx import numpy_helper

    array: Array = numpy_helper.to_array(tensor)
    return array if array.dtype.kind in "fiu" else array.astype(np.float64)
