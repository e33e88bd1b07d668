"""Draws the figures of experiments/README.md as SVG files."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.results import Ratio, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Groups = dict[str, list[Result]]
_COLOURS = {"none": "#666666", "dropout": "#d55e00", "jumpout": "#0072b2", "concrete": "#009e73"}
_CURVES = ("none", "dropout", "jumpout")


def draw(groups: Groups, folder: Path) -> dict[str, Path]:
    """Returns the figures there are results for, as marker -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Groups, Path], bool]] = {
        "fig1": _active_units,
        "fig2": _rates,
        "fig3": _ratios,
        "fig4": _learning_curves,
        "depth": _depth,
        "serving": _serving,
    }
    files = {marker: folder / f"{marker}.svg" for marker in makers}
    return {marker: file for marker, file in files.items() if makers[marker](groups, file)}


def order(result: Result) -> tuple[str, float]:
    """Sorts by kind of noise, then by rate."""
    regularizer = result.config.regularizer
    return result.config.label.split(",")[0], float(regularizer.get("p") or regularizer.get("sigma") or 0.0)


def rate_text(results: list[Result]) -> str:
    """Returns p or sigma as configured, and the mean p' over layers that training had in its last epoch."""
    regularizer = results[0].config.regularizer
    asked = f"sigma {regularizer['sigma']}" if "sigma" in regularizer else str(regularizer.get("p", 0))
    return f"{asked} ({mean_rate(results):.2f})"


def mean_rate(results: list[Result]) -> float:
    """Returns p' over layers and seeds in the last epoch; 0 without noise."""
    rates = [value for result in results for value in result.epochs[-1].rate.values()]
    return statistics.fmean(rates) if rates else 0.0


def _save(file: Path, panels: int, paint: Callable[[Any], None], width: float = 4.0) -> bool:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "jumpout", "font.size": 9}):  # the same bytes each time
        figure = Figure(figsize=(width * panels, 3.2), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        paint(axes)
        for one in axes:
            one.grid(alpha=0.3)
            one.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, metadata={"Date": None})
    return True


def _band(axes: Axes, curves: list[list[float]], label: str, **style: Any) -> None:
    """Mean over seeds, with the range between them."""
    x = range(1, len(curves[0]) + 1)
    mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
    (line,) = axes.plot(x, mean, label=label, **style)
    if len(curves) > 1:
        low, high = ([f(values) for values in zip(*curves, strict=True)] for f in (min, max))
        axes.fill_between(x, low, high, alpha=0.15, color=line.get_color(), linewidth=0)


def _active_units(groups: Groups, file: Path) -> bool:
    found = [name for name in _CURVES if name in groups]
    if not found:
        return False

    def paint(axes: Any) -> None:
        for one, name in zip(axes, found, strict=True):
            results = groups[name]
            for layer in results[0].epochs[0].active:
                _band(one, [[epoch.active[layer].mean for epoch in result.epochs] for result in results], layer)
            one.set(title=name, xlabel="epoch", ylabel="fraction of active units, training", ylim=(0.35, 0.65))
        axes[-1].legend(fontsize=7)

    return _save(file, len(found), paint)


def _rates(groups: Groups, file: Path) -> bool:
    found = [results for results in groups.values() if "Fig 2" in results[0].config.rows]
    if not found:
        return False

    def paint(axes: Any) -> None:
        for one, batchnorm in zip(axes, (True, False), strict=True):
            some = [group for group in found if group[0].config.options.get("batchnorm", True) == batchnorm]
            for number, kind in enumerate(sorted({order(group[0])[0] for group in some})):
                points = sorted((mean_rate(group), group) for group in some if order(group[0])[0] == kind)
                _errorbars(one, points, lambda result: result.served.accuracy, f"C{number}", kind)
                if batchnorm:
                    label = f"{kind}, recalibrated"
                    _errorbars(one, points, lambda result: result.served.accuracy_after, f"C{number}", label, "--")
            one.set(title="with BatchNorm" if batchnorm else "without", xlabel="mean p'", ylabel="test accuracy")
        axes[0].legend(fontsize=7, loc="lower left")

    return _save(file, 2, paint)


