"""Mean and variance against the stored ones, with their sampling errors, from sums over samples."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from jumpout_export.batchnorm.measure.groups import GroupedMoments
from jumpout_export.batchnorm.measure.moments import AA, AB, BB, SQUARES, A, B, Moments, N

FALSE_DISCOVERY_RATE = 0.05
# What float32 buffers resolve, in units of tau: less is no evidence in a dead channel, whose sampling error is 0.
_RESOLUTION = 1e-6
_LARGEST_CORRELATION = 0.999


class Estimate:
    """delta, r and their sampling covariance from sums (..., 6, C), in units of tau.

    m = mean a and v = mean b - m^2; v's influence function is psi = (b - mean b) - 2 m (a - mean a), so its sampling
    variance is Var(psi) / n, its covariance with m is Cov(a, psi) / n, and the delta method gives Var(ln r) =
    Var(psi) / n / r^2.

    Where the variance is that within samples only (InstanceNorm), b holds it alone: v = mean b, and psi = b - mean b.

    Attributes:
        n: (..., C) samples; of weighted ones as many as would be as good if they weighed the same, (sum w)^2 / sum w^2.
        delta: (..., C) m, which is (mean - running_mean) / tau.
        v: (..., C) variance in units of tau^2, unbiased.
        r: (..., C) v + eps / tau^2, which is (variance + eps) / (running_var + eps).
        log_ratio: (..., C) ln r.
        delta_se2: (..., C) sampling variance of delta.
        log_ratio_se2: (..., C) that of log_ratio.
        covariance: (..., C) sampling covariance of the two.
    """

    def __init__(self, sums: Tensor, scaled_eps: Tensor, unbias: float, *, per_instance: bool = False) -> None:
        total = n = sums[..., N, :]
        if sums.shape[-2] > SQUARES:
            n = total.square() / sums[..., SQUARES, :]
        a, b = sums[..., A, :] / total, sums[..., B, :] / total
        sample = n / (n - 1).clamp_min(1)
        var_a = ((sums[..., AA, :] / total - a.square()) * sample).clamp_min(0)
        var_b = (sums[..., BB, :] / total - b.square()) * sample
        cov = (sums[..., AB, :] / total - a * b) * sample
        of_mean = torch.zeros_like(a) if per_instance else a
        var_psi = (var_b - 4 * of_mean * cov + 4 * of_mean.square() * var_a).clamp_min(0)
        self.n = n
        self.delta = a
        self.v = (b - of_mean.square()).clamp_min(0) * unbias
        self.r = self.v + scaled_eps
        self.log_ratio = self.r.log()
        self.delta_se2 = var_a / n
        # r is 0 only for a constant channel with eps = 0; nothing was sampled there.
        sampled = self.r > 0
        self.log_ratio_se2 = torch.where(sampled, var_psi / n / self.r.square(), 0.0)
        self.covariance = torch.where(sampled, (cov - 2 * of_mean * var_a) / n / self.r, 0.0)

    @property
    def w2(self) -> Tensor:
        """(..., C) W^2 = delta^2 + (sqrt(r) - 1)^2."""
        return self.delta.square() + (self.r.sqrt() - 1).square()

    @property
    def noise(self) -> Tensor:
        """(..., C) what sampling adds to W^2; Var(sqrt r) = r Var(ln r) / 4."""
        return self.delta_se2 + self.r * self.log_ratio_se2 / 4

    def p_values(self, stored: float, repeats: float = 1.0) -> Tensor:
        """(..., C) of the hypothesis that delta and log_ratio are both 0, that is of noise alone.

        Hotelling's T^2 of the two with their covariance; the stored average is `stored` times as noisy as this (in
        variance), and each sample stands for `repeats` alike.
        """
        both = repeats + stored
        vd, vl = (part * both + _RESOLUTION**2 for part in (self.delta_se2, self.log_ratio_se2))
        c = self.covariance * both
        # Where one number follows from the other (a binary input), their covariance matrix is singular.
        c = c.clamp(-_LARGEST_CORRELATION * (vd * vl).sqrt(), _LARGEST_CORRELATION * (vd * vl).sqrt())
        both_ways = self.delta.square() * vl - 2 * self.delta * self.log_ratio * c + self.log_ratio.square() * vd
        t2 = both_ways / (vd * vl - c.square())
        # Survival function of F(2, n - 2), which T^2 (n - 2) / (2 (n - 1)) follows, in closed form.
        freedom = (self.n - 1).clamp_min(1)
        return (1 + t2 / freedom) ** (-(freedom - 1) / 2)


def estimate(moments: Moments, eps: float, sums: Tensor | None = None) -> Estimate:
    """Returns the estimate for a layer whose eps is `eps`, from all samples or from (..., 6, C) sums over some."""
    sums = moments.total if sums is None else sums
    return Estimate(sums, eps / moments.scale.square(), moments.unbias, per_instance=moments.per_instance)


def discoveries(p_values: Tensor, rate: float = FALSE_DISCOVERY_RATE) -> Tensor:
    """Returns (C,) bool: the tests that are significant at a false discovery rate (Benjamini & Hochberg 1995).

    NaN is never significant and counts as no test.
    """
    valid = ~torch.isnan(p_values)
    ordered = p_values[valid].sort().values
    limits = rate * torch.arange(1, len(ordered) + 1, dtype=p_values.dtype, device=p_values.device) / len(ordered)
    below = torch.nonzero(ordered <= limits)
    if len(below) == 0:
        return torch.zeros_like(valid)
    return valid & (p_values <= ordered[int(below[-1])])


def student_quantile(freedom: int, level: float) -> float:
    """Returns t with P(|T| > t) = level for Student's T, by the Cornish-Fisher series in 1 / freedom.

    Abramowitz & Stegun 26.7.5, four terms; `freedom` must be at least 7, which makes it good to 3% at a level of 1e-8.
    """
    z = -NormalDist().inv_cdf(level / 2)  # 1 - level / 2 would round to 1 at the levels of single channels
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def student95(freedom: int) -> float:
    """Returns t with P(|T| > t) = 5% for Student's T with any number >= 1 of degrees of freedom."""
    few = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447)  # below 7, where the series of `student_quantile` fails
    return few[max(freedom, 1) - 1] if freedom <= len(few) else student_quantile(freedom, 0.05)


def stored_noise(moments: Moments, eps: float, stored_samples: float) -> float:
    """Returns how noisy the average of so many stored samples is, in sampling variances of what was measured.

    Where groups are the unit, those of what was measured are those of groups, and of the average those of samples.
    """
    if not isinstance(moments, GroupedMoments):
        return moments.samples / stored_samples
    measured, alone = (float(estimate(one, eps).noise.nan_to_num().mean()) for one in (moments, moments.alone))
    return moments.samples / stored_samples * (alone / measured if measured > 0 else 1.0)
