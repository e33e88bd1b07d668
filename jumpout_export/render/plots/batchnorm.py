"""The plots of the BatchNorm check per layer: W against the margins, and where the drift comes from.

Few layers are rows with their names. Many stand side by side in call order under their positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jumpout_export.render.names import numbered_all, shortened
from jumpout_export.render.numbers import number
from jumpout_export.render.plots.style import COLOURS, MANY_ROWS, WIDTH, label_line, legend, mark, styled_axes
from jumpout_export.report import BatchNormLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What lies below is drawn at the edge: a W of a thousandth is as good as 0.
LOWEST_W = 1e-3
PARTS = ("stale", "stochastic", "propagated", "data")
_WIDE = 9.2  # inches: the whole row on a desktop; on a phone the page scrolls it sideways
_ROW = 0.3  # inches
_PART_STYLES = {
    "stale": {"color": COLOURS["c6"]},
    "stochastic": {"color": COLOURS["c2"]},
    "propagated": {"color": COLOURS["c7"]},
    "data": {"color": COLOURS["c1"]},
}
_VERDICT_STYLES: dict[str, dict[str, Any]] = {
    "ok": {"color": COLOURS["c1"], "marker": "o", "markerfacecolor": COLOURS["c1"]},
    "inconclusive": {"color": COLOURS["warn"], "marker": "D", "markerfacecolor": COLOURS["card"]},
    "drift": {"color": COLOURS["fail"], "marker": "s", "markerfacecolor": COLOURS["fail"]},
}


def drift(
    layers: Sequence[BatchNormLayer],
    *,
    warn: float,
    fail: float,
    name: str = "drift",
    beside: Sequence[BatchNormLayer] = (),
) -> str:
    """Returns W with its 95% interval per layer against the margins, on a logarithmic scale.

    Args:
        layers: in call order; their marks show the verdict.
        warn: the margin, in units of W.
        fail: from where the drift is severe.
        name: of the plot.
        beside: the layers of the plot that stands beside it, which has the same scale.
    """
    values = [value for layer in (*layers, *beside) for value in (layer.w, layer.w_high)]
    top = 2.2 * max([v for v in (*values, warn, fail) if math.isfinite(v)] + [10 * LOWEST_W])
    many = len(layers) > MANY_ROWS
    height = 3.3 if many else 1.35 + _ROW * len(layers)
    with styled_axes(name, height, _WIDE if many else WIDTH) as (axes, finish):
        (axes.set_yscale if many else axes.set_xscale)("log")
        (axes.set_ylim if many else axes.set_xlim)(LOWEST_W / 1.5, top)
        (axes.set_ylabel if many else axes.set_xlabel)("W, standard deviations")
        if many:
            _positions(axes, len(layers))
        else:
            _name_rows(axes, layers)
        _margins(axes, warn, fail, many=many)
        for place, layer in enumerate(layers, 1):
            style = {**_VERDICT_STYLES[layer.verdict], "markersize": 3.4 if many else 5.5}
            _whisker(axes, layer, place, top, style, many)
        if many:
            _name_extremes(axes, layers, top)
        shown = [verdict for verdict in _VERDICT_STYLES if any(layer.verdict == verdict for layer in layers)]
        if shown:
            marks = [axes.plot([], [], linestyle="", markersize=5, **_VERDICT_STYLES[verdict])[0] for verdict in shown]
            legend(axes, marks, shown, wide=many)
        return finish()


def attribution(layers: Sequence[BatchNormLayer]) -> str:
    """Returns ln of the variance ratio per layer as a stack of its signed parts, the total as a diamond.

    Parts above 0 are stacked to one side of the middle, those below to the other; what is not finite is left out.

    Args:
        layers: in call order.
    """
    many = len(layers) > MANY_ROWS
    with styled_axes("attribution", 3.3 if many else 1.25 + _ROW * len(layers), _WIDE if many else WIDTH) as (
        axes,
        finish,
    ):
        label = "ln of variance ratio, median channel"
        if many:
            _positions(axes, len(layers))
            axes.set_ylabel(label)
            axes.axhline(0, color=COLOURS["muted"], linewidth=1)
        else:
            _name_rows(axes, layers)
            axes.set_xlabel(label)
            axes.axvline(0, color=COLOURS["muted"], linewidth=1)
        handles: dict[str, Any] = {}
        draw = axes.bar if many else axes.barh
        for part, values in _parts(layers).items():
            starts = [start for start, _ in values]
            sizes = [size for _, size in values]
            places = range(1, len(layers) + 1)
            offset: dict[str, Any] = {"bottom": starts} if many else {"left": starts}
            style: dict[str, Any] = {
                "width" if many else "height": 0.8 if many else 0.55,
                "linewidth": 0,
                **_PART_STYLES[part],
            }
            handles[part] = draw(places, sizes, **offset, **style)
        totals = [(i, layer.median_log_ratio) for i, layer in enumerate(layers, 1)]
        known = [(i, total) for i, total in totals if total is not None and math.isfinite(total)]
        x, y = [i for i, _ in known], [total for _, total in known]
        total_style = {**mark(COLOURS["ink"], filled=False), "markersize": 5.5}
        if many:
            total_style |= {"marker": "_", "markersize": 3.5, "markeredgewidth": 1.4}
        handles["total"] = axes.plot([], [], **total_style)[0]
        if known:  # without any, a mark that may leave the axes leaves the layout without a size
            axes.plot(*((x, y) if many else (y, x)), **total_style, clip_on=False)
        legend(axes, list(handles.values()), list(handles), wide=many)
        return finish()


def parts_of(layers: Sequence[BatchNormLayer]) -> tuple[str, ...]:
    """Returns the parts that were measured: the data are one where a reference was given."""
    return PARTS if any(layer.data is not None for layer in layers) else PARTS[:3]


def _parts(layers: Sequence[BatchNormLayer]) -> Mapping[str, list[tuple[float, float]]]:
    """Returns part -> (start, signed size) per layer, so that parts of one sign stand one after the other."""
    found: dict[str, list[tuple[float, float]]] = {part: [] for part in parts_of(layers)}
    for layer in layers:
        ends = {True: 0.0, False: 0.0}
        for part, starts in found.items():
            value = getattr(layer, part)
            size = value if value is not None and math.isfinite(value) else 0.0
            starts.append((ends[size > 0], size))
            ends[size > 0] += size
    return found


def _name_rows(axes: Axes, layers: Sequence[BatchNormLayer]) -> None:
    axes.set_ylim(len(layers) + 0.6, 0.1)
    axes.set_yticks(range(1, len(layers) + 1), numbered_all([layer.name for layer in layers], 24))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _positions(axes: Axes, n: int) -> None:
    axes.set_xlim(0, n + 1)
    axes.set_xlabel("BatchNorm layer, position in call order")
    axes.grid(visible=False, axis="x")


def _name_extremes(axes: Axes, layers: Sequence[BatchNormLayer], top: float) -> None:
    """Writes the first drifting layer's and the worst layer's name at their marks, where both have room."""
    known = [(i, layer) for i, layer in enumerate(layers, 1) if not math.isnan(layer.w)]
    first = next(((i, layer) for i, layer in known if layer.verdict == "drift"), None)
    worst = max(known, key=lambda pair: pair[1].w, default=None)
    named: list[tuple[int, BatchNormLayer]] = [first] if first is not None else []
    if worst is not None and (first is None or abs(worst[0] - first[0]) > len(layers) / 3):
        named.append(worst)
    for i, layer in named:
        left = i < len(layers) / 2
        axes.annotate(
            f"{i} {shortened(layer.name, 32)}",
            (i, min(max(layer.w, LOWEST_W), top)),
            (6 if left else -6, 5),
            textcoords="offset points",
            ha="left" if left else "right",
            fontsize=8.5,
        )


def _whisker(axes: Axes, layer: BatchNormLayer, place: float, top: float, style: dict[str, Any], upright: bool) -> None:
    """Draws W and its interval; what lies off the scale, or is infinite, is drawn as an arrow at its edge."""

    def turned(values: Iterable[float], places: Iterable[float]) -> tuple[list[float], list[float]]:
        return ([*places], [*values]) if upright else ([*values], [*places])

    if math.isnan(layer.w):
        x, y = turned([LOWEST_W], [place])
        axes.text(x[0], y[0], "NaN", color=style["color"], va="center", ha="center" if upright else "left")
        return
    low, high = (min(max(value, LOWEST_W), top) for value in (layer.w_low, layer.w_high))
    if not math.isnan(low + high) and high > LOWEST_W:
        axes.plot(*turned([low, high], [place, place]), color=style["color"], linewidth=1.1 if upright else 1.6)
    if layer.w <= LOWEST_W or layer.w > top:
        style = {**style, "marker": ("v" if upright else "<") if layer.w <= LOWEST_W else "^" if upright else ">"}
    axes.plot(*turned([min(max(layer.w, LOWEST_W), top)], [place]), clip_on=False, **{"linestyle": "", **style})


def _margins(axes: Axes, warn: float, fail: float, *, many: bool) -> None:
    for value, word, dashes, side in ((warn, "warn", "--", "right"), (fail, "fail", "-", "left")):
        if not 0 < value < math.inf:
            continue
        style: dict[str, Any] = {"color": COLOURS[word], "linestyle": dashes, "linewidth": 1.2}
        if many:
            axes.axhline(value, **style)
            below = -8 if word == "warn" else 8
            place = (axes.get_xlim()[0], value)  # at the left, which a phone shows without scrolling
            axes.annotate(
                f"{word} {number(value)}",
                place,
                (4, below),
                textcoords="offset points",
                color=COLOURS[word],
                ha="left",
                va="center",
                fontsize=8.5,
            )
        else:
            axes.axvline(value, **style)
            label_line(axes, value, 0.35, f"{word} {number(value)}", COLOURS[word], side=side)
