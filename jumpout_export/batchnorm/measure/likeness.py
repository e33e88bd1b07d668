"""Whether samples are independent of each other, by what the first layer sees of each: its own sums.

Nothing is said of where samples come from, so frames of a clip, crops of a scene or copies are told by their likeness,
and sorted data by the likeness of neighbours in order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Samples and channels that are compared: every pair of samples is.
MOST_SAMPLES, MOST_CHANNELS = 4096, 32
# So few show neither groups nor an order.
FEWEST = 64
# Distances to the k-th and the 2k-th neighbour differ by about a factor 2^(1 / dimension), the same for all k, where
# samples are independent. Where they come in groups of like ones there is a leap where a group ends. In simulations its
# logarithm was at most 1.7 times the typical step for independent samples (normal, log-normal, Student's t, digits, 1
# to 64 dimensions) and at least 3 times for groups that are closer together than to others.
LEAP, LEAST_LEAP = 2.5, 0.3
# Slow waves along the order, and the standard deviations by which samples have to follow them.
WAVES, DEVIATIONS = 8, 8.0
_NOTHING = 1e-5
# Copies of one sample differ by rounding, in deviations; so few channels may be the same by chance.
COPY, FEWEST_CHANNELS = 1e-3, 4


class Likeness:
    """What the first layer sees of each sample: at most 4,096 samples and 32 channels, (N, 2 K) means of x and x^2."""

    def __init__(self) -> None:
        # All of it at once: what a pass holds does not grow with its samples.
        self._rows: Tensor | None = None
        self._samples = 0

    def add(self, mean: Tensor, var: Tensor) -> None:
        """Takes (N, C) means and variances over the pixels of the samples of one batch."""
        kept = [part[:, :MOST_CHANNELS].float().cpu() for part in (mean, var + mean.square())]
        rows = torch.cat(kept, dim=1)[: MOST_SAMPLES - self._samples]
        if self._rows is None:
            self._rows = rows.new_zeros(MOST_SAMPLES, rows.shape[1])
        if rows.shape[1] == self._rows.shape[1]:
            self._rows[self._samples : self._samples + len(rows)] = rows
            self._samples += len(rows)

    @property
    def sorted(self) -> bool:
        """Whether the samples change along their order: the data come sorted, or in long runs.

        Under any order by chance n times the squared correlations of the D whitened columns with K slow waves add up to
        chi^2 with D K degrees of freedom.
        """
        rows = self._scaled()
        if rows is None:
            return False
        axes, size, _ = torch.linalg.svd(rows, full_matrices=False)
        axes = axes[:, size > 1e-3 * size[0]]
        place = (torch.arange(len(rows)) + 0.5) / len(rows)
        waves = torch.cos(math.pi * torch.arange(1, WAVES + 1)[:, None] * place) * math.sqrt(2 / len(rows))
        freedom = WAVES * axes.shape[1]
        return float((waves @ axes).square().sum()) * len(rows) > freedom + DEVIATIONS * math.sqrt(2 * freedom)

    def group_size(self) -> float:
        """Returns how many samples that a sample stands for are alike, itself among them; 1 for independent samples."""
        channels = self._rows.shape[1] // 2 if self._rows is not None else 0
        # What a clip has in common may be in the means alone, and noise in the squares would hide it.
        # One or two numbers may be the same by chance, where values are whole ones.
        part = channels if channels >= FEWEST_CHANNELS else None
        distances = [None if rows is None else _distances(rows) for rows in (self._scaled(), self._scaled(part))]
        return max(self._copies(distances[0]), *map(_group_size, distances))

    def _copies(self, distance: Tensor | None) -> float:
        """Returns how many samples are the same as the median one, however few there are of their kind.

        The median, because some samples may be blank and yet independent. Without pixels that vary rows may be those of
        a table with few values.
        """
        if self._rows is None or self._samples < FEWEST or self._rows.shape[1] < 2 * FEWEST_CHANNELS:
            return 1.0
        mean, square = self._rows[: self._samples].double().chunk(2, dim=1)
        if not bool((square - mean.square() > 1e-6 * square).any(dim=1).all()):
            return 1.0
        if distance is None:
            return float(self._samples)
        return float((distance < COPY).sum(dim=1).double().median())

    def _scaled(self, columns: int | None = None) -> Tensor | None:
        """(N, D) the rows, or only their first columns, in units of their deviation; None where there is too little."""
        if self._rows is None or self._samples < FEWEST:
            return None
        rows = self._rows[: self._samples, :columns]
        rows = rows[:, torch.isfinite(rows).all(dim=0)]
        if rows.shape[1] == 0:
            return None
        rows = rows - rows.mean(dim=0)
        deviation = rows.std(dim=0)
        varies = deviation > 1e-6 * (1 + deviation.max())
        return rows[:, varies] / deviation[varies] if bool(varies.any()) else None


def _group_size(distance: Tensor | None) -> float:
    if distance is None:
        return 1.0
    samples = len(distance)
    distance.fill_diagonal_(math.inf)
    counts = [2**power for power in range(13) if 2**power <= samples // 8]
    nearest = distance.topk(counts[-1], largest=False).values
    typical = [float(nearest[:, k - 1].clamp_min(_NOTHING).log().median()) for k in counts]
    steps = torch.tensor(typical).diff()
    # Groups of which there are fewer than 16 are kinds of samples rather than samples again and again.
    within = steps[: max(sum(2 * k <= samples // 16 for k in counts), 1)]
    leap = int(within.argmax())
    if float(within[leap]) < max(LEAP * float(steps.median()), LEAST_LEAP):
        return 1.0
    reach = math.exp((typical[leap] + typical[leap + 1]) / 2)
    return 1 + float((distance < reach).double().sum(dim=1).mean())


def _distances(rows: Tensor) -> Tensor:
    """(N, N) distances between (N, D) rows; by products of matrices float32 would leave copies .005 apart."""
    rows = rows.double()
    return torch.cdist(rows, rows).float()
