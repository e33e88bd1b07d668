"""What one node makes of arrays, by the reference implementation of the onnx package, within a bound on the work."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import NodeProto

Array = np.ndarray[Any, Any]

COMPARES = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
REDUCES = frozenset({"ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceMean"})
NORMS = frozenset({"ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"})
ELEMENTWISE = COMPARES | {
    "Abs", "Add", "And", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike",
    "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal",
    "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tan",
    "Tanh", "ThresholdedRelu", "Where", "Xor",
}  # fmt: skip
# Their results are no larger than their inputs, or as large as `_elements` says before they run.
_SHAPING = REDUCES | NORMS | {
    "ArgMax", "ArgMin", "Compress", "Concat", "Constant", "ConstantOfShape", "CumSum", "DequantizeLinear", "Expand",
    "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND", "Gemm", "MatMul", "NonZero", "OneHot", "Pad", "Range",
    "Reshape", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Softmax", "Split", "Squeeze", "Tile", "TopK",
    "Transpose", "Trilu", "Unique", "Unsqueeze",
}  # fmt: skip
EVALUATED = ELEMENTWISE | _SHAPING
# What they make or take is a list of arrays.
_SEQUENCES = frozenset({"SplitToSequence", "SequenceAt"})

# The reference implementation of these loops over elements in Python.
_SLOW = frozenset({"GatherElements", "ScatterElements", "ScatterND", "Compress", "OneHot", "TopK", "Unique"})
_MOST_SLOW, _PER_STEP = 1 << 10, 1 << 12


class UnknownError(Exception):
    """What a node makes cannot be told here: it is too large, of another operator, or a shape is not known."""


@dataclass
class Runner:
    """Runs nodes.

    Attributes:
        opset: of ONNX's own operators in the file.
        most: elements of one result.
        steps: work done so far; one node that makes few elements is one.
    """

    opset: int
    most: int = 1 << 18
    steps: int = 0
    _runners: dict[int, Any] = field(default_factory=dict)

    def __call__(self, node: NodeProto, arrays: list[Array | None]) -> list[Any]:
        """Returns what a node of ONNX's own makes of its inputs, None for one that is left out.

        The node has to stay as it is. A sequence is a list of arrays.

        Raises:
            UnknownError: if it is too much work.
            Exception: of numpy or onnx, if the node itself fails.
        """
        if node.op_type not in EVALUATED | _SEQUENCES:
            raise UnknownError(f"{node.op_type} is not followed")
        elements, slow = _elements(node, arrays), node.op_type in _SLOW
        if elements > (_MOST_SLOW if slow else self.most):
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


def _elements(node: NodeProto, arrays: list[Array | None]) -> int:
    """At most so many elements are made, or steps taken."""
    given = [array for array in arrays if array is not None]
    kind, first = node.op_type, given[0] if given else np.zeros(0)
    if kind in ELEMENTWISE:
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
    if kind == "SequenceAt":
        return 1
    if kind in ("MatMul", "Gemm"):
        return max(first.size * given[1].shape[-1], given[1].size * first.shape[0])
    return sum(array.size for array in given)
