"""What is looked at of a value that follows from sizes: few numbers, and where it is indexed or compared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jumpout_export.onnxfile.flow.evaluate import Evaluator
from jumpout_export.onnxfile.flow.values import Array, Sizes, Value

# A vector that keeps its length is looked at whole up to this one; of larger ones, corners and sums.
_WHOLE = 64


def signature(array: Array, grows: bool) -> Array:
    """Returns numbers in which any change of an array shows that is more than the growth of its shape."""
    values = array.astype(np.float64)
    if not grows and values.size <= _WHOLE:
        return np.nan_to_num(values.reshape(-1), nan=7e29, posinf=1e30, neginf=-1e30)
    picks: list[Array] = [
        np.unique([0, min(1, size - 1), size - 1]) if size else np.zeros(0, int) for size in values.shape
    ]
    corners = values[np.ix_(*picks)] if 0 < values.ndim <= 3 and values.size else values.reshape(-1)[:1]
    finite = values[np.isfinite(values)]
    sums = [finite.sum(), finite.size, np.count_nonzero(values)]
    found = np.concatenate([np.array(values.shape, np.float64), corners.reshape(-1), sums])
    return np.nan_to_num(found, nan=7e29, posinf=1e30, neginf=-1e30)


def table_length(value: Value, evaluator: Evaluator) -> int:
    """Returns the number of entries of a constant that is indexed with what follows from sizes, 0 for anything else."""
    node, table = value.node, value.inputs[0] if value.inputs else None
    if node is None or node.op_type not in ("Gather", "Slice") or table is None or table.kind != "constant":
        return 0
    array = None if table.tensor is not None else evaluator.constant(table)
    dims = table.tensor.dims if table.tensor is not None else array.shape if array is not None else ()
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    if node.op_type == "Slice" and len(value.inputs) > 3 and (axes := value.inputs[3]) is not None:
        found = evaluator.constant(axes)
        axis = 0 if found is None else int(found.reshape(-1)[0])
    return dims[axis] if -len(dims) <= axis < len(dims) else 0


def crossing(evaluator: Evaluator, equal: Value, sizes: Callable[[int], Sizes], low: int, high: int) -> list[int]:
    """Returns the size between two at which both sides of an Equal are the same, if they cross there."""

    def difference(size: int) -> float:
        one, two = (side for side in equal.inputs if side is not None)
        _, left, right = evaluator(equal, sizes(size), (one, two))
        return float(left.reshape(-1)[-1]) - float(right.reshape(-1)[-1])

    try:
        start = difference(low)
        if not start * difference(high) < 0:
            return []
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if start * difference(middle) > 0 else (low, middle)
    except Exception:  # it cannot be told; what is told is looked at elsewhere
        return []
    return [high]
