"""What a node makes of values that follow from sizes: by its operator, whether it is as regular as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jumpout_export.onnxfile.flow.evaluate import Evaluator
from jumpout_export.onnxfile.flow.values import Dims, Kind, Value
from jumpout_export.onnxfile.reference import COMPARES, EVALUATED
from jumpout_export.onnxfile.training import RANDOM_OPERATORS

if TYPE_CHECKING:
    from onnx import NodeProto

# As regular as what they are made of.
_LINEAR = frozenset({"Add", "Sub", "Mul", "Neg", "Identity", "Cos", "Sin", "MatMul", "Sum"})
_MOVES = frozenset({"Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Concat", "Expand", "Tile"})
_MAKES = frozenset({"Range", "ConstantOfShape"})
_PICKS = frozenset({"Gather", "Slice", "Split"})
# What they make of a vector is some of its entries, in another shape.
PICKED = (_PICKS | _MOVES) - {"Concat"}
# Where a size beside data decides something.
DECIDES = COMPARES | {"Min", "Max", "Mod", "Clip"}
# Where a size beside data is part of the values.
ENTERS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Sum", "Mean", "MatMul"})
# What they are given beside data is about shapes; a Slice also says which part.
SHAPED = frozenset({"Reshape", "Expand", "Tile", "Pad", "Resize", "Split"})
REPEATS = frozenset({"Loop", "Scan", "SequenceMap"})
# Integers wide enough for any size, and floating point.
INTEGERS = frozenset({6, 7, 12, 13})
_WIDE = INTEGERS | {1, 10, 11}


def kind_made(node: NodeProto, given: Sequence[Value]) -> Kind:
    """Returns what one of ONNX's own operators makes of values that are no data."""
    kinds, kind = {one.kind for one in given}, node.op_type
    if kind in RANDOM_OPERATORS:
        return "data"
    if kinds <= {"constant"}:
        return "constant"
    if "opaque" in kinds or kind not in EVALUATED:
        return "opaque"
    return "plain" if "other" not in kinds and _is_regular(node, given) else "other"


def _is_regular(node: NodeProto, given: Sequence[Value]) -> bool:
    kind, first, others = node.op_type, given[0], given[1:]
    if kind == "Cast":
        to = attribute(node, "to")
        return to in _WIDE and (first.whole or to not in INTEGERS)
    if kind in _PICKS:
        return first.kind == "plain" and not first.grows and {one.kind for one in others} <= {"constant"}
    if kind == "Div":
        return given[-1].kind == "constant" and not all(one.whole for one in given)
    if kind in ("ReduceSum", "ReduceProd"):
        return not first.grows
    if kind in ("Expand", "Tile"):
        return not others[0].grows
    return kind in _LINEAR or kind in _MAKES or kind in _MOVES


def grows_by(node: NodeProto, given: Sequence[Value]) -> bool:
    """Returns whether the shape of what a node makes may depend on sizes."""
    kind = node.op_type
    if kind in _MAKES or kind in ("NonZero", "Compress", "Unique"):
        return True
    if kind in ("Expand", "Tile", "Reshape", "Slice", "OneHot", "Pad", "Split", "TopK"):
        return given[0].grows or any(one.kind != "constant" for one in given[1:])
    return kind not in ("Shape", "Size") and any(one.grows for one in given)


def varies_by(node: NodeProto, given: Sequence[Value]) -> bool:
    """Returns whether the entries of what a node makes depend on sizes."""
    if node.op_type in ("Shape", "Size", "Range"):
        return True
    if node.op_type == "ConstantOfShape":
        return False
    read = given[:1] if node.op_type in ("Expand", "Tile", "Reshape") else given
    return any(one.varies for one in read)


def whole_by(node: NodeProto, given: Sequence[Value], evaluator: Evaluator) -> bool:
    """Returns whether what a node makes is integers for certain."""
    if node.op_type in ("Shape", "Size"):
        return True
    if node.op_type == "Cast":
        return attribute(node, "to") in INTEGERS
    if node.op_type == "Constant":
        array = evaluator.constant(Value("constant", 0, node=node))
        return array is not None and array.dtype.kind in "iu"
    return bool(given) and all(one.whole for one in given)


def kind_of(dims: Dims) -> Kind:
    """Returns what sizes that were picked one by one are together."""
    if None in dims:
        return "other"
    return "plain" if any(isinstance(one, str) for one in dims) else "constant"


def names_of(dims: Dims | None, every: frozenset[str]) -> frozenset[str]:
    """Returns the open axes that sizes depend on: all of them, where one is not known."""
    if dims is None or None in dims:
        return every
    return frozenset(one for one in dims if isinstance(one, str))


def attribute(node: NodeProto, name: str, default: int = 0) -> int:
    """Returns an integer attribute of a node."""
    return next((one.i for one in node.attribute if one.name == name), default)
