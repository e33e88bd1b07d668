"""Error bars of what is made of several states: the parts of a drift, and how far two sets of samples are apart.

States that saw the same samples vary together, so a fold of samples is left out of all of them at once (a jackknife).
What is checked and its reference are independent sets of samples: the variances of what each leaves out add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jumpout_export.batchnorm.judge.attribute import steps, typical
from jumpout_export.batchnorm.judge.estimate import Estimate, estimate, student_quantile
from jumpout_export.batchnorm.judge.score import MIN_SAMPLES
from jumpout_export.batchnorm.measure.moments import Moments, N


@dataclass(frozen=True)
class Distance:
    """How far what a layer sees of two sets of samples is apart, a W in units of the stored tau."""

    w: float  # debiased
    low: float  # lower end of the interval
    high: float  # upper end


def part_errors(states: Sequence[Moments], checked: Moments | None, eps: float, usable: Tensor) -> Tensor:
    """Returns (K,) sampling standard errors of the parts of the median ln r.

    Args:
        states: moments of T, P and E, of the same samples.
        checked: with a reference, the moments of E of what is checked, of other samples.
        eps: that of the layer.
        usable: (C,) bool, the channels that can be compared.
    """
    own = [_without_folds(state, eps) for state in states]
    whole = [estimate(state, eps) for state in states]
    if checked is None:
        return _spread(_medians(own, usable)).sqrt()
    last = estimate(checked, eps)
    of_reference = _spread(_medians([*own, last], usable))
    return (of_reference + _spread(_medians([*whole, _without_folds(checked, eps)], usable))).sqrt()


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
