"""The floating-point twin of a quantized file: its graph without rounding, with the model's weights in their places.

The twin tells what is rounding from what is not. It is verified against the model as strictly as any file, so whatever
else is wrong in a quantized file (a layer, an axis, a constant that is not rounded) shows there, to the last digit. As
the tensors of both have the same names and meaning, the noise of each can be measured, whichever tool made the file.

Tools leave a ReLU or a Clip out where the rounding behind it cuts at its ends. In the twin a rounding whose smallest
value is 0 is a ReLU, and a Clip where its largest value is a bound of the model's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jumpout_export.model.operations import Recording
from jumpout_export.onnxfile.constants import Array
from jumpout_export.quantized.read import Activation, QuantizedFile
from jumpout_export.quantized.weights import RoundedFrom

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Of a bound: a scale of 1 / 255 of it, in float32, gives it back to this.
_SAME_BOUND = 1e-6
_BOUNDED = {"hardtanh": 2, "clamp": 2, "clamp_max": 1}  # place of the largest value among the arguments
# Nothing is left out before these: what they make is not below zero, and an input is as it is given.
_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "Clip", "Abs", "HardSigmoid"})


@dataclass(frozen=True)
class Twin:
    """The twin of a file."""

    model: ModelProto
    values: dict[str, str]  # what a tensor of the quantized file that is made of integers is in the twin
    cut: frozenset[str]  # activations that are cut at zero in the twin


def twin_of(file: QuantizedFile, found: Iterable[RoundedFrom], bounds: Iterable[float]) -> Twin:
    """Returns the twin.

    Args:
        file: in the form that can be judged.
        found: its rounded constants; those that nobody knows stay as they are rounded.
        bounds: the largest values that the model cuts at.
    """
    from onnx import helper, numpy_helper

    model = type(file.model)()
    model.CopyFrom(file.model)
    graph = model.graph
    weights = {one.weight.result: one for one in found}
    rounded = {one.rounded: one for one in file.activations}
    made = {name: node for node in graph.node for name in node.output if name}
    outputs = {value.name for value in graph.output}
    alias: dict[str, str] = {}
    nodes: list[NodeProto] = []
    cut = set()
    for node in graph.node:
        node.input[:] = [alias.get(name, name) for name in node.input]
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            nodes.append(node)
            continue
        result = node.output[0]
        if result in weights:
            weight = weights[result]
            if weight.weight.own is None:
                array = _float_values(weight)
                graph.initializer.append(
                    numpy_helper.from_array(array, f"{result}_float" if result in outputs else result)
                )
                if result in outputs:
                    nodes.append(helper.make_node("Identity", [f"{result}_float"], [result]))
                continue
        step = _cutting(rounded[result], made, bounds) if result in rounded else None
        if step is not None:
            kind, largest = step
            cut.add(node.input[0])
            ends = ["", ""]
            if kind == "Clip":
                ends = [f"{result}_smallest", f"{result}_largest"]
                for name, end in zip(ends, (0.0, largest), strict=True):
                    graph.initializer.append(numpy_helper.from_array(np.array(end, np.float32), name))
            nodes.append(helper.make_node(kind, [node.input[0], *(ends if kind == "Clip" else ())], [result]))
        elif result in outputs:
            nodes.append(helper.make_node("Identity", [node.input[0]], [result]))
        else:
            alias[result] = node.input[0]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    read = {name for node in nodes for name in node.input} | outputs
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    values = {one.result: alias.get(one.result, one.result) for one in file.activations if one.result}
    return Twin(model, values, frozenset(cut))


def bounds_of(recording: Recording | None) -> set[float]:
    """Returns the largest values that operations of a model cut at, such as the 6 of a ReLU6."""
    found = set()
    for operation in recording.operations if recording is not None else ():
        place = _BOUNDED.get(operation.short_name)
        if place is not None and len(operation.arguments) > place:
            value = operation.arguments[place]
            found |= {float(value)} if isinstance(value, int | float) else set()
    return found


def _float_values(weight: RoundedFrom) -> Array:
    values = weight.weight.value() if weight.wanted is None else weight.wanted
    return values.astype(np.float32)


def _cutting(activation: Activation, made: dict[str, NodeProto], bounds: Iterable[float]) -> tuple[str, float] | None:
    """What a rounding stands for: a ReLU, a Clip with its largest value, or nothing."""
    grid, node = activation.grid, made.get(activation.name)
    if node is None or node.op_type in _NOT_NEGATIVE or not grid.cuts_at_zero or grid.scale.size != 1:
        return None
    largest = float((grid.high - grid.zero_point).reshape(()) * grid.scale.reshape(()))
    bound = next((bound for bound in bounds if abs(bound - largest) <= _SAME_BOUND * abs(bound)), None)
    return ("Relu", 0.0) if bound is None else ("Clip", bound)
