"""Which nodes of a file compute in bfloat16, and for which of them a runtime has no kernel: each is tried there."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jumpout_export.onnxfile.load import inlined
from jumpout_export.onnxfile.walk import constants_of
from jumpout_export.text import count, some_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_BFLOAT16, _FLOAT = 16, 1  # as onnx numbers them
# A constant of so many bytes is part of what a node is, such as a shape or an axis; a larger one is its data.
_SMALL = 256
_INVALID = "INVALID_GRAPH"


def explain_bfloat16(error: BaseException, model: ModelProto, opens: Callable[[ModelProto], Any]) -> str | None:
    """Returns for which operators in bfloat16 a runtime that does not open a file has no kernel, and what helps.

    Nothing is looked up in a list: each kind of node is tried by itself.

    Args:
        error: what the runtime said of the whole file; one that is no file in its eyes is not looked at.
        model: its protobuf; it stays as it is.
        opens: opens a model in the runtime, and raises where it cannot.

    Returns:
        A phrase; None where bfloat16 is not the reason.
    """
    if _INVALID in str(error):
        return None
    tried: dict[bytes, bool] = {}
    lacking: list[NodeProto] = []
    nodes = list(_in_bfloat16(model))
    for node, single in nodes:
        key = single.SerializeToString(deterministic=True)
        if key not in tried:
            tried[key] = _opens(single, opens)
        lacking += [] if tried[key] else [node]
    if not lacking:
        return None
    operators = ", ".join(dict.fromkeys(node.op_type for node in lacking))
    names = some_of([f"`{node.name or node.output[0]}`" for node in lacking], 4)
    total = count(len(nodes), "node")
    return (
        f"it has no bfloat16 kernel for {operators} ({names}; {len(lacking)} of {total} in bfloat16): verify it on a "
        "provider that has them, as it is served, cast the model with model.float(), or export it with "
        "dtype=torch.float16 (--dtype fp16)"
    )


def describe_bfloat16(model: ModelProto) -> str:
    """Returns which nodes compute in bfloat16, and which in float32, by their operators; empty if none is in bfloat16.

    A Cast is in neither: it is between them.
    """
    if not _mentions_bfloat16(model):
        return ""
    types = _types(inlined(model))
    kinds: dict[int, Counter[str]] = {_BFLOAT16: Counter(), _FLOAT: Counter()}
    casts = 0
    for node in inlined(model).graph.node:
        found = {types.get(name, 0) for name in (*node.input, *node.output)}
        casts += node.op_type == "Cast" and _BFLOAT16 in found
        if node.op_type != "Cast":
            for kind, operators in kinds.items():
                operators[node.op_type] += kind in found
    parts = [f"{_listed(kinds[kind])} in {name}" for kind, name in ((_BFLOAT16, "bfloat16"), (_FLOAT, "float32"))]
    parts += [f"{count(casts, 'Cast')} from or to bfloat16"] if casts else []
    return f"the nodes compute: {'; '.join(parts)}"


def _mentions_bfloat16(model: ModelProto) -> bool:
    """Whether a value or constant of the file is in bfloat16, or a Cast to it: without one nothing else is."""
    graphs = [model.graph, *model.functions]
    values = (*model.graph.input, *model.graph.output)
    return (
        any(value.type.tensor_type.elem_type == _BFLOAT16 for value in values)
        or any(tensor.data_type == _BFLOAT16 for tensor in model.graph.initializer)
        or any(
            attribute.t.data_type == _BFLOAT16 or (attribute.name == "to" and attribute.i == _BFLOAT16)
            for graph in graphs
            for node in graph.node
            for attribute in node.attribute
        )
    )


def _listed(operators: Counter[str]) -> str:
    return ", ".join(f"{number} {operator}" for operator, number in (+operators).items()) or "none"


def _in_bfloat16(model: ModelProto) -> Iterator[tuple[NodeProto, ModelProto]]:
    """Yields each node that takes or gives bfloat16, with a model of it alone; one with subgraphs is left out."""
    from onnx import helper

    model = inlined(model)
    types, constants = _types(model), constants_of(model.graph)
    for node in model.graph.node:
        names = [name for name in (*node.input, *node.output) if name]
        has_graph = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        known = all(types.get(name) for name in names)
        if has_graph or not known or not any(types[name] == _BFLOAT16 for name in names):
            continue
        small = {
            name: tensor
            for name in node.input
            if (tensor := constants.get(name)) is not None and 0 < len(tensor.raw_data) <= _SMALL
        }
        single = copy.deepcopy(node)
        single.name = ""
        fresh = {name: f"v{place}" for place, name in enumerate(dict.fromkeys(names))}
        for places in (single.input, single.output):
            places[:] = [fresh.get(name, "") for name in places]
        inputs = [
            helper.make_tensor_value_info(fresh[name], types[name], None)
            for name in dict.fromkeys(node.input)
            if name and name not in small
        ]
        outputs = [helper.make_tensor_value_info(fresh[name], types[name], None) for name in node.output if name]
        graph = helper.make_graph([single], "single", inputs, outputs)
        for name, tensor in small.items():
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = fresh[name]
        yield node, helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _types(model: ModelProto) -> dict[str, int]:
    """The type of each tensor, as onnx infers it; 0 where it does not say."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    return types | {name: int(tensor.data_type) for name, tensor in constants_of(graph).items() if tensor is not None}


def _opens(model: ModelProto, opens: Callable[[ModelProto], Any]) -> bool:
    try:
        opens(model)
    except Exception:  # ONNX Runtime raises a dozen types without a common base; that it does is the answer
        return False
    return True
