"""Whether a constant of a file is a weight of the model: equal, a wrong copy of it, or something else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jumpout_export.onnxfile.constants import Array
from jumpout_export.tolerances import ROUNDINGS

if TYPE_CHECKING:
    from onnx import TensorProto

# Of each constant so many values are looked at before all are.
_LOOKED_AT = 4096
# Fewer different values in common are no evidence: two masks of 0 and 1 have most of theirs. Of values that are no
# multiples of 1 / _ROUND, which nobody writes by hand, a few are enough.
_LEAST_VALUES, _LEAST_ODD = 8, 3
_ROUND = 64
# So much of a weight makes a constant of the file that weight, if not a right one.
_MOST = 0.5


@dataclass(frozen=True)
class Known:
    """A value that a right file may hold."""

    name: str  # of a weight; empty for what the model makes of weights
    array: Array  # its values
    judged: bool = True  # whether a constant that resembles it has to be it
    by_name: bool = False  # whether a constant of its name has to be it

    @property
    def roundings(self) -> float | None:
        """How many roundings of the largest value a right file may be off; a weight is there bit for bit."""
        return None if self.name else ROUNDINGS

    def layouts(self) -> Iterator[Array]:
        """Yields it as it is and with its last two axes swapped."""
        yield np.atleast_1d(self.array)
        if self.array.ndim > 1:
            yield self.array.swapaxes(-1, -2)


class Constant:
    """A tensor of the file, read again where all of it is needed."""

    def __init__(self, tensor: TensorProto, folder: str) -> None:
        self.name = tensor.name or "a constant"
        self._tensor, self._folder = tensor, folder
        self.size = math.prod(tensor.dims)

    def values(self) -> Array:
        """All values, flat."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self._tensor, self._folder).reshape(-1)


@dataclass(frozen=True)
class Candidate:
    """A known value in one layout, and what it holds at the places that are looked at first."""

    known: Known
    layout: Array
    sample: Array


def candidates_of(known: list[Known]) -> list[Candidate]:
    """Returns every layout of values of one size, at the places that are looked at first."""
    chosen = _chosen(known[0].array.size)
    return [
        Candidate(one, layout, layout[np.unravel_index(chosen, layout.shape)])
        for one in known
        for layout in one.layouts()
    ]


def _chosen(size: int) -> Array:
    """Places in a flat array: all, or the same random ones each time."""
    return np.arange(size) if size <= _LOOKED_AT else np.random.default_rng(0).integers(size, size=_LOOKED_AT)


def matches(constant: Constant, candidates: list[Candidate]) -> tuple[set[str], tuple[str, str] | None, bool]:
    """Returns the names of the weights that a constant is; of which it is a wrong copy, with a sentence; if it is any.

    Args:
        constant: of the file.
        candidates: known values of its size.
    """
    values = constant.values()
    sample = values[_chosen(constant.size)]
    names: set[str] = set()
    any_equal = False
    nearest: tuple[int, str, str] | None = None
    for one in candidates:
        if (values.dtype.kind == "f") != (one.layout.dtype.kind == "f"):
            continue
        same = same_values(sample, one.sample, one.known.roundings)
        named = one.known.by_name and one.known.name == constant.name
        if not same.all() and not (one.known.judged and (named or _alike(one.sample, same))):
            continue
        differing = np.flatnonzero(~same_values(values, one.layout.reshape(-1), one.known.roundings))
        if not differing.size:
            any_equal = True
            names.add(one.known.name)
        elif one.known.judged and (nearest is None or differing.size < nearest[0]):
            nearest = differing.size, one.known.name, _sentence(constant, values, one, differing)
    return names, nearest[1:] if nearest is not None else None, any_equal


def _sentence(constant: Constant, values: Array, one: Candidate, differing: Array) -> str:
    first = int(differing[0])
    place = np.unravel_index(first, one.layout.shape)
    where = ", ".join(str(int(axis)) for axis in place)
    there, wanted = values[first].item(), one.layout[place].item()
    name = one.known.name
    if name:
        what = f"`{name}` has {differing.size} of {constant.size} values wrong in the file"
        what += "" if constant.name == name else f", there `{constant.name}`"
    else:
        what = f"`{constant.name}` in the file, made of weights, has {differing.size} of {constant.size} values wrong"
    return f"{what}, the first at [{where}]: {there:.9g} instead of {wanted:.9g}"


def _alike(wanted: Array, same: Array) -> bool:
    """Whether a constant has most of those values that are not the most common one."""
    values, counts = np.unique(wanted, return_counts=True)
    telling = wanted != values[counts.argmax()] if counts.max() > 1 else np.ones_like(same)
    if not telling.any() or same[telling].mean() < _MOST:
        return False
    agreeing = np.unique(wanted[telling & same])
    with np.errstate(all="ignore"):
        odd = int((agreeing * _ROUND % 1 != 0).sum()) if agreeing.dtype.kind == "f" else 0
    return odd >= _LEAST_ODD or len(agreeing) >= _LEAST_VALUES


def same_values(values: Array, wanted: Array, roundings: float | None) -> Array:
    """Returns which values are the wanted ones: bit for bit, or to so many roundings of the largest."""
    with np.errstate(all="ignore"):
        cast = wanted.astype(values.dtype)
        if values.dtype.kind != "f":
            return values == cast
        nan = np.isnan(values) & np.isnan(cast)
        if roundings is None:
            bits = np.dtype(f"u{values.dtype.itemsize}")
            equal: Array = np.ascontiguousarray(values).view(bits) == np.ascontiguousarray(cast).view(bits)
            return equal | nan
        finite = np.abs(cast[np.isfinite(cast)])
        slack = roundings * float(np.finfo(values.dtype).eps) * float(finite.max(initial=0.0))
        close: Array = (values == cast) | (np.abs(values.astype(np.float64) - cast) <= slack) | nan
        return close
