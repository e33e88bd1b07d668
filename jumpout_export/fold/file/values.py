"""What is known of a value of a graph without running it: a single constant it is filled with, and its shape."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS

if TYPE_CHECKING:
    import onnx_ir as ir

# Operators that only move or repeat elements; the first input holds them.
MOVES = frozenset({"Identity", "Expand", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Tile"})
# Elementwise operators whose output has the shape of their inputs, broadcast.
_ELEMENTWISE = frozenset(
    {
        *("Identity", "Cast", "Not", "And", "Or", "Floor", "Neg", "Reciprocal", "Sqrt", "Pow", "Clip", "Where", "Relu"),
        *("Add", "Sub", "Mul", "Div", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
    }
)
_LIKE = frozenset({"RandomUniformLike", "RandomNormalLike", "Bernoulli"})
_ARITHMETIC: dict[str, Callable[..., float]] = {
    "Neg": operator.neg,
    "Reciprocal": lambda a: 1 / a,
    "Sqrt": math.sqrt,
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.truediv,
    "Pow": operator.pow,
}
# A chain longer than this is not followed: nothing is known then.
_DEPTH = 24


def standard(node: ir.Node) -> bool:
    """Returns whether the node is one of ONNX's own operators."""
    return node.domain in DEFAULT_DOMAINS


def made_by(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """Returns the node that computes the value, if it is one of these standard operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and standard(node) and node.op_type in ops else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Returns an attribute's value, `default` where it is absent or set by a function's caller."""
    found = node.attributes.get(name)
    return default if found is None or found.is_ref() else found.value


class Values:
    """What is known of the values of a graph, node after node in the graph's order."""

    def __init__(self, inputs: set[ir.Value]) -> None:
        self._inputs = inputs  # of all graphs: nobody knows their values, an initializer among them is only a default
        self._numbers: dict[ir.Value, float | None] = {}

    def add(self, node: ir.Node) -> None:
        """Takes in a node whose inputs were taken in before."""
        if standard(node) and len(node.outputs) == 1:
            self._numbers[node.outputs[0]] = self._of_node(node)

    def number(self, value: ir.Value | None) -> float | None:
        """Returns the one number that all elements of the value are; None if they differ or are not known."""
        if value is None or value in self._inputs:
            return None
        if value not in self._numbers:
            self._numbers[value] = _single(value.const_value) if value.producer() is None else None
        return self._numbers[value]

    def broadcasts_into(self, value: ir.Value | None, x: ir.Value) -> bool:
        """Returns whether an elementwise operation of `value` and `x` is proven to have the shape of `x`."""
        return self._broadcasts(value, x, {}, _DEPTH)

    def _of_node(self, node: ir.Node) -> float | None:
        if node.op_type == "Constant":
            number = attribute(node, "value_float", attribute(node, "value_int", None))
            return _single(attribute(node, "value", None)) if number is None else float(number)
        if node.op_type == "ConstantOfShape":
            return 0.0 if "value" not in node.attributes else _single(attribute(node, "value", None))
        parts = [self.number(part) for part in node.inputs[: 1 if node.op_type in MOVES else None]]
        known = [part for part in parts if part is not None]
        return _computed(node, known) if len(known) == len(parts) else None

    def _broadcasts(self, value: ir.Value | None, x: ir.Value, seen: dict[ir.Value, bool], depth: int) -> bool:
        if value is None or depth == 0:
            return False
        if value not in seen:
            seen[value] = False  # until it is proven
            seen[value] = self._proven(value, x, seen, depth)
        return seen[value]

    def _proven(self, value: ir.Value, x: ir.Value, seen: dict[ir.Value, bool], depth: int) -> bool:
        if value is x or _fits(value.shape, x.shape):
            return True
        node = value.producer()
        tensor = value.const_value
        if node is not None:
            tensor = attribute(node, "value", None) if node.op_type == "Constant" else None
        if tensor is not None and value not in self._inputs:
            sizes = tensor.shape.numpy()
            return math.prod(sizes) == 1 and (not sizes or (x.shape is not None and len(x.shape) >= len(sizes)))
        if node is None or not standard(node):
            return False
        parts: list[ir.Value | None] = []
        if node.op_type in _ELEMENTWISE:
            parts = [part for part in node.inputs if part is not None]
        elif node.op_type in _LIKE:
            parts = [node.inputs[0]]
        elif node.op_type in ("Expand", "ConstantOfShape"):
            shape = made_by(node.inputs[-1], "Shape")
            if shape is not None and not shape.attributes.keys() & {"start", "end"}:
                parts = [*(node.inputs[:1] if node.op_type == "Expand" else []), shape.inputs[0]]
        return bool(parts) and all(self._broadcasts(part, x, seen, depth - 1) for part in parts)


def _single(tensor: ir.TensorProtocol | None) -> float | None:
    import numpy as np

    if tensor is None or type(tensor).__name__ == "ExternalTensor":
        return None
    flat = np.asarray(tensor.numpy()).reshape(-1)
    if flat.size == 0 or flat.dtype.kind not in "fiub":
        return None
    return float(flat[0]) if flat[0] == flat[-1] and bool((flat == flat[0]).all()) else None


def _computed(node: ir.Node, parts: list[float]) -> float | None:
    """The result of a node whose inputs are filled with these numbers."""
    import onnx_ir as ir

    try:
        match node.op_type, parts:
            case ("Cast", [a]):
                kind = ir.DataType(attribute(node, "to", 0))
                return float(bool(a)) if kind == ir.DataType.BOOL else float(int(a)) if kind.is_integer() else a
            case (op, [a]) if op in MOVES:
                return a
            case ("Not", [a]):
                return float(not a)
            case (op, _) if op in _ARITHMETIC and _floating(node):  # the arithmetic of integers is another
                return float(_ARITHMETIC[op](*parts))
    except (ArithmeticError, ValueError, TypeError):  # a**b may be complex, a/b have no value
        return None
    return None


def _floating(node: ir.Node) -> bool:
    kind = node.outputs[0].dtype
    return kind is not None and kind.is_floating_point()


def _fits(small: ir.Shape | None, large: ir.Shape | None) -> bool:
    """Whether every axis of `small`, aligned at the last, is 1 or provably the same as in `large`."""
    if small is None or large is None or len(small) > len(large):
        return False
    return all(
        one == 1 or (one == other and (isinstance(one, int) or one.value is not None))
        for one, other in zip(reversed(small.dims), reversed(large.dims), strict=False)
    )
