"""The tables about mechanisms: what noise does to the statistics that BatchNorm sees, and how that grows with depth."""

from __future__ import annotations

import statistics

from experiments.figures import mean_rate
from experiments.results import Ratio, Result
from experiments.tables import Groups, accuracy, distinct, drift, each, of_row, recalibrated, spread, table, verdicts

# Of the plain networks: their input is the maximum of several noisy values, for which the closed form does not hold.
BEHIND_POOLING = ("conv4", "fc1")
# Numbers are stored with six digits.
_ROUNDING = 1e-5


def ratios(groups: Groups) -> str:
    """Returns the mean and variance ratios of Figs 3 and 5, and how the measured ones stand to the theory."""
    found = of_row(groups, "Figs 3 and 5")
    if not found:
        return ""
    rows = []
    for results in found.values():
        first = [_of_mode(result, "stored")[0] for result in results]
        every = [ratio for result in results for ratio in _of_mode(result, "batch")]
        rows.append(
            [
                f"{results[0].config.label} ({len(results)})",
                *_measured(first, "mean"),
                *_measured(first, "variance"),
                f"{statistics.fmean(ratio.mean for ratio in every):.3f}",
                f"{statistics.fmean(ratio.variance for ratio in every):.3f}",
                drift(results),
            ]
        )
    head = ["(networks)", "first layer: mean", "closed form", "variance", "closed form", "all: mean", "variance"]
    head.append("largest W: verdicts")
    return (
        "## Figs 3 and 5: mean and variance with noise over without\n\n[[fig3]]\n\n"
        f"{table(head, rows)}\n\nThe first noisy layer has no noise before it, so its closed form holds (stored "
        "BatchNorm statistics; ± is the standard error over 16 draws of the noise). `all` is the average over the six "
        f"layers with all noise on and BatchNorm in batch mode, as in the paper's figures. The figure shows the first "
        f"seed, with two draws an epoch.\n\n{_alone(found)}"
    )


def _of_mode(result: Result, mode: str) -> list[Ratio]:
    return [ratio for ratio in result.epochs[-1].ratios if ratio.mode == mode]


def _measured(found: list[Ratio], what: str) -> tuple[str, str]:
    """The average over networks with its error, and the closed form."""
    values, errors, expected = (
        [float(getattr(ratio, f"{what}{suffix}")) for ratio in found] for suffix in ("", "_error", "_expected")
    )
    error = sum(one**2 for one in errors) ** 0.5 / len(errors)
    return f"{statistics.fmean(values):.4f} ± {error:.4f}", f"{statistics.fmean(expected):.4f}"


def _alone(found: Groups) -> str:
    """Each layer with the noise at its own input only: the closed form, and the bounds for any rho in [0, 1]."""
    rows, inside, total = [], 0, 0
    for results in found.values():
        alone = [ratio for result in results for ratio in _of_mode(result, "alone")]
        direct = [ratio for ratio in alone if ratio.layer not in BEHIND_POOLING]
        pooled = [ratio for ratio in alone if ratio.layer in BEHIND_POOLING]
        within = sum(
            within_bounds(ratio, float(results[0].config.regularizer.get("alpha", _alpha(results[0]))))
            for ratio in direct
        )
        inside, total = inside + within, total + len(direct)
        rows.append(
            [
                results[0].config.label,
                f"{within} of {len(direct)}",
                f"{max(_errors(ratio, 'mean') for ratio in direct):.1f}",
                f"{max(_errors(ratio, 'variance') for ratio in direct):.1f}",
                f"{statistics.fmean(ratio.mean for ratio in pooled):.3f}",
                f"{statistics.fmean(ratio.variance for ratio in pooled):.3f}",
            ]
        )
    head = ["", "within the bounds", "mean off by, in errors", "variance off by", "behind pooling: mean", "variance"]
    together = [_together(found, mode) for mode in ("batch", "stored")]
    return (
        f"With the noise at one layer's input only, {inside} of {total} layers lie within the theory's bounds: mean "
        "k^(1-alpha), variance between k^(2-2alpha) and k^(1-2alpha), both within 4 standard errors. The columns `off "
        "by` compare with the closed form at the layer's own rho: the largest of all layers and networks, in standard "
        "errors. The two layers behind a max pooling are listed apart: the maximum of noisy values is larger than a "
        "noisy maximum, so their mean rises, and the closed form does not hold. With all noise on, which no closed "
        f"form covers, {together[0]} layers lie within the same bounds in batch mode and {together[1]} with stored "
        f"statistics.\n\n{table(head, rows)}"
    )


def _together(found: Groups, mode: str) -> str:
    """How many layers lie within the bounds while the noise before them is on too."""
    pairs = [
        (ratio, _alpha(result)) for results in found.values() for result in results for ratio in _of_mode(result, mode)
    ]
    return f"{sum(within_bounds(ratio, alpha) for ratio, alpha in pairs)} of {len(pairs)}"


def _alpha(result: Result) -> float:
    settings = result.config.regularizer
    return 1.0 if settings["kind"] == "dropout" else float(settings.get("alpha", 0.75))


