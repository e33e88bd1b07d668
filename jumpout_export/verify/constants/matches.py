"""Whether a constant of a file is a value that the model knows: equal, a wrong copy of it, or something else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jumpout_export.onnxfile.constants import Array
from jumpout_export.onnxfile.tables import Constant
from jumpout_export.text import some_of
from jumpout_export.tolerances import ROUNDINGS

# Of each constant so many values are looked at before all are.
_LOOKED_AT = 4096
# And so many where there are dozens of orders of axes.
_GLANCED_AT = 64
# So many values are compared at a time: what is made for a comparison stays small, and a wrong value ends it early.
_AT_A_TIME = 1 << 20
# Fewer different values in common are no evidence: two masks of 0 and 1 have most of theirs. Of values that are no
# multiples of 1 / _ROUND, which nobody writes by hand, a few are enough.
_LEAST_VALUES, _LEAST_ODD = 8, 3
_ROUND = 64
# Of more axes not all orders are tried.
_MOST_AXES = 5
# So much of a weight makes a constant of the file that weight, if not a right one. Of many values that nobody writes by
# hand, each in its place, a little is enough, if it is far more than other values of the kind have in common.
_MOST = 0.5
_SOME, _MANY_ODD, _BEYOND_CHANCE = 0.04, 16, 4.0


@dataclass(frozen=True)
class Known:
    """A value that a right file may hold."""

    name: str  # of a weight; empty for what the model makes of weights
    array: Array  # its values
    judged: bool = True  # whether a constant that resembles it has to be it
    by_name: bool = False  # whether a constant of its name has to be it
    made_of: tuple[str, ...] = ()  # the weights that it is made of, if it is none
    operation: int | None = None  # of the recording, that makes it
    rearranged: bool = False  # whether it is made of weights by moving values alone

    @property
    def roundings(self) -> float | None:
        """How many roundings of the largest value a right file may be off; a weight is there bit for bit."""
        return None if self.name or self.rearranged else ROUNDINGS

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that it is, or is made of."""
        return (self.name,) if self.name else self.made_of

    @cached_property
    def largest(self) -> float:
        """The largest finite magnitude."""
        return _largest(self.array)

    @cached_property
    def is_one_value(self) -> bool:
        """Whether it is one value throughout: exporters make a number of it, or leave zeros and ones out."""
        first = self.array.flat[0]
        return bool((self.array == first).all()) and (self.array.size > 1 or first in (0, 1))

    def layouts(self) -> Iterator[Array]:
        """Yields it as it is and with its last two axes swapped."""
        yield np.atleast_1d(self.array)
        if self.array.ndim > 1 and min(self.array.shape[-2:]) > 1:
            yield self.array.swapaxes(-1, -2)


@dataclass(frozen=True)
class Candidate:
    """A known value in one layout, and what it holds at the places that are looked at first."""

    known: Known
    layout: Array
    sample: Array


@dataclass(frozen=True)
class Wrong:
    """A constant of the file that should be a known value and is not."""

    known: Known
    constant: Constant
    text: str  # what is wrong, for a person


@dataclass(frozen=True)
class Match:
    """What one constant of the file is."""

    equal: tuple[Known, ...] = ()  # known values that it is
    wrong: Wrong | None = None  # of which it is a wrong copy, if it is none


def candidates_of(known: list[Known]) -> list[Candidate]:
    """Returns every layout of values of one size, at the places that are looked at first; weights come first."""
    chosen = _chosen(known[0].array.size)
    return [
        Candidate(one, layout, layout[np.unravel_index(chosen, layout.shape)])
        for one in sorted(known, key=lambda one: not one.name)
        for layout in one.layouts()
    ]


def _chosen(size: int) -> Array:
    """Places in a flat array: all, or the same random ones each time."""
    return np.arange(size) if size <= _LOOKED_AT else np.random.default_rng(0).integers(size, size=_LOOKED_AT)


def matches(constant: Constant, candidates: list[Candidate]) -> Match:
    """Returns which known values a constant is, bit for bit or to some roundings, or of which it is a wrong copy.

    Args:
        constant: of the file.
        candidates: known values of its size.
    """
    if not candidates:
        return Match()
    values = constant.values()
    sample = values[_chosen(constant.size)]
    equal: list[Known] = []
    alike: list[Candidate] = []
    for one in candidates:
        named = {known.name for known in equal if known.name}
        if named and not one.known.name and named.isdisjoint(one.known.made_of):
            continue  # a weight that is in the file as it is, or what is made of it and no other, as at g = |v|
        if not _comparable(values, one.layout):
            continue
        same = same_values(sample, one.sample, one.known.roundings, _unit(one.known))
        if same.all() and not next(_blocks(values, one), None):
            equal.append(one.known)
        elif one.known.judged and (
            same.all() or (one.known.by_name and one.known.name == constant.name) or _alike(one.sample, same)
        ):
            alike.append(one)
    # What bears the name of one weight and has the values of another is a wrong copy of the first.
    own = [one for one in candidates if one.known.by_name and one.known.judged and one.known.name == constant.name]
    if equal and own and not any(known.name == constant.name for known in equal):
        text = describe(constant, own[0].known, own[0].layout, _differing(values, own[0]))
        instead = next((f"; they are those of `{known.name}`" for known in equal if known.name), "")
        return Match((), Wrong(own[0].known, constant, text + instead))
    if equal or not alike:
        return Match(tuple(equal))
    counted = [(_differing(values, one), one) for one in alike]
    differing, nearest = min(counted, key=lambda pair: pair[0])
    return Match((), Wrong(nearest.known, constant, describe(constant, nearest.known, nearest.layout, differing)))


