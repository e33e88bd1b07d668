"""Weights that a file holds in other pieces: several joined to one constant, or one cut into several.

Exporters join the three projections of an attention, and cut a matrix that PyTorch multiplies with at once. A constant
is such a piece if its values, as they are or with the last two axes swapped, are whole weights one after the other, or
one stretch of a single weight, bit for bit. Parts of weights in another order are none: a table with rows in wrong
places is a wrong table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from jumpout_export.onnxfile.constants import Array

# Fewer values may stand one after the other by chance.
_LEAST = 8
# A first value that stands in more places than these is a common one, and no place to look at.
_PLACES = 64


class Pieces:
    """The weights, and which stretches of them were found so far.

    Args:
        weights: by name.
    """

    def __init__(self, weights: dict[str, Array]) -> None:
        self._flat = {name: array.reshape(-1) for name, array in weights.items() if array.size >= _LEAST}
        self._begins: dict[bytes, list[str]] = defaultdict(list)
        for name, flat in self._flat.items():
            self._begins[flat[:2].tobytes()].append(name)
        self._found: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def take(self, values: Array, shape: tuple[int, ...]) -> bool:
        """Returns whether a constant consists of weights, and takes down of which.

        Args:
            values: of the constant, flat.
            shape: of the constant.
        """
        if values.size < _LEAST or values.min() == values.max():
            return False
        for layout in _layouts(values, shape):
            parts = self._joined(layout) or self._cut(layout)
            for name, start, stop in parts:
                self._found[name].append((start, stop))
            if parts:
                return True
        return False

    def whole(self) -> set[str]:
        """Returns the names of the weights all of whose values were found."""
        return {name for name, stretches in self._found.items() if _covered(stretches) == self._flat[name].size}

    def _joined(self, values: Array) -> list[tuple[str, int, int]]:
        parts, place = [], 0
        while place < values.size:
            for name in self._begins.get(values[place : place + 2].tobytes(), ()):
                flat = self._flat[name]
                if flat.dtype == values.dtype and np.array_equal(flat, values[place : place + flat.size]):
                    parts.append((name, 0, flat.size))
                    place += flat.size
                    break
            else:
                return []
        return parts

    def _cut(self, values: Array) -> list[tuple[str, int, int]]:
        for name, flat in self._flat.items():
            if flat.dtype != values.dtype or flat.size <= values.size:
                continue
            places = np.flatnonzero(flat[: flat.size - values.size + 1] == values[0])
            for start in places.tolist() if len(places) <= _PLACES else ():
                if np.array_equal(flat[start : start + values.size], values):
                    return [(name, start, start + values.size)]
        return []


def _layouts(values: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    yield values
    if len(shape) > 1 and min(shape[-2:]) > 1:
        yield values.reshape(shape).swapaxes(-1, -2).reshape(-1)


def _covered(stretches: Iterable[tuple[int, int]]) -> int:
    total, end = 0, 0
    for start, stop in sorted(stretches):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total
