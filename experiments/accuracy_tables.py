"""The paper's tables of accuracies, theirs beside ours."""

from __future__ import annotations

import statistics

from experiments import figures
from experiments.paper_values import ABLATIONS, CONCRETE, MODIFICATIONS, PAPER, ablation_name
from experiments.results import Result
from experiments.tables import (
    Groups,
    Value,
    accuracy,
    drift,
    each,
    gain,
    largest_w,
    of_row,
    recalibrated,
    spread,
    table,
)

# Beyond so many standard errors a difference is called one.
_SURE = 2.0


def table_1(groups: Groups) -> str:
    """Returns the eight combinations of the three modifications, and what each of them does on average."""
    found = of_row(groups, "Table 1")
    rows = []
    for flags in ABLATIONS:
        name = ablation_name(flags)
        if name in found:
            marks = ["yes" if flag else "" for flag in flags]
            results = found[name]
            rows.append([*marks, _rate(results), each(results, accuracy), each(results, recalibrated), drift(results)])
    if not rows:
        return ""
    head = [*MODIFICATIONS, "p'", "accuracy", "recalibrated", "largest W: verdicts"]
    text = (
        "The first row is plain dropout, the last one jumpout. p or sigma is 0.1 in all rows, but not the rate: II "
        "divides it by the fraction of active units and so about doubles it."
    )
    return f"## Table 1: the three modifications\n\n{table(head, rows)}\n\n{text}{_effects(found)}"


def _effects(found: Groups) -> str:
    """What a modification adds, averaged over the four combinations of the others; the error is that over seeds."""
    if any(ablation_name(flags) not in found for flags in ABLATIONS):
        return ""
    seeds = sorted({result.seed for results in found.values() for result in results})
    runs = {(flags, result.seed): result for flags in ABLATIONS for result in found[ablation_name(flags)]}
    if len(seeds) < 2 or len(runs) < len(seeds) * len(ABLATIONS):
        return ""

    def effect(number: int, value: Value, scale: float, places: int) -> str:
        effects = [
            statistics.fmean((1 if flags[number] else -1) * value(runs[flags, seed]) for flags in ABLATIONS) * 2
            for seed in seeds
        ]
        error = statistics.stdev(effects) / len(seeds) ** 0.5
        return f"{statistics.fmean(effects) * scale:+.{places}f} ± {error * scale:.{places}f}"

    rows = [
        [name, effect(number, accuracy, 100, 1), effect(number, recalibrated, 100, 1), effect(number, largest_w, 1, 3)]
        for number, name in enumerate(MODIFICATIONS)
    ]
    head = ["what each adds on average (± standard error)", "accuracy", "recalibrated", "largest W"]
    return f"\n\n{table(head, rows)}\n\nThe values of the paper's Table 1 are missing from the text we have."


def table_2(groups: Groups) -> str:
    """Returns the column CIFAR10(s), with a row without noise and the accuracies after recalibration."""
    rows = []
    for name, paper in PAPER.items():
        if name in groups:
            results = groups[name]
            numbers = [each(results, accuracy), each(results, recalibrated), drift(results)]
            rows.append([name, paper, _rate(results), *numbers])
    if not rows:
        return ""
    head = ["", "paper", "p'", "ours", "ours, recalibrated", "largest W: verdicts"]
    return (
        f"## Table 2: the CIFAR10(s) column\n\n{table(head, rows)}\n\n{_order(groups)}\n\n"
        "### Fig 4: learning curves\n\n[[fig4]]\n\n### Fig 1: active units\n\n[[fig1]]"
    )


# Differences that are looked at: more minus less, and whether the paper has the first one above.
_DIFFERENCES = (
    ("jumpout", "dropout", True),
    ("fig2-jumpout-0.05", "dropout", True),
    ("jumpout", "fig2-dropout-0.2", True),
    ("table1-001", "fig2-jumpout-0.05", False),
    ("fig2-rescaled-0.2", "jumpout", False),
    ("dropout", "none", True),
    ("table1-001", "none", True),
    ("fig2-jumpout-0.05", "none", True),
    ("jumpout", "none", True),
)


def _order(groups: Groups) -> str:
    """Says which method is above which here, how sure that is, and whether it is the paper's order."""
    rows = []
    for one, other, above in _DIFFERENCES:
        if not {one, other} <= groups.keys():
            continue
        found = [gain(groups[one], groups[other], value) for value in (accuracy, recalibrated)]
        cells = [_difference(pair, above) for pair in found]
        names = [f"{_short(groups[name])}" for name in (one, other)]
        rows.append([" - ".join(names), " / ".join(_rate(groups[name]) for name in (one, other)), *cells])
    if not rows:
        return ""
    head = ["difference in points ± standard error", "p' of the two", "as trained", "recalibrated"]
    return (
        "The paper has jumpout 3.7 points above dropout, each at its tuned rate, and all three modifications together "
        f"above any of them. Here a difference counts as one beyond {_SURE:.0f} standard errors, which with so few "
        f"seeds is no 95%.\n\n{table(head, rows)}"
    )


