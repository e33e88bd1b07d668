"""What the tables of experiments/README.md are made of: groups of runs, and numbers with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from experiments.results import Result

Groups = dict[str, list[Result]]
Value = Callable[[Result], float]


def by_name(results: Iterable[Result]) -> Groups:
    """Returns configuration -> its runs."""
    groups: Groups = {}
    for result in results:
        groups.setdefault(result.name, []).append(result)
    return groups


def of_row(groups: Groups, row: str) -> Groups:
    """Returns the configurations that belong to a row of the paper."""
    return {name: results for name, results in groups.items() if row in results[0].config.rows}


def distinct(groups: Groups) -> Groups:
    """Returns the configurations whose networks are no other's once more: those of `serving` train some again."""
    return {name: results for name, results in groups.items() if "serving" not in results[0].config.rows}


def spread(values: Sequence[float], scale: float = 100.0, places: int = 1) -> str:
    """Returns mean, standard deviation and number of seeds as text; percentages by default."""
    mean = statistics.fmean(values) * scale
    if len(values) < 2:
        return f"{mean:.{places}f} (1)"
    return f"{mean:.{places}f} ± {statistics.stdev(values) * scale:.{places}f} ({len(values)})"


def each(results: Iterable[Result], value: Value) -> str:
    """Returns the spread of a percentage over runs."""
    return spread([value(result) for result in results])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)


def accuracy(result: Result) -> float:
    """Of the test images, with the statistics that training left."""
    return result.served.accuracy


def recalibrated(result: Result) -> float:
    """Of the test images, with recalibrated statistics."""
    return result.served.accuracy_after


def largest_w(result: Result) -> float:
    """Of all BatchNorm layers; 0 without one."""
    return max(result.served.w.values(), default=0.0)


def drift(results: Sequence[Result]) -> str:
    """Returns the largest W, averaged over seeds, and the verdicts."""
    if not results[0].served.w:
        return "no BatchNorm"
    return f"{statistics.fmean(largest_w(result) for result in results):.2f}: {verdicts(results)}"


def verdicts(results: Sequence[Result]) -> str:
    """Returns how often the check says what."""
    found = [result.served.verdict for result in results]
    return ", ".join(f"{found.count(one)} {one}" for one in ("ok", "inconclusive", "drift") if one in found)


def gain(ours: Sequence[Result], others: Sequence[Result], value: Value) -> tuple[float, float] | None:
    """Returns the mean difference and its standard error, None with fewer than two runs each."""
    a, b = [value(result) for result in ours], [value(result) for result in others]
    if min(len(a), len(b)) < 2:
        return None
    error = (statistics.variance(a) / len(a) + statistics.variance(b) / len(b)) ** 0.5
    return statistics.fmean(a) - statistics.fmean(b), error
