"""Writes experiments/README.md from the results: each table and figure of the paper, theirs beside ours."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from experiments import figures
from experiments.paper_values import ABLATIONS, CONCRETE, PAPER, ablation_name
from experiments.results import Result, read_result

Groups = dict[str, list[Result]]


def write_summary(results: Path, readme: Path, protocol: str) -> None:
    """Writes the tables to `readme` and the figures to `figures/PROTOCOL` beside it.

    Raises:
        ValueError: if there are no results.
    """
    found = [read_result(path) for path in sorted(results.glob("*.json"))]
    if not found:
        raise ValueError(f"there are no results in {results}; give --data to make some")
    groups = _by_name(found)
    pictures = figures.draw(groups, readme.parent / "figures" / protocol)
    sections = [
        _head(found, protocol),
        _table_1(groups),
        _table_2(groups),
        _table_3(groups),
        _hendrycks_gimpel(groups),
        _figure_2(groups),
        _ratios(groups),
        _depth(groups),
        _slides(groups),
        _pipeline(groups),
    ]
    text = "\n\n".join(section for section in sections if section)
    for marker, picture in pictures.items():
        text = text.replace(f"[[{marker}]]", f"![{picture.stem}]({picture.relative_to(readme.parent)})")
    readme.write_text(text + "\n")


def spread(values: Sequence[float], scale: float = 100.0, places: int = 1) -> str:
    """Returns mean, standard deviation and number of seeds as text; percentages by default."""
    mean = statistics.fmean(values) * scale
    if len(values) < 2:
        return f"{mean:.{places}f} (1)"
    return f"{mean:.{places}f} ± {statistics.stdev(values) * scale:.{places}f} ({len(values)})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)


def _by_name(results: list[Result]) -> Groups:
    groups: Groups = defaultdict(list)
    for result in results:
        groups[result.name].append(result)
    return dict(groups)


def _of(groups: Groups, row: str) -> Groups:
    """The configurations that belong to a row of the paper."""
    return {name: results for name, results in groups.items() if row in results[0].config.rows}


def _each(results: list[Result], value: Callable[[Result], float]) -> str:
    return spread([value(result) for result in results])


def _accuracy(result: Result) -> float:
    return result.served.accuracy


def _recalibrated(result: Result) -> float:
    return result.served.accuracy_after


def _train_accuracy(result: Result) -> float:
    return result.epochs[-1].train_accuracy


def _drift(results: list[Result]) -> str:
    """The largest W, averaged over seeds, and how often the check says drift."""
    worst = [max(result.served.w.values(), default=0.0) for result in results]
    if not results[0].served.w:
        return "no BatchNorm"
    drifting = sum(result.served.verdict == "drift" for result in results)
    return f"{statistics.fmean(worst):.2f}, drift in {drifting} of {len(results)}"


def _head(results: list[Result], protocol: str) -> str:
    one = results[0]
    seconds = sum(epoch.seconds for result in results for epoch in result.epochs)
    data = sorted({result.data for result in results})
    where = {
        "cpu": "This is the CPU-sized protocol: fewer and smaller images, narrower networks, fewer epochs. "
        "It shows directions and mechanisms, not the paper's accuracies.",
        "gpu": "This is the full protocol of CIFAR10(s) and a shortened one of the Wide ResNet.",
    }[protocol]
    command = "make paper DATA=DIR" if protocol == "cpu" else "make paper-gpu DATA=DIR"
    return f"""# The paper's tables and figures, measured with this package

Wang, Zhou, Bilmes, *Jumpout: Improved Dropout for Deep Neural Networks with ReLUs*, ICML 2019. {where}
The same protocol as far as the paper states it; sigma of its half-normal rate, the place of the layers and its
tuned rates are not in the text we have, and the values of its Table 1 neither. Where it names none we take
sigma = 0.1 and put jumpout after every ReLU.

This file is written by `{command}`: {len(results)} runs, {seconds / 3600:.1f} hours of training in all,
on {one.machine["device"]} ({one.machine["cores"]} cores), torch {one.machine["torch"]}.
Data: {"; ".join(data)}. Where these were JPEG files, that costs every method a little accuracy.
Numbers are mean ± standard deviation over seeds, with the number of seeds in brackets; accuracies are percentages of
the test images. Every trained network was checked, recalibrated, exported and verified by this package.

