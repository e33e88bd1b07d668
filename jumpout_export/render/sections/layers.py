"""The table of BatchNorm layers: verdict, W, a signed bar for the variance, cause; and the short form of a long one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from jumpout_export.render.blocks import Block, Cell, Column, Group, Items, SignedBar, Table, scale_of, state
from jumpout_export.render.headline import badness
from jumpout_export.render.numbers import ratio, score, score_range, signed
from jumpout_export.render.plots.style import MANY_ROWS
from jumpout_export.report import BatchNormLayer, BatchNormReport
from jumpout_export.text import count

# Of a long table the terminal shows no more than this many rows, and where every layer is ok only the worst few.
_MOST_ROWS, _FEW_ROWS = 40, 5


def layer_tables(report: BatchNormReport, after: BatchNormReport | None) -> list[Block]:
    """Returns the table of all layers; of many layers first those to look at, then all of them folded away.

    Args:
        report: the check, of the model as trained if `after` is given.
        after: the check after recalibration.
    """
    layers = report.layers
    if not layers:
        return [Items(("No BatchNorm layer was checked.",))]
    later = None if after is None else {layer.name: layer for layer in after.layers}
    table = _table(layers, later, report.warn)
    if len(layers) <= MANY_ROWS:
        return [table]

    def final(i: int) -> BatchNormLayer:
        return (later or {}).get(layers[i].name, layers[i])

    bad = {i for i, layer in enumerate(layers) if layer.verdict != "ok" or final(i).verdict != "ok"}
    worst = sorted(range(len(layers)), key=lambda i: badness(layers[i]), reverse=True)
    urgent = [i for i in worst if i in bad]
    # The origin is where a person starts, however small its W.
    urgent.sort(key=lambda i: layers[i].name != report.origin)
    shown = sorted(urgent[:_MOST_ROWS] or worst[:_FEW_ROWS])
    title = "Layers to look at" if bad else "Layers with the largest W"
    title += f" ({_MOST_ROWS} of {len(bad)}, those with the largest W)" if len(bad) > _MOST_ROWS else ""
    few = Table(table.columns, tuple(table.rows[i] for i in shown), title, table.note, table.legend)
    rest = [layers[i] for i in range(len(layers)) if i not in bad and i not in shown]
    every = f"report.json and report.html list all {count(len(layers), 'layer')}"
    if rest:
        largest = max(rest, key=badness)
        summary, word = f"{len(rest)} more are ok", f"largest W {score(largest.w)}, {largest.name}; {every}"
        group = Group(summary, Cell("✓", "good"), word, table, is_open=False)
    else:
        verdict = state(report.verdict if after is None else after.verdict)
        group = Group("All layers", verdict, every, table, is_open=False)
    return [few, group]


def kinds(layers: Sequence[BatchNormLayer]) -> str:
    """Returns how many layers of which kind there are: `20 BatchNorm2d, 1 BatchNorm1d`, or `all BatchNorm2d`."""
    counts = Counter(layer.kind for layer in layers)
    if len(counts) == 1:
        return f"all {layers[0].kind}"
    return ", ".join(f"{n} {kind}" for kind, n in counts.most_common())


def _table(layers: Sequence[BatchNormLayer], later: Mapping[str, BatchNormLayer] | None, warn: float) -> Table:
    """Returns all rows; a column that says nothing in any row is left out."""
    # The variance alone makes a W of warn where sqrt(r) is 1 - warn or 1 + warn.
    marks = (2 * math.log1p(-warn), 2 * math.log1p(warn)) if 0 < warn < 1 else ()
    measured = any(layer.median_log_ratio is not None for layer in layers)
    scale = scale_of((layer.median_log_ratio for layer in layers), marks)
    verdict, w = ("verdict", "W") if later is None else ("before", "W before")
    # Before and after need the room; the kind matters there only where it tells layers apart.
    kinded = later is None or len({layer.kind for layer in layers}) > 1
    columns = [Column("layer", "name"), *([Column("kind", rank=9)] if kinded else [])]
    columns += [Column(verdict), Column(w, "number")]
    columns.append(Column("95% interval", "number", rank=0 if later is None else 8))
    columns += [Column("after"), Column("W after", "number")] if later is not None else []
    columns += [Column("ln r", "bar", rank=5)] if measured else []
    causes = any(layer.cause for layer in layers)
    columns += [Column("cause", rank=6)] if causes else []
    columns += [Column("ratio r", "number", rank=7)] if measured else []
    rows = []
    for layer in layers:
        row = [Cell(layer.name), *([Cell(layer.kind)] if kinded else [])]
        row += [state(layer.verdict), Cell(score(layer.w))]
        row.append(Cell(score_range(layer.w_low, layer.w_high)))
        if later is not None:
            now = later.get(layer.name)
            row += [state(now.verdict), Cell(score(now.w))] if now is not None else [state("not run"), Cell("–")]
        if measured:
            value = layer.median_log_ratio
            row.append(Cell(signed(value), bar=None if value is None else SignedBar(value, scale, marks)))
        row += [Cell(layer.cause or "–")] if causes else []
        row += [Cell(ratio(layer.median_log_ratio))] if measured else []
        rows.append(tuple(row))
    if not measured:
        return Table(tuple(columns), tuple(rows))
    margin = f"; dotted: the margin, where the variance alone makes W {warn:g}" if marks else ""
    return Table(
        tuple(columns),
        tuple(rows),
        note="r is the variance in serving over the stored one, in the median channel.",
        legend=f"Bars: ln r from -{scale:g} to +{scale:g}, left: smaller in serving, right: larger{margin}.",
    )
