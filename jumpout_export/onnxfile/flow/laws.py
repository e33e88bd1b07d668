"""Where a function of a size stops following one law: found by trying sizes, without knowing the function.

A law is a polynomial, with one of its own per remainder where something is divided by a number; of what is not whole
also one of its reciprocal, square, exponential or logarithm. What follows from sizes through shapes, reshapes and
positions alone obeys one law from the smallest size on. A comparison, a Where, a clamp or a table breaks it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
At = Callable[[int], Array | None]
Between = Callable[[int, int], Iterable[int]]

# Smaller sizes are tried in any case. Up to the second, sizes are looked at one by one; up to the third if need be.
FIRST, FEW, MANY = 4, 24, 136
# Beyond, in steps of this factor up to this size.
LARGEST, _STEP = 1 << 16, 2
# Sizes that are looked at in any case; with them, `at` may compute what it can at once.
EVERY = range(FIRST, FIRST + MANY + 1)
# A function with more breaks follows no law.
MOST_BREAKS = 4
_DEGREE = 3
_PERIODS = (*range(2, 9), 10, 12, 14, 16, 20, 24, 28, 32)
# Of the value: for whole numbers, and for what is computed in float32.
_EXACT, _ROUNDED = 1e-9, 1e-4


@dataclass(frozen=True)
class Law:
    """What was found."""

    breaks: tuple[int, ...]  # the first size of each new law
    until: int  # the largest size that was looked at
    regular: bool  # whether there is a law at all
    period: int = 1  # it repeats after so many sizes, as rounding does
    constant: bool = False  # whether it is the same for all sizes, between breaks
    steps: tuple[int, ...] = ()  # sizes of the first period at which it steps


@dataclass(frozen=True)
class _Form:
    """A kind of law."""

    period: int
    degree: int
    changed: Callable[[Array], Array] = np.asarray  # what is a polynomial in the size

    @property
    def points(self) -> int:
        """So many sizes in a row fix it."""
        return self.period * (self.degree + 1)

    def foretold(self, rows: Array, tolerance: float) -> Array:
        """Whether each row, one per size, follows from those of larger sizes; the last rows have too few of them."""
        values = self.changed(rows)
        count = len(values) - self.points
        wanted = np.zeros((count, values.shape[1]))
        for step in range(1, self.degree + 2):  # the next difference is zero
            weight = (-1) ** (step + 1) * math.comb(self.degree + 1, step)
            wanted = wanted + weight * values[self.period * step : self.period * step + count]
        return np.asarray(_close(wanted, values[:count], tolerance).all(1))

    def among(self, sizes: Sequence[int], size: int) -> list[int]:
        """Those of sorted sizes that say most about another: far apart, so that rounding is not amplified."""
        same = [one for one in sizes if (size - one) % self.period == 0]
        if len(same) <= self.degree:
            return []
        last = len(same) - 1
        return [same[last - round(step * last / max(self.degree, 1))] for step in range(self.degree + 1)]


def law(at: At, constants: Iterable[int] = (), between: Between | None = None) -> Law:
    """Returns where a function of a size changes its law.

    Args:
        at: returns a vector for a size; an empty one where the file fails there, None where it cannot be told.
        constants: sizes around which it is looked closely.
        between: returns further such sizes between two.
    """
    function = _Function(at)
    first = next((size for size in range(FIRST, MANY) if function.has_values(size)), None)
    if first is None:
        return Law((), 0, regular=False)
    close, result = sorted(set(constants)), Law((), 0, regular=False)
    for most in (FEW, MANY):
        last = next(size for size in range(first + most, first - 1, -1) if function.has_values(size))
        result = function.law(first, last, close, between)
        if result.regular and not result.breaks:
            break
    return result


class _Function:
    def __init__(self, at: At) -> None:
        self._at, self._tolerance = at, _EXACT
        self._values: dict[int, Array | None] = {}

    @property
    def whole(self) -> bool:
        """Whether it has only been made of whole numbers so far."""
        return self._tolerance == _EXACT

    def is_told(self, size: int) -> bool:
        if size not in self._values:
            self._values[size] = self._at(size)
        return self._values[size] is not None

    def has_values(self, size: int) -> bool:
        return self.is_told(size) and bool(self._value(size).size)

    def _value(self, size: int) -> Array:
        value = self._values[size] if self.is_told(size) else None
        return np.zeros(0) if value is None else value

    def _holds(self, form: _Form, size: int, sizes: Sequence[int]) -> bool:
        """Whether the law through some sizes gives another one too."""
        found, wanted = form.changed(self._value(size)), np.zeros(())
        values = [form.changed(self._value(one)) for one in sizes]
        if any(value.shape != found.shape for value in values):
            return False
        for one, value in zip(sizes, values, strict=True):  # Lagrange; exact for whole numbers up to 2^53
            wanted = wanted + value * math.prod((size - other) / (one - other) for other in sizes if other != one)
        return bool(_close(wanted, found, self._tolerance).all())

    def rows(self, first: int, last: int) -> Array:
        """The values at all sizes, one row each, with how many they are."""
        values = [self._value(size) for size in range(first, last + 1)]
        rows = np.zeros((len(values), 1 + max(value.size for value in values)))
        for row, value in zip(rows, values, strict=True):
            row[0] = value.size
            row[1 : 1 + value.size] = value
        self._tolerance = _EXACT if bool((rows == np.rint(rows)).all()) else _ROUNDED
        return rows

    def law(self, first: int, last: int, constants: list[int], between: Between | None) -> Law:
        """Returns the law that fits all sizes between two best, followed to larger ones."""
        rows = self.rows(first, last)
        forms = _WHOLE if self.whole else [*_WHOLE, *_CHANGED]
        # About as many sizes as fix a law have to confirm it.
        found = [(self.breaks(form, rows, first), form) for form in forms if 2 * form.points < len(rows)]
        breaks, form = min(found, key=lambda one: len(one[0]), default=([0] * 9, _WHOLE[0]))
        if len(breaks) > MOST_BREAKS:
            return Law((), last, regular=False)
        if self.is_told(last + 1) and not self.has_values(last + 1):
            return Law((*sorted(breaks), last + 1), last, regular=True)  # the file fails beyond
        verified = list(range(breaks[0] if breaks else first, last + 1))
        steps = _steps(rows[: 2 * form.period], first) if form.period > 1 else ()
        result = self.beyond(form, sorted(breaks), verified, constants, between)
        return replace(result, period=form.period, constant=form.period == 1 and form.degree == 0, steps=steps)

    def breaks(self, form: _Form, rows: Array, first: int) -> list[int]:
        """Where the law changes, largest first; one more than are allowed is enough."""
        with np.errstate(all="ignore"):
            holds = form.foretold(rows, self._tolerance)
        found: list[int] = []
        top = len(rows) - 1 - form.points
        while top >= 0 and len(found) <= MOST_BREAKS:
            other = np.flatnonzero(~holds[: top + 1])
            if not other.size:
                break
            found.append(first + int(other[-1]) + 1)
            top = int(other[-1]) - form.points
        if int(holds.sum()) < len(rows) // 2:  # as good as fitted to whatever there is
            found += [first] * MOST_BREAKS
        return found

    def beyond(
        self, form: _Form, breaks: list[int], verified: list[int], constants: list[int], between: Between | None
    ) -> Law:
        """Follows the law to larger sizes; `verified` are those at which the last one is known to hold."""

        def holds(size: int) -> bool:
            return self._holds(form, size, form.among(verified, size))

        with np.errstate(all="ignore"):
            while (good := verified[-1]) < LARGEST:
                step = min(max(int(good * _STEP), good + form.period), LARGEST)
                near = [one for one in constants if good < one <= step]
                if between is not None and self.is_told(step):
                    near += between(good, step)
                for size in sorted({step, *(one + shift for one in near for shift in (-1, 0, 1))} - set(verified)):
                    if size < good:
                        continue
                    if not self.is_told(size):
                        return Law(tuple(breaks), verified[-1], regular=True)
                    if holds(size):
                        verified.append(size)
                        continue
                    new = self._first_other(holds, verified[-1], size)
                    breaks.append(new)
                    verified = list(range(new, new + form.points))
                    # Another one may be close by.
                    if self.is_told(verified[-1] + 1) and not holds(verified[-1] + 1):
                        breaks.append(verified[-1] + 1)
                        verified = list(range(verified[-1] + 1, verified[-1] + 1 + form.points))
                    break
                if len(breaks) > MOST_BREAKS or not all(map(self.is_told, verified[-2:])):
                    return Law(tuple(breaks), verified[0], regular=len(breaks) <= MOST_BREAKS)
        return Law(tuple(breaks), verified[-1], regular=True)

    def _first_other(self, holds: Callable[[int], bool], low: int, high: int) -> int:
        """The smallest size beyond `low` at which the law no longer holds, if it holds nowhere beyond."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.is_told(middle) and holds(middle) else (low, middle)
        return high


def _steps(rows: Array, first: int) -> tuple[int, ...]:
    """The sizes at which the rows, one per size, grow otherwise than they mostly do."""
    growth = np.diff(rows, axis=0)
    kinds, counts = np.unique(growth, axis=0, return_counts=True)
    usual = kinds[counts.argmax()]
    other = np.flatnonzero((growth != usual).any(1))
    return tuple(first + 1 + int(index) for index in other)[:MOST_BREAKS]


def _close(wanted: Array, found: Array, tolerance: float) -> Array:
    close = np.abs(wanted - found) <= tolerance * np.abs(found) + 1e-12
    return np.asarray(close | (wanted == found) | (np.isnan(wanted) & np.isnan(found)))


_WHOLE = [_Form(1, degree) for degree in range(_DEGREE + 1)]
_WHOLE += [_Form(period, degree) for period in _PERIODS for degree in (1, 2) if 2 * period * (degree + 1) < MANY]
_CHANGED = [
    _Form(1, degree, changed)
    for changed in (np.reciprocal, np.square, lambda x: 1 / np.square(x), np.exp, lambda x: np.log(np.abs(x)))
    for degree in (1, 2)
]
