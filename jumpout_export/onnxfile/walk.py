"""Walks through everything an ONNX file holds: nodes in subgraphs and functions, tensors, free text."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})
# Tells whoever gets the file about the machine: /a/b and deeper, not preceded by a word, a URL's colon or another
# slash; C:\ and \\host\share; file: URLs.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w:/.\-+])/(?:[^\s/:\"'<>|*?]+/)+[^\s/:\"'<>|*?,;]+|\b[A-Za-z]:[\\/][^\s\"'<>|*?]+|\\\\[\w.$-]+\\[^\s\"'<>|*?]*|\bfile:/\S*"
)


@dataclass(frozen=True)
class Site:
    """A node and what is known where it stands."""

    node: NodeProto
    where: str  # for a person, for example `node_Dropout_3 in the then_branch of node_If_2`
    opset: int  # version of the default domain there, 0 if it is not imported
    # Tensors by name that no caller can change; None for a name that is computed or passed in there, whatever it means
    # in the graph around.
    constants: Mapping[str, TensorProto | None]


def sites(model: ModelProto) -> Iterator[Site]:
    """Yields every node of the main graph, of all subgraphs at any depth, of functions and of training graphs."""
    yield from main_sites(model)
    for function in model.functions:
        yield from function_sites(model, function)
    for info in model.training_info:
        for graph in (info.initialization, info.algorithm):
            yield from _sites(graph.node, " in training_info", default_opset(model), ChainMap(constants_of(graph)))


def main_sites(model: ModelProto) -> Iterator[Site]:
    """Yields every node of the main graph and its subgraphs, in the order of `nodes_of`."""
    yield from _sites(model.graph.node, "", default_opset(model), ChainMap(constants_of(model.graph)))


def function_sites(model: ModelProto, function: FunctionProto) -> Iterator[Site]:
    """Yields every node of a local function and of its subgraphs; its own opset is the one that counts there."""
    where = f" in function {function.domain}::{function.name}"
    constants = ChainMap(_with_made(dict.fromkeys(function.input), function.node))
    yield from _sites(function.node, where, default_opset(function) or default_opset(model), constants)


def default_opset(model: ModelProto | FunctionProto) -> int:
    """Returns the version of ONNX's own operators that a file or function uses, 0 if it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def graphs_of(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Yields the graphs in a node's attributes, with the attribute's name."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        yield from ((attribute.name, graph) for graph in attribute.graphs)


def nodes_of(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yields nodes and those in their subgraphs at any depth, each before what is in it."""
    for node in nodes:
        yield node
        for _, graph in graphs_of(node):
            yield from nodes_of(graph.node)


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yields a graph and its subgraphs at any depth, each before what is in it."""
    yield graph
    for node in graph.node:
        for _, inner in graphs_of(node):
            yield from all_graphs(inner)


def called(node: NodeProto) -> tuple[str, str]:
    """Returns domain and name of what a node calls, as a function is called."""
    return node.domain, node.op_type


def called_as(function: FunctionProto) -> tuple[str, str]:
    """Returns domain and name by which nodes call a function."""
    return function.domain, function.name


def constants_of(graph: GraphProto) -> dict[str, TensorProto | None]:
    """Returns the tensors of a graph that no caller can change, by name; None for every other name in it.

    An input with an initializer has only a default value: whoever runs the model may pass another one.
    """
    names: dict[str, TensorProto | None] = {tensor.name: tensor for tensor in graph.initializer}
    names.update(dict.fromkeys(tensor.values.name for tensor in graph.sparse_initializer))
    names.update(dict.fromkeys(value.name for value in graph.input))
    return _with_made(names, graph.node)


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
    return starmap(getattr, text_fields(model))


def text_fields(model: ModelProto) -> Iterator[tuple[Any, str]]:
    """Yields where those texts stand: a message and the name of its field."""
    for message in messages(model):
        names = message.DESCRIPTOR.fields_by_name
        if "doc_string" in names and message.doc_string:
            yield message, "doc_string"
        if "metadata_props" in names:
            yield from ((prop, name) for prop in message.metadata_props for name in ("key", "value"))


def _sites(
    nodes: Sequence[NodeProto], where: str, opset: int, constants: ChainMap[str, TensorProto | None]
) -> Iterator[Site]:
    for index, node in enumerate(nodes):
        name = f"{node.name or f'#{index}'} ({node.op_type}){where}"
        yield Site(node, name, opset, constants)
        for attribute, graph in graphs_of(node):  # what it names hides the same name further out
            yield from _sites(graph.node, f" in {attribute} of {name}", opset, constants.new_child(constants_of(graph)))


def _with_made(names: dict[str, TensorProto | None], nodes: Iterable[NodeProto]) -> dict[str, TensorProto | None]:
    """The names with those that the nodes make, all of them before the first node is looked at.

    In a file whose nodes are out of order, or that gives one name twice, nothing with such a name is known for certain.
    """
    for node in nodes:
        constant = _constant(node)
        for name in filter(None, node.output):
            names[name] = None if name in names else constant
    return names


def _constant(node: NodeProto) -> TensorProto | None:
    """The tensor that a Constant node holds, None for any other node or form; a function's caller may set it."""
    if node.op_type != "Constant" or node.domain not in DEFAULT_DOMAINS:
        return None
    values = [attribute for attribute in node.attribute if attribute.name == "value" and not attribute.ref_attr_name]
    return values[0].t if len(values) == 1 else None


def without_folders(text: str) -> str:
    """Returns the text with every absolute path cut to its file name."""
    return ABSOLUTE_PATH.sub(lambda match: re.split(r"[\\/]", match[0])[-1], text)
