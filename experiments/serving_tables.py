"""The table about validation during training: by running statistics, and by those that serving sees."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from experiments.results import Result
from experiments.tables import Groups, each, of_row, table

# The epoch, of twelve, in the middle of training.
_MIDDLE = 4


def serving(groups: Groups) -> str:
    """Returns what validation shows in the middle of training, and which epoch it chooses, by both statistics."""
    found = of_row(groups, "serving")
    if not found:
        return ""
    rows = [
        [
            results[0].config.label,
            each(results, lambda result: result.epochs[_MIDDLE - 1].test_accuracy),
            each(results, lambda result: _served(result)[_MIDDLE - 1]),
            _epochs(results, by_serving=False),
            each(results, lambda result: _served(result)[chosen(result, by_serving=False)]),
            _epochs(results, by_serving=True),
            each(results, lambda result: _served(result)[chosen(result, by_serving=True)]),
        ]
        for results in found.values()
    ]
    head = [
        "",
        f"epoch {_MIDDLE}: running",
        "serving",
        "best epoch by running",
        "accuracy it can serve",
        "best epoch by serving",
        "accuracy it can serve",
    ]
    keep = next(iter(found.values()))[0].config.training.serving
    return (
        "## Not in the paper: validation during training\n\n[[serving]]\n\n"
        "Runs from above once more, tested after every epoch by the running statistics and by `ServingStatistics` of "
        f"the last {keep} batches. On the right the epoch that each would choose, and what the network of that epoch "
        "serves with serving statistics; the last column is a maximum of what it is compared by, and so a little too "
        "high.\n\n"
        f"{table(head, rows)}"
    )


def chosen(result: Result, *, by_serving: bool) -> int:
    """Returns the index of the epoch with the highest accuracy, the first of several."""
    values = _served(result) if by_serving else [epoch.test_accuracy for epoch in result.epochs]
    return values.index(max(values))


def lost(results: Sequence[Result]) -> float:
    """Returns the accuracy that choosing the epoch by running statistics costs, averaged over runs."""
    return statistics.fmean(
        _served(result)[chosen(result, by_serving=True)] - _served(result)[chosen(result, by_serving=False)]
        for result in results
    )


def _served(result: Result) -> list[float]:
    return [epoch.serving_accuracy or 0.0 for epoch in result.epochs]


def _epochs(results: Sequence[Result], *, by_serving: bool) -> str:
    return ", ".join(str(1 + chosen(result, by_serving=by_serving)) for result in results)
