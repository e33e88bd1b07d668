"""Which nodes of an ONNX file read nothing but shapes and constants: the rule of a proof of where a file ran.

`cpp/replay/shapes.cpp` has the same rule for the replay; `tests/replay/test_shapes_only.py` holds both to one table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jumpout_export.onnxfile.training import RANDOM_OPERATORS
from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS, graphs_of, nodes_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_MEASURING = frozenset({"Shape", "Size"})


def shape_computations(model: ModelProto) -> frozenset[tuple[str, str]]:
    """Returns name and operator of the nodes that no value of an input reaches, only shapes, and that draw nothing.

    A name is taken only if every node that has it, with this operator, is of that kind: names need not be unique. No
    node with a subgraph is, none in a function, which may be called with anything, and none that calls one.
    """
    kinds: dict[tuple[str, str], bool] = {}
    functions = {function.name for function in model.functions if function.domain in DEFAULT_DOMAINS}
    for function in model.functions:
        for node in nodes_of(function.node):
            kinds[node.name, node.op_type] = False
    _walk(model.graph, set(), functions, kinds)
    return frozenset(key for key, reads_shapes in kinds.items() if reads_shapes)


def _walk(graph: GraphProto, outer: set[str], functions: set[str], kinds: dict[tuple[str, str], bool]) -> None:
    known = {*outer, *(tensor.name for tensor in graph.initializer), *(t.values.name for t in graph.sparse_initializer)}
    # Whoever runs the model may pass another value than an initializer that is an input too. What a node computes hides
    # a value of the same name further out, wherever in the graph it stands, and is known once that node has been seen.
    known -= {value.name for value in graph.input}
    known.difference_update(*(node.output for node in graph.node))
    for node in graph.node:
        subgraphs = [subgraph for _, subgraph in graphs_of(node)]
        reads_shapes = not subgraphs and node.op_type not in functions and _reads_shapes(node, known)
        kinds[node.name, node.op_type] = kinds.get((node.name, node.op_type), True) and reads_shapes
        if reads_shapes:
            known.update(node.output)
        for subgraph in subgraphs:
            _walk(subgraph, known, functions, kinds)


def _reads_shapes(node: NodeProto, known: set[str]) -> bool:
    if node.domain not in DEFAULT_DOMAINS or node.op_type in RANDOM_OPERATORS:
        return False
    inputs = [name for name in node.input if name]
    if not inputs:  # anything else without one makes values out of nothing
        return node.op_type == "Constant"
    return node.op_type in _MEASURING or known.issuperset(inputs)
