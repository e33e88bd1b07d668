"""The sizes of what a graph computes on its way, as far as the file alone says them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from jumpout_export.onnxfile.walk import messages, tensors
from jumpout_export.text import first_line

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

# Of one value in the graph, 8 GiB of float32; a file that makes larger ones is not run.
MOST_ELEMENTS = 1 << 31
# Of one input, or of all that are made up: 1 GiB of float32.
MOST_INPUT_ELEMENTS = 1 << 28

# A shape, or an index, is shorter; weights are longer, and inference reads none of them.
_MOST_BYTES = 1 << 12


def inferred_values(model: ModelProto) -> Iterator[ValueInfoProto]:
    """Yields every value of the graph and its subgraphs with the shape that follows from the file.

    Args:
        model: not changed; without external data.

    Raises:
        Exception: of onnx, which raises several types, if the graph is not valid.
    """
    import onnx

    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in tensors(light):
        if len(tensor.raw_data) > _MOST_BYTES:
            tensor.ClearField("raw_data")
    typed = onnx.shape_inference.infer_shapes(light, data_prop=True)
    for message in messages(typed):
        if message.DESCRIPTOR.name == "GraphProto":
            yield from message.value_info
            yield from message.output


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
