"""The sections about channels and calls: a scatter per layer, and the numbers behind each verdict."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jumpout_export.render.blocks import Block, Cell, Column, Plot, Plots, Section, Table
from jumpout_export.render.headline import badness, drifting_channels
from jumpout_export.render.numbers import number, ratio, score, signed
from jumpout_export.render.plots import channels as plots_channels
from jumpout_export.render.sections.causes import folded_if_long
from jumpout_export.report import BatchNormLayer, BatchNormReport
from jumpout_export.text import count

MAX_PANELS = 9  # the largest W; more would make the page heavy and nobody looks at them


def channel_sections(report: BatchNormReport, after: BatchNormReport | None) -> list[Section]:
    """Returns the channels of the worst layers, and the calls of layers that are called several times.

    Args:
        report: the check, of the model as trained if `after` is given.
        after: the check after recalibration.
    """
    figures = _figures(report, after)
    blocks: list[Block] = [Plots(tuple(figures), small=True, note=_reading(report, figures, after))] if figures else []
    numbers = _numbers(report.layers)
    blocks += [folded_if_long("Numbers of all layers", numbers)] if numbers is not None else []
    lead = (
        "The numbers behind each verdict. A channel is significant where its W differs from 0 at a false discovery "
        "rate of 5%."
    )
    settled = "" if figures else "no layer is off; the numbers of each"
    sections = [Section("channels", "Channels", lead, "", tuple(blocks), True, settled)] if blocks else []
    return sections + _calls(report.layers)


def _reading(report: BatchNormReport, figures: Sequence[Plot], after: BatchNormReport | None) -> str:
    off = sum(layer.verdict != "ok" for layer in report.layers)
    few = f", for the {len(figures)} layers with the largest W" if len(figures) < off else ""
    flagged = " Triangles are significant." if any(layer.flagged for layer in report.layers) else ""
    later = " Diamonds are the same channels after recalibration." if after is not None else ""
    return (
        f"One mark per channel{few}. Right of 0 the mean in serving is larger than the stored one, above 0 the "
        "variance is larger. Inside the dashed ring a channel's W is below the margin, outside the solid one it is "
        f"severe; marks at the edge of a plot lie beyond it.{flagged}{later}"
    )


def _figures(report: BatchNormReport, after: BatchNormReport | None) -> list[Plot]:
    later = {layer.name: layer for layer in after.layers} if after is not None else {}
    clouds = {i: plots_channels.cloud(layer, fail=report.fail) for i, layer in enumerate(report.layers)}
    # Those of a layer that agrees lie in the middle of the rings, and show nothing.
    drawn = [i for i, cloud in clouds.items() if cloud is not None and report.layers[i].verdict != "ok"]
    worst = sorted(drawn, key=lambda i: (bool(report.layers[i].drifting_channels), badness(report.layers[i])))
    worst = worst[: -MAX_PANELS - 1 : -1]
    figures = []
    for place, i in enumerate(sorted(worst), 1):
        layer, cloud = report.layers[i], clouds[i]
        if cloud is None:
            continue
        name = f"channels-{place}"
        draw = partial(plots_channels.channels, name, layer, later.get(layer.name), warn=report.warn, fail=report.fail)
        figures.append(Plot(name, layer.name, _caption(layer, cloud), draw))
    return figures


def _caption(layer: BatchNormLayer, cloud: plots_channels.Cloud) -> str:
    drawn = len(cloud.places)
    total = cloud.total if layer.listed is None else layer.channels
    facts = [f"W {score(layer.w)}", count(total, "channel")]
    facts += [f"{len(layer.flagged)} significant"] if layer.flagged else []
    facts += [f"{drifting_channels(layer)} beyond severe drift"] if layer.drifting_channels else []
    if layer.worst_channel in layer.indices:
        i = layer.indices.index(layer.worst_channel)
        facts.append(
            f"worst channel {layer.worst_channel}: shift {signed(layer.delta[i])}, ln {signed(layer.log_ratio[i])}"
        )
    facts += [f"{drawn} drawn, evenly spaced in the order of W"] if drawn < total else []
    facts += [f"{cloud.outside} beyond the edge"] if cloud.outside else []
    return "; ".join(facts) + "."


def _numbers(layers: Sequence[BatchNormLayer]) -> Table | None:
    """Returns what stands behind the verdicts; a column that no layer fills is left out, with all of them the table."""
    fields: list[tuple[Column, list[str]]] = [
        (Column("channels", "number"), [f"{layer.channels:,}" if layer.channels else "–" for layer in layers]),
        (Column("significant", "number"), [f"{len(layer.flagged):,}" if layer.flagged else "–" for layer in layers]),
        (
            Column("beyond severe", "number"),
            [f"{len(layer.drifting_channels):,}" if layer.drifting_channels else "–" for layer in layers],
        ),
        (Column("mean shift, 95%", "number"), [score(layer.delta_p95) for layer in layers]),
        (Column("symmetric KL, nats", "number"), [number(layer.symmetric_kl) for layer in layers]),
        (Column("max(r, 1/r)", "number"), [number(layer.max_ratio) for layer in layers]),
        (Column("samples", "number"), [f"{layer.samples:,}" if layer.samples else "–" for layer in layers]),
        (
            Column("samples needed", "number"),
            ["–" if layer.samples_needed is None else f"{layer.samples_needed:,}" for layer in layers],
        ),
    ]
    filled = [(column, texts) for column, texts in fields if set(texts) - {"–"}]
    if not filled:
        return None
    columns = (Column("layer", "name"), *(column for column, _ in filled))
    rows = ((Cell(layer.name), *(Cell(texts[i]) for _, texts in filled)) for i, layer in enumerate(layers))
    return Table(columns, tuple(rows))


def _calls(layers: Sequence[BatchNormLayer]) -> list[Section]:
    columns = [Column("layer", "name"), Column("call", "number"), Column("W", "number")]
    columns += [Column("ln r", "number"), Column("ratio r", "number"), Column("mean shift, RMS", "number")]
    rows = tuple(
        (
            Cell(layer.name),
            Cell(str(i)),
            Cell(score(call.w)),
            Cell(signed(call.median_log_ratio)),
            Cell(ratio(call.median_log_ratio)),
            Cell(score(call.delta_rms)),
        )
        for layer in layers
        for i, call in enumerate(layer.calls, 1)
    )
    if not rows:
        return []
    lead = "These layers are called several times in one forward pass; all calls share one set of stored statistics."
    how = "Where the calls differ, no stored statistics fit all of them; a BatchNorm of its own for each call does."
    return [Section("calls", "Layers called several times", lead, how, (Table(tuple(columns), rows),), background=True)]
