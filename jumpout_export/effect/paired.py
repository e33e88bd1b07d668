"""Statistics of a paired comparison: the same samples before and after.

Gained samples are wrong before and right after, lost ones the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Z95 = 1.959964  # 97.5% quantile of the normal distribution


def mcnemar_p(gained: int, lost: int) -> float:
    """Returns the two-sided p-value of the exact McNemar test that samples are as often gained as lost.

    Twice the smaller tail of Binomial(gained + lost, 1/2), at most 1 (McNemar 1947; exact form: Mosteller 1952).
    """
    n, least = gained + lost, min(gained, lost)
    # The tail in units of its largest term, C(n, least): C(n, k - 1) = C(n, k) k / (n - k + 1).
    tail, term = 0.0, 1.0
    for k in range(least, -1, -1):
        tail += term
        term *= k / (n - k + 1)
        if term < 1e-18 * tail:
            break
    log_largest = math.lgamma(n + 1) - math.lgamma(least + 1) - math.lgamma(n - least + 1)
    return min(1.0, math.exp(math.log(2 * tail) + log_largest - n * math.log(2)))


def accuracy_change_interval(gained: int, lost: int, samples: int) -> tuple[float, float]:
    """Returns the 95% interval of the change in accuracy, by the adjusted Wald method of Bonett and Price.

    One sample is added to both kinds of change (J. Educ. Behav. Stat. 37, 2012, 479-488); recommended by Fagerland,
    Lydersen and Laake (Statistics in Medicine 33, 2014, 2850-2875). There must be at least one sample.
    """
    up, down = (gained + 1) / (samples + 2), (lost + 1) / (samples + 2)
    half = Z95 * math.sqrt((up + down - (up - down) ** 2) / (samples + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


class PairedChange:
    """The mean change of a quantity, with whole samples as the unit: several values of one sample are correlated.

    It keeps five sums, so its memory does not grow with the samples.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._sums = torch.zeros(5, dtype=torch.float64)

    def add(self, change: Tensor, count: Tensor) -> None:
        """Takes (N,) float64 sums of the change over the values of a sample, and (N,) how many values they are."""
        self.samples += int((count > 0).sum())
        rows = torch.stack([change, count, change * change, change * count, count * count])
        self._sums += rows.sum(dim=1).cpu()

    def interval(self) -> tuple[float, float] | None:
        """Returns the 95% interval of the mean change per value; None for fewer than two samples."""
        if self.samples < 2:
            return None
        s, n, ss, sn, nn = self._sums.tolist()
        mean = s / n
        # Linearised ratio estimator (Cochran, Sampling Techniques, 1977, eq. 6.13): the residuals are s_i - mean n_i.
        residual = ss - 2 * mean * sn + mean * mean * nn
        if not math.isnan(residual):  # rounding may leave it below 0
            residual = max(residual, 0.0)
        half = Z95 * math.sqrt(residual * self.samples / (self.samples - 1)) / n
        return mean - half, mean + half


class CalibrationGap:
    """The calibration error before and after, and the 95% interval of its change, with whole samples as the unit.

    Per bin of confidence, right less confidence is summed over the values; the absolute sums over bins are the error.
    Around the sums that were seen it is linear in them, so their second moments over samples give its error bar (the
    delta method). The sums do not grow with the samples.
    """

    def __init__(self, bins: int) -> None:
        self.samples = 0
        # Of each sample the gaps per bin before, those after, and how many values it has.
        self._sums = torch.zeros(2 * bins + 1, dtype=torch.float64)
        self._moments = torch.zeros(2 * bins + 1, 2 * bins + 1, dtype=torch.float64)

    def add(self, samples: int, sample: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Takes the sample of each value, and its bin and its gap (right less confidence) on both sides, (V,) each."""
        rows = torch.zeros(samples, len(self._sums), dtype=torch.float64)
        sample = sample.cpu()
        for offset, (bins, gap) in ((0, before), (self._bins, after)):
            rows.index_put_((sample, offset + bins.cpu()), gap.double().cpu(), accumulate=True)
        rows[:, -1].index_add_(0, sample, torch.ones(len(sample), dtype=torch.float64))
        self.samples += int((rows[:, -1] > 0).sum())
        self._sums += rows.sum(dim=0)
        self._moments += rows.T @ rows

    @property
    def _bins(self) -> int:
        return len(self._sums) // 2  # no attribute: those of several processes are added

    def size(self) -> Tensor:
        """Returns the error before and after, summed over the values, (2,)."""
        return self._sums[:-1].reshape(2, self._bins).abs().sum(dim=1)

    def interval(self) -> tuple[float, float] | None:
        """Returns the 95% interval of the change per value; None for fewer than two samples."""
        if self.samples < 2:
            return None
        before, after = (self.size() / self._sums[-1]).tolist()
        change = after - before
        signs = self._sums[:-1].sign()
        weights = torch.cat([-signs[: self._bins], signs[self._bins :], signs.new_tensor([-change])])
        residual = float(weights @ self._moments @ weights)
        if not math.isnan(residual):  # rounding may leave it below 0
            residual = max(residual, 0.0)
        half = Z95 * math.sqrt(residual * self.samples / (self.samples - 1)) / float(self._sums[-1])
        return change - half, change + half
