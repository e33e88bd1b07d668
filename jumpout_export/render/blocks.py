"""The vocabulary of a rendered report: cells, tables, plots, sections.

A document is built once (`document.py`) and then printed by three renderers, so each fact has one wording. Sentences
are plain text in which `code` stands between backticks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

# Few scales, so that two reports are easy to compare; the largest holds a factor of seven in the variance.
_SCALES = (0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)

Tone = Literal["good", "warn", "bad", "none", "plain"]

# A verdict is always symbol and word, never colour alone.
_STATES: dict[str, tuple[str, Tone]] = {
    "ok": ("✓", "good"),
    "pass": ("✓", "good"),
    "done": ("✓", "good"),
    "warning": ("!", "warn"),
    "pass, with warnings": ("!", "warn"),
    "pass, random on purpose": ("!", "warn"),
    "drift": ("✗", "bad"),
    "fail": ("✗", "bad"),
    "inconclusive": ("?", "warn"),
    "not verified": ("?", "warn"),
    "drift, fixed": ("!", "warn"),
    "not run": ("–", "none"),
    "not needed": ("–", "none"),
}


@dataclass(frozen=True)
class Cell:
    """One table cell; `fill` in [0, 1] draws a small bar behind the text, `bar` one that points left or right."""

    text: str
    tone: Tone = "plain"
    fill: float | None = None
    bar: SignedBar | None = None


@dataclass(frozen=True)
class Column:
    """A table column."""

    title: str  # its heading
    # `path` holds names that are never cut, `name` names of layers that lose their middle where there is no room,
    # `note` sentences; `number` is right-aligned, `bar` holds signed bars, or their numbers in words.
    kind: Literal["text", "path", "name", "number", "note", "bar"] = "text"
    rank: int = 0  # where there is no room, the column with the highest rank is left out first; 0 never


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns; `note` says how to read it, `legend` how to read the bars in it."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    note: str = ""
    legend: str = ""


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    sentences: tuple[str, ...]
    title: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot that only the page shows; `draw` returns it as standalone SVG. A `wide` one takes the whole row."""

    name: str
    title: str
    caption: str
    draw: Callable[[], str]
    wide: bool = False


@dataclass(frozen=True)
class Plots:
    """Plots side by side, more beside each other where they are `small`; `note` says above how to read all of them."""

    plots: tuple[Plot, ...]
    small: bool = False
    note: str = ""


@dataclass(frozen=True)
class Group:
    """A table under a one-line summary; folded away unless `is_open`."""

    title: str
    state: Cell
    summary: str
    table: Table
    is_open: bool


Block = Table | Items | Plots | Group


@dataclass(frozen=True)
class Section:
    """A heading, what is measured in one sentence, how to read it, and what was found.

    A `background` section is left out on the terminal. One that is `settled` asks for nothing: the page folds it away
    under this line.
    """

    key: str
    title: str
    lead: str
    explanation: str
    blocks: tuple[Block, ...]
    background: bool = False
    settled: str = ""


@dataclass(frozen=True)
class Fact:
    """One of the few things to see first."""

    title: str
    state: Cell
    detail: str = ""


@dataclass(frozen=True)
class Document:
    """A whole report in words: `verdict` is one symbol and word, `sentence` says why."""

    title: str
    verdict: Cell
    sentence: str
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]


def state(word: str) -> Cell:
    """Returns the cell of a verdict: symbol, word and tone."""
    word = word.replace("_", " ")
    symbol, tone = _STATES[word.lower()]
    return Cell(f"{symbol} {word}", tone)


@dataclass(frozen=True)
class SignedBar:
    """A number on a scale from -scale to +scale."""

    value: float  # the number; what lies off the scale is drawn as an arrow at its end, NaN as nothing
    scale: float  # the end of the scale, above 0
    marks: tuple[float, ...] = ()  # the numbers below and above 0 that are marked, where they are on the scale


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