def is_permuted(constant: Constant, known: Known) -> bool:
    """Returns whether a constant is a known value with its axes in yet another order, some of them perhaps joined."""
    array = known.array
    if not 2 < array.ndim <= _MOST_AXES or len(constant.dims) < 2:
        return False
    values = constant.values()
    if not _comparable(values, array):
        return False
    first = _chosen(constant.size)[:_GLANCED_AT]
    glanced = values[first]
    for axes in itertools.permutations(range(array.ndim)):
        layout = array.transpose(axes)
        sample = layout[np.unravel_index(first, layout.shape)]
        if same_values(glanced, sample, known.roundings, _unit(known)).all() and not next(
            _blocks(values, Candidate(known, layout, sample)), None
        ):
            return True
    return False


def describe(constant: Constant, known: Known, layout: Array, differing: int) -> str:
    """Returns how a constant differs from a known value, with the first place in the value's own axes."""
    values = constant.values()
    start = next(start for start, _ in _blocks(values, Candidate(known, layout, layout)))
    first = start + int(np.flatnonzero(~_same_block(values, known, layout, start))[0])
    place = np.unravel_index(first, layout.shape)
    where = ", ".join(str(int(axis)) for axis in place)
    there, wanted = values[first].item(), layout[place].item()
    if known.name:
        what = f"`{known.name}` has {differing} of {constant.size} values wrong in the file"
        what += "" if constant.name == known.name else f", there `{constant.name}`"
    else:
        made_of = some_of([f"`{name}`" for name in known.made_of], 3) if known.made_of else "numbers alone"
        what = f"what is made of {made_of} has {differing} of {constant.size} values wrong in the file, there "
        what += f"`{constant.name}`"
    return f"{what}, the first at [{where}]: {there:.9g} instead of {wanted:.9g}"


def _comparable(values: Array, wanted: Array) -> bool:
    """Whether one may be the other: a table of integers is a constant of floats where something is added to it."""
    return (values.dtype.kind == "f") == (wanted.dtype.kind == "f") or values.dtype.kind == "f"


def _blocks(values: Array, one: Candidate) -> Iterator[tuple[int, int]]:
    """Yields where a block of rows with differing values starts in the flat array, and how many differ in it."""
    row = one.layout[0].size
    step = row * max(1, _AT_A_TIME // max(row, 1))
    for start in range(0, values.size, step):
        same = _same_block(values, one.known, one.layout, start)
        if not same.all():
            yield start, int((~same).sum())


def _differing(values: Array, one: Candidate) -> int:
    return sum(differing for _, differing in _blocks(values, one))


def _same_block(values: Array, known: Known, layout: Array, start: int) -> Array:
    row = layout[0].size
    rows = max(1, _AT_A_TIME // max(row, 1))
    wanted = layout[start // row : start // row + rows]
    return same_values(values[start : start + wanted.size], wanted.reshape(-1), known.roundings, _unit(known))


def _unit(known: Known) -> float:
    """The magnitude of which roundings are counted; what has to be there bit for bit is not looked through for it."""
    return known.largest if known.roundings else 0.0


def _alike(wanted: Array, same: Array) -> bool:
    """Whether a constant has most of those values that are not the most common one, or many that are no chance."""
    values, counts = np.unique(wanted, return_counts=True)
    telling = wanted != values[counts.argmax()] if counts.max() > 1 else np.ones_like(same)
    share = same[telling].mean() if telling.any() else 0.0
    if share < _SOME:
        return False
    agreeing = np.unique(wanted[telling & same])
    with np.errstate(all="ignore"):
        odd = int((agreeing * _ROUND % 1 != 0).sum()) if agreeing.dtype.kind == "f" else 0
    if share >= _MOST:
        return odd >= _LEAST_ODD or len(agreeing) >= _LEAST_VALUES
    chance = float(((counts / counts.sum()) ** 2).sum())
    return odd >= _MANY_ODD and bool(share >= _BEYOND_CHANCE * chance)


def same_values(values: Array, wanted: Array, roundings: float | None, largest: float | None = None) -> Array:
    """Returns which values are the wanted ones: bit for bit, or to so many roundings of the largest.

    Args:
        values: of a file.
        wanted: as many.
        roundings: None for bit for bit.
        largest: magnitude of which roundings are counted, where that of `wanted` is not the one.
    """
    with np.errstate(all="ignore"):
        if values.dtype.kind != "f":  # no cast: of integers, every one but 0 would be True
            return np.asarray(values == wanted)
        cast = wanted.astype(values.dtype, copy=False)
        if roundings is None and wanted.dtype.kind == "f":
            bits = np.dtype(f"u{values.dtype.itemsize}")
            equal: Array = np.ascontiguousarray(values).view(bits) == np.ascontiguousarray(cast).view(bits)
            return equal if equal.all() else equal | (np.isnan(values) & np.isnan(cast))
        close: Array = values == cast
        if roundings is None or close.all():
            return close
        size = _largest(cast) if largest is None else largest
        slack = roundings * float(np.finfo(values.dtype).eps) * size
        return close | (np.abs(values.astype(np.float64) - cast) <= slack) | (np.isnan(values) & np.isnan(cast))


def _largest(array: Array) -> float:
    finite = np.abs(array[np.isfinite(array)]) if array.dtype.kind == "f" else np.abs(array.astype(np.float64))
    return float(finite.max(initial=0.0))
