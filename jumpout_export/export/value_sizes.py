"""The sizes of what a graph computes on its way, as far as the file alone says them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jumpout_export.export.protos import messages, tensors

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

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
