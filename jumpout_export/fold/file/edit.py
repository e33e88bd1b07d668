"""Takes noise out of an ONNX file's protobuf and leaves everything else as it is.

Noise is found in an onnx_ir graph, but the file is not written from one: onnx_ir 1.1 drops sparse initializers, unknown
fields and checksums of external data on the way, and adds the inferred type of every value. The nodes of both are the
same in the same order, and the protobuf is edited by what the graph says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jumpout_export.fold.file.noise import Noise
from jumpout_export.onnxfile.metadata import BATCHNORM, DATA_SHA256, FOLDED, RANDOM, TOLERANCE, describe_layers, entries
from jumpout_export.onnxfile.walk import all_graphs, called, called_as, nodes_of, text_fields, without_folders
from jumpout_export.report import FoldedLayer

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import GraphProto, ModelProto, NodeProto

_UNCHECKED = "not checked since noise was taken out of the file"


def take_out(model: ModelProto, graph: ir.Graph, noise: Noise) -> None:
    """Removes the noise from `model`: every site becomes its x, and what nobody needs any more goes.

    A value that is an output of its graph keeps its name, through an Identity. The model is changed in place; `graph`
    is the same model's main graph, in which the noise was found.
    """
    protos = dict(zip(graph.all_nodes(), nodes_of(model.graph.node), strict=True))
    graphs = (graph, *graph.subgraphs())
    values = {value for one in graphs for value in (*one.inputs, *one.initializers.values())}
    names = Counter(value.name for value in (*values, *(value for node in protos for value in node.outputs)))
    identities = set()
    for site in noise.sites:
        x, producer = noise.becomes(site.x), site.y.producer()
        if producer is None:
            continue
        if site.y.is_graph_output() or names[x.name] > 1:
            _become_identity(protos[producer], x, site.y)
            identities.add(producer)
            continue
        for use in site.y.uses():
            protos[use.node].input[use.idx] = x.name or ""
    for node in protos.keys() - noise.alive - identities:
        protos[node].op_type = ""
    for one in reversed(list(all_graphs(model.graph))):  # what only an inner node needed goes too
        _drop_marked_nodes(one)
    _drop_unused_functions(model)


def count_nodes(model: ModelProto) -> int:
    """Returns the number of nodes in the main graph and its subgraphs."""
    return sum(1 for _ in nodes_of(model.graph.node))


def cut_paths(model: ModelProto) -> int:
    """Cuts the absolute paths in doc strings and metadata to file names; returns how many texts that changed."""
    changed = 0
    for holder, name in text_fields(model):
        text = getattr(holder, name)
        cut = without_folders(text)
        if cut != text:
            setattr(holder, name, cut)
            changed += 1
    return changed


def _become_identity(node: NodeProto, x: ir.Value, y: ir.Value) -> None:
    node.op_type, node.domain = "Identity", ""
    for name, values in (("input", [x.name]), ("output", [y.name]), ("attribute", [])):
        node.ClearField(name)
        getattr(node, name).extend(values)


def _drop_marked_nodes(graph: GraphProto) -> None:
    """Removes the nodes without an operator, and what the graph says of values that nobody makes or needs any more."""
    gone = {name for node in graph.node if not node.op_type for name in node.output}
    _remove(graph.node, lambda node: not node.op_type)
    gone -= {name for node in graph.node for name in node.output}
    needed = {name for node in nodes_of(graph.node) for name in node.input}
    needed |= {value.name for inner in all_graphs(graph) for value in inner.output}
    needed |= {value.name for value in graph.input}
    gone |= {tensor.name for tensor in graph.initializer} - needed
    _remove(graph.initializer, lambda tensor: tensor.name in gone)
    _remove(graph.value_info, lambda value: value.name in gone)
    _remove(graph.quantization_annotation, lambda note: note.tensor_name in gone)


def _remove(messages: Any, unwanted: Callable[[Any], bool]) -> None:
    """Removes messages from a protobuf's list; the others stay the objects they are."""
    for index in reversed(range(len(messages))):
        if unwanted(messages[index]):
            del messages[index]


def _drop_unused_functions(model: ModelProto) -> None:
    bodies = {called_as(function): function for function in model.functions}
    used: set[tuple[str, str]] = set()
    queue = [called(node) for node in nodes_of(model.graph.node)]
    while queue:
        name = queue.pop()
        if name in bodies and name not in used:
            used.add(name)
            queue += [called(node) for node in nodes_of(bodies[name].node)]
    _remove(model.functions, lambda function: called_as(function) not in used)


def correct_metadata(model: ModelProto, layers: Sequence[FoldedLayer]) -> list[str]:
    """Corrects what `export_onnx` wrote into a file that was folded since; returns a note for each kind of change.

    That it is random on purpose is not true any more. What was measured with the noise on, the tolerance of golden
    data and the verdict on BatchNorm, is not known of the file without. The layers folded now are added to those
    folded before; versions, the type and the hash of PyTorch's weights stay. A file of another exporter has none of it.
    """
    known = entries(model)
    wanted, notes = dict(known), []
    if text := wanted.pop(RANDOM, ""):
        notes.append(f"noise that was wanted is gone, the file written is deterministic; the older one says: {text}")
    if wanted.pop(DATA_SHA256, ""):
        notes.append("the hash of the weights beside the older file is removed from the metadata")
    if layers:
        measured = [key for key in wanted if key.startswith(TOLERANCE)]
        for key in measured:
            del wanted[key]
        notes += ["the tolerance of golden data, measured with the noise on, is removed"] * bool(measured)
        if FOLDED in wanted:
            before = [wanted[FOLDED]] if wanted[FOLDED] != describe_layers([]) else []
            wanted[FOLDED] = "; ".join([*before, describe_layers(layers)])
        if wanted.get(BATCHNORM, "not checked") != "not checked":
            wanted[BATCHNORM] = _UNCHECKED
            notes.append("the verdict on BatchNorm, made with the noise on, is removed from the metadata")
    for entry in model.metadata_props:
        entry.value = wanted.get(entry.key, entry.value)
    _remove(model.metadata_props, lambda entry: entry.key in known.keys() - wanted.keys())
    return notes
