"""Reads a protobuf as a graph of values in which noise can be looked for, functions written out where it may hide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpout_export.errors import NotVerifiableError
from jumpout_export.export.checks import first_line
from jumpout_export.export.protos import DEFAULT_DOMAINS
from jumpout_export.export.refold_noise import RANDOM_OPERATORS, Noise, find_noise

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto


@dataclass(frozen=True)
class Reading:
    """A model and the noise in it.

    Attributes:
        model: the model, functions with noise written out.
        inlined: names of those functions.
        typed: the same with types and shapes of all values, as far as they can be inferred.
        graph: the same as values and nodes.
        noise: what was found.
    """

    model: ModelProto
    inlined: list[str]
    typed: ModelProto
    graph: ir.Model
    noise: Noise


def read_noise(model: ModelProto) -> Reading:
    """Returns the noise of a model that `onnx.checker` accepts; the model itself is not changed.

    Raises:
        NotVerifiableError: if the graph holds something that onnx or onnx_ir does not know.
    """
    import onnx
    import onnx_ir

    try:
        written, inlined = _without_noisy_functions(model)
        typed = onnx.shape_inference.infer_shapes(written, data_prop=True)
        graph = onnx_ir.serde.deserialize_model(typed)
    except Exception as error:  # onnx and onnx_ir raise several types on what they do not know, the reason innermost
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise NotVerifiableError(f"the graph cannot be read: {first_line(cause)}") from error
    return Reading(written, inlined, typed, graph, find_noise(graph))


def graphs_of(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Yields the graphs in a node's attributes, with the attribute's name."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        yield from ((attribute.name, graph) for graph in attribute.graphs)


def nodes_of(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yields nodes and those in their subgraphs."""
    for node in nodes:
        yield node
        for _, graph in graphs_of(node):
            yield from nodes_of(graph.node)


def called(node: NodeProto) -> tuple[str, str]:
    """Returns domain and name of what a node calls, as a function is called."""
    return node.domain, node.op_type


def _without_noisy_functions(model: ModelProto) -> tuple[ModelProto, list[str]]:
    """The model with those functions written out in which, or below which, there may be noise.

    Inside a function a flag is a parameter; where it is called it has a value.
    """
    from onnx import inliner

    calls = {_name(function): {called(node) for node in nodes_of(function.node)} for function in model.functions}
    noisy = {_name(function) for function in model.functions if any(map(_may_be_noise, nodes_of(function.node)))}
    while more := {name for name, inner in calls.items() if inner & noisy} - noisy:
        noisy |= more
    if not noisy:
        return model, []
    return inliner.inline_selected_functions(model, sorted(noisy)), sorted(name for _, name in noisy)


def _name(function: FunctionProto) -> tuple[str, str]:
    return function.domain, function.name


def _may_be_noise(node: NodeProto) -> bool:
    if node.domain not in DEFAULT_DOMAINS:
        return False
    flags = {attribute.name for attribute in node.attribute} & {"training_mode", "is_test"}
    return (
        node.op_type in RANDOM_OPERATORS
        or (node.op_type == "Dropout" and (bool(flags) or len(node.input) > 2))
        or (node.op_type == "BatchNormalization" and (bool(flags) or len(node.output) > 1))
    )