def _difference(pair: tuple[float, float] | None, above: bool) -> str:
    if pair is None:
        return "one seed: not known"
    difference, error = pair
    text = f"{100 * difference:+.1f} ± {100 * error:.1f}"
    if abs(difference) <= _SURE * error:
        return f"{text}, not told apart"
    return f"{text}, {'the order of the paper' if (difference > 0) == above else '**not the order of the paper**'}"


def _short(results: list[Result]) -> str:
    regularizer = results[0].config.regularizer
    kind = results[0].config.label.split(",")[0]
    settings = [f"{key} {regularizer[key]}" for key in ("p", "sigma") if key in regularizer]
    return f"{kind} ({settings[0]})" if settings else kind


def _rate(results: list[Result]) -> str:
    rate = figures.mean_rate(results)
    return f"{rate:.2f}" if rate else "-"


def table_3(groups: Groups) -> str:
    """Returns the row of Concrete Dropout."""
    if "concrete" not in groups:
        return ""
    results = groups["concrete"]
    rates = {name: [result.epochs[-1].rate[name] for result in results] for name in results[0].epochs[-1].rate}
    learned = ", ".join(f"{statistics.fmean(values):.3f}" for values in rates.values())
    rows = [["Concrete Dropout", CONCRETE, each(results, accuracy), each(results, recalibrated), drift(results)]]
    head = ["", "paper, C10 / C100 / STL10 (WRN)", "ours, CIFAR10(s)", "ours, recalibrated", "largest W"]
    text = f"Learned rates, from the first layer to the last: {learned}."
    return f"## Table 3: Concrete Dropout\n\n{table(head, rows)}\n\n{text}"


def hendrycks_gimpel(groups: Groups) -> str:
    """Returns the test errors before and after variances are estimated anew, at half and at the end of training."""
    rows = []
    for results in of_row(groups, "Hendrycks and Gimpel").values():
        first = results[0].epochs
        for number in (number for number, epoch in enumerate(first) if epoch.reestimated_accuracy is not None):
            before = [1 - result.epochs[number].test_accuracy for result in results]
            after = [1 - (result.epochs[number].reestimated_accuracy or 0.0) for result in results]
            when = f"{number + 1} of {len(first)}"
            rows.append([_short(results), _rate(results), when, spread(before), spread(after)])
    if not rows:
        return ""
    head = ["", "p'", "after epoch", "test error before", "after the variances are estimated anew"]
    text = "Their initialisation for the noise's second moment. Training goes on with the new variances."
    return f"## Hendrycks and Gimpel: variance re-estimation\n\n{table(head, rows)}\n\n{text}"


def figure_2(groups: Groups) -> str:
    """Returns accuracies against rates, with and without BatchNorm."""
    found = of_row(groups, "Fig 2")
    if not found:
        return ""
    rows = [
        [
            results[0].config.label,
            _batchnorm(results[0]),
            figures.rate_text(results),
            each(results, accuracy),
            each(results, recalibrated) if _batchnorm(results[0]) == "yes" else "-",
        ]
        for results in sorted(found.values(), key=lambda group: (_batchnorm(group[0]), figures.order(group[0])))
    ]
    head = ["", "BatchNorm", "rate p (mean p')", "accuracy", "recalibrated"]
    text = (
        "Without BatchNorm the learning rate is 0.03 instead of 0.1, so the two halves do not compare. There fewer "
        "units are active, and a rate divided by their fraction grows, which makes fewer of them active: with sigma = "
        "0.1 one seed of two collapsed to a single class, with 0.2 both losses were NaN by the third epoch, so that "
        "row is missing."
    )
    return f"## Fig 2: accuracy against the dropout rate\n\n[[fig2]]\n\n{table(head, rows)}\n\n{text}"


def _batchnorm(result: Result) -> str:
    return "yes" if result.config.options.get("batchnorm", True) else "no"


def slides(groups: Groups) -> str:
    """Returns the lecture slides' network against its rate."""
    found = of_row(groups, "slides")
    if not found:
        return ""
    rows = [
        [
            figures.rate_text(results),
            each(results, accuracy),
            each(results, lambda result: result.epochs[-1].train_accuracy),
        ]
        for results in sorted(found.values(), key=lambda group: figures.order(group[0]))
    ]
    text = "At 0.8 it does not learn at all."
    head = ["rate p", "test accuracy", "train accuracy, noise on"]
    return f"## The lecture slides' network\n\n{table(head, rows)}\n\n{text}"
