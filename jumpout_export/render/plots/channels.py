"""The plot of one layer's channels: shift of the mean against log ratio of the variances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jumpout_export.render.plots.style import COLOURS, mark, styled_axes
from jumpout_export.report import BatchNormLayer

MAX_MARKS = 300  # per layer: a page of many wide layers stays small
_SMALL = 3.0  # inches; three stand side by side on a desktop
_OUTLIERS = 0.02  # at most this share of the channels lies outside, so that a dead channel does not hide the others


@dataclass(frozen=True)
class Cloud:
    """The channels of a layer that are drawn."""

    places: list[int]  # where they stand in the layer's lists, in order of W
    total: int  # channels listed whose numbers are not NaN
    reach: tuple[float, float]  # half the width and half the height of the plot
    outside: int  # how many of the drawn lie outside and are drawn at its edge


def cloud(layer: BatchNormLayer, *, fail: float) -> Cloud | None:
    """Returns which channels of a layer are drawn, None where it has none.

    With more than `MAX_MARKS` channels those drawn are evenly spaced in the order of W, the largest among them, so
    that the shape of the cloud stays.

    Args:
        layer: with one `delta` and one `log_ratio` per channel that it lists.
        fail: margin whose ring the plot holds, in units of W.
    """
    if not layer.delta or len(layer.delta) != len(layer.log_ratio):
        return None
    pairs = list(zip(layer.delta, layer.log_ratio, strict=True))
    known = sorted((_w(*pair), i) for i, pair in enumerate(pairs) if not math.isnan(sum(map(abs, pair))))
    if not known:
        return None
    last = len(known) - 1
    shown = range(len(known)) if last < MAX_MARKS else [last * k // (MAX_MARKS - 1) for k in range(MAX_MARKS)]
    places = [known[k][1] for k in shown]
    ring = fail if 0 < fail < 1 else 0.15
    reach = (
        _reach([abs(pairs[i][0]) for i in places], 1.15 * ring),
        _reach([abs(pairs[i][1]) for i in places], -2.3 * math.log1p(-ring)),
    )
    outside = sum(abs(pairs[i][0]) > reach[0] or abs(pairs[i][1]) > reach[1] for i in places)
    return Cloud(places, len(known), reach, outside)


def channels(name: str, layer: BatchNormLayer, after: BatchNormLayer | None, *, warn: float, fail: float) -> str:
    """Returns one mark per channel, with the margins as rings; triangles are channels that differ significantly.

    Args:
        name: of the plot.
        layer: the layer as checked.
        after: the same layer after recalibration, drawn as diamonds.
        warn: margin of the inner ring, in units of W.
        fail: margin of the outer ring.
    """
    with styled_axes(name, 2.75, _SMALL) as (axes, finish):
        for margin, colour, dashes in ((warn, "warn", "--"), (fail, "fail", "-")):
            if not 0 < margin < 1:
                continue  # the ring would reach a variance of zero
            angles = [2 * math.pi * i / 100 for i in range(101)]
            x = [margin * math.cos(angle) for angle in angles]
            # W^2 = delta^2 + (sqrt(r) - 1)^2 and log ratio = ln r
            y = [2 * math.log1p(margin * math.sin(angle)) for angle in angles]
            axes.plot(x, y, color=COLOURS[colour], linestyle=dashes, linewidth=1)
        shown = cloud(layer, fail=fail)
        if shown is not None:
            axes.set_xlim(-shown.reach[0], shown.reach[0])
            axes.set_ylim(-shown.reach[1], shown.reach[1])
            flagged, indices = set(layer.flagged), layer.indices
            quiet = [i for i in shown.places if indices[i] not in flagged]
            loud = [i for i in shown.places if indices[i] in flagged]
            style: dict[str, Any] = {"linestyle": "", "markersize": 3.4, "clip_on": False}
            for drawn, marker, colour in ((quiet, "o", "muted"), (loud, "^", "c2")):
                if drawn:
                    axes.plot(*_inside(layer, drawn, shown.reach), marker=marker, color=COLOURS[colour], **style)
            later = cloud(after, fail=fail) if after is not None else None
            if after is not None and later is not None:
                marks = {**mark(COLOURS["c1"], filled=False), "markersize": 3.4}
                axes.plot(*_inside(after, later.places, shown.reach), **marks)
        axes.set_xlabel("shift of the mean, std. dev.")
        axes.set_ylabel("ln of variance ratio")
        return finish()


def _w(delta: float, log_ratio: float) -> float:
    if math.isinf(delta) or log_ratio > 700:
        return math.inf
    return math.hypot(delta, math.exp(log_ratio / 2) - 1)


def _reach(sizes: Sequence[float], least: float) -> float:
    """Returns half the length of an axis: all but a few of the sizes lie inside, and at least `least` does."""
    finite = sorted(size for size in sizes if math.isfinite(size))
    if not finite:
        return least
    most = finite[max(math.ceil((1 - _OUTLIERS) * len(finite)) - 1, 0)]
    # A cloud that ends a little further out is drawn whole.
    return 1.08 * max(least, finite[-1] if finite[-1] < 2 * most else most)


def _inside(layer: BatchNormLayer, shown: Sequence[int], reach: tuple[float, float]) -> tuple[list[float], list[float]]:
    x = [min(max(layer.delta[i], -reach[0]), reach[0]) for i in shown]
    y = [min(max(layer.log_ratio[i], -reach[1]), reach[1]) for i in shown]
    return x, y
