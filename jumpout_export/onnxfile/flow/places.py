"""Places on an open axis that a file singles out without asking for its size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jumpout_export.onnxfile.flow.rules import attribute
from jumpout_export.onnxfile.flow.values import REDUCES, Dims, Evaluator, Value

if TYPE_CHECKING:
    from onnx import NodeProto

# The result of several entries.
_MIXES = REDUCES | {"CumSum", "ArgMax", "ArgMin", "TopK", "NonZero", "Unique", "Compress"}
# More indices than these are no places, but a table of neighbours.
_FEW = 24


def fixed_places(
    node: NodeProto, inputs: Sequence[Value | None], dims: Dims | None, evaluator: Evaluator
) -> Iterator[tuple[str, list[int]]]:
    """Yields the open axes that a Gather or Slice of data indexes with constants, and the sizes at which that matters.

    `dims` is the shape of the data, None where it is not known.
    """
    if dims is None or node.op_type not in ("Gather", "Slice"):
        return
    constants = [None if one is None else evaluator.constant(one) for one in inputs[1:]]
    if node.op_type == "Gather" and constants[0] is not None and constants[0].size <= _FEW:
        axis = attribute(node, "axis")
        name = dims[axis] if -len(dims) <= axis < len(dims) else None
        if isinstance(name, str):
            yield name, [int(i) + 1 if i >= 0 else -int(i) for i in constants[0].flat]
    elif node.op_type == "Slice" and len(constants) > 1:
        axes = constants[2] if len(constants) > 2 and constants[2] is not None else np.arange(len(dims))
        for number, axis in enumerate(int(one) for one in axes.flat):
            name = dims[axis] if -len(dims) <= axis < len(dims) else None
            ends = [int(one.flat[number]) for one in constants[:2] if one is not None and one.size > number]
            if isinstance(name, str):
                yield name, [abs(end) for end in ends]


def mixes(
    node: NodeProto, inputs: Sequence[Value | None], dims: Dims | None, batch: str | None, evaluator: Evaluator
) -> bool:
    """Returns whether what a node makes of data depends on several images of a batch, or already did."""
    if any(one is not None and one.mixes for one in inputs):
        return True
    if batch is None or dims is None or batch not in dims or node.op_type not in _MIXES:
        return False
    axes: Iterable[int] = [one.i for one in node.attribute if one.name == "axis"]
    axes = [*axes, *(i for one in node.attribute if one.name == "axes" for i in one.ints)]
    if len(inputs) > 1 and node.op_type in REDUCES | {"CumSum"} and inputs[1] is not None:
        array = evaluator.constant(inputs[1])
        axes = range(len(dims)) if array is None else [int(i) for i in array.flat]
    elif not axes:
        axes = [0] if node.op_type in ("ArgMax", "ArgMin") else [-1] if node.op_type == "TopK" else range(len(dims))
    return any(-len(dims) <= axis < len(dims) and dims[axis] == batch for axis in axes)
