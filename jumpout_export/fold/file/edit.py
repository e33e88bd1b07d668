"""Takes noise out of an ONNX file's protobuf and leaves everything else as it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jumpout_export.fold.file.noise import Noise, subgraphs
from jumpout_export.onnxfile.metadata import DATA_SHA256, PREFIX, RANDOM, TOLERANCE, describe_layers, entries
from jumpout_export.onnxfile.walk import ABSOLUTE_PATH, called, graphs_of, messages, nodes_of
from jumpout_export.report import FoldedLayer

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import GraphProto, ModelProto, NodeProto

_FOLDED = f"{PREFIX}folded"
_BATCHNORM = f"{PREFIX}batchnorm"
_UNCHECKED = "not checked since noise was taken out of the file"


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


def correct_metadata(model: ModelProto, layers: Sequence[FoldedLayer]) -> list[str]:
    """Corrects what `export_onnx` wrote into a file that was folded since; returns a note for each kind of change.

    That it is random on purpose is not true any more. What was measured with the noise on, the tolerance of golden
    data and the verdict on BatchNorm, is not known of the file without. The layers folded now are added to those
    folded before; versions, the type and the hash of PyTorch's weights stay. A file of another exporter has none of it.

    Args:
        model: the file without its noise, changed in place.
        layers: what was folded away, empty if nothing was.
    """
    known = entries(model)
    wanted, notes = dict(known), []
    if text := wanted.pop(RANDOM, ""):
        notes.append(f"noise that was wanted is gone, the file written is deterministic; the older one says: {text}")
    if wanted.pop(DATA_SHA256, ""):
        notes.append("the hash of the weights beside the older file is removed from the metadata")
    if layers:
        measured = [key for key in wanted if key.startswith(f"{PREFIX}{TOLERANCE}")]
        for key in measured:
            del wanted[key]
        notes += ["the tolerance of golden data, measured with the noise on, is removed"] * bool(measured)
        if _FOLDED in wanted:
            before = [wanted[_FOLDED]] if wanted[_FOLDED] != describe_layers([]) else []
            wanted[_FOLDED] = "; ".join([*before, describe_layers(layers)])
        if wanted.get(_BATCHNORM, "not checked") != "not checked":
            wanted[_BATCHNORM] = _UNCHECKED
            notes.append("the verdict on BatchNorm, made with the noise on, is removed from the metadata")
    for entry in model.metadata_props:
        entry.value = wanted.get(entry.key, entry.value)
    for index in reversed(range(len(model.metadata_props))):
        if model.metadata_props[index].key in known.keys() - wanted.keys():
            del model.metadata_props[index]
    return notes
