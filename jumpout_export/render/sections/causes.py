"""The sections about causes: the parts of each layer's drift, and what the law of the scaled mask advises."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jumpout_export.render.blocks import Block, Cell, Column, Group, Plot, Section, Table
from jumpout_export.render.numbers import number, ratio, signed
from jumpout_export.render.plots import batchnorm as plots_batchnorm
from jumpout_export.render.plots.style import MANY_ROWS
from jumpout_export.report import BatchNormLayer, BatchNormReport, Cause
from jumpout_export.text import count

CAUSES: dict[Cause, str] = {
    "stale": "the moving average lags behind the weights, or training sees other samples",
    "stochastic": "dropout or jumpout is on in training and off in serving",
    "propagated": "BatchNorm layers upstream serve other statistics than their batch's",
    "data": "the samples are others than those of the reference",
}


def cause_sections(report: BatchNormReport) -> list[Section]:
    """Returns the attribution and the advice; nothing where nothing drifts, or neither was measured."""
    if not _drifts(report):
        return []
    attributed = _attributed(report)
    sections = [_attribution(attributed)] if attributed else []
    return sections + _advice([layer for layer in report.layers if layer.advice is not None])


def attribution_plot(report: BatchNormReport) -> list[Plot]:
    """Returns the plot of the parts per layer; nothing where nothing drifts, or they were not measured."""
    layers = _attributed(report)
    if not layers or not _drifts(report):
        return []
    many = len(layers) > MANY_ROWS
    caption = (
        "Parts above 0 make the variance in serving larger than the stored one, parts below 0 smaller; the "
        f"{'stroke' if many else 'diamond'} is their sum. Stale: the moving average lags, or training saw other "
        "samples. Stochastic: dropout or jumpout is off. Propagated: from BatchNorm layers upstream."
        + (" Data: other samples than the reference's." if "data" in plots_batchnorm.parts_of(layers) else "")
    )
    draw = partial(plots_batchnorm.attribution, layers)
    return [Plot("attribution", "Where the drift comes from", caption, draw, wide=many)]


def folded_if_long(title: str, table: Table) -> Block:
    """Returns the table, or a group around it where it has many rows."""
    if len(table.rows) <= MANY_ROWS:
        return table
    return Group(title, Cell(""), count(len(table.rows), "layer"), table, is_open=False)


def _drifts(report: BatchNormReport) -> bool:
    """Whether there is a drift to explain; what the parts are of layers that agree is in `report.json`."""
    return any(layer.verdict == "drift" for layer in report.layers)


def _attributed(report: BatchNormReport) -> list[BatchNormLayer]:
    return [layer for layer in report.layers if None not in (layer.stale, layer.stochastic, layer.propagated)]


def _attribution(layers: Sequence[BatchNormLayer]) -> Section:
    parts = plots_batchnorm.parts_of(layers)
    columns = [Column("layer", "name"), *(Column(part, "number") for part in parts)]
    columns += [Column("total, ln r", "number"), Column("cause")]
    rows = tuple(
        (
            Cell(layer.name),
            *(Cell(_part(layer, part)) for part in parts),
            Cell(signed(layer.median_log_ratio)),
            Cell(layer.cause or "–"),
        )
        for layer in layers
    )
    means = "; ".join(f"{part}: {reason}" for part, reason in CAUSES.items() if part in parts)
    return Section(
        "causes",
        "Parts of the drift",
        "ln r, the log of the variance in serving over the stored one, is the sum of measured parts, each ± half of "
        "its 95% interval.",
        f"{means[0].upper()}{means[1:]}.",
        (folded_if_long("All parts", Table(tuple(columns), rows)),),
        background=True,
    )


def _part(layer: BatchNormLayer, part: str) -> str:
    """Returns a part with its error bar, `+0.12 ± 0.03`."""
    value, ends = signed(getattr(layer, part)), layer.part_intervals.get(part)  # type: ignore[call-overload]
    return value if ends is None else f"{value} ± {number((ends[1] - ends[0]) / 2)}"


def _advice(layers: Sequence[BatchNormLayer]) -> list[Section]:
    advised = [(layer, layer.advice) for layer in layers if layer.advice is not None]
    if not advised:
        return []
    columns = [Column("layer", "name"), Column("fed by", "name"), Column("alpha", "number")]
    columns += [Column("alpha*", "number"), Column("rho", "number")]
    columns += [Column(f"{what} {how}", "number") for what in ("ln(P/T)", "P/T") for how in ("predicted", "measured")]
    rows = tuple(
        (
            Cell(layer.name),
            Cell(advice.path),
            Cell(number(advice.alpha)),
            Cell(number(advice.alpha_star)),
            Cell(number(advice.rho)),
            Cell(signed(advice.predicted)),
            Cell(signed(layer.stochastic)),
            Cell(ratio(advice.predicted)),
            Cell(ratio(layer.stochastic)),
        )
        for layer, advice in advised
    )
    return [
        Section(
            "advice",
            "The exponent that would keep the variance",
            "With alpha* in place of alpha, the noise of the layer that feeds a BatchNorm would leave the variance of "
            "the median channel as it is.",
            "T is the variance with the noise on, P with the noise off. Predicted from the weights by the law of the "
            "scaled mask, T/P = k^(2 - 2 alpha) (1 + (p'/k) rho) with the keep rate k = 1 - p'; measured as the part "
            "of ln r that is stochastic. Where the two agree, alpha* can be trusted.",
            (folded_if_long("All layers with noise before them", Table(tuple(columns), rows)),),
            background=True,
        )
    ]
