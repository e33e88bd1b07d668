"""How torch's converter is led astray for docs/false-greens.md: options of its own, and changes of its graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def translated(name: str) -> Callable[[], dict[str, Any]]:
    """Returns options of torch.onnx.export with a wrong translation of erf."""

    def options() -> dict[str, Any]:
        from onnxscript import opset18 as op

        def first_row(self):
            zero, one = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
            return op.Slice(op.Erf(self), zero, one, zero)

        def in_double(self):
            return op.Cast(op.Erf(self), to=11)

        return {"custom_translation_table": {torch.ops.aten.erf.default: {"row": first_row, "double": in_double}[name]}}

    return options


def open_batch(kind: str) -> Callable[[], dict[str, Any]]:
    """Returns options of torch.onnx.export that ask for an open batch axis."""

    def options() -> dict[str, Any]:
        dim = torch.export.Dim.AUTO if kind == "auto" else torch.export.Dim("batch")
        return {"dynamic_shapes": {"x": {0: dim}}}

    return options


def last_node_first(model: Any) -> None:
    """Puts the last node of the graph before all others: ONNX asks for topological order."""
    nodes = list(model.graph)
    model.graph.remove(nodes[-1])
    model.graph.insert_before(nodes[0], nodes[-1])


def changed_row(model: Any) -> None:
    """Changes a row of the embedding that the example does not read."""
    import onnx_ir

    value = next(value for value in model.graph.initializers.values() if list(value.shape) == [50, 4])
    table = value.const_value.numpy().copy()
    table[41] += 1
    value.const_value = onnx_ir.tensor(table)


def doubled_from_64(model: Any) -> None:
    """Doubles the output where a batch has 64 samples or more."""
    import onnx_ir

    graph, output = model.graph, model.graph.outputs[0]
    made = {"limit": np.int64(64), "zero": np.int64(0), "one": np.float32(1), "two": np.float32(2)}
    values = {name: onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name)) for name, array in made.items()}
    for value in values.values():
        graph.register_initializer(value)
    last = output
    for name, inputs in (
        ("Shape", [graph.inputs[0]]),
        ("Gather", [None, values["zero"]]),
        ("GreaterOrEqual", [None, values["limit"]]),
        ("Where", [None, values["two"], values["one"]]),
        ("Mul", [None, output]),
    ):
        node = onnx_ir.node(name, [last if one is None else one for one in inputs])
        graph.append(node)
        last = node.outputs[0]
    last.name, last.shape, last.type = "doubled", output.shape, output.type
    output.name, last.name = "undoubled", output.name
    graph.outputs[0] = last


def narrow_words(model: Any) -> None:
    """Makes words integers of eight bits, which wrap around at 256, and wide again."""
    import onnx_ir

    graph = model.graph
    narrow = onnx_ir.node("Cast", [graph.inputs[0]], {"to": 2})
    wide = onnx_ir.node("Cast", [narrow.outputs[0]], {"to": 7})
    _put_between(graph, graph.inputs[0], [narrow, wide])


def cut_and_padded(model: Any) -> None:
    """Cuts the embedding behind 256 rows before it is read, and fills it up with zeros."""
    import onnx_ir

    graph = model.graph
    table = next(value for value in graph.initializers.values() if list(value.shape) == [300, 4])
    names = {"start": [0], "end": [256], "pads": [0, 0, 44, 0]}
    given = {
        name: onnx_ir.val(name, const_value=onnx_ir.tensor(np.array(array), name=name)) for name, array in names.items()
    }
    for value in given.values():
        graph.register_initializer(value)
    cut = onnx_ir.node("Slice", [table, given["start"], given["end"], given["start"]])
    padded = onnx_ir.node("Pad", [cut.outputs[0], given["pads"]])
    _put_between(graph, table, [cut, padded])


def _put_between(graph: Any, value: Any, nodes: list[Any]) -> None:
    """Makes whatever reads a value read what the last node makes of it."""
    readers = [(node, place) for node, place in value.uses() if node not in nodes]
    for node in reversed(nodes):
        graph.insert_before(graph[0], node)
    for node, place in readers:
        node.replace_input_with(place, nodes[-1].outputs[0])


def without_layer(model: Any) -> None:
    """Leaves a multiplication out."""
    node = next(node for node in model.graph if node.op_type == "Mul")
    for reader, place in list(node.outputs[0].uses()):
        reader.replace_input_with(place, next(value for value in node.inputs if value.const_value is None))
    model.graph.remove(node, safe=True)


def exchanged_layers(model: Any) -> None:
    """Gives two layers each other's weights."""
    layers = [node for node in model.graph if node.op_type == "Gemm"][:2]
    weights = [node.inputs[1] for node in layers]
    for node, weight in zip(layers, reversed(weights), strict=True):
        node.replace_input_with(1, weight)


def changed_entry(model: Any) -> None:
    """Changes the last entry of a table of integers."""
    import onnx_ir

    value = next(value for value in model.graph.initializers.values() if list(value.shape) == [8])
    table = value.const_value.numpy().copy()
    table[-1] += 1
    value.const_value = onnx_ir.tensor(table)


def another_relu(model: Any) -> None:
    """Adds a function that bears the name of ONNX's own Relu, and lets negative numbers through."""
    import onnx_ir

    given = onnx_ir.val("a")
    node = onnx_ir.node("Identity", [given])
    graph = onnx_ir.Graph([given], [node.outputs[0]], nodes=[node], opset_imports={"": 18})
    function = onnx_ir.Function("", "Relu", graph=graph, attributes=[])
    model.functions[function.identifier()] = function
