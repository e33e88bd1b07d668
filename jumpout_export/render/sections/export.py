"""The sections about the exported file: what was folded, and parity per check."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import PureWindowsPath

from jumpout_export.render.blocks import Block, Cell, Column, Group, Items, Plot, Plots, Section, Table, state
from jumpout_export.render.headline import is_published, says_little
from jumpout_export.render.numbers import number
from jumpout_export.render.plots import run as plots
from jumpout_export.report import Check, CheckVerdict, ExportReport, FoldedLayer, VerifyReport
from jumpout_export.text import count

# With more checks the groups start folded away, below a table of those that did not pass.
_MANY_CHECKS = 12
# With fewer numbers to compare, a plot says nothing that the table does not.
_FEW_RATIOS = 3
# The bar behind a measured value: empty at this fraction of the limit, full at the limit, logarithmic between.
_EMPTY_BAR = plots.LOWEST_RATIO
_KEPT = "keep"  # the action of a layer that stays in the file, with its noise off
# Verdicts as they are summed up in a line, and in the order in which a person wants to see them.
_COUNTED: dict[CheckVerdict, str] = {
    "fail": "failed",
    "warning": "with a warning",
    "pass": "passed",
    "not_run": "not run",
}
_URGENCY = ("fail", "not_run", "warning", "pass")


def folded_summary(layers: Sequence[FoldedLayer]) -> str:
    """Returns what became of the stochastic layers: how many are gone, have become another layer, and stay."""
    kept = sum(layer.action == _KEPT for layer in layers)
    removed = sum(layer.action == "identity" for layer in layers)
    others = Counter(layer.action for layer in layers if layer.action not in (_KEPT, "identity"))
    parts = [f"{count(removed, 'layer')} removed", *(f"{number} became {action}" for action, number in others.items())]
    return ", ".join([*parts, *([f"{kept} {'stays' if kept == 1 else 'stay'}"] if kept else [])])


def folded_section(report: ExportReport) -> list[Section]:
    """Returns the table of stochastic layers that were removed."""
    columns = (Column("layer", "path"), Column("kind"), Column("became"), Column("settings", "note"))
    rows = tuple(
        (
            Cell(layer.path),
            Cell(layer.kind),
            Cell("stays" if layer.action == _KEPT else layer.action),
            Cell(layer.settings or "–"),
        )
        for layer in report.folded
    )
    nothing = Items(("No layer was removed.",))
    return [
        Section(
            "folded",
            "What was folded away",
            "Layers that are random in training are removed before the export; what does more in eval mode stays.",
            "Jumpout and inverted dropout are the identity in serving, so removing them changes no output; a fused "
            "ReLU stays behind as a plain ReLU. The settings are kept for the file's provenance.",
            (Table(columns, rows) if rows else nothing,),
            settled="" if any(layer.action == _KEPT for layer in report.folded) else folded_summary(report.folded),
        )
    ]


def parity_section(report: VerifyReport) -> list[Section]:
    """Returns the verdict per provider and every check with what was measured, the limit and the verdict."""
    blocks: list[Block] = []
    if report.providers:
        columns = (Column("provider"), Column("verdict"), Column("reason", "note"))
        rows = tuple((Cell(name), state(p.verdict), Cell(p.reason or "–")) for name, p in report.providers.items())
        blocks.append(Table(columns, rows))
    published = is_published(report)
    facts = {
        "path" if published else "not published": report.path,
        "SHA-256": report.sha256 if published else "",
        "weights in": ", ".join(f"{name} ({count(size, 'byte')})" for name, size in report.data_files.items()),
        "first layer that differs": report.first_divergence,
    }
    if isinstance(report, ExportReport) and report.opset:
        facts["opset"] = str(report.opset)
    file_rows = tuple((Cell(name), Cell(value)) for name, value in facts.items() if value)
    if file_rows:
        blocks.append(Table((Column("file"), Column("value", "path")), file_rows))
    blocks += _checks(report.checks)
    inspected, other = report.kind in {"inspect", "fold"}, PureWindowsPath(report.against).name
    return [
        Section(
            "parity",
            "What the file holds" if inspected else f"Does the file equal the {'other one' if other else 'model'}?",
            "The saved file was read back and searched for random operators and training modes."
            if inspected
            else f"The saved file was run in ONNX Runtime and compared with {other or 'the PyTorch model'}.",
            "A check passes when the measured value is at most the limit. The bar fills towards the limit on a "
            "logarithmic scale, from a millionth of it; the last column says what was measured. "
            "A check that compared nothing counts as failed, one that could not be run here says why. A warning is "
            "something to know: it does not make the file another network.",
            tuple(blocks),
            settled=_settled(report),
        )
    ]


def _settled(report: VerifyReport) -> str:
    """Says that every check passed, where each did."""
    if not report or not report.checks or any(check.verdict != "pass" for check in report.checks):
        return ""
    ratios = [ratio for ratio in map(_ratio, report.checks) if ratio is not None and math.isfinite(ratio)]
    most = f", at most {number(100 * max(ratios))}% of a limit" if ratios else ""
    return f"{count(len(report.checks), 'check')} passed{most}"


def _checks(checks: list[Check]) -> list[Block]:
    if not checks:
        return [Items(("No check was made.",))]
    many = len(checks) > _MANY_CHECKS
    groups = {key: list(group) for key, group in groupby(sorted(checks, key=_group), key=_group)}
    order = dict.fromkeys(map(_group, checks))
    blocks: list[Block] = []
    ratios = {
        key or "general": [(ratio, check.verdict) for check in groups[key] if (ratio := _ratio(check)) is not None]
        for key in order
    }
    ratios = {key: group for key, group in ratios.items() if group}
    if sum(map(len, ratios.values())) >= _FEW_RATIOS:
        caption = (
            "Each mark is one check that compares two numbers, a cross one that failed, a diamond a warning; left of "
            "the line passes. Marks at the left edge are a millionth of their limit or less."
        )
        figure = Plot("parity", "Measured over limit", caption, partial(plots.parity, ratios))
        blocks.append(Plots((figure,)))
    if many:
        rest = [check for check in checks if check.verdict != "pass"]
        if rest:
            blocks.append(_table(sorted(rest, key=_urgency), "", "Checks that did not pass"))
    for key in order:
        group = groups[key]
        worst_first = sorted(group, key=_urgency)
        first = worst_first[0].verdict
        word = "pass" if first == "not_run" and worst_first[-1].verdict != "not_run" else first
        counts = Counter(check.verdict for check in group)
        parts = [f"{counts[verdict]} {words}" for verdict, words in _COUNTED.items() if counts[verdict]]
        finite = [r for r in map(_ratio, group) if r is not None and math.isfinite(r)]
        if finite:
            worst = max(finite)
            parts.append(
                f"at most {number(100 * worst)}% of the limit"
                if worst <= 1
                else f"up to {number(worst)} times the limit"
            )
        table = _table(worst_first, key)
        blocks.append(Group(key or "general", state(word), ", ".join(parts), table, is_open=not many))
    return blocks


def _table(checks: list[Check], prefix: str, title: str = "") -> Table:
    columns = [Column("check", "path"), Column("verdict"), Column("measured", "number"), Column("limit", "number")]
    noted = any(check.note for check in checks)
    columns += [Column("what", "note")] if noted else []
    rows = []
    for check in checks:
        name = check.name[len(prefix) + 1 :] if prefix else check.name
        row = [Cell(name), state(check.verdict)]
        row += [Cell(number(check.measured), fill=_fill(_ratio(check))), Cell(number(check.limit))]
        rows.append((*row, Cell(check.note or "–")) if noted else tuple(row))
    return Table(tuple(columns), tuple(rows), title)


def _group(check: Check) -> str:
    """Returns what a check is listed under: `cpu/all` of `cpu/all/batch=7/worst error`, `file` of `file/names`."""
    parts = check.name.split("/")
    return "/".join(parts[: min(2, len(parts) - 1)])


def _urgency(check: Check) -> tuple[int, bool]:
    return _URGENCY.index(check.verdict), says_little(check)


def _ratio(check: Check) -> float | None:
    """Returns measured over limit, None where the two do not make a ratio."""
    if check.measured is None or check.limit is None or not check.limit > 0 or math.isinf(check.limit):
        return None
    return None if math.isnan(check.measured) else check.measured / check.limit


def _fill(ratio: float | None) -> float | None:
    if ratio is None:
        return None
    low = math.log10(_EMPTY_BAR)
    return min(max((math.log10(max(ratio, _EMPTY_BAR)) - low) / -low, 0.0), 1.0) if math.isfinite(ratio) else 1.0
