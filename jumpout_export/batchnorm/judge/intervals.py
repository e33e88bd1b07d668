"""Error bars of what is made of several states: the parts of a drift, and how far two sets of samples are apart.

States that saw the same samples vary together, so a fold of samples is left out of all of them at once (a jackknife).
What is checked and its reference are independent sets of samples: the variances of what each leaves out add up. So
does that of the noise that training draws, per batch in the case of jumpout, which folds of samples do not show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jumpout_export.batchnorm.judge.attribute import steps, typical
from jumpout_export.batchnorm.judge.estimate import Estimate, estimate, student95, student_quantile
from jumpout_export.batchnorm.judge.score import MIN_SAMPLES
from jumpout_export.batchnorm.measure.moments import Moments, N
from jumpout_export.batchnorm.measure.noise import by_sample


@dataclass(frozen=True)
class Distance:
    """How far what a layer sees of two sets of samples is apart, a W in units of the stored tau."""

    w: float  # debiased
    low: float  # lower end of the interval
    high: float  # upper end


def part_errors(
    states: Sequence[Moments], checked: Moments | None, eps: float, usable: Tensor, noise: Tensor | None = None
) -> list[float]:
    """Returns half the widths of the 95% intervals of the K parts of the median ln r; infinity where it is unknown.

    They cover sampling, and what the noise of training drew: one forward with noise says nothing of that.

    Args:
        states: moments of T, P and E, of the same samples.
        checked: with a reference, the moments of E of what is checked, of other samples.
        eps: that of the layer.
        usable: (C,) bool, the channels that can be compared.
        noise: (J, rows, C) what noise added to the sums of each forward in T, None where there was none.
    """
    own = [_without_folds(state, eps) for state in states]
    whole = [estimate(state, eps) for state in states]
    last = [] if checked is None else [estimate(checked, eps)]
    parts = _medians([*own, *last], usable)
    sources = [(_spread(parts), parts.shape[-1] - 1)]
    if checked is not None:
        parts = _medians([*whole, _without_folds(checked, eps)], usable)
        sources.append((_spread(parts), parts.shape[-1] - 1))
    if noise is not None:
        if len(noise) < 2:  # nothing is known of what T enters, which the first two parts are
            sources.append((torch.tensor([math.inf, math.inf] + [0.0] * (len(parts) - 2)).to(parts), 1))
        else:
            parts = _medians([_other_noise(states[1], eps, noise), *whole[1:], *last], usable)
            sources.append((_spread(parts), parts.shape[-1] - 1))
    return [_half_width([(float(variance[k]), freedom) for variance, freedom in sources]) for k in range(len(parts))]


def _half_width(sources: Sequence[tuple[float, int]]) -> float:
    """Half the 95% interval of a sum of independent errors, (variance, degrees of freedom) each (Welch 1947)."""
    total = sum(variance for variance, _ in sources)
    if not 0 < total < math.inf:
        return total
    freedom = total**2 / sum(variance**2 / max(of, 1) for variance, of in sources)
    return student95(int(freedom)) * math.sqrt(total)


def _other_noise(without: Moments, eps: float, noise: Tensor) -> Estimate:
    """The estimate of T, (J, C), with the noise of each forward left out in turn, from P and what noise adds to it."""
    moments = by_sample(without)
    total, others = moments.total, noise.sum(dim=0) - noise
    sums = total + total[N] * others / others[:, N : N + 1]
    sums[:, N] = total[N]
    return estimate(moments, eps, sums)


def data_distance(checked: Moments, reference: Moments, eps: float, usable: Tensor, level: float) -> Distance:
    """Returns how far apart two sets of samples are in what a layer sees of them; the interval misses by `level`."""
    one, two = estimate(checked, eps), estimate(reference, eps)
    if min(checked.units, reference.units) < MIN_SAMPLES or not usable.any():
        return Distance(math.nan, math.nan, math.inf)
    w2 = float(_apart(one, two, usable))
    variance = 0.0
    folds = []
    for left_out in (
        _apart(_without_folds(checked, eps), two, usable),
        _apart(one, _without_folds(reference, eps), usable),
    ):
        variance += float(_spread(left_out[None]))
        folds.append(left_out.numel())
    half = student_quantile(min(folds) - 1, level) * math.sqrt(variance)
    low, high = (math.sqrt(max(square, 0.0)) for square in (w2 - half, w2 + half))
    return Distance(math.sqrt(max(w2, 0.0)), low, high)


def _apart(one: Estimate, two: Estimate, usable: Tensor) -> Tensor:
    """(...) squared W between two states, the mean over channels, without what sampling adds."""
    squared = (one.delta - two.delta).square() + (one.r.sqrt() - two.r.sqrt()).square()
    return (squared - one.noise - two.noise)[..., usable].mean(dim=-1)


def _without_folds(moments: Moments, eps: float) -> Estimate:
    """The estimate, (F, C), with each fold of samples left out in turn."""
    folds = moments.sums[moments.sums[:, N].amax(dim=1) > 0]
    return estimate(moments, eps, moments.total - folds)


def _medians(states: Sequence[Estimate], usable: Tensor) -> Tensor:
    """(K, F) the parts of the median ln r with each fold left out."""
    ratios = torch.broadcast_tensors(*(state.log_ratio[..., usable] for state in states))
    return typical(steps(ratios), ratios[-1])


def _spread(left_out: Tensor) -> Tensor:
    """(K,) the jackknife's variance of what is left, (K, F)."""
    return (left_out.shape[-1] - 1) * left_out.var(dim=-1, correction=0)
