"""The plots of a run: curves over training, and parity of the exported file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jumpout_export.render.names import numbered_all
from jumpout_export.render.plots.style import COLOURS, DASHES, MARKERS, SERIES, label_line, legend, mark, styled_axes

# What lies below is drawn at the edge: an error of a millionth of its limit is as good as 0.
LOWEST_RATIO = 1e-6


def lines(name: str, series: Mapping[str, Sequence[float]], label: str) -> str:
    """Returns a line per entry of `series` over the epochs, the first epoch being 1."""
    from matplotlib.ticker import MaxNLocator

    rows = math.ceil(len(series) / 2) if len(series) > 1 else 0
    with styled_axes(name, 2.75 + 0.19 * rows) as (axes, finish):
        for i, values in enumerate(series.values()):
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=SERIES[i % 8],
                linestyle=DASHES[i // 8 % 4],
                marker=MARKERS[i % 8],
                markersize=4,
                markevery=max(1, len(values) // 8),
                linewidth=1.6,
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        longest = max(1, *map(len, series.values()))
        axes.set_xlim(1 - 0.02 * longest, longest + 0.02 * longest)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if rows:
            legend(axes, axes.lines, numbered_all(list(series), 26))
        return finish()


def parity(groups: Mapping[str, Sequence[tuple[float, str]]]) -> str:
    """Returns one mark per check at measured over limit, one row per group.

    Args:
        groups: group -> (measured over limit, verdict) per check.
    """
    ratios = [ratio for group in groups.values() for ratio, _ in group if math.isfinite(ratio)]
    right = 3 * max([1.0, *ratios])
    with styled_axes("parity", 1.0 + 0.32 * len(groups)) as (axes, finish):
        axes.set_xscale("log")
        axes.set_xlim(LOWEST_RATIO / 2, right)
        axes.set_ylim(len(groups) - 0.4, -0.9)
        axes.axvline(1, color=COLOURS["fail"], linewidth=1.2)
        label_line(axes, 1, -0.6, "limit", COLOURS["fail"], side="left")
        for row, group in enumerate(groups.values()):
            drawn = [(min(max(ratio, LOWEST_RATIO), right / 1.3), verdict) for ratio, verdict in group]
            good = [x for x, verdict in drawn if verdict not in ("fail", "warning")]
            warned = [x for x, verdict in drawn if verdict == "warning"]
            bad = [x for x, verdict in drawn if verdict == "fail"]
            axes.plot(good, [row] * len(good), **mark(COLOURS["c1"], filled=False))
            axes.plot(warned, [row] * len(warned), linestyle="", marker="D", markersize=6, color=COLOURS["warn"])
            axes.plot(bad, [row] * len(bad), linestyle="", marker="X", markersize=8, color=COLOURS["fail"])
        axes.set_yticks(range(len(groups)), numbered_all(list(groups), 24))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("measured / limit")
        return finish()
