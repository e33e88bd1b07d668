"""One node of an ONNX file as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from jumpout_export.filenetwork.operators import OPERATORS, NotHereError
from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS

if TYPE_CHECKING:
    from onnx import NodeProto

_FLOATING = (torch.float16, torch.float32, torch.float64)
# Operators whose attribute says which type they make: TensorProto's numbers of the floating-point ones.
_TYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64}


class FileNode(nn.Module):
    """Runs a node.

    Attributes:
        reads: names of its inputs in the file, empty where one is left out.
        makes: names of its outputs.
    """

    def __init__(self, node: NodeProto, opset: int) -> None:
        """Takes a node of a file in this opset."""
        from onnx import helper

        super().__init__()
        self.reads, self.makes = tuple(node.input), tuple(name for name in node.output if name)
        self.kind = node.op_type
        self._opset, self._bytes = opset, node.SerializeToString(deterministic=True)
        values = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        self._attributes: dict[str, Any] = {
            name: one.decode() if isinstance(one, bytes) else one for name, one in values.items()
        }
        usual = node.domain in DEFAULT_DOMAINS and len(self.makes) == 1
        self._operator = OPERATORS.get(node.op_type) if usual else None

    def forward(self, dtype: torch.dtype, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Returns the outputs; `dtype` is the precision that the network runs in."""
        to = _TYPES.get(self._attributes.get("to", 0)) if self.kind == "Cast" else None
        if to is not None:
            return (cast("Tensor", inputs[0]).to(torch.float64 if dtype == torch.float64 else to),)
        if self._operator is not None and all(_is_usual(one) for one in inputs):
            try:
                found = self._operator(self._attributes, *inputs)
            except NotHereError:
                pass
            else:
                return found if isinstance(found, tuple) else (found,)
        made = _onnx_node(torch.frombuffer(bytearray(self._bytes), dtype=torch.uint8), self._opset, [*inputs])
        if dtype == torch.float64:  # of a constant that the node itself holds
            made = [one.double() if one.is_floating_point() else one for one in made]
        return tuple(made)


def _is_usual(value: Tensor | None) -> bool:
    return value is None or value.is_floating_point() or value.dtype in (torch.int64, torch.int32)


@torch.library.custom_op("jumpout_export::onnx_node", mutates_args=())
def _onnx_node(node: Tensor, opset: int, inputs: list[Tensor | None]) -> list[Tensor]:
    """What the reference implementation of the onnx package makes of a node."""
    from onnx import NodeProto, helper
    from onnx.reference import ReferenceEvaluator

    parsed = NodeProto.FromString(node.numpy().tobytes())
    names = [
        [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(some) if name]
        for some in (parsed.input, parsed.output)
    ]
    graph = helper.make_graph([parsed], "one", names[0], names[1])
    runner = ReferenceEvaluator(graph, opsets={"": opset})
    feeds = {name: one.numpy() for name, one in zip(parsed.input, inputs, strict=True) if one is not None}
    with np.errstate(all="ignore"):
        found: list[Any] = list(runner.run(None, feeds))
    return [torch.from_numpy(np.array(one)) for one in found]
