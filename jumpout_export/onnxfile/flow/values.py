"""What an ONNX file computes from the sizes of its inputs alone, and what that comes to at any sizes.

A value is followed as long as no element of an input reaches it, only sizes: through `Shape` and `Size`, arithmetic,
`Range`, `ConstantOfShape` and what is made of them. It is computed by the reference implementation of the onnx
package, node by node, within a bound on its elements; nothing else of the file runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

Array = np.ndarray[Any, Any]
Sizes = Mapping[str, int]
Kind = Literal["constant", "plain", "other", "opaque", "data"]
Dims = tuple[int | str | None, ...]

# Of one value that is computed here, and of a constant that is read: a table of positions is larger.
MOST_ELEMENTS = 1 << 18
_MOST_CONSTANT = 1 << 16
# Values that one is computed from.
_MOST_VALUES = 2000

COMPARES = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
REDUCES = frozenset({"ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceMean"})
_ELEMENTWISE = COMPARES | {
    "Abs", "Add", "And", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike",
    "Ceil", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu",
    "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Where", "Xor",
}  # fmt: skip

# The reference implementation of these loops over elements in Python.
_SLOW = frozenset({"GatherElements", "ScatterElements", "ScatterND", "Compress", "OneHot", "TopK", "Unique"})
_MOST_SLOW, _PER_STEP = 1 << 10, 1 << 12
# Their results are no larger than their inputs, or as large as `_elements` says before they run.
_SHAPING = REDUCES | {
    "ArgMax", "ArgMin", "Compress", "Concat", "Constant", "ConstantOfShape", "CumSum", "Expand", "EyeLike",
    "Flatten", "Gather", "GatherElements", "GatherND", "MatMul", "NonZero", "OneHot", "Pad", "Range", "Reshape",
    "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "TopK", "Transpose",
    "Trilu", "Unique", "Unsqueeze",
}  # fmt: skip
EVALUATED = _ELEMENTWISE | _SHAPING


@dataclass(eq=False)
class Value:
    """One value of a file and what it follows from.

    Attributes:
        kind: `constant`; `plain`, which grows with sizes as a polynomial does, element by element; `other`, which is
            computed from sizes in any other way; `opaque`, which follows from sizes too, but is not computed here;
            `data`, which an element of an input reaches.
        number: in the order in which values are made.
        axes: names of the open axes that it depends on.
        grows: whether its shape depends on sizes.
        whole: whether it is made of integers alone.
        dims: of sizes that were picked from shapes, one by one: numbers, names of open axes, None for what has to be
            measured.
        shape: of those.
        mixes: whether it is data and several entries of the batch were made one.
        node: that makes it, None for a tensor and an input.
        inputs: of that node; None for one that is left out.
        index: which output of the node it is.
        tensor: of a constant that no node makes.
        name: in the graph, for what is measured; empty in a subgraph.
        where: the node, for a person.
    """

    kind: Kind
    number: int
    axes: frozenset[str] = frozenset()
    grows: bool = False
    whole: bool = False
    dims: Dims | None = None
    shape: tuple[int, ...] = ()
    mixes: bool = False
    node: NodeProto | None = None
    inputs: tuple[Value | None, ...] = ()
    index: int = 0
    tensor: TensorProto | None = None
    name: str = ""
    where: str = ""

    def before(self, most: int | None = None, data: bool = False) -> list[Value]:
        """Returns it and what it is computed from, in the order in which that is made; `data` includes data."""
        found: dict[int, Value] = {}
        left = [self]
        while left and (most is None or len(found) < most):
            value = left.pop()
            if value.number in found or (value.kind == "data" and not data):
                continue
            found[value.number] = value
            if value.dims is None or None in value.dims:
                left += [one for one in value.inputs if one is not None]
        return [found[number] for number in sorted(found)]


class UnknownError(Exception):
    """What a value comes to at some sizes cannot be told here: it is too large, or a shape is not known."""


@dataclass
class Evaluator:
    """Computes values at given sizes.

    Attributes:
        opset: of ONNX's own operators in the file.
        measure: returns the shape of a value of the main graph at given sizes, None where it is not known.
        steps: work done so far; one node that makes few elements is one.
    """

    opset: int
    measure: Callable[[str, Sizes], tuple[int, ...] | None]
    steps: int = 0
    _runners: dict[int, Any] = field(default_factory=dict)
    _constants: dict[int, Array] = field(default_factory=dict)

    def __call__(self, wanted: Value, sizes: Sizes, also: tuple[Value, ...] = ()) -> list[Array]:
        """Returns a value, and those of `also` that it is computed from, at sizes by name.

        Raises:
            UnknownError: if it cannot be told.
            Exception: of numpy or onnx, if the file itself fails at these sizes.
        """
        known: dict[int, Array] = {}
        before = wanted.before(_MOST_VALUES + 1)
        if len(before) > _MOST_VALUES:
            raise UnknownError("it is computed from too many values")
        for value in before:
            if value.number not in known:
                known[value.number] = self._value(value, known, sizes)
        return [known[value.number] for value in (wanted, *also)]

    def constant(self, value: Value) -> Array | None:
        """Returns what a constant holds, None if it is too large, kept elsewhere or not readable."""
        if value.kind != "constant":
            return None
        try:
            return self(value, {})[0]
        except Exception:  # whatever numpy or onnx say of a broken constant
            return None

    def moved(self, node: NodeProto, first: Array, others: list[Value | None]) -> Array | None:
        """Returns what a node makes of an array and constants; None where that cannot be told."""
        arrays = [None if one is None else self.constant(one) for one in others]
        if any(array is None and one is not None for array, one in zip(arrays, others, strict=True)):
            return None
        try:
            return np.asarray(self._run(node, [first, *arrays])[0])
        except Exception:  # whatever numpy or onnx say of a broken node
            return None

    def _value(self, value: Value, known: Mapping[int, Array], sizes: Sizes) -> Array:
        if value.number in self._constants:
            return self._constants[value.number]
        if value.tensor is not None:
            result = _read(value.tensor)
        elif value.node is None:
            raise UnknownError(f"`{value.name}` is not known")
        elif value.dims is not None and None not in value.dims:
            picked = [sizes[one] if isinstance(one, str) else one for one in value.dims]
            result = np.array(picked, np.int64).reshape(value.shape)
        else:
            result = self._computed(value, known, sizes)
        if value.kind == "constant":
            self._constants[value.number] = result
        return result

    def _computed(self, value: Value, known: Mapping[int, Array], sizes: Sizes) -> Array:
        node = value.node
        assert node is not None
        if node.op_type in ("Shape", "Size") and (source := value.inputs[0]) is not None and source.kind == "data":
            shape = self.measure(source.name, sizes) if source.name else None
            if shape is None:
                raise UnknownError(f"the shape of `{source.name}` is not known")
            if node.op_type == "Size":
                return np.array(math.prod(shape), np.int64)
            start, end = bounds(node)
            return np.array(shape[start:end], np.int64)
        if node.op_type == "If":
            condition, one, two = (known[each.number] for each in value.inputs if each is not None)
            return one if bool(condition.all()) else two
        if node.op_type not in EVALUATED:
            raise UnknownError(f"{node.op_type} is not followed")
        arrays = [None if one is None else known[one.number] for one in value.inputs]
        return np.asarray(self._run(node, arrays)[value.index])

    def _run(self, node: NodeProto, arrays: list[Array | None]) -> list[Any]:
        elements, slow = _elements(node, arrays), node.op_type in _SLOW
        if elements > (_MOST_SLOW if slow else MOST_ELEMENTS):
            raise UnknownError("it is too large")
        self.steps += 1 + (elements if slow else elements // _PER_STEP)
        if (
            node.op_type == "GatherND"
            and not any(one.i for one in node.attribute)
            and arrays[0] is not None
            and arrays[1] is not None
        ):
            return [arrays[0][tuple(np.moveaxis(arrays[1], -1, 0))]]  # the reference implementation is slow here, too
        feeds = {name: array for name, array in zip(node.input, arrays, strict=True) if array is not None}
        with np.errstate(all="ignore"):
            return list(self._runner(node).run(None, feeds))

    def _runner(self, node: NodeProto) -> Any:
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        key = id(node)
        if key not in self._runners:
            names = [[helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(some) if name]
                     for some in (node.input, node.output)]  # fmt: skip
            graph = helper.make_graph([node], "one", names[0], names[1])
            self._runners[key] = ReferenceEvaluator(graph, opsets={"": self.opset})
        return self._runners[key]


def bounds(node: NodeProto) -> tuple[int | None, int | None]:
    """Returns which part of a shape a Shape node gives, as a slice."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    return given.get("start"), given.get("end")