{_index(protocol)}"""


def _index(protocol: str) -> str:
    rows = [
        ("Fig 1, active units", "`jumpout`", "[active units](#fig-1-active-units)"),
        ("Fig 2, accuracy against rate", "`fig2-*`, `table1-*`", "[rates](#fig-2-accuracy-against-the-dropout-rate)"),
        (
            "Figs 3 and 5, mean and variance ratios",
            "`alpha-*`",
            "[ratios](#figs-3-and-5-mean-and-variance-with-noise-over-without)",
        ),
        ("Fig 4, learning curves", "`none`, `dropout`, `jumpout`", "[curves](#fig-4-learning-curves)"),
        ("Table 1, the three modifications", "`table1-*`", "[ablation](#table-1-the-three-modifications)"),
        ("Table 2, dropout and jumpout", "`none`, `dropout`, `jumpout`", "[comparison](#table-2-the-cifar10s-column)"),
        ("Table 3, Concrete Dropout", "`concrete`", "[Concrete Dropout](#table-3-concrete-dropout)"),
        ("Hendrycks and Gimpel", "`hg-*`", "[re-estimation](#hendrycks-and-gimpel-variance-re-estimation)"),
        ("lecture slides", "`slides-*`", "[slides](#the-lecture-slides-network)"),
    ]
    rows = [(what, f"{files} in [configs/{protocol}](configs/{protocol})", where) for what, files, where in rows]
    return table(["in the paper", "one run: `python -m experiments.run FILE --data DIR`", "here"], rows)


def _table_1(groups: Groups) -> str:
    found = _of(groups, "Table 1")
    rows = []
    for flags in ABLATIONS:
        name = ablation_name(flags)
        if name in found:
            marks = ["yes" if flag else "" for flag in flags]
            results = found[name]
            rows.append([*marks, _each(results, _accuracy), _each(results, _recalibrated), _drift(results)])
    if not rows:
        return ""
    head = ["I half-normal rate", "II normalised by q", "III rescaled", "accuracy", "recalibrated", "largest W"]
    text = "The first row is plain dropout, the last one jumpout."
    return f"## Table 1: the three modifications\n\n{table(head, rows)}\n\n{text}"


def _table_2(groups: Groups) -> str:
    rows = []
    for name, paper in PAPER.items():
        if name in groups:
            results = groups[name]
            rows.append([name, paper, _each(results, _accuracy), _each(results, _recalibrated), _drift(results)])
    if not rows:
        return ""
    head = ["", "paper", "ours", "ours, recalibrated", "largest W"]
    return (
        f"## Table 2: the CIFAR10(s) column\n\n{table(head, rows)}\n\n{_order(groups)}\n\n"
        "### Fig 4: learning curves\n\n[[fig4]]\n\n### Fig 1: active units\n\n[[fig1]]"
    )


def _order(groups: Groups) -> str:
    """Says whether jumpout is above dropout here, as it is in the paper, and how sure that is."""
    if not {"dropout", "jumpout"} <= groups.keys():
        return ""
    sentences = []
    for what, value in (("", _accuracy), (", both recalibrated", _recalibrated)):
        a, b = ([value(result) for result in groups[name]] for name in ("dropout", "jumpout"))
        if min(len(a), len(b)) < 2:
            return "One seed each: the order of dropout and jumpout is not known."
        gain = statistics.fmean(b) - statistics.fmean(a)
        error = (statistics.variance(a) / len(a) + statistics.variance(b) / len(b)) ** 0.5
        sure = abs(gain) > 2 * error
        order = "the paper's order" if gain > 0 else "**not the paper's order**"
        verdict = order if sure else "no difference that these seeds could tell from noise"
        sentences.append(f"jumpout - dropout{what}: {gain:+.1%} ± {error:.1%} (standard error), {verdict}")
    return f"The paper has jumpout 3.7 points above dropout. Here {'; '.join(sentences)}."


def _table_3(groups: Groups) -> str:
    if "concrete" not in groups:
        return ""
    results = groups["concrete"]
    rates = {name: [result.epochs[-1].rate[name] for result in results] for name in results[0].epochs[-1].rate}
    learned = ", ".join(f"{statistics.fmean(values):.3f}" for values in rates.values())
    rows = [["Concrete Dropout", CONCRETE, _each(results, _accuracy), _each(results, _recalibrated), _drift(results)]]
    head = ["", "paper, C10 / C100 / STL10 (WRN)", "ours, CIFAR10(s)", "ours, recalibrated", "largest W"]
    text = f"Learned rates, from the first layer to the last: {learned}."
    return f"## Table 3: Concrete Dropout\n\n{table(head, rows)}\n\n{text}"


def _hendrycks_gimpel(groups: Groups) -> str:
    rows = []
    for results in _of(groups, "Hendrycks and Gimpel").values():
        first = results[0].epochs
        points = [number for number, epoch in enumerate(first) if epoch.reestimated_accuracy is not None]
        for number in points:
            before = [1 - result.epochs[number].test_accuracy for result in results]
            after = [1 - (result.epochs[number].reestimated_accuracy or 0.0) for result in results]
            rows.append([results[0].config.label, f"{number + 1} of {len(first)}", spread(before), spread(after)])
    if not rows:
        return ""
    head = ["", "after epoch", "test error before", "after the variances are estimated anew"]
    return f"## Hendrycks and Gimpel: variance re-estimation\n\n{table(head, rows)}"


def _figure_2(groups: Groups) -> str:
    found = _of(groups, "Fig 2")
    if not found:
        return ""
    rows = [
        [
            results[0].config.label,
            _batchnorm(results[0]),
            figures.rate_text(results),
            _each(results, _accuracy),
            _each(results, _recalibrated),
        ]
        for results in sorted(found.values(), key=lambda group: (_batchnorm(group[0]), figures.order(group[0])))
    ]
    head = ["", "BatchNorm", "rate p (mean p')", "accuracy", "recalibrated"]
    return f"## Fig 2: accuracy against the dropout rate\n\n[[fig2]]\n\n{table(head, rows)}"


def _batchnorm(result: Result) -> str:
    return "yes" if result.config.options.get("batchnorm", True) else "no"


def _ratios(groups: Groups) -> str:
    rows = []
    for results in _of(groups, "Figs 3 and 5").values():
        last = [result.epochs[-1].ratios for result in results]
        first = [
            ratio for ratios in last for ratio in ratios if ratio.layer == ratios[0].layer and ratio.mode == "stored"
        ]
        every = [ratio for ratios in last for ratio in ratios if ratio.mode == "batch"]
        rows.append(
            [
                results[0].config.label,
                f"{first[0].mean:.4f} ± {first[0].mean_error:.4f}",
                f"{first[0].mean_expected:.4f}",
                f"{first[0].variance:.4f} ± {first[0].variance_error:.4f}",
                f"{first[0].variance_expected:.4f}",
                f"{statistics.fmean(ratio.mean for ratio in every):.3f}",
                f"{statistics.fmean(ratio.variance for ratio in every):.3f}",
            ]
        )
    if not rows:
        return ""
    head = ["", "first layer: mean", "closed form", "variance", "closed form", "all layers: mean", "variance"]
    return (
        "## Figs 3 and 5: mean and variance with noise over without\n\n[[fig3]]\n\n"
        f"{table(head, rows)}\n\nThe closed forms hold where the noise is the layer's own input and none came before: "
        "at the first noisy layer, with the stored BatchNorm statistics. ± is the standard error over 8 draws of the "
        "noise."
    )


def _depth(groups: Groups) -> str:
    found = _of(groups, "depth")
    if not found:
        return ""
    return (
        "## Not in the paper: drift grows with depth\n\n[[depth]]\n\nW of every BatchNorm layer, stored statistics "
        "against what serving sees, after training with the same rate and three scales."
    )


def _slides(groups: Groups) -> str:
    found = _of(groups, "slides")
    if not found:
        return ""
    rows = [
        [
            figures.rate_text(results),
            _each(results, _accuracy),
            _each(results, lambda result: result.epochs[-1].train_accuracy),
        ]
        for results in sorted(found.values(), key=lambda group: figures.order(group[0]))
    ]
    return f"## The lecture slides' network\n\n{table(['rate p', 'test accuracy', 'train accuracy, noise on'], rows)}"


def _pipeline(groups: Groups) -> str:
    every = [result for results in groups.values() for result in results]
    normed = [result for result in every if result.served.w]
    drifting = [result for result in normed if result.served.verdict == "drift"]
    mended = [result for result in drifting if result.served.verdict_after != "drift"]
    exported = [result for result in every if result.served.exported]
    gains = [result.served.accuracy_after - result.served.accuracy for result in drifting]
    lines = [
        f"* {len(exported)} of {len(every)} networks were exported and verified.",
        (
            f"* {len(drifting)} of {len(normed)} networks with BatchNorm drift; after the exact recalibration "
            f"{len(drifting) - len(mended)} of them still do."
        ),
    ]
    if gains:
        lines.append(
            f"* Recalibration changes the accuracy of those by {statistics.fmean(gains):+.2%} on average, "
            f"{min(gains):+.2%} to {max(gains):+.2%}."
        )
    failed = [
        f"{result.name} seed {result.seed} ({result.served.export_problem})"
        for result in every
        if not result.served.exported
    ]
    lines += [f"* Not exported: {'; '.join(failed)}."] if failed else []
    return "## What the product said of every network\n\n" + "\n".join(lines)
