"""A report in a few lines of Markdown, for the page of a job: the verdict, and what did not pass."""

from __future__ import annotations

from dataclasses import replace

from jumpout_export.render.blocks import Cell, Column, Fact, Section, Table
from jumpout_export.render.cases import cases_of, parts_of
from jumpout_export.render.headline import is_published
from jumpout_export.render.numbers import number
from jumpout_export.render.writers.document import build_document, visible
from jumpout_export.render.writers.markdown import markdown
from jumpout_export.report import CheckVerdict, Report, VerifyReport

# A page of a job holds what several commands append to it.
_MOST_ROWS = 20
_URGENCY: tuple[CheckVerdict, ...] = ("fail", "not_run", "warning")


def render_summary(report: Report) -> str:
    """Returns `report` as short GitHub-flavoured Markdown, from a heading of the second level on.

    It says the verdict, the reason, the key facts, and in one table every check and layer that did not pass, at most
    20. Everything that comes from the report is escaped, as by `render_markdown`.
    """
    document = build_document(report)
    report = visible(report)
    sha256 = report.sha256 if isinstance(report, VerifyReport) and is_published(report) else ""
    facts = (*document.facts, *([Fact("SHA-256", Cell(sha256))] if sha256 else []))
    return markdown(replace(document, facts=facts, sections=_sections(report)), level=2)


def _sections(report: Report) -> tuple[Section, ...]:
    parts = parts_of(report)
    found = [
        (case, part if len(parts) > 1 else "")
        for part, one in parts.items()
        for case in cases_of(one)
        if case.verdict != "pass"
    ]
    if not found:
        return ()
    found.sort(key=lambda pair: _URGENCY.index(pair[0].verdict))
    columns = (
        Column("check", "path"),
        Column("verdict"),
        Column("measured", "number"),
        Column("limit", "number"),
        Column("layer", "path"),
        Column("what", "note"),
    )
    rows = tuple(
        (
            Cell(f"{part}: {case.name}" if part else case.name),
            case.state,
            Cell(number(case.measured)),
            Cell(number(case.limit)),
            Cell(case.layer),
            Cell(case.note or "–"),
        )
        for case, part in found[:_MOST_ROWS]
    )
    more = len(found) - len(rows)
    note = f"And {more:,} more: see the report." if more else ""
    return (Section("rest", "What did not pass", "", "", (Table(columns, rows, note=note),)),)
