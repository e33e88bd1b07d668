"""What all plots share: colours, axes, marks; and how a plot becomes a part of the page.

A plot is standalone SVG that is the same, byte for byte, for the same report. matplotlib is imported inside the
functions. The text stays text (the reader's own font, selectable, small), and the colours are few and fixed so that
the page can swap them for its dark theme (`themed`).
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jumpout_export.render.numbers import number

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
SERIES = [COLOURS[f"c{i}"] for i in range(1, 9)]
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":", "-.")
WIDTH = 4.4  # inches; two plots stand side by side on a desktop, and one still has readable text on a phone
MANY_ROWS = 24  # with more layers a plot shows positions in call order instead of names, and a table is folded away


@contextmanager
def styled_axes(name: str, height: float, width: float = WIDTH) -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Yields axes in our style and a function that returns the finished SVG; the user's matplotlib is left alone.

    Args:
        name: makes the ids in the SVG reproducible.
        height: in inches.
        width: in inches.
    """
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
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()

        def finish() -> str:
            from matplotlib.ticker import FuncFormatter, NullFormatter

            for axis in (axes.xaxis, axes.yaxis):
                if axis.get_scale() == "log":
                    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
                    axis.set_minor_formatter(NullFormatter())
            buffer = io.StringIO()
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(buffer, format="svg", metadata=nothing)
            return _compact(buffer.getvalue().replace("'DejaVu Sans'", "system-ui, sans-serif"))

        yield axes, finish


def themed(svg: str, name: str, label: str) -> str:
    """Returns a standalone plot as an `<svg>` element for the page: theme colours, its own ids, a label.

    Args:
        svg: what a plot function returned.
        name: makes the ids unique on the page.
        label: what a screen reader says.
    """
    svg = svg[svg.index("<svg") :]
    # Inside a page the namespaces are known, and without them no address is left in it.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' id="', f' id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # Presentation attributes take no var(); matplotlib writes colours into style, so nothing else is needed.
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def mark(colour: str, *, filled: bool) -> dict[str, Any]:
    """Returns the style of a round mark, or of a hollow diamond."""
    face = colour if filled else COLOURS["card"]
    return {
        "linestyle": "",
        "marker": "o" if filled else "D",
        "color": colour,
        "markerfacecolor": face,
        "markersize": 5,
    }


def legend(axes: Axes, handles: Sequence[Artist], labels: Sequence[str], *, wide: bool = False) -> None:
    """Puts a legend below the axes: in two columns, or for a wide plot in one line from the left."""
    # matplotlib leaves out a label that starts with an underscore; a space of no width in front keeps it.
    shown = [f"\u200b{label}" if label.startswith("_") else label for label in labels]
    axes.figure.legend(
        handles,
        shown,
        loc="outside lower left" if wide else "outside lower center",
        ncols=len(shown) if wide else 2,
        frameon=False,
    )


def label_line(axes: Axes, x: float, y: float, text: str, colour: str, *, side: str) -> None:
    """Writes `text` beside a vertical line; `side` is the end of the text that touches it."""
    offset = (4 if side == "left" else -4, 0)
    axes.annotate(text, (x, y), offset, textcoords="offset points", color=colour, ha=side, va="center", fontsize=8.5)


def _compact(svg: str) -> str:
    """Returns the SVG with hundredths of a point, and the style of many equal marks written once."""

    def rounded(match: re.Match[str]) -> str:
        return re.sub(r"-?\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.2f}", match[0])

    def shared(match: re.Match[str]) -> str:
        marks = match[2].replace(match[3], "")
        return f"<g{match[1]}{match[3]}>{marks}</g>" if match[2].count(match[3]) == match[2].count("<use") else match[0]

    svg = re.sub(r'\b[dxy]="[^"]*"', rounded, svg)
    return re.sub(r"<g([^<>]*)>((?:\s*<use[^<>]*?( style=\"[^\"]*\")/>)+\s*)</g>", shared, svg)
