"""The vocabulary of a rendered report: cells, tables, plots, sections.

A document is built once (`document.py`) and then printed by three renderers, so each fact has one wording. Sentences
are plain text in which `code` stands between backticks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jumpout_export.render.bars import SignedBar

Tone = Literal["good", "warn", "bad", "none", "plain"]

# A verdict is always symbol and word, never colour alone.
_STATES: dict[str, tuple[str, Tone]] = {
    "ok": ("✓", "good"),
    "pass": ("✓", "good"),
    "done": ("✓", "good"),
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
    """A table column.

    Attributes:
        title: its heading.
        kind: `path` holds names that are never cut, `name` names of layers that lose their middle where there is no
            room, `note` sentences; `number` is right-aligned, `bar` holds signed bars, or their numbers in words.
        rank: where there is no room, the column with the highest rank is left out first; 0 never.
    """

    title: str
    kind: Literal["text", "path", "name", "number", "note", "bar"] = "text"
    rank: int = 0


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
