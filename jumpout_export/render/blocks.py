"""The vocabulary of a rendered report: cells, tables, plots, sections; and how numbers are written.

A document is built once (`document.py`) and then printed by three renderers, so each fact has one wording. Sentences
are plain text in which `code` stands between backticks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "warn", "bad", "none", "plain"]

# A verdict is always symbol and word, never colour alone.
_STATES: dict[str, tuple[str, Tone]] = {
    "ok": ("✓", "good"),
    "pass": ("✓", "good"),
    "done": ("✓", "good"),
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
    """One table cell; `fill` in [0, 1] draws a small bar behind the text where the form allows it."""

    text: str
    tone: Tone = "plain"
    fill: float | None = None


@dataclass(frozen=True)
class Column:
    """A table column: `path` holds names, which are never cut; `note` holds sentences; `number` is right-aligned.

    Columns stand in order of importance: where there is no room, the last `optional` ones are left out.
    """

    title: str
    kind: Literal["text", "path", "number", "note"] = "text"
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    sentences: tuple[str, ...]
    title: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot that only the page shows; `draw` returns it as standalone SVG."""

    name: str
    title: str
    caption: str
    draw: Callable[[], str]


@dataclass(frozen=True)
class Plots:
    """Plots side by side."""

    plots: tuple[Plot, ...]


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

    A `background` section is left out on the terminal.
    """

    key: str
    title: str
    lead: str
    explanation: str
    blocks: tuple[Block, ...]
    background: bool = False


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


def number(value: float | None) -> str:
    """Returns `value` with at most three significant digits, whole below a million; "–" for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}" if value else "0"
    if 1e-3 <= abs(value) < 999.5:
        return f"{value:.3g}"
    if 999.5 <= abs(value) < 1e6:
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def percent(value: float | None) -> str:
    """Returns a fraction in [0, 1] as a percentage with two decimals; "–" for None."""
    if value is None or not math.isfinite(value):
        return number(value)
    if 0 < value < 5e-5:
        return "<0.01%"
    return f"{100 * value:.2f}%"


def count(n: int, noun: str) -> str:
    """Returns `1 layer`, `5 layers`, `4,096 images`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def interval(low: float, high: float) -> str:
    """Returns an interval as `0.19 to 0.23`."""
    return f"{number(low)} to {number(high)}"
