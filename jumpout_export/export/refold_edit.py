"""Takes noise out of an ONNX file's protobuf and leaves everything else as it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jumpout_export.export.protos import ABSOLUTE_PATH, messages, tensors
from jumpout_export.export.refold_noise import Noise, subgraphs
from jumpout_export.export.refold_read import called, graphs_of, nodes_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import GraphProto, ModelProto, NodeProto


def take_out(model: ModelProto, graph: ir.Graph, noise: Noise) -> None:
    """Removes the noise from `model`: every site becomes its x, and what nobody needs any more goes.

    A value that is an output of its graph keeps its name, through an Identity.

    Args:
        model: changed in place.
        graph: the same model's main graph, in which the noise was found.
        noise: what was found.
    """
    protos = dict(_paired(model.graph, graph))
    names = Counter(value.name for value in _values(graph))
    identities = {}
    for site in noise.sites:
        x, producer = noise.becomes(site.x), site.y.producer()
        if producer is None:
            continue
        if site.y.is_graph_output() or names[x.name] > 1:
            identities[producer] = _identity(protos[producer], x, site.y)
            continue
        for use in site.y.uses():
            protos[use.node].input[use.idx] = x.name or ""
    _keep_nodes(model.graph, graph, noise.alive | identities.keys())
    _drop_unused_functions(model)


def count_nodes(model: ModelProto) -> int:
    """Returns the number of nodes in the main graph and its subgraphs."""
    return sum(1 for _ in nodes_of(model.graph.node))


def external_files(model: ModelProto) -> set[str]:
    """Returns the names of the files that hold tensors of the model."""
    return {
        entry.value
        for tensor in tensors(model)
        if tensor.data_location == tensor.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def cut_paths(model: ModelProto) -> int:
    """Cuts the absolute paths in doc strings and metadata to file names; returns how many texts that changed."""
    changed = 0
    for message in messages(model):
        fields = message.DESCRIPTOR.fields_by_name
        holders = [(message, "doc_string")] if "doc_string" in fields and message.doc_string else []
        if "metadata_props" in fields:
            holders += [(entry, name) for entry in message.metadata_props for name in ("key", "value")]
        for holder, name in holders:
            text = getattr(holder, name)
            cut = ABSOLUTE_PATH.sub(lambda match: re.split(r"[\\/]", match[0])[-1], text)
            if cut != text:
                setattr(holder, name, cut)
                changed += 1
    return changed


def _identity(node: NodeProto, x: ir.Value, y: ir.Value) -> NodeProto:
    node.op_type, node.domain = "Identity", ""
    for name, values in (("input", [x.name]), ("output", [y.name]), ("attribute", [])):
        node.ClearField(name)
        getattr(node, name).extend(values)
    return node


def _keep_nodes(proto: GraphProto, graph: ir.Graph, kept: set[ir.Node]) -> None:
    gone: set[str] = set()
    for index, node in reversed(list(enumerate(graph))):
        if node in kept:
            for inner, subgraph in _paired_graphs(proto.node[index], node):
                _keep_nodes(inner, subgraph, kept)
        else:
            gone.update(proto.node[index].output)
            del proto.node[index]
    gone -= {name for node in proto.node for name in node.output}
    needed = {name for node in nodes_of(proto.node) for name in node.input}
    needed |= {value.name for value in (*proto.input, *proto.output)}
    needed |= {value.name for node in nodes_of(proto.node) for _, inner in graphs_of(node) for value in inner.output}
    gone |= {tensor.name for tensor in proto.initializer} - needed
    for field, name in (("initializer", "name"), ("value_info", "name"), ("quantization_annotation", "tensor_name")):
        entries = getattr(proto, field)
        for index in reversed(range(len(entries))):
            if getattr(entries[index], name) in gone:
                del entries[index]


def _drop_unused_functions(model: ModelProto) -> None:
    bodies = {(function.domain, function.name): function for function in model.functions}
    used: set[tuple[str, str]] = set()
    queue = [called(node) for node in nodes_of(model.graph.node)]
    while queue:
        name = queue.pop()
        if name in bodies and name not in used:
            used.add(name)
            queue += [called(node) for node in nodes_of(bodies[name].node)]
    for index in reversed(range(len(model.functions))):
        if (model.functions[index].domain, model.functions[index].name) not in used:
            del model.functions[index]


def _paired(proto: GraphProto, graph: ir.Graph) -> Iterator[tuple[ir.Node, NodeProto]]:
    for message, node in zip(proto.node, graph, strict=True):
        yield node, message
        for inner, subgraph in _paired_graphs(message, node):
            yield from _paired(inner, subgraph)


def _paired_graphs(message: NodeProto, node: ir.Node) -> Iterator[tuple[GraphProto, ir.Graph]]:
    """The subgraphs of a node, in the order of the attributes' names."""
    protos = sorted(graphs_of(message), key=lambda pair: pair[0])
    graphs = sorted(subgraphs(node), key=lambda pair: pair[0])
    yield from ((proto, graph) for (_, proto), (_, graph) in zip(protos, graphs, strict=True))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from (value for value in graph.initializers.values() if value not in set(graph.inputs))
    for node in graph:
        yield from node.outputs
        for _, inner in subgraphs(node):
            yield from _values(inner)
