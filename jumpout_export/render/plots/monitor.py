"""The plot of a watched training run: drift of every BatchNorm layer, and what jumpout did, over the steps."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jumpout_export.extras import require
from jumpout_export.render.names import numbered_all
from jumpout_export.render.numbers import number
from jumpout_export.render.plots.style import COLOURS, MARKERS, SERIES, styled_axes
from jumpout_export.report import MonitorHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_NAMED = len(SERIES)  # with more layers than colours the highest are named, and the others thin and grey
_LOWEST_W = 1e-3  # as good as 0, and drawn there
_OFTEN = 0.05  # a larger share of capped steps gets a cross
_WIDTH = 6.6  # inches; the legends stand at the right


def plot_monitor(
    history: MonitorHistory, *, warn: float = 0.05, fail: float = 0.15, kind: Literal["svg", "png"] = "svg"
) -> bytes:
    """Returns the plot of `history` as the content of a file, the same bytes for the same history.

    Above, W per BatchNorm layer with its 95% intervals and the two margins, on a logarithmic scale; dashed, W with the
    serving statistics in use, where they were watched. Below, where there
    are stochastic layers, the effective rate p', dotted the active fraction q, and a cross where `rate_cap` bound
    in more than 5% of the steps.

    Args:
        history: of a `BatchNormMonitor`, or read back with `MonitorHistory.model_validate_json`.
        warn: margin to draw, in units of W.
        fail: the other margin.
        kind: the file's format.

    Raises:
        ImportError: if matplotlib is not installed; the message names the command that installs it.
    """
    require(
        "matplotlib", "report", "the plot needs matplotlib, which could not be imported ({error}); install it with: "
    )
    panels = 2 if history.rate else 1
    with styled_axes("monitor", 0.6 + 2.4 * panels, _WIDTH) as (upper, finish):
        figure: Any = upper.figure
        rows = figure.add_gridspec(panels, 1)
        upper.set_subplotspec(rows[0])
        lowest = upper if panels == 1 else figure.add_subplot(rows[1], sharex=upper)
        _draw_drift(upper, history, warn, fail)
        if panels == 2:
            _draw_rates(lowest, history)
            upper.tick_params(labelbottom=False)
        lowest.set_xlabel("training step")
        if not history.steps:
            upper.text(0.5, 0.8, "no look yet", transform=upper.transAxes, ha="center", color=COLOURS["muted"])
        if kind == "svg":
            return finish().encode()
        finish()  # sets the axes' number formats too
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
        return buffer.getvalue()


def write_monitor_plot(
    history: MonitorHistory, path: str | os.PathLike[str], *, warn: float = 0.05, fail: float = 0.15
) -> Path:
    """Writes the plot of `history` to `path`, whose name ends in `.svg` or `.png`, and returns the path.

    Raises:
        ValueError: if the name ends in anything else.
        ImportError: if matplotlib is not installed.
    """
    target = Path(path)
    kinds: dict[str, Literal["svg", "png"]] = {".svg": "svg", ".png": "png"}
    kind = kinds.get(target.suffix.lower())
    if kind is None:
        raise ValueError(f"the name of the plot must end in .svg or .png, got {str(path)!r}")
    target.write_bytes(plot_monitor(history, warn=warn, fail=fail, kind=kind))
    return target


def _draw_drift(axes: Axes, history: MonitorHistory, warn: float, fail: float) -> None:
    from matplotlib.ticker import LogLocator

    values = [
        v for series in (history.w, history.w_high, history.w_serving) for layer in series.values() for v in layer
    ]
    finite = [v for v in values if math.isfinite(v)]
    top = 1.6 * max([warn, fail, *finite])
    bottom = max(_LOWEST_W, 0.6 * min([warn, *(v for v in finite if v > 0)]))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.set_ylim(bottom, top)
    axes.set_ylabel("W, standard deviations")

    def inside(layer: Sequence[float]) -> list[float]:
        """What lies off the scale, or is infinite, is drawn at its edge; NaN leaves a gap."""
        return [v if math.isnan(v) else min(max(v, bottom), top) for v in layer]

    named, others = _split(history.w)
    for name in others:
        _thin_line(axes, history.steps, inside(history.w[name]))
    handles: list[Line2D] = []
    served: list[Line2D] = []
    for i, name in enumerate(named):
        low, high = inside(history.w_low[name]), inside(history.w_high[name])
        axes.fill_between(history.steps, low, high, color=SERIES[i], alpha=0.16, linewidth=0)
        handles.append(_line(axes, history.steps, inside(history.w[name]), i))
        if name in history.w_serving:
            served = axes.plot(history.steps, inside(history.w_serving[name]), color=SERIES[i], linestyle="--")
    for margin, word, dashes in ((warn, "warn", "--"), (fail, "fail", "-")):
        axes.axhline(margin, color=COLOURS[word], linestyle=dashes, linewidth=1.2)
        axes.annotate(
            f"{word} {number(margin)}",
            (0, margin),
            (3, 3),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            color=COLOURS[word],
            fontsize=8.5,
        )
    _legend_at_right(axes, handles + served[:1], named, len(others), *(["serving statistics"] if served else []))


def _draw_rates(axes: Axes, history: MonitorHistory) -> None:
    named, others = _split(history.rate)
    for name in others:
        _thin_line(axes, history.steps, history.rate[name])
    handles, bound = [], []
    for i, name in enumerate(named):
        handles.append(_line(axes, history.steps, history.rate[name], i))
        if name in history.active_fraction:
            axes.plot(history.steps, history.active_fraction[name], color=SERIES[i], linestyle=":", linewidth=1.4)
    for name, shares in history.capped.items():
        looks = zip(history.steps, history.rate[name], shares, strict=True)
        bound += [(step, rate) for step, rate, share in looks if share > _OFTEN]
    if bound:
        crosses = axes.plot([step for step, _ in bound], [rate for _, rate in bound], "x", color=COLOURS["fail"])
        handles += crosses
    axes.set_ylim(bottom=0)
    axes.set_ylabel("rate p', dotted: q" if history.active_fraction else "rate p")
    _legend_at_right(axes, handles, named, len(others), *(["rate_cap often binds"] if bound else []))


def _split(series: Mapping[str, Sequence[float]]) -> tuple[list[str], list[str]]:
    """Returns the names to draw in colour, those with the highest last values, and all others, in the model's order."""

    def last(name: str) -> float:
        return next((value for value in reversed(series[name]) if not math.isnan(value)), -math.inf)

    named = set(sorted(series, key=last, reverse=True)[:_NAMED])
    return [name for name in series if name in named], [name for name in series if name not in named]


def _line(axes: Axes, steps: Sequence[int], values: Sequence[float], index: int) -> Line2D:
    (line,) = axes.plot(
        steps,
        values,
        color=SERIES[index],
        linewidth=1.6,
        marker=MARKERS[index],
        markersize=4,
        markevery=max(1, len(steps) // 8),
    )
    return line


def _thin_line(axes: Axes, steps: Sequence[int], values: Sequence[float]) -> None:
    axes.plot(steps, values, color=COLOURS["muted"], linewidth=0.7, alpha=0.6)


def _legend_at_right(axes: Axes, handles: Sequence[Line2D], names: Sequence[str], unnamed: int, *more: str) -> None:
    title = f"the {len(names)} highest, {unnamed} more in grey" if unnamed else None
    # matplotlib leaves out a label that starts with an underscore; a space of no width in front keeps it.
    labels = [f"\u200b{name}" if name.startswith("_") else name for name in numbered_all(names, 24)]
    axes.legend(
        handles,
        [*labels, *more],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        frameon=False,
        title=title,
        title_fontsize=8.5,
        alignment="left",
    )
