"""What comes of values that follow from sizes alone, at any sizes.

They are computed by the reference implementation of the onnx package, node by node, within a bound on their elements;
nothing else of the file runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jumpout_export.onnxfile.flow.values import Array, Sizes, Value, bounds
from jumpout_export.onnxfile.reference import ELEMENTWISE, Runner, UnknownError

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

# Of a constant that is read: a table of positions is larger.
_MOST_CONSTANT = 1 << 16
# Larger results are computed again where another value is made of them, too.
_KEPT = 64
# Values that one is computed from.
_MOST_VALUES = 2000


@dataclass
class Evaluator:
    """Computes values at given sizes.

    Attributes:
        runner: of single nodes.
        measure: returns the shape of a value of the main graph at given sizes, None where it is not known.
    """

    runner: Runner
    measure: Callable[[str, Sizes], tuple[int, ...] | None]
    _constants: dict[int, Array] = field(default_factory=dict)
    # What many values are made of, at the same sizes.
    _cache: dict[tuple[tuple[str, int], ...], dict[int, Array]] = field(default_factory=dict)

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
        cache = self._cache.setdefault(tuple(sizes.items()), {})
        for value in before:
            found = cache.get(value.number)
            known[value.number] = self._value(value, known, sizes) if found is None else found
            if known[value.number].size <= _KEPT:
                cache[value.number] = known[value.number]
        return [known[value.number] for value in (wanted, *also)]

    def prepare(self, wanted: Value, many: list[Sizes]) -> None:
        """Computes the single numbers that a value is made of at many sizes at once: most of it is such arithmetic."""
        columns: dict[int, tuple[Array, tuple[int, ...]]] = {}
        for value in wanted.before(_MOST_VALUES):
            try:
                column = self._column(value, columns, many)
            except Exception:  # of numpy or onnx; what cannot be computed at once is computed one by one
                column = None
            if column is not None:
                columns[value.number] = column
        for number, (numbers, shape) in columns.items():
            for one, sizes in zip(np.broadcast_to(numbers, len(many)), many, strict=True):
                self._cache.setdefault(tuple(sizes.items()), {})[number] = one.reshape(shape)

    def _column(
        self, value: Value, columns: Mapping[int, tuple[Array, tuple[int, ...]]], many: list[Sizes]
    ) -> tuple[Array, tuple[int, ...]] | None:
        """One number per entry of `many`, and the shape that it has; None for what is no single number."""
        if value.kind == "constant":
            array = self.constant(value)
            return (array.reshape(()), array.shape) if array is not None and array.size == 1 else None
        if value.dims is not None and None not in value.dims:
            (dim,) = value.dims  # raises for several
            return np.array([sizes[dim] if isinstance(dim, str) else dim for sizes in many], np.int64), value.shape
        node, given = value.node, [None if one is None else columns.get(one.number) for one in value.inputs]
        if node is None or value.index or not given or given[0] is None:
            return None
        if node.op_type in ("Squeeze", "Unsqueeze", "Reshape", "Flatten"):
            column, shape = given[0]
            moved = self.moved(node, np.zeros(shape, np.int64), list(value.inputs[1:]))
            return None if moved is None else (column, moved.shape)
        if node.op_type not in ELEMENTWISE or any(one is None for one in given):
            return None
        shapes = np.broadcast_shapes(*(one[1] for one in given if one is not None))
        return np.asarray(self.runner(node, [None if one is None else one[0] for one in given])[0]), shapes

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
            return np.asarray(self.runner(node, [first, *arrays])[0])
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
        arrays = [None if one is None else known[one.number] for one in value.inputs]
        return np.asarray(self.runner(node, arrays)[value.index])


def _read(tensor: TensorProto) -> Array:
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL or math.prod(tensor.dims) > _MOST_CONSTANT:
        raise UnknownError("a constant is too large")
    return numpy_helper.to_array(tensor)
