"""Walks through everything an ONNX file holds: nodes in subgraphs and functions, tensors, free text."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})
# /a/b and deeper, not preceded by a word, a URL's colon or another slash; C:\ and \\host\share; file: URLs.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w:/.\-+])/(?:[^\s/:\"'<>|*?]+/)+[^\s/:\"'<>|*?,;]+|\b[A-Za-z]:[\\/][^\s\"'<>|*?]+|\\\\[\w.$-]+\\[^\s\"'<>|*?]*|\bfile:/\S*"
)


@dataclass(frozen=True)
class Site:
    """A node and what is known where it stands.

    Attributes:
        node: the NodeProto.
        where: for a person, for example `node_Dropout_3 in the then_branch of node_If_2`.
        opset: version of the default domain there, 0 if it is not imported.
        constants: tensors by name that no caller can change; None for a name that is computed or passed in there,
            whatever it means in the graph around.
    """

    node: NodeProto
    where: str
    opset: int
    constants: Mapping[str, TensorProto | None]


def sites(model: ModelProto) -> Iterator[Site]:
    """Yields every node of the main graph, of all subgraphs at any depth, of functions and of training graphs."""
    opset = default_opset(model)
    yield from _graph_sites(model.graph, "", opset, ChainMap())
    for function in model.functions:
        yield from function_sites(model, function)
    for info in model.training_info:
        yield from _graph_sites(info.initialization, " in training_info", opset, ChainMap())
        yield from _graph_sites(info.algorithm, " in training_info", opset, ChainMap())


def function_sites(model: ModelProto, function: FunctionProto) -> Iterator[Site]:
    """Yields every node of a local function and of its subgraphs; its own opset is the one that counts there."""
    opset = default_opset(function) or default_opset(model)
    inputs: ChainMap[str, Any] = ChainMap(dict.fromkeys(function.input))
    yield from _node_sites(function.node, f" in function {function.domain}::{function.name}", opset, inputs)


def default_opset(model: ModelProto | FunctionProto) -> int:
    """Returns the version of ONNX's own operators that a file or function uses, 0 if it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def messages(message: Any) -> Iterator[Any]:
    """Yields a protobuf message and all messages in it, at any depth, parents first."""
    yield message
    if message.DESCRIPTOR.name == "TensorProto":
        return  # holds no further text or graph, and reading its fields would copy its data
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for child in (value,) if hasattr(value, "DESCRIPTOR") else value:
                yield from messages(child)


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yields every tensor in the file, wherever it is."""
    for message in messages(model):
        if message.DESCRIPTOR.name == "TensorProto":
            yield message


def texts(model: ModelProto) -> Iterator[str]:
    """Yields every doc string and every metadata value, at any depth."""
    for message in messages(model):
        names = message.DESCRIPTOR.fields_by_name
        if "doc_string" in names and message.doc_string:
            yield message.doc_string
        if "metadata_props" in names:
            yield from (text for prop in message.metadata_props for text in (prop.key, prop.value))


def _graph_sites(graph: Any, where: str, opset: int, outer: ChainMap[str, Any]) -> Iterator[Site]:
    constants = outer.new_child({tensor.name: tensor for tensor in graph.initializer})
    constants.update(dict.fromkeys((tensor.values.name for tensor in graph.sparse_initializer), None))
    # An input hides the same name further out, and with an initializer it has only a default value: whoever runs the
    # model may pass another one.
    constants.update(dict.fromkeys((value.name for value in graph.input), None))
    yield from _node_sites(graph.node, where, opset, constants)


def _node_sites(nodes: Any, where: str, opset: int, constants: ChainMap[str, Any]) -> Iterator[Site]:
    # All outputs of the graph before its first node: in a file whose nodes are out of order, or that gives one name
    # twice, nothing with such a name is known for certain.
    for node in nodes:
        constant = _constant(node)
        for name in filter(None, node.output):
            constants[name] = None if name in constants.maps[0] else constant
    for index, node in enumerate(nodes):
        name = f"{node.name or f'#{index}'} ({node.op_type}){where}"
        yield Site(node, name, opset, constants)
        for attribute in node.attribute:
            inside = f" in {attribute.name} of {name}"
            for graph in (attribute.g, *attribute.graphs):
                if graph.node or graph.initializer:
                    yield from _graph_sites(graph, inside, opset, constants)


def _constant(node: Any) -> Any:
    """The tensor that a Constant node holds, None for any other node or form; a function's caller may set it."""
    if node.op_type != "Constant" or node.domain not in DEFAULT_DOMAINS:
        return None
    values = [attribute for attribute in node.attribute if attribute.name == "value" and not attribute.ref_attr_name]
    return values[0].t if len(values) == 1 else None


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