def _read(tensor: TensorProto) -> Array:
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL or math.prod(tensor.dims) > _MOST_CONSTANT:
        raise UnknownError("a constant is too large")
    return numpy_helper.to_array(tensor)


def _elements(node: NodeProto, arrays: list[Array | None]) -> int:
    """At most so many elements are made, or steps taken."""
    given = [array for array in arrays if array is not None]
    kind, first = node.op_type, given[0] if given else np.zeros(0)
    if kind in _ELEMENTWISE:
        return math.prod(np.broadcast_shapes(*(array.shape for array in given)))
    if kind == "ConstantOfShape":
        return math.prod(int(size) for size in first)
    if kind == "Expand":
        return math.prod(np.broadcast_shapes(first.shape, tuple(int(size) for size in given[1])))
    if kind == "Tile":
        return first.size * math.prod(int(size) for size in given[1])
    if kind == "Range":
        start, limit, delta = (float(array) for array in given)
        return int(abs(limit - start) / max(abs(delta), 1e-9)) + 1
    if kind == "OneHot":
        return first.size * int(given[1].reshape(-1)[0])
    if kind == "Pad":
        return math.prod(size + int(np.abs(given[1]).sum()) for size in first.shape)
    if kind in ("Gather", "GatherND"):
        return first.size // max(1, min(first.shape, default=1)) * given[1].size + first.size
    if kind == "Split" and any(one.i > len(node.output) for one in node.attribute if one.name == "num_outputs"):
        raise UnknownError("it has more parts than names")
    if kind == "MatMul":
        return first.size * given[1].size
    return sum(array.size for array in given)