def within_bounds(ratio: Ratio, alpha: float, errors: float = 4.0) -> bool:
    """Returns whether mean and variance lie where the theory has them for some rho in [0, 1]."""
    low, high = ratio.keep ** (2 - 2 * alpha), ratio.keep ** (1 - 2 * alpha)
    slack = errors * ratio.variance_error + _ROUNDING
    mean = abs(ratio.mean - ratio.mean_expected) <= errors * ratio.mean_error + _ROUNDING
    return mean and low - slack <= ratio.variance <= high + slack


def _errors(ratio: Ratio, what: str) -> float:
    off = abs(float(getattr(ratio, what)) - float(getattr(ratio, f"{what}_expected")))
    return max(0.0, off - _ROUNDING) / max(float(getattr(ratio, f"{what}_error")), _ROUNDING)


def depth(groups: Groups) -> str:
    """Returns how W grows from the first block to the last under three scales."""
    found = of_row(groups, "depth")
    if not found:
        return ""
    rows = []
    for results in sorted(found.values(), key=lambda group: -float(group[0].config.regularizer["alpha"])):
        curves = [list(result.served.w.values()) for result in results]
        thirds = [[statistics.fmean(part) for part in _thirds(curve)] for curve in curves]
        rows.append(
            [
                results[0].config.label,
                *(spread([third[number] for third in thirds], 1, 3) for number in range(3)),
                f"{spread([curve[-1] for curve in curves], 1, 3)}: {verdicts(results)}",
                each(results, accuracy),
                each(results, recalibrated),
            ]
        )
    head = ["", "W, group 1", "group 2", "group 3", "last BatchNorm", "accuracy", "recalibrated"]
    return (
        "## Not in the paper: drift grows with depth\n\n[[depth]]\n\n"
        "W of every BatchNorm layer of a pre-activation ResNet-20, stored statistics against what serving sees, after "
        f"training with the same rate and three scales; verdicts of the seeds beside the last W.\n\n{table(head, rows)}"
    )


# Noise before the max-pooling -> the same behind it.
_POOLED = {"dropout": "pooled-dropout", "table1-001": "pooled-rescaled", "jumpout": "pooled-jumpout"}


def pooling(groups: Groups) -> str:
    """Returns the drift with the noise before and behind the max-pooling layers."""
    rows = []
    for before, behind in _POOLED.items():
        if not {before, behind} <= groups.keys():
            continue
        for where, results in (("before", groups[before]), ("behind", groups[behind])):
            variances = [ratio.variance for result in results for ratio in _of_mode(result, "batch")]
            rows.append(
                [
                    groups[behind][0].config.label,
                    where,
                    f"{mean_rate(results):.2f}",
                    f"{statistics.fmean(variances):.3f}",
                    drift(results),
                    each(results, accuracy),
                    each(results, recalibrated),
                ]
            )
    if not rows:
        return ""
    head = [
        "",
        "noise and max-pooling",
        "p'",
        "variance with / without noise",
        "largest W: verdicts",
        "accuracy",
        "recalibrated",
    ]
    text = (
        "The maximum over a window picks the values that were kept and scaled up. Behind the pooling nothing is picked."
    )
    return f"## Not in the paper: noise before or behind the max-pooling\n\n{text}\n\n{table(head, rows)}"


def _thirds(curve: list[float]) -> list[list[float]]:
    """The 18 BatchNorms of the three groups; the last one stands behind them."""
    size = (len(curve) - 1) // 3
    return [curve[number * size : (number + 1) * size] for number in range(3)]


def pipeline(groups: Groups) -> str:
    """Returns what check, recalibration and export said of all networks."""
    every = [result for results in distinct(groups).values() for result in results]
    normed = [result for result in every if result.served.w]
    drifting = [result for result in normed if result.served.verdict == "drift"]
    quiet = [result for result in normed if result.config.regularizer["kind"] == "none"]
    still = [result for result in drifting if result.served.verdict_after == "drift"]
    exported = [result for result in every if result.served.exported]
    lines = [
        f"* {len(exported)} of {len(every)} networks were exported and verified.",
        (
            f"* Of {len(normed)} networks with BatchNorm {len(drifting)} drift, {_count(normed, 'inconclusive')} are "
            f"inconclusive and {_count(normed, 'ok')} are ok, of which {_count(quiet, 'ok')} have no noise. After the "
            f"exact recalibration, checked on the same images, {len(still)} drift."
        ),
    ]
    if drifting:
        gains = [100 * (recalibrated(result) - accuracy(result)) for result in drifting]
        lines.append(
            f"* Recalibration changes the accuracy of those by {statistics.fmean(gains):+.1f} points on average, "
            f"{statistics.median(gains):+.1f} in the median, {min(gains):+.1f} to {max(gains):+.1f}; "
            f"{sum(one < 0 for one in gains)} of {len(gains)} get worse."
        )
    failed = [
        f"{result.name} seed {result.seed} ({result.served.export_problem})"
        for result in every
        if not result.served.exported
    ]
    lines += [f"* Not exported: {'; '.join(failed)}."] if failed else []
    return "## What the product said of every network\n\n" + "\n".join(lines)


def _count(results: list[Result], verdict: str) -> int:
    return sum(result.served.verdict == verdict for result in results)
