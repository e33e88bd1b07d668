"""The plots, as standalone SVG that is the same, byte for byte, for the same report.

matplotlib is imported inside the functions. The text stays text (the reader's own font, selectable, small), and the
colours are few and fixed so that the page can swap them for its dark theme (`themed`).
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jumpout_export.render.blocks import number
from jumpout_export.report import BatchNormLayer

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# name of the CSS variable -> colour on white paper. The series are Okabe and Ito's palette for colour-blind readers,
# darkened where it is too pale on white.
COLOURS = {
    "ink": "#1f2933",
    "muted": "#667280",
    "grid": "#e3e7ec",
    "card": "#ffffff",
    "c1": "#0067a8",
    "c2": "#c94f00",
    "c3": "#008560",
    "c4": "#b8558f",
    "c5": "#8a6d00",
    "c6": "#2c9ad6",
    "c7": "#6c4aa0",
    "c8": "#4a4f57",
    "warn": "#a86400",
    "fail": "#b3261e",
}
_SERIES = [COLOURS[f"c{i}"] for i in range(1, 9)]
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", ":", "-.")
# What lies below is drawn at the edge: a W of a thousandth and an error of a millionth of its limit are as good as 0.
LOWEST_W, LOWEST_RATIO = 1e-3, 1e-6
_FEW_ROWS = 20  # with more, rows stand closer
_WIDTH = 4.4  # inches; two plots stand side by side on a desktop, and one still has readable text on a phone


def lines(name: str, series: Mapping[str, Sequence[float]], label: str) -> str:
    """Returns a line per entry of `series` over the epochs, the first epoch being 1."""
    from matplotlib.ticker import MaxNLocator

    rows = math.ceil(len(series) / 2) if len(series) > 1 else 0
    with _axes(name, 2.75 + 0.19 * rows) as (axes, finish):
        for i, values in enumerate(series.values()):
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=_SERIES[i % 8],
                linestyle=_DASHES[i // 8 % 4],
                marker=_MARKERS[i % 8],
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
            _legend(axes, axes.lines, [_shortened(key, 26) for key in series])
        return finish()


def drift(layers: Sequence[BatchNormLayer], after: Sequence[BatchNormLayer] | None, *, warn: float, fail: float) -> str:
    """Returns W with its 95% interval per layer, before and after recalibration, on a logarithmic scale."""
    later = {layer.name: layer for layer in after} if after is not None else {}
    values = [layer.w for layer in (*layers, *later.values())] + [layer.w_high for layer in layers]
    right = 2.2 * max([v for v in (*values, warn, fail) if math.isfinite(v)] + [10 * LOWEST_W])
    height = 0.3 if len(layers) <= _FEW_ROWS else 0.19
    with _axes("drift", 1.35 + height * len(layers)) as (axes, finish):
        axes.set_xscale("log")
        axes.set_xlim(LOWEST_W / 1.5, right)
        axes.set_ylim(len(layers) - 0.4, -0.9)
        _margins(axes, warn, fail)
        for row, layer in enumerate(layers):
            shift = -0.12 if after is not None else 0.0
            _whisker(axes, layer, row + shift, right, COLOURS["c2"], filled=True)
            if layer.name in later:
                _whisker(axes, later[layer.name], row - shift, right, COLOURS["c1"], filled=False)
        axes.set_yticks(range(len(layers)), [_shortened(layer.name, 24) for layer in layers])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("W, standard deviations")
        if after is not None:
            handles = [axes.plot([], [], **_mark(COLOURS["c2"], filled=True))[0]]
            handles += axes.plot([], [], **_mark(COLOURS["c1"], filled=False))
            _legend(axes, handles, ["before", "after recalibration"])
        return finish()


def channels(layer: BatchNormLayer, after: BatchNormLayer | None, *, warn: float, fail: float) -> str:
    """Returns one mark per channel: shift of the mean against log ratio of the variances, with the margins as rings."""
    with _axes("channels", 3.5) as (axes, finish):
        for margin, colour, dashes in ((warn, "warn", "--"), (fail, "fail", "-")):
            if not 0 < margin < 1:
                continue  # the ring would reach a variance of zero
            angles = [2 * math.pi * i / 200 for i in range(201)]
            x = [margin * math.cos(angle) for angle in angles]
            # W^2 = delta^2 + (sqrt(r) - 1)^2 and log ratio = ln r
            y = [2 * math.log1p(margin * math.sin(angle)) for angle in angles]
            axes.plot(x, y, color=COLOURS[colour], linestyle=dashes, linewidth=1)
        shown = [(layer, COLOURS["c2"], True)] + ([(after, COLOURS["c1"], False)] if after is not None else [])
        handles = [
            axes.plot(each.delta, each.log_ratio, **_mark(colour, filled=filled))[0] for each, colour, filled in shown
        ]
        axes.set_xlabel("shift of the mean, standard deviations")
        axes.set_ylabel("ln of variance ratio")
        if after is not None:
            _legend(axes, handles, ["before", "after recalibration"])
        return finish()


def parity(groups: Mapping[str, Sequence[tuple[float, str]]]) -> str:
    """Returns one mark per check at measured over limit, one row per group.

    Args:
        groups: group -> (measured over limit, verdict) per check.
    """
    ratios = [ratio for group in groups.values() for ratio, _ in group if math.isfinite(ratio)]
    right = 3 * max([1.0, *ratios])
    with _axes("parity", 1.0 + 0.32 * len(groups)) as (axes, finish):
        axes.set_xscale("log")
        axes.set_xlim(LOWEST_RATIO / 2, right)
        axes.set_ylim(len(groups) - 0.4, -0.9)
        axes.axvline(1, color=COLOURS["fail"], linewidth=1.2)
        _label(axes, 1, -0.6, "limit", COLOURS["fail"], side="left")
        for row, group in enumerate(groups.values()):
            drawn = [(min(max(ratio, LOWEST_RATIO), right / 1.3), verdict) for ratio, verdict in group]
            good = [x for x, verdict in drawn if verdict != "fail"]
            bad = [x for x, verdict in drawn if verdict == "fail"]
            axes.plot(good, [row] * len(good), **_mark(COLOURS["c1"], filled=False))
            axes.plot(bad, [row] * len(bad), linestyle="", marker="X", markersize=8, color=COLOURS["fail"])
        axes.set_yticks(range(len(groups)), [_shortened(name, 24) for name in groups])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("measured / limit")
        return finish()


def themed(svg: str, name: str, label: str) -> str:
    """Returns a standalone plot as an `<svg>` element for the page: theme colours, its own ids, a label.

    Args:
        svg: what a plot function returned.
        name: makes the ids unique on the page.
        label: what a screen reader says.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="', f' id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # Presentation attributes take no var(); matplotlib writes colours into style, so nothing else is needed.
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


