"""A report as GitHub-flavoured Markdown, for a pull request or a model card."""

from __future__ import annotations

import html
import re

from jumpout_export.render.blocks import Block, Column, Document, Group, Items, Table
from jumpout_export.render.writers.document import build_document
from jumpout_export.report import Report


def render_markdown(report: Report) -> str:
    """Returns `report` as Markdown: verdict, key facts, then the tables; plots are left to the page.

    Everything that comes from the report is escaped; it can neither break a table nor smuggle in HTML.
    """
    return markdown(build_document(report))


def markdown(document: Document, level: int = 1) -> str:
    """Returns a document as Markdown, as `render_markdown` does, its title a heading of that level."""
    parts = [f"{'#' * level} {_prose(document.title)}", f"**{document.verdict.text}**: {_prose(document.sentence)}"]
    parts.append(
        "\n".join(f"- {_prose(fact.title)}: {_joined(fact.state.text, fact.detail)}" for fact in document.facts)
    )
    for section in document.sections:
        parts.append(f"{'#' * (level + 1)} {_prose(section.title)}")
        parts += [_prose(text) for text in (" ".join(filter(None, (section.lead, section.explanation))),) if text]
        parts += [text for text in map(_block, section.blocks) if text]
    return "\n\n".join(parts) + "\n"


def _joined(*texts: str) -> str:
    return ", ".join(_prose(text) for text in texts if text)


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Items):
        title = [f"**{_prose(block.title)}**", ""] if block.title else []
        return "\n".join([*title, *(f"- {_prose(sentence)}" for sentence in block.sentences)])
    if isinstance(block, Group):
        # Inside <summary> Markdown is not read, so the text is escaped as HTML.
        summary = html.escape(f"{block.state.text} {block.title}: {block.summary}".strip(), quote=False)
        start = "<details open>" if block.is_open else "<details>"
        return f"{start}<summary>{summary}</summary>\n\n{_table(block.table)}\n\n</details>"
    return ""


def _table(table: Table) -> str:
    rows = [[_prose(column.title) for column in table.columns]]
    rows.append(["---:" if column.kind in {"number", "bar"} else "---" for column in table.columns])
    rows += [[_cell(cell.text, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    note = f"\n\n{_prose(table.note)}" if table.note else ""
    return (f"**{_prose(table.title)}**\n\n{text}" if table.title else text) + note


def _cell(text: str, column: Column) -> str:
    cell = _code(text) if column.kind in {"path", "name"} else _prose(text)
    # A pipe ends a table cell even inside a code span, where nothing else is escaped.
    return re.sub(r"(?<!\\)\|", r"\\|", cell)


def _prose(text: str) -> str:
    """Returns text with everything Markdown reads escaped, except `code` between backticks."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(_code(part) if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    text = re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", text.replace("&", "&amp;"))
    # An underscore inside a word is only an underscore.
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return re.sub(r"^(\s*)(#|[-+]\s|\d+[.)]\s)", r"\1\\\2", text)


def _code(text: str) -> str:
    fence = "`" * (max(map(len, re.findall(r"`+", text)), default=0) + 1)
    pad = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else "–"
