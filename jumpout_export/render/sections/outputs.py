"""The section about the outputs: what recalibrating changes, for better or for worse."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jumpout_export.render.blocks import Block, Cell, Column, Items, Section, Table
from jumpout_export.render.numbers import number, p_value, percent, points, score, signed
from jumpout_export.report import OutputEffect
from jumpout_export.text import count

_Row = tuple[Cell, ...]
_LEVEL = 0.05  # of the McNemar test


def outputs_section(effect: OutputEffect, *, settled: bool = False) -> Section:
    """Returns the deployed model against a recalibrated copy: accuracy with its interval, likelihood, calibration.

    `settled` says whether nothing drifts, so that there is nothing to mend.
    """
    columns = (Column("quantity", "note"), Column("before", "number"), Column("after", "number"), Column("change"))
    rows = [_accuracy_row(effect), _likelihood_row(effect), _calibration_row(effect)]
    known = tuple(row for row in rows if row is not None)
    blocks: list[Block] = [Table(columns, known)] if known else []
    sentences = _sentences(effect)
    blocks += [Items(tuple(sentences))] if sentences else []
    moved = [
        ("output change, RMS over the outputs' standard deviation", number(effect.logit_shift)),
        ("Kullback-Leibler divergence, nats", number(effect.kl) if effect.kl is not None else ""),
        ("samples whose class changes", percent(effect.flip_rate) if effect.flip_rate is not None else ""),
    ]
    moved_rows = tuple((Cell(name), Cell(value)) for name, value in moved if value)
    blocks.append(Table((Column("between the two", "note"), Column("value", "number")), moved_rows))
    return Section(
        "outputs",
        "Effect on the outputs",
        f"The model as it stood (before) against a copy with recalibrated BatchNorm (after), "
        f"on the same {count(effect.samples, 'sample')}.",
        "Recalibrating makes the stored statistics those that serving sees. That need not raise the accuracy, and "
        "the likelihood can get worse where the wrong statistics happened to soften the outputs.",
        tuple(blocks),
        settled=_settled(effect, known) if settled else "",
    )


def _settled(effect: OutputEffect, rows: Sequence[_Row]) -> str:
    """Says in a line that recalibrating would change nothing that shows; nothing where it would."""
    if any(row[-1].tone != "plain" for row in rows):
        return ""
    if rows:
        return "recalibrating changes nothing beyond chance"
    return f"recalibrating moves them by {number(effect.logit_shift)} of their standard deviation"


def _sentences(effect: OutputEffect) -> list[str]:
    """Returns accuracy, likelihood and calibration before and after with intervals, as far as they are known."""
    sentences = []
    samples = f", {count(effect.labelled, 'labelled sample')}" if effect.labelled else ""
    before, after = effect.top1_before, effect.top1_after
    if before is not None and after is not None:
        details = [f"{points(after - before)} points"]
        if effect.top1_change_low is not None and effect.top1_change_high is not None:
            details.append(f"95% {points(effect.top1_change_low)} to {points(effect.top1_change_high)}")
        details += [f"McNemar p = {p_value(effect.mcnemar_p)}"] if effect.mcnemar_p is not None else []
        sentences.append(f"top-1 {percent(before)} -> {percent(after)} ({', '.join(details)}){samples}")
    before, after = effect.nll_before, effect.nll_after
    low, high = effect.nll_change_low, effect.nll_change_high
    if before is not None and after is not None and low is not None and high is not None:
        details = [f"{signed(after - before)} nats", f"95% {signed(low)} to {signed(high)}"]
        sentences.append(f"negative log likelihood {score(before)} -> {score(after)} ({', '.join(details)}){samples}")
    before, after = effect.ece_before, effect.ece_after
    low, high = effect.ece_change_low, effect.ece_change_high
    if before is not None and after is not None and low is not None and high is not None:
        details = [f"{points(after - before)} points", f"95% {points(low)} to {points(high)}"]
        sentences.append(f"calibration error {percent(before)} -> {percent(after)} ({', '.join(details)}){samples}")
    return sentences


def _accuracy_row(effect: OutputEffect) -> _Row | None:
    row = _fraction_row("top-1 accuracy", effect.top1_before, effect.top1_after, better=1)
    if effect.mcnemar_p is None:
        by_chance = _holds_zero(effect.top1_change_low, effect.top1_change_high)
    else:
        by_chance = effect.mcnemar_p > _LEVEL
    return _by_chance(row) if row is not None and by_chance else row


def _likelihood_row(effect: OutputEffect) -> _Row | None:
    before, after = effect.nll_before, effect.nll_after
    if before is None or after is None:
        return None
    change = _change(before - after, score(abs(after - before)), unchanged=5e-4)
    row = Cell("negative log likelihood, nats"), Cell(score(before)), Cell(score(after)), change
    low, high = effect.nll_change_low, effect.nll_change_high
    return _by_chance(row) if _holds_zero(low, high) else row


def _holds_zero(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low <= 0 <= high


def _by_chance(row: _Row) -> _Row:
    """A change that chance explains is neither good nor bad."""
    change = row[-1]
    return row if change.tone == "plain" else (*row[:-1], Cell(f"= within chance ({change.text[2:]})"))


def _calibration_row(effect: OutputEffect) -> _Row | None:
    row = _fraction_row("calibration error (ECE)", effect.ece_before, effect.ece_after, better=-1)
    low, high = effect.ece_change_low, effect.ece_change_high
    return _by_chance(row) if row is not None and _holds_zero(low, high) else row


def _fraction_row(name: str, before: float | None, after: float | None, *, better: int) -> _Row | None:
    if before is None or after is None:
        return None
    size = f"{points(abs(after - before)).lstrip('+')} points"
    change = _change(better * (after - before), size, unchanged=5e-4)
    return Cell(name), Cell(percent(before)), Cell(percent(after)), change


def _change(gain: float, size: str, *, unchanged: float) -> Cell:
    """Returns the change in words; below `unchanged`, half of the last digit that `size` shows, there is none."""
    if math.isnan(gain):
        return Cell("–")
    if abs(gain) < unchanged:
        return Cell("= unchanged")
    return Cell(f"✓ better by {size}", "good") if gain > 0 else Cell(f"✗ worse by {size}", "bad")
