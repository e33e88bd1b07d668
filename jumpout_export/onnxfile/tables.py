"""The constants that a saved ONNX file computes with: initializers, Constant nodes, subgraphs, functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jumpout_export.onnxfile.constants import Array
from jumpout_export.onnxfile.load import inlined
from jumpout_export.onnxfile.walk import messages

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, TensorProto

# Which inputs of an operator are sizes, axes or places of the data, and no values of it.
_SIZES = {
    "Reshape": (1,),
    "Expand": (1,),
    "Unsqueeze": (1,),
    "Squeeze": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Pad": (1, 3),
    "Tile": (1,),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "ConstantOfShape": (0,),
    "TopK": (1,),
    "CumSum": (1,),
    "CenterCropPad": (1,),
    "ReduceSum": (1,),
    "ReduceMean": (1,),
    "ReduceMax": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceSumSquare": (1,),
}


class Constant:
    """One constant of a file, read where its values are needed.

    Attributes:
        name: by which it is read; of what the node makes that holds it.
        size: number of elements.
        is_shape: whether nothing reads it but for sizes, axes and places.
    """

    def __init__(self, tensor: TensorProto, folder: str, name: str = "", *, is_shape: bool = False) -> None:
        self.name = name or tensor.name or "a constant"
        self.size = math.prod(tensor.dims)
        self.is_shape = is_shape
        self._tensor, self._folder = tensor, folder

    def values(self) -> Array:
        """All values, flat; numbers that NumPy has no type for in float32."""
        from onnx import numpy_helper

        array = numpy_helper.to_array(self._tensor, self._folder).reshape(-1)
        return array if array.dtype.kind in "fiub" else array.astype(np.float32)

    @property
    def dims(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self._tensor.dims)


def constants_in(model: ModelProto, folder: str) -> list[Constant]:
    """Returns the constants of numbers that the outputs of a file depend on, at any depth, except for empty ones.

    Args:
        model: its protobuf, without external data.
        folder: that external data lies in.
    """
    from onnx import TensorProto

    model = inlined(model)
    needed = _needed(model)

    others = {TensorProto.UNDEFINED, TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128}
    sizes, values = _uses(model)
    found = []
    for tensor, name in _tensors(model):
        constant = Constant(tensor, folder, name)
        if tensor.data_type not in others and constant.size and constant.name in needed:
            constant.is_shape = constant.name in sizes and constant.name not in values
            found.append(constant)
    return found


def _tensors(model: ModelProto) -> Iterator[tuple[TensorProto, str]]:
    """Every tensor and list of numbers, and what a node makes that holds it."""
    for message in messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "GraphProto":
            yield from ((tensor, "") for tensor in message.initializer)
            yield from ((tensor.values, "") for tensor in message.sparse_initializer)
        elif kind in ("NodeProto", "FunctionProto"):
            name = next(iter(message.output), "") if kind == "NodeProto" else ""
            is_value = kind == "NodeProto" and message.op_type == "Constant"
            for attribute in message.attribute if kind == "NodeProto" else message.attribute_proto:
                yield from ((tensor, name) for tensor in _held(attribute, is_value=is_value))


def _held(attribute: AttributeProto, *, is_value: bool) -> Iterator[TensorProto]:
    from onnx import numpy_helper

    if attribute.HasField("t"):
        yield attribute.t
    if attribute.HasField("sparse_tensor"):
        yield attribute.sparse_tensor.values
    yield from attribute.tensors
    yield from (tensor.values for tensor in attribute.sparse_tensors)
    if is_value and attribute.name == "value_floats":
        yield numpy_helper.from_array(np.array(attribute.floats, np.float32))
    if is_value and attribute.name == "value_ints":
        yield numpy_helper.from_array(np.array(attribute.ints, np.int64))


def _needed(model: ModelProto) -> set[str]:
    """The names that the outputs depend on; in a subgraph of a node that is needed, every one."""
    makers = {name: node for node in model.graph.node for name in node.output}
    needed: set[str] = set()
    left = [value.name for value in model.graph.output]
    while left:
        name = left.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in makers:
            left += makers[name].input
            for message in messages(makers[name]):
                if message is not makers[name] and message.DESCRIPTOR.name == "NodeProto":
                    left += [*message.input, *message.output]
                elif message.DESCRIPTOR.name == "GraphProto":
                    left += [value.name for value in message.output]
    return needed


def _uses(model: ModelProto) -> tuple[set[str], set[str]]:
    """The names that nodes read for sizes, and those that are read as values; outputs of a graph are values."""
    found: dict[bool, set[str]] = defaultdict(set)
    for message in messages(model):
        if message.DESCRIPTOR.name == "NodeProto":
            for place, name in enumerate(message.input):
                found[place in _SIZES.get(message.op_type, ())].add(name)
        elif message.DESCRIPTOR.name == "GraphProto":
            found[False] |= {value.name for value in message.output}
    return found[True], found[False]