@contextmanager
def _axes(name: str, height: float) -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Yields axes in our style and a function that returns the finished SVG; the user's matplotlib is left alone."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.hashsalt": name,
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 9.0,
        "text.color": COLOURS["ink"],
        "axes.edgecolor": COLOURS["muted"],
        "axes.labelcolor": COLOURS["ink"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": COLOURS["grid"],
        "grid.linewidth": 0.8,
        "xtick.color": COLOURS["muted"],
        "ytick.color": COLOURS["muted"],
        "xtick.labelcolor": COLOURS["ink"],
        "ytick.labelcolor": COLOURS["ink"],
        "figure.facecolor": COLOURS["card"],
        "axes.facecolor": COLOURS["card"],
        "legend.fontsize": 9.0,
    }
    with mpl.rc_context(), warnings.catch_warnings():
        # Names in other scripts: the reader's font draws them, matplotlib only lacks their widths.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(style)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()

        def finish() -> str:
            from matplotlib.ticker import FuncFormatter, NullFormatter

            for axis in (axes.xaxis, axes.yaxis):
                if axis.get_scale() == "log":
                    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
                    axis.set_minor_formatter(NullFormatter())
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
            return buffer.getvalue().replace("'DejaVu Sans'", "system-ui, sans-serif")

        yield axes, finish


def _mark(colour: str, *, filled: bool) -> dict[str, Any]:
    face = colour if filled else COLOURS["card"]
    marker = "o" if filled else "D"
    return {"linestyle": "", "marker": marker, "color": colour, "markerfacecolor": face, "markersize": 5}


def _whisker(axes: Axes, layer: BatchNormLayer, y: float, right: float, colour: str, *, filled: bool) -> None:
    """Draws W and its interval; what lies off the scale, or is infinite, is drawn as an arrow at its edge."""
    if math.isnan(layer.w):
        axes.text(LOWEST_W, y, "NaN", color=colour, va="center")
        return
    low, high = (min(max(v, LOWEST_W), right) for v in (layer.w_low, layer.w_high))
    if not math.isnan(low + high) and high > LOWEST_W:
        axes.plot([low, high], [y, y], color=colour, linewidth=1.6)
    mark = _mark(colour, filled=filled)
    if layer.w <= LOWEST_W or layer.w > right:
        mark["marker"] = "<" if layer.w <= LOWEST_W else ">"
    axes.plot([min(max(layer.w, LOWEST_W), right)], [y], clip_on=False, **mark)


def _margins(axes: Axes, warn: float, fail: float) -> None:
    for value, word, dashes, side in ((warn, "warn", "--", "right"), (fail, "fail", "-", "left")):
        if 0 < value < math.inf:
            axes.axvline(value, color=COLOURS[word], linestyle=dashes, linewidth=1.2)
            _label(axes, value, -0.65, f"{word} {number(value)}", COLOURS[word], side=side)


def _legend(axes: Axes, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    # matplotlib leaves out a label that starts with an underscore; a space of no width in front keeps it.
    shown = [f"\u200b{label}" if label.startswith("_") else label for label in labels]
    axes.figure.legend(handles, shown, loc="outside lower center", ncols=2, frameon=False)


def _label(axes: Axes, x: float, y: float, text: str, colour: str, *, side: str) -> None:
    """Writes `text` beside a vertical line; `side` is the end of the text that touches it."""
    offset = (4 if side == "left" else -4, 0)
    axes.annotate(text, (x, y), offset, textcoords="offset points", color=colour, ha=side, va="center", fontsize=8.5)


def _shortened(name: str, length: int) -> str:
    """Returns `name` with its middle left out; the end of a module path says most."""
    return name if len(name) <= length else f"{name[: length // 3]}…{name[len(name) - (length - length // 3 - 1) :]}"
