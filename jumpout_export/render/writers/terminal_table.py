"""How a table fits the width of a terminal: which columns stay, how wide bars are, how much of a long name is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jumpout_export.render.blocks import Table, bar_text, scale_text
from jumpout_export.render.names import shortened_all

GAP = 2  # between the columns
# Paths and sentences fold rather than lose characters, down to this width; numbers and verdicts stay on one line.
_NARROWEST = 24
# A name longer than the first may lose its middle while other columns stay; below the second it says too little.
_LONG_NAME, _SHORT_NAME = 32, 14
_BARS = (21, 15, 9)  # odd, for the middle


@dataclass(frozen=True)
class FittedColumn:
    """One column as it is printed: heading, a text per row, and its least width."""

    index: int
    title: str
    texts: list[str]
    width: int
    folds: bool


def fit(table: Table, room: int, ellipsis: int = 1) -> list[FittedColumn] | None:
    """Returns the columns of a table that fit into `room` characters; None if even the most important do not.

    Bars get narrower first; then the column of the highest rank is left out, names lose their middle, and the other
    ranks follow. A name that would look like another is not shortened but folded.

    Args:
        table: with rows.
        room: width of the terminal.
        ellipsis: characters that the sign for the missing middle takes.
    """
    for shown, sizes in _attempts(table):
        widths = {i: _width(table, i, sizes) for i in shown}
        spare = room - sum(widths.values()) - GAP * (len(shown) - 1)
        if spare < 0:
            continue
        named = [i for i in shown if table.columns[i].kind == "name"]
        for i in named:
            widths[i] = min(_width(table, i, replace(sizes, name=room)), widths[i] + spare // len(named))
        return [_fitted(table, i, widths[i], ellipsis) for i in shown]
    return None


@dataclass(frozen=True)
class _Sizes:
    """The longest name that stays whole, the width of bars, and whether headings of numbers stay on one line."""

    name: int
    bar: int
    whole_titles: bool


def _attempts(table: Table) -> Iterator[tuple[list[int], _Sizes]]:
    """Yields which columns are shown, and in which sizes, the best first."""
    shown = list(range(len(table.columns)))
    ranks = sorted({column.rank for column in table.columns if column.rank}, reverse=True)
    for dropped in range(len(ranks) + 1):
        shown = [i for i in shown if table.columns[i].rank not in ranks[:dropped]]
        for whole in (True, False):
            yield from ((shown, _Sizes(_LONG_NAME, bar, whole)) for bar in _BARS)
        if dropped or not ranks:
            yield shown, _Sizes(_SHORT_NAME, _BARS[-1], whole_titles=False)


def _width(table: Table, i: int, sizes: _Sizes) -> int:
    column = table.columns[i]
    if column.kind == "bar":
        return sizes.bar
    words = [column.title] if sizes.whole_titles or column.kind != "number" else column.title.split()
    width = max(map(_cells, [*words, *(row[i].text for row in table.rows)]))
    if column.kind == "name":
        return min(width, max(sizes.name, len(column.title)))
    return min(width, _NARROWEST) if column.kind in {"path", "note"} else width


def _fitted(table: Table, i: int, width: int, ellipsis: int) -> FittedColumn:
    column, cells = table.columns[i], [row[i] for row in table.rows]
    title, texts = column.title, [cell.text for cell in cells]
    if column.kind == "bar":
        scale = next(cell.bar.scale for cell in cells if cell.bar is not None)
        title = f"{title.center(width).rstrip()}\n{scale_text(scale, width)}"
        texts = [bar_text(cell.bar, width) if cell.bar is not None else "" for cell in cells]
    elif column.kind == "name":
        texts = shortened_all(texts, width if max(map(_cells, texts)) <= width else width - ellipsis + 1)
    return FittedColumn(i, title, texts, width, column.kind in {"path", "name", "note"})


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
