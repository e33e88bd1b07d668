"""One node of an ONNX file as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from jumpout_export.filenetwork.operators import FORMER, OPERATORS, NotHereError
from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS

if TYPE_CHECKING:
    from onnx import NodeProto

# Operators whose attribute says which type they make: TensorProto's numbers of the floating-point ones.
_TYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64}
# The first opset in which Resize says how it counts; before, each point was the corner of its cell.
_RESIZE = 11


class FileNode(nn.Module):
    """Runs a node.

    Attributes:
        reads: names of its inputs in the file, empty where one is left out, then what its subgraphs read around it.
        makes: names of its outputs.
    """

    def __init__(self, node: NodeProto, opset: int, around: Sequence[str] = ()) -> None:
        """Takes a node of a file in this opset, and the names that its subgraphs read of values around them."""
        from onnx import helper

        super().__init__()
        self.reads, self.makes = (*node.input, *around), tuple(name for name in node.output if name)
        self.kind = node.op_type
        self._given = tuple(dict.fromkeys(name for name in self.reads if name))
        given = [helper.make_empty_tensor_value_info(name) for name in self._given]
        made = [helper.make_empty_tensor_value_info(name) for name in self.makes]
        node, self._opset = _known(node, opset)
        self._graph = helper.make_graph([node], "one", given, made).SerializeToString()
        values = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        self._attributes: dict[str, Any] = {
            name: one.decode() if isinstance(one, bytes) else one for name, one in values.items()
        }
        usual = node.domain in DEFAULT_DOMAINS and len(self.makes) == 1 and bool(node.output[0])
        until, former = FORMER.get(self.kind, (0, None))
        self._operator = (former if opset < until else OPERATORS.get(self.kind)) if usual else None

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
        given = dict(zip(self.reads, inputs, strict=True))
        graph = torch.frombuffer(bytearray(self._graph), dtype=torch.uint8)
        made = _onnx_graph(graph, self._opset, [cast("Tensor", given[name]) for name in self._given])
        if dtype == torch.float64:  # of a constant that the node itself holds
            made = [one.double() if one.is_floating_point() else one for one in made]
        return tuple(made)


def _known(node: NodeProto, opset: int) -> tuple[NodeProto, int]:
    """A node, and the opset to read it in, as the reference implementation has it, which knows not every older one."""
    from onnx import NodeProto, defs, helper
    from onnx.reference.ops import load_op

    if node.domain not in DEFAULT_DOMAINS:
        return node, opset
    if node.op_type in ("Upsample", "Resize") and opset < _RESIZE and len(node.input) > 1:
        resize = NodeProto()
        resize.CopyFrom(node)
        resize.op_type = "Resize"
        resize.input[:] = [node.input[0], "", node.input[1]]
        resize.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        resize.attribute.append(helper.make_attribute("nearest_mode", "floor"))
        return resize, _RESIZE
    for version in range(opset, defs.onnx_opset_version() + 1):
        try:
            load_op("", node.op_type, version)
        except RuntimeError:  # it has no implementation of this version
            continue
        except Exception:  # one that is made of others, which needs more to be loaded
            pass
        return node, version
    return node, opset


def _is_usual(value: Tensor | None) -> bool:
    return value is None or value.is_floating_point() or value.dtype in (torch.int64, torch.int32)


@torch.library.custom_op("jumpout_export::onnx_graph", mutates_args=())
def _onnx_graph(graph: Tensor, opset: int, inputs: list[Tensor]) -> list[Tensor]:
    """What the reference implementation of the onnx package makes of a graph, whose bytes are given."""
    from onnx import GraphProto
    from onnx.reference import ReferenceEvaluator

    parsed = GraphProto.FromString(graph.numpy().tobytes())
    runner = ReferenceEvaluator(parsed, opsets={"": opset})
    feeds = {value.name: one.numpy() for value, one in zip(parsed.input, inputs, strict=True)}
    with np.errstate(all="ignore"):
        found: list[Any] = list(runner.run(None, feeds))
    return [torch.from_numpy(np.array(one)) for one in found]