def _errorbars(
    axes: Any,
    points: list[tuple[float, list[Result]]],
    value: Callable[[Result], float],
    colour: str,
    label: str,
    line: str = "-",
) -> None:
    """Mean and standard deviation over seeds against the rate."""
    means = [statistics.fmean(map(value, group)) for _, group in points]
    errors = [statistics.stdev(map(value, group)) if len(group) > 1 else 0.0 for _, group in points]
    style = {"marker": "o", "capsize": 3, "linestyle": line, "color": colour, "label": label}
    axes.errorbar([rate for rate, _ in points], means, errors, **style)


def _ratios(groups: Groups, file: Path) -> bool:
    found = {
        results[0].config.label: results[0] for results in groups.values() if "Figs 3 and 5" in results[0].config.rows
    }
    if not found:
        return False

    def average(ratios: list[Ratio], mode: str, value: Callable[[Ratio], float]) -> float:
        return statistics.fmean(value(ratio) for ratio in ratios if ratio.mode == mode)

    def paint(axes: Any) -> None:
        values = {"mean": lambda ratio: ratio.mean, "variance": lambda ratio: ratio.variance}
        modes = {"batch": "BatchNorm in batch mode", "stored": "stored statistics"}
        for one, (what, mode) in zip(axes, itertools.product(values, modes), strict=True):
            for number, (label, result) in enumerate(sorted(found.items())):
                curve = [average(epoch.ratios, mode, values[what]) for epoch in result.epochs]
                one.plot(range(1, len(curve) + 1), curve, color=f"C{number}", label=label)
            one.axhline(1, color="black", linewidth=0.8)
            one.set(title=f"{what} with noise / without,\n{modes[mode]}", xlabel="epoch")
        axes[0].set(ylabel="average over layers")
        axes[-1].legend(fontsize=7)

    return _save(file, 4, paint, width=3.2)


def _learning_curves(groups: Groups, file: Path) -> bool:
    found = [name for name in (*_CURVES, "concrete") if name in groups]
    if not found:
        return False

    def paint(axes: Any) -> None:
        for name in found:
            results = groups[name]
            for one, train, test in (
                (axes[0], "train_loss", "test_loss"),
                (axes[1], "train_accuracy", "test_accuracy"),
            ):
                for field, line in ((train, ":"), (test, "-")):
                    curves = [[getattr(epoch, field) for epoch in result.epochs] for result in results]
                    label = f"{name}, {field.split('_')[0]}"
                    _band(one, curves, label, linestyle=line, color=_COLOURS[name])
        axes[0].set(xlabel="epoch", ylabel="loss, nats")
        axes[1].set(xlabel="epoch", ylabel="accuracy")
        axes[1].legend(fontsize=7)

    return _save(file, 2, paint)


def _depth(groups: Groups, file: Path) -> bool:
    found = [results for results in groups.values() if "depth" in results[0].config.rows]
    if not found:
        return False

    def paint(axes: Any) -> None:
        for results in found:
            curves = [list(result.served.w.values()) for result in results]
            _band(axes[0], curves, results[0].config.label, marker=".")
        axes[0].axhline(0.05, color="black", linewidth=0.8, linestyle=":")
        axes[0].set(xlabel="BatchNorm layer, in call order", ylabel="W", xticks=range(1, len(curves[0]) + 1, 2))
        axes[0].legend(fontsize=7)

    return _save(file, 1, paint, width=6.0)


def _serving(groups: Groups, file: Path) -> bool:
    found = [results for results in groups.values() if "serving" in results[0].config.rows]
    if not found:
        return False

    def paint(axes: Any) -> None:
        for one, results in zip(axes, found, strict=True):
            for field, line, label in (
                ("test_accuracy", "-", "running statistics"),
                ("serving_accuracy", "--", "serving statistics"),
            ):
                curves = [[getattr(epoch, field) for epoch in result.epochs] for result in results]
                _band(one, curves, label, linestyle=line, color=_COLOURS[results[0].config.regularizer["kind"]])
            ticks = range(2, len(results[0].epochs) + 1, 2)
            one.set(title=results[0].config.label, xlabel="epoch", xticks=ticks, ylim=(0.25, 0.65))
        axes[0].set(ylabel="test accuracy")
        axes[0].legend(fontsize=7, loc="lower right")

    return _save(file, len(found), paint, width=3.2)
