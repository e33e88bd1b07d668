"""When a check has seen enough samples, without spoiling its error rate by looking several times."""

from __future__ import annotations

import itertools
from statistics import NormalDist

from torch import Tensor

# The first look; further ones at twice, four times ... as many samples.
FIRST_LOOK = 512
LEVEL = 0.05
_LEAST_LEVEL = 1e-9
# So few labels, or changes expected of them, say nothing about the order.
_FEW_LABELS, _FEW_CHANGES = 64, 16


class Looks:
    """The looks at the data of one check, and the level of each.

    Several looks, each at 95%, would miss more often than one in twenty times. Here the levels of all looks add up to
    5% (Bonferroni), spent as O'Brien & Fleming (1979) do in the form of Lan & DeMets (1983): by a fraction t of the
    samples, 2 (1 - Phi(1.96 / sqrt(t))). Early looks are strict (3e-8 at an eighth, 9e-5 at a quarter, .0055 at half of
    the samples), so that almost all of the 5% is left for the last one. The interval in the report is that of the look
    at which the check stopped, and covers however it came to stop.

    Args:
        samples: the samples asked for.
        early: whether to look before the end at all.
    """

    def __init__(self, samples: int, *, early: bool) -> None:
        self._samples = samples
        self._next = FIRST_LOOK if early else samples
        self._spent = 0.0

    def end_at(self, samples: int) -> None:
        """Says before the first look that there are only so many samples."""
        self._samples = min(self._samples, samples)

    def due(self, seen: int) -> float | None:
        """Returns the level of a look after `seen` samples, None if none is due; a look that is due is spent."""
        reached = 0
        while self._next <= seen and self._next < self._samples:
            reached, self._next = self._next, 2 * self._next
        if reached == 0 or seen >= self._samples:
            return None
        spent = 2 * (1 - NormalDist().cdf(NormalDist().inv_cdf(1 - LEVEL / 2) / (reached / self._samples) ** 0.5))
        if spent - self._spent < _LEAST_LEVEL:
            return None  # so strict that nothing can be decided, by quantiles that float64 hardly holds
        level, self._spent = spent - self._spent, spent
        return level

    @property
    def last(self) -> float:
        """The level of the last look: what is left."""
        return LEVEL - self._spent


class LabelRuns:
    """Whether labels come in runs, that is whether the loader is sorted by class; in memory for one count per class."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._changes = self._pairs = 0
        self._last: int | None = None

    def add(self, labels: Tensor | None) -> None:
        """Takes the labels of one batch, (N,) integers, or None."""
        if labels is None or labels.ndim != 1 or labels.is_floating_point() or len(labels) == 0:
            return
        classes, counts = labels.cpu().unique(return_counts=True)
        for label, count in zip(classes.tolist(), counts.tolist(), strict=True):
            self._counts[label] = self._counts.get(label, 0) + count
        run = labels.cpu().tolist()
        before = run if self._last is None else [self._last, *run]
        self._changes += sum(one != two for one, two in itertools.pairwise(before))
        self._pairs += len(before) - 1
        self._last = run[-1]

    @property
    def sorted(self) -> bool:
        """Whether neighbours differ less than a quarter as often as in a random order, or not at all."""
        total = sum(self._counts.values())
        by_chance = self._pairs * (1 - sum((count / total) ** 2 for count in self._counts.values())) if total else 0.0
        if len(self._counts) == 1:
            return total >= _FEW_LABELS
        return by_chance >= _FEW_CHANGES and self._changes < by_chance / 4
