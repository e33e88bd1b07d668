"""A report that did not pass as the text of a failed assertion: the verdict, then check, measured, limit and layer."""

from __future__ import annotations

from jumpout_export.render.cases import Case, cases_of, parts_of, verdict_of
from jumpout_export.render.numbers import number
from jumpout_export.render.writers.document import visible
from jumpout_export.report import CheckVerdict, Report

# Of a file with wrong weights nearly every check fails: the first say it.
_MOST = 5
_URGENCY: tuple[CheckVerdict, ...] = ("fail", "not_run")


def render_failure(report: Report) -> str:
    """Returns the verdict on a report and the checks that failed or were not run, at most five, with their numbers."""
    report = visible(report)
    parts = parts_of(report)
    found = [
        (f"{name}: {case.name}" if len(parts) > 1 else case.name, case)
        for name, part in parts.items()
        for case in cases_of(part)
        if case.verdict in _URGENCY
    ]
    found.sort(key=lambda pair: _URGENCY.index(pair[1].verdict))
    blocks = [verdict_of(report).note, *(_block(name, case) for name, case in found[:_MOST])]
    if len(found) > _MOST:
        blocks.append(f"and {len(found) - _MOST:,} more")
    return "\n\n".join(blocks)


def _block(name: str, case: Case) -> str:
    facts = {
        "check": name,
        "verdict": case.state.text,
        "measured": number(case.measured),
        "limit": number(case.limit),
        "layer": case.layer or "–",
        "note": case.note or "–",
    }
    width = max(map(len, facts))
    return "\n".join(f"  {fact:<{width}}  {value}" for fact, value in facts.items())
