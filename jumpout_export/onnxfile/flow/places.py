"""Places on an open axis that a file singles out without asking for its size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jumpout_export.onnxfile.flow.evaluate import Evaluator
from jumpout_export.onnxfile.flow.rules import attribute
from jumpout_export.onnxfile.flow.values import Dims, Value
from jumpout_export.onnxfile.reference import NORMS, REDUCES

if TYPE_CHECKING:
    from onnx import NodeProto

# The result of several entries.
_MIXES = REDUCES | NORMS | {"CumSum", "ArgMax", "ArgMin", "TopK", "NonZero", "Unique", "Compress"}
_MIXES |= {"Softmax", "LogSoftmax", "Hardmax"}
# The same, along the axes behind channels.
_SPATIAL = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "AveragePool", "MaxPool", "LpPool", "LRN",
                      "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "InstanceNormalization", "Resize",
                      "GridSample", "GroupNormalization"})  # fmt: skip
_RECURRENT = frozenset({"RNN", "GRU", "LSTM"})
_INDEX = frozenset({"Gather", "Slice", "GatherND", "ScatterND", "GatherElements", "ScatterElements", "TopK"})
# More indices than these are no places, but a table of neighbours.
_FEW = 24


def fixed_places(
    node: NodeProto, inputs: Sequence[Value | None], dims: Dims | None, evaluator: Evaluator
) -> Iterator[tuple[str, list[int]]]:
    """Yields the open axes of data that a node indexes or cuts with constants, and the sizes at which that matters.

    `dims` is the shape of the data, None where it is not known.
    """
    if dims is None:
        return
    if node.op_type in _DISTANCES:
        yield from _distances(node, inputs, dims, evaluator)
    if node.op_type not in _INDEX:
        return
    constants = [None if one is None else evaluator.constant(one) for one in inputs[1:]]
    if node.op_type == "Slice":
        axes = constants[2] if len(constants) > 2 and constants[2] is not None else np.arange(len(dims))
        bounds = [one.reshape(-1) for one in constants[:2] if one is not None]
        found = [(int(axis), np.concatenate([one[at : at + 1] for one in bounds])) for at, axis in enumerate(axes.flat)
                 if bounds]  # fmt: skip
    elif constants[0] is None or constants[0].size > _FEW:
        return
    elif node.op_type in ("GatherND", "ScatterND"):
        found = list(enumerate(np.moveaxis(constants[0], -1, 0))) if constants[0].ndim else []
    else:
        found = [(attribute(node, "axis", -1 if node.op_type == "TopK" else 0), constants[0])]
    for axis, places in found:
        name = dims[axis] if -len(dims) <= axis < len(dims) else None
        if isinstance(name, str):
            exact = node.op_type in ("Slice", "TopK")  # bounds and a number; else indices, which count from 0
            yield name, [abs(int(i)) if exact or i < 0 else int(i) + 1 for i in places.flat]


# Operators that move values along an axis, or weigh those that lie so far away.
_DISTANCES = frozenset({"Pad", "Trilu", "Conv", "ConvTranspose"})


def _distances(
    node: NodeProto, inputs: Sequence[Value | None], dims: Dims, evaluator: Evaluator
) -> Iterator[tuple[str, list[int]]]:
    """Yields the open axes along which a node reaches from one entry to another, and how far."""
    if node.op_type in ("Conv", "ConvTranspose"):
        kernel = next((list(one.ints) for one in node.attribute if one.name == "kernel_shape"), [])
        steps = next((list(one.ints) for one in node.attribute if one.name == "dilations"), [1] * len(kernel))
        pairs = zip(kernel, steps, strict=False)
        found = [(axis, [size * step, size // 2 * step]) for axis, (size, step) in enumerate(pairs, 2)]
    else:
        array = None if len(inputs) < 2 or inputs[1] is None else evaluator.constant(inputs[1])
        far = [] if array is None else [abs(int(one)) for one in array.flat]
        if node.op_type == "Trilu":
            found = [(axis, far) for axis in (len(dims) - 2, len(dims) - 1)]
        else:
            chosen = None if len(inputs) < 4 or inputs[3] is None else evaluator.constant(inputs[3])
            axes = range(len(dims)) if chosen is None else [int(one) for one in chosen.flat]
            half = len(far) // 2
            found = [(axis, [*far[at : at + 1], *far[half + at : half + at + 1]]) for at, axis in enumerate(axes)]
    for axis, places in found:
        name = dims[axis] if -len(dims) <= axis < len(dims) else None
        if isinstance(name, str) and any(places):
            yield name, places


def merges(dims: Dims | None, made: Dims | None, batch: str | None) -> bool:
    """Returns whether a node takes data with an axis of images, and what it makes has none that is known as such."""
    if dims is None or made is None or batch not in dims or batch in made or list(made).count(None) != 1:
        return False
    others = [[one for one in each if one not in (batch, None)] for each in (dims, made)]
    # With -1 in its place, the images still have an axis to themselves: as many values lie behind it as before.
    sizes = [math.prod(one for one in each if isinstance(one, int)) for each in others]
    return None not in dims and sizes[0] != sizes[1]


def mixes(
    node: NodeProto, inputs: Sequence[Value | None], dims: Dims | None, batch: str | None, evaluator: Evaluator
) -> bool:
    """Returns whether what a node makes of data depends on several images of a batch, or already did."""
    if any(one is not None and one.mixes for one in inputs):
        return True
    if batch is None or dims is None or batch not in dims:
        return False
    if node.op_type in ("MatMul", "Einsum", "Gemm", "SplitToSequence"):
        return _contracts(node, dims, batch)
    if node.op_type in _SPATIAL:
        return batch in dims[2:]
    if node.op_type in _RECURRENT:
        return batch in dims[attribute(node, "layout", 0) :][:1]
    if node.op_type == "Trilu":
        return batch in dims[-2:]
    if node.op_type == "Pad":
        return any(name == batch for name, _ in _distances(node, inputs, dims, evaluator))
    if node.op_type not in _MIXES:
        return False
    axes: Iterable[int] = [one.i for one in node.attribute if one.name == "axis"]
    axes = [*axes, *(i for one in node.attribute if one.name == "axes" for i in one.ints)]
    if len(inputs) > 1 and node.op_type in REDUCES | NORMS | {"CumSum"} and inputs[1] is not None:
        array = evaluator.constant(inputs[1])
        axes = range(len(dims)) if array is None else [int(i) for i in array.flat]
    elif not axes:
        last = node.op_type == "TopK" or "max" in node.op_type
        axes = [0] if node.op_type in ("ArgMax", "ArgMin") else [-1] if last else range(len(dims))
    return any(-len(dims) <= axis < len(dims) and dims[axis] == batch for axis in axes)


def _contracts(node: NodeProto, dims: Dims, batch: str) -> bool:
    """Whether a product sums over the batch, which its first factor has; a sequence of images may be counted."""
    if node.op_type in ("MatMul", "Gemm"):
        return dims[-1 if not attribute(node, "transA", 0) else 0] == batch
    if node.op_type == "SplitToSequence":
        return True
    equation = next((one.s.decode(errors="replace") for one in node.attribute if one.name == "equation"), "")
    terms, _, result = equation.replace(" ", "").partition("->")
    first = terms.split(",")[0]
    return len(first) == len(dims) and first[dims.index(batch)] not in result
