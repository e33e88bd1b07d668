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
# The same, along all axes behind channels.
_POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})
# Of neighbours there, or in a way in which nothing is counted: that matters where samples lie along these axes.
_NEARBY = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "AveragePool", "MaxPool", "LpPool", "LRN",
                     "InstanceNormalization", "Resize", "GridSample", "GroupNormalization"})  # fmt: skip
_WEIGHED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
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
    first = inputs[0] if inputs else None
    if dims is None or first is None:
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
        exact = node.op_type in ("Slice", "TopK")  # bounds and a number; else indices, which count from 0
        numbers = [abs(int(i)) if exact or i < 0 else int(i) + 1 for i in places.flat]
        yield from ((name, numbers) for name in sorted(_names_at(first, dims, axis)))


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


def joined_axes(
    inputs: Sequence[Value | None], shapes: Sequence[Dims | None], made: Dims | None
) -> tuple[frozenset[str], int]:
    """Returns the open axes that an axis without a name may be made of, in what a node makes, and how many others.

    Args:
        inputs: of the node.
        shapes: of these, None where they are not known.
        made: the shape of what it makes.
    """
    names: set[str] = set()
    others = 1
    for value, dims in zip(inputs, shapes, strict=True):
        if value is None or value.kind != "data":
            continue
        names |= value.joined
        gone = {one for one in dims or () if isinstance(one, str)} - set(made or ())
        if made is None or None in made:
            names |= gone
            counts = [math.prod(one for one in each if isinstance(one, int)) for each in (dims or (), made or ())]
            others = max(others, counts[0] // max(counts[1], 1)) if gone else others
    known = made is not None and None not in made
    return frozenset() if known else frozenset(names - set(made or ())), others


def mixes(
    node: NodeProto,
    inputs: Sequence[Value | None],
    shapes: Sequence[Dims | None],
    batch: str | None,
    evaluator: Evaluator,
) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the open axes along which several entries are made one, in what a node makes of data or before.

    Args:
        node: with data among its inputs.
        inputs: of it.
        shapes: of these, None where they are not known.
        batch: the name of the batch's axis, None where its size is fixed.
        evaluator: for constants.

    Returns:
        Those along which that is certain, and those along which it may be.
    """
    found = frozenset[str]().union(*(one.mixes for one in inputs if one is not None))
    possible = frozenset[str]().union(*(one.may_mix for one in inputs if one is not None))
    if node.op_type in _WEIGHED and any(one is not None and _is_table(one) for one in inputs):
        # No count any more, but what a layer makes of means over a sample; a table that is no weight, others list.
        found, possible = found & {batch}, frozenset()
    for place, (value, dims) in enumerate(zip(inputs, shapes, strict=True)):
        if value is None or value.kind != "data":
            continue
        if dims is None:
            possible |= value.joined if node.op_type in _MIXES | _POOLS else frozenset()
            continue
        for axis in _mixed(node, place, dims, inputs, evaluator):
            name = dims[axis] if -len(dims) <= axis < len(dims) else 0
            found |= {name} if isinstance(name, str) else frozenset()
            possible |= value.joined if name is None else frozenset()
        if batch is not None and batch in dims and batch in _nearby(node, inputs, dims, evaluator):
            found |= {batch}
    return found, possible - found


def _is_table(value: Value) -> bool:
    return value.kind == "constant" and (value.tensor is None or math.prod(value.tensor.dims) > 1)


def _names_at(value: Value, dims: Dims, axis: int) -> frozenset[str]:
    """The open axes that an axis of data is, or may be made of."""
    name = dims[axis] if -len(dims) <= axis < len(dims) else 0
    return value.joined if name is None else frozenset({name} if isinstance(name, str) else ())


def _mixed(
    node: NodeProto, place: int, dims: Dims, inputs: Sequence[Value | None], evaluator: Evaluator
) -> Iterable[int]:
    """The axes of one of a node's inputs along which it makes one of several entries, as far as they may be counted."""
    kind, rank = node.op_type, len(dims)
    if kind in ("MatMul", "Gemm"):
        is_second = bool(place) and rank > 1
        turned = attribute(node, "transB" if place else "transA", 0) if kind == "Gemm" else 0
        return [] if place > 1 else [-1 - (is_second ^ bool(turned))]
    if kind == "Einsum":
        equation = next((one.s.decode(errors="replace") for one in node.attribute if one.name == "equation"), "")
        terms, _, result = equation.replace(" ", "").partition("->")
        term = terms.split(",")[place] if place < len(terms.split(",")) else ""
        return [axis for axis, letter in enumerate(term) if letter not in result] if len(term) == rank else []
    if place:
        return []
    if kind == "SplitToSequence":
        return [attribute(node, "axis", 0)]
    if kind in _POOLS:
        return range(2, rank)
    if kind in _RECURRENT:
        return [attribute(node, "layout", 0)]
    if kind not in _MIXES:
        return []
    axes: list[int] = [one.i for one in node.attribute if one.name == "axis"]
    axes += [i for one in node.attribute if one.name == "axes" for i in one.ints]
    if len(inputs) > 1 and kind in REDUCES | NORMS | {"CumSum"} and inputs[1] is not None:
        array = evaluator.constant(inputs[1])
        return range(rank) if array is None else [int(i) for i in array.flat]
    if axes:
        return axes
    last = kind == "TopK" or "max" in kind
    return [0] if kind in ("ArgMax", "ArgMin") else [-1] if last else range(rank)


def _nearby(
    node: NodeProto, inputs: Sequence[Value | None], dims: Dims, evaluator: Evaluator
) -> Iterable[int | str | None]:
    """The axes of a node's first input along which it makes one of neighbours, by name or size."""
    if node.op_type in _NEARBY:
        return dims[2:]
    if node.op_type == "Trilu":
        return dims[-2:]
    return [name for name, _ in _distances(node, inputs, dims, evaluator)] if node.op_type == "Pad" else []
