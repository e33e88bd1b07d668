"""The bar that shows a signed number: to the left of the middle where it is negative, to the right where positive."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Few scales, so that two reports are easy to compare; the largest holds a factor of seven in the variance.
_SCALES = (0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class SignedBar:
    """A number on a scale from -scale to +scale.

    Attributes:
        value: the number; what lies off the scale is drawn as an arrow at its end, NaN as nothing.
        scale: the end of the scale, above 0.
        marks: the numbers below and above 0 that are marked, where they are on the scale.
    """

    value: float
    scale: float
    marks: tuple[float, ...] = ()


def scale_of(values: Iterable[float | None], marks: Iterable[float]) -> float:
    """Returns the smallest of the fixed scales that holds all values, and the marks well inside; else the largest."""
    sizes = [abs(value) for value in values if value is not None and math.isfinite(value)]
    needed = max([*sizes, *(1.5 * abs(mark) for mark in marks)], default=0.0)
    return next((scale for scale in _SCALES if needed <= scale), _SCALES[-1])


def bar_text(bar: SignedBar, width: int) -> str:
    """Returns the bar in `width` characters, an odd number: blocks of half a character, the margins dotted."""
    side = width // 2
    left, right = _side(bar, -1, side), _side(bar, 1, side)
    return f"{left[::-1]}│{right}"


def scale_text(scale: float, width: int) -> str:
    """Returns the ends of the scale as the heading of bars of `width` characters."""
    low, high = f"-{scale:g}", f"+{scale:g}"
    return low + high.rjust(width - len(low))


def places(bar: SignedBar) -> tuple[float, float, list[float]]:
    """Returns where the bar starts, how long it is, and where the marks stand, in percent of the whole width."""
    end = 50.0 if math.isnan(bar.value) else 50 + 50 * min(max(bar.value / bar.scale, -1.0), 1.0)
    return min(50.0, end), abs(end - 50), [50 + 50 * mark / bar.scale for mark in bar.marks if abs(mark) < bar.scale]


def _side(bar: SignedBar, sign: int, cells: int) -> str:
    """Returns one side of the bar from the middle outwards."""
    value = 0.0 if math.isnan(bar.value) else max(sign * bar.value, 0.0)
    halves = round(2 * cells * min(value / bar.scale, 1.0))
    drawn = "█" * (halves // 2) + ("▌" if sign > 0 else "▐") * (halves % 2)
    if value > bar.scale:
        drawn = drawn[:-1] + ("▶" if sign > 0 else "◀")
    line = [*drawn.ljust(cells)]
    for mark in bar.marks:
        if 0 < sign * mark < bar.scale and line[cell := int(cells * sign * mark / bar.scale)] == " ":
            line[cell] = "┊"
    return "".join(line)
