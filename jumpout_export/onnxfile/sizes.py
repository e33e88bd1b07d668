"""The sizes of what a graph computes on its way, as far as the file alone says them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jumpout_export.onnxfile.walk import messages
from jumpout_export.text import first_line

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto, ValueInfoProto

# Of one value in the graph, 8 GiB of float32; a file that makes larger ones is not run.
MOST_ELEMENTS = 1 << 31
# Of one input, or of all that are made up: 1 GiB of float32.
MOST_INPUT_ELEMENTS = 1 << 28

# A shape, or an index, is shorter; weights are longer, and inference reads none of them.
_MOST_VALUES = 1 << 9


def inferred_values(model: ModelProto) -> Iterator[ValueInfoProto]:
    """Yields every value of the graph and its subgraphs with the shape that follows from the file.

    Args:
        model: not changed; without external data.

    Raises:
        Exception: of onnx, which raises several types, if the graph is not valid.
    """
    from onnx import ModelProto, shape_inference

    light = ModelProto()
    _copy_but(light, model, "graph")
    _copy_but(light.graph, model.graph, "initializer")
    light.graph.initializer.extend(without_values(model.graph.initializer))
    typed = shape_inference.infer_shapes(light, data_prop=True)
    for message in messages(typed):
        if message.DESCRIPTOR.name == "GraphProto":
            yield from message.value_info
            yield from message.output


def without_values(weights: Iterable[TensorProto]) -> Iterator[TensorProto]:
    """Yields tensors as inference of shapes needs them: of those that are no shape, type and name alone."""
    from onnx import TensorProto

    for tensor in weights:
        small = math.prod(tensor.dims) <= _MOST_VALUES and tensor.data_location != TensorProto.EXTERNAL
        yield tensor if small else TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)


def _copy_but(copied: Any, message: Any, left_out: str) -> None:
    """Copies all fields of a message but one."""
    for field, value in message.ListFields():
        if field.name == left_out:
            continue
        if isinstance(value, int | float | str | bytes):
            setattr(copied, field.name, value)
        else:
            getattr(copied, field.name).MergeFrom(value)


def impossible(values: Iterable[ValueInfoProto], least: int = 1, most: int = MOST_INPUT_ELEMENTS) -> list[str]:
    """Returns the values of a fixed size that nobody can mean: to run them would end for want of memory, or never.

    Args:
        values: with their declared or inferred shapes.
        least: the smallest size of an axis that is allowed.
        most: number of elements that is allowed.
    """
    found = []
    for value in values:
        axes = value.type.tensor_type.shape.dim
        sizes = [axis.dim_value for axis in axes if axis.HasField("dim_value")]
        if any(size < least for size in sizes) or math.prod(sizes) > most:
            shape = ", ".join(str(axis.dim_value) if axis.HasField("dim_value") else axis.dim_param for axis in axes)
            found.append(f"{value.name}: [{shape}], allowed are axes from {least} and {most} elements")
    return found


def large_values(model: ModelProto) -> list[str]:
    """The values that no machine would hold; an invalid graph is for the ONNX checker to explain."""
    try:
        return impossible(inferred_values(model), 0, MOST_ELEMENTS)
    except Exception as error:  # onnx raises several types
        return [f"no sizes can be inferred ({first_line(error)})"]
