"""Several sets of samples side by side: one row of verdicts per set, and the whole check of the worst."""

from __future__ import annotations

from jumpout_export.render.blocks import Block, Cell, Column, Items, Section, Table, state
from jumpout_export.render.headline import badness, worst_layer
from jumpout_export.render.numbers import score, score_range
from jumpout_export.render.sections.batchnorm import batchnorm_sections
from jumpout_export.report import BatchNormReport, BatchNormSetsReport

_ORDER = ("ok", "inconclusive", "drift")


def sets_sections(report: BatchNormSetsReport) -> list[Section]:
    """Returns the table of the sets and the sections of the one that is farthest off."""
    if not report.sets:
        return []
    columns = (
        Column("samples of", "name"),
        Column("verdict"),
        Column("largest W", "number"),
        Column("95% interval", "number", rank=3),
        Column("at layer", "name", rank=4),
        Column("drift starts at", "name"),
        Column("cause"),
        Column("samples", "number", rank=5),
    )
    rows = tuple(_row(name, check) for name, check in report.sets.items())
    worst = max(report.sets, key=lambda name: _rank(report.sets[name]))
    notes = tuple(f"{name}: {note}" for name, check in report.sets.items() if name != worst for note in check.notes)
    blocks: list[Block] = [Table(columns, rows)]
    blocks += [Items(notes, "Notes on the other sets")] if notes else []
    lead = (
        f"The same model on {len(report.sets)} sets of samples. What follows is the check on {worst}, the farthest off."
    )
    return [Section("sets", "Sets of samples", lead, "", tuple(blocks)), *batchnorm_sections(report.sets[worst])]


def _rank(check: BatchNormReport) -> tuple[int, float]:
    worst = worst_layer(check)
    return _ORDER.index(check.verdict), badness(worst) if worst is not None else 0.0


def _row(name: str, check: BatchNormReport) -> tuple[Cell, ...]:
    worst = worst_layer(check)
    first = next((layer for layer in check.layers if layer.name == check.origin), None)
    return (
        Cell(name),
        state(check.verdict),
        Cell(score(worst.w) if worst is not None else "–"),
        Cell(score_range(worst.w_low, worst.w_high) if worst is not None else "–"),
        Cell(worst.name if worst is not None else "–"),
        Cell(first.name if first is not None else "–"),
        Cell(first.cause or "–" if first is not None else "–"),
        Cell(f"{check.samples:,}"),
    )
