"""The sections about BatchNorm: drift per layer before and after recalibration, and the effect on the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jumpout_export.render import plots
from jumpout_export.render.blocks import (
    Block,
    Cell,
    Column,
    Group,
    Items,
    Plot,
    Plots,
    Section,
    Table,
    count,
    interval,
    number,
    percent,
    state,
)
from jumpout_export.render.headline import worst_layer
from jumpout_export.report import BatchNormLayer, BatchNormReport, OutputEffect

# A table of more layers is folded away, below one of the layers that are not ok.
_MANY_LAYERS = 24
_MANY_REASONS = 12
# Half of the last digit a percentage shows.
_UNCHANGED = 5e-5


def batchnorm_sections(report: BatchNormReport, after: BatchNormReport | None = None) -> list[Section]:
    """Returns the drift per layer, and the effect on the outputs where it was measured.

    Args:
        report: the check, of the model as trained if `after` is given.
        after: the check after recalibration.
    """
    # A report that did not pass is falsy, so presence is always asked with `is None`.
    checks = [report] if after is None else [report, after]
    blocks: list[Block] = []
    figures = _figures(report, after)
    if figures:
        blocks.append(Plots(tuple(figures)))
    blocks += _layer_tables(report, after)
    times = [""] if after is None else [" before", " after"]
    reasons = [reason for check, when in zip(checks, times, strict=True) for reason in _reasons(check, when)]
    if len(reasons) > _MANY_REASONS:
        more = f"And {count(len(reasons) - _MANY_REASONS, 'layer')} more; `report.json` holds the note of each."
        reasons = [*reasons[:_MANY_REASONS], more]
    if reasons:
        blocks.append(Items(tuple(reasons), "Why, and what to do"))
    common = set.intersection(*(set(check.notes) for check in checks))
    notes = dict.fromkeys(
        note if note in common else f"{when.strip().capitalize()}: {note}"
        for check, when in zip(checks, times, strict=True)
        for note in check.notes
    )
    missed = dict.fromkeys(name for check in checks for name in check.not_observed)
    unsaid = [f"`{name}`" for name in missed if not any(f"`{name}`" in note for note in notes)]
    if unsaid:
        notes[f"The forward pass did not reach {', '.join(unsaid)}; what they store was not checked."] = None
    if notes:
        blocks.append(Items(tuple(notes), "Notes on the check"))
    sections = [
        Section(
            "batchnorm",
            "BatchNorm: training against serving",
            f"W is how far a layer's stored statistics are from what it sees in serving, in standard deviations: "
            f"0 is perfect, {number(report.warn)} is the margin, {number(report.fail)} is severe.",
            f"Measured on {count(report.images, 'image')} in eval mode, with every dropout or jumpout off. W times the "
            "layer's scale gamma is the RMS change that recalibrating makes in its output. The bars are 95% intervals "
            "with whole images as the unit. A layer drifts when its whole interval lies above the margin, is ok when "
            "the whole interval lies below it, and is inconclusive otherwise or where noise alone could make such a W.",
            tuple(blocks),
        )
    ]
    effects = [check.outputs for check in checks if check.outputs is not None]
    return [*sections, *map(_outputs_section, effects[:1])]


def _reasons(report: BatchNormReport, when: str) -> list[str]:
    return [f"`{layer.name}`{when}: {layer.note}" for layer in report.layers if layer.note and layer.verdict != "ok"]


def _figures(report: BatchNormReport, after: BatchNormReport | None) -> list[Plot]:
    if not report.layers:
        return []
    caption = (
        "One row per layer in call order, on a logarithmic scale, with its 95% interval. "
        f"Arrows at the left edge stand for less than {number(plots.LOWEST_W)}."
    )
    later = None if after is None else after.layers
    draw = partial(plots.drift, report.layers, later, warn=report.warn, fail=report.fail)
    figures = [Plot("drift", "Drift W per layer", caption, draw)]
    worst = worst_layer(report)
    if worst is not None and _has_channels(worst):
        twin = next((layer for layer in later or [] if layer.name == worst.name and _has_channels(layer)), None)
        figures.append(
            Plot(
                "channels",
                f"Channels of the worst layer, {worst.name}",
                "One mark per channel. Right of 0 the served mean is larger than the stored one, above 0 the served "
                "variance is larger. Inside the inner ring W is below the margin, outside the outer one it is severe.",
                partial(plots.channels, worst, twin, warn=report.warn, fail=report.fail),
            )
        )
    return figures


def _has_channels(layer: BatchNormLayer) -> bool:
    return bool(layer.delta) and len(layer.delta) == len(layer.log_ratio)


def _layer_tables(report: BatchNormReport, after: BatchNormReport | None) -> list[Block]:
    if not report.layers:
        return [Items(("No BatchNorm layer was checked.",))]
    later = None if after is None else {layer.name: layer for layer in after.layers}
    columns, rows = _rows(report.layers, later)
    if len(rows) <= _MANY_LAYERS:
        return [Table(columns, rows)]
    finals = [(later or {}).get(layer.name, layer) for layer in report.layers]
    bad = tuple(row for row, layer, final in zip(rows, report.layers, finals, strict=True) if _is_bad(layer, final))
    tables: list[Block] = [Table(columns, bad, "Layers to look at")] if bad else []
    verdict = state(report.verdict if after is None else after.verdict)
    return [*tables, Group("All layers", verdict, count(len(rows), "layer"), Table(columns, rows), is_open=False)]


def _is_bad(*layers: BatchNormLayer) -> bool:
    return any(layer.verdict != "ok" for layer in layers)


def _rows(
    layers: Sequence[BatchNormLayer], later: dict[str, BatchNormLayer] | None
) -> tuple[tuple[Column, ...], tuple[tuple[Cell, ...], ...]]:
    """Returns columns and rows; a column that says nothing in any row is left out."""
    attributed = any(layer.stochastic is not None for layer in layers)
    causes = any(layer.cause for layer in layers)
    titles = ("verdict", "W", "95% interval") if later is None else ("before", "W before", "95% before")
    columns = [Column("layer", "path"), Column(titles[0]), Column(titles[1], "number")]
    columns += [Column("after"), Column("W after", "number")] if later is not None else []
    columns.append(Column(titles[2], "number", optional=True))
    columns += [Column("cause", optional=True)] if causes else []
    columns += [Column("stale + stochastic + propagated", "number", optional=True)] if attributed else []
    columns += [Column("channels", "number", optional=True)]
    rows = []
    for layer in layers:
        row = [Cell(layer.name), state(layer.verdict), Cell(number(layer.w))]
        if later is not None:
            now = later.get(layer.name)
            row += [state(now.verdict), Cell(number(now.w))] if now is not None else [state("not run"), Cell("–")]
        row.append(Cell(interval(layer.w_low, layer.w_high)))
        row += [Cell(layer.cause or "–")] if causes else []
        parts = (layer.stale, layer.stochastic, layer.propagated)
        row += [Cell(" + ".join(map(number, parts)))] if attributed else []
        row.append(Cell(str(layer.channels) if layer.channels else "–"))
        rows.append(tuple(row))
    return tuple(columns), tuple(rows)


def _outputs_section(effect: OutputEffect) -> Section:
    columns = (Column("quantity", "note"), Column("before", "number"), Column("after", "number"), Column("change"))
    rows = [
        _effect_row("top-1 accuracy", effect.top1_before, effect.top1_after, better=1),
        _effect_row("negative log likelihood, nats", effect.nll_before, effect.nll_after, better=-1),
        _effect_row("calibration error (ECE)", effect.ece_before, effect.ece_after, better=-1),
    ]
    known = tuple(row for row in rows if row is not None)
    tables: list[Block] = [Table(columns, known)] if known else []
    moved = [
        ("output change, RMS over the outputs' standard deviation", number(effect.logit_shift)),
        ("Kullback-Leibler divergence, nats", number(effect.kl) if effect.kl is not None else ""),
        ("images whose class changes", percent(effect.flip_rate) if effect.flip_rate is not None else ""),
    ]
    moved_rows = tuple((Cell(name), Cell(value)) for name, value in moved if value)
    tables.append(Table((Column("between the two", "note"), Column("value", "number")), moved_rows))
    return Section(
        "outputs",
        "Effect on the outputs",
        f"The model as it stood (before) against a copy with recalibrated BatchNorm (after), "
        f"on the same {count(effect.images, 'image')}.",
        "Recalibrating makes the stored statistics those that serving sees. That need not raise the accuracy, and "
        "the likelihood can get worse where the wrong statistics happened to soften the outputs.",
        tuple(tables),
    )


def _effect_row(name: str, before: float | None, after: float | None, better: int) -> tuple[Cell, ...] | None:
    if before is None or after is None:
        return None
    fraction = name != "negative log likelihood, nats"
    write = percent if fraction else number
    difference = after - before
    size = f"{abs(100 * difference):.2f} points" if fraction else number(abs(difference))
    if abs(difference) < _UNCHANGED:
        change = Cell("= unchanged")
    elif difference * better > 0:
        change = Cell(f"✓ better by {size}", "good")
    elif difference * better < 0:
        change = Cell(f"✗ worse by {size}", "bad")
    else:
        change = Cell("–")
    return Cell(name), Cell(write(before)), Cell(write(after)), change
