"""A report on the terminal: tables that stay readable without colour, at 80 columns and in a pipe."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from jumpout_export.render.blocks import Block, Cell, Document, Group, Items, Plots, Table
from jumpout_export.render.writers.document import build_document
from jumpout_export.render.writers.terminal_table import FittedColumn, fit
from jumpout_export.report import Report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_STYLES = {"good": "green", "warn": "yellow", "bad": "bold red", "none": "dim", "plain": ""}
_PIPE_WIDTH = 120
# For an output that cannot show them; the words beside the symbols say the same.
_ASCII = str.maketrans(
    {"✓": "+", "✗": "x", "–": "-", "…": "...", "∞": "inf"}
    | {"█": "#", "▌": "=", "▐": "=", "│": "|", "┊": ":", "◀": "<", "▶": ">"}
)


def render_terminal(report: Report, console: Console | None = None) -> None:
    """Prints `report` as tables; the verdict comes last, where the eye is when the command ends.

    Args:
        report: any report.
        console: where to print; stdout if None. In a pipe, unless `COLUMNS` is set, tables take 120 columns and
            sentences one line each.
    """
    from rich.console import Console

    document = build_document(report)
    piped = False
    if console is None:
        console = Console()
        piped = not console.is_terminal and "COLUMNS" not in os.environ
        if piped:
            console.width = _PIPE_WIDTH
    _Printer(console, whole_lines=piped).print_document(document)


class _Printer:
    def __init__(self, console: Console, whole_lines: bool) -> None:
        self._console = console
        # Whole lines, so that grep finds a path in a sentence.
        self._wrapping: dict[str, Any] = {"soft_wrap": True} if whole_lines else {"overflow": "fold"}
        self._ascii = not console.encoding.lower().startswith("utf")

    def print_document(self, document: Document) -> None:
        self._print(document.title, "bold underline")
        for section in document.sections:
            if section.background:
                continue
            self._print("")
            self._print(section.title, "bold")
            if section.lead:
                self._print(section.lead, "dim")
            for before, block in zip((None, *section.blocks), section.blocks, strict=False):
                joined = isinstance(block, Plots) or (isinstance(before, Group) and isinstance(block, Group))
                if not joined and (before is not None or section.lead):
                    self._print("")
                self._print_block(block)
        self._print("")
        for fact in document.facts:
            self._print_line(f"{fact.title}: ", fact.state, f", {fact.detail}" if fact.detail else "")
        self._print("")
        self._print_line("", document.verdict, f": {document.sentence}")

    def _print_block(self, block: Block) -> None:
        if isinstance(block, Table):
            self._print_table(block)
        elif isinstance(block, Items):
            if block.title:
                self._print(f"{block.title}:")
            for sentence in block.sentences:
                self._print_item(sentence)
        elif isinstance(block, Group):
            self._print_line("", block.state, f" {block.title}: {block.summary}")
            if block.is_open:
                self._print_table(block.table)

    def _print_table(self, table: Table) -> None:
        if table.title:
            self._print(f"{table.title}:")
        fitted = fit(table, self._console.width, ellipsis=self._text("…").cell_len)
        if fitted is None:
            for row in table.rows:
                pairs = zip(table.columns, row, strict=True)
                self._print_item(", ".join(f"{column.title} {cell.text}" for column, cell in pairs))
        else:
            self._print_grid(table, fitted)
        for text in (table.note, table.legend if fitted is not None else ""):
            if text:
                self._print(text, "dim")

    def _print_grid(self, table: Table, fitted: list[FittedColumn]) -> None:
        from rich import box
        from rich import table as rich_table

        # rich's own replacement has bars between the columns, which would look like the middle of a signed bar.
        plain = box.Box(str(box.SIMPLE_HEAD).replace("─", "-"), ascii=True)
        grid = rich_table.Table(
            box=plain if self._ascii else box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
            show_edge=False,
            header_style="bold",
        )
        for column in fitted:
            kind = table.columns[column.index].kind
            grid.add_column(
                self._text(column.title),
                justify="right" if kind == "number" else "left",
                min_width=column.width,
                # The room that is left is for sentences; a name folds at its width.
                max_width=column.width if kind == "name" or not column.folds else None,
                overflow="fold",
            )
        for i, row in enumerate(table.rows):
            grid.add_row(*(self._text(column.texts[i], _STYLES[row[column.index].tone]) for column in fitted))
        self._console.print(grid)

    def _print_line(self, before: str, state: Cell, after: str) -> None:
        line = (
            self._text(before).append_text(self._text(state.text, _STYLES[state.tone])).append_text(self._text(after))
        )
        self._console.print(line, highlight=False, **self._wrapping)

    def _print_item(self, sentence: str) -> None:
        from rich.table import Table as Grid

        if "soft_wrap" in self._wrapping:
            self._print(f"- {sentence}")
            return
        grid = Grid.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=1)
        grid.add_column(overflow="fold")
        grid.add_row("-", self._text(sentence))
        self._console.print(grid)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(self._text(text, style), highlight=False, **self._wrapping)

    def _text(self, text: str, style: str = "") -> Text:
        """Returns a `Text`, which rich prints as it is: square brackets in a name are no markup."""
        from rich.text import Text

        if self._ascii:
            text = (
                text.translate(_ASCII).encode(self._console.encoding, "backslashreplace").decode(self._console.encoding)
            )
        return Text(text, style)
