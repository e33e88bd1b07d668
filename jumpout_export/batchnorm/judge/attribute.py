"""Where a layer's drift comes from: stale buffers, stochastic layers being off, or BatchNorms upstream.

The stored statistics R are compared with three states that saw the same images: T (training: noise on, batch
statistics), P (noise off, batch statistics) and E (serving: noise off, stored statistics). With all of them in units of
the same tau, ln(E/R) = ln(T/R) + ln(P/T) + ln(E/P), and likewise for the means: exactly additive.

The moments of T and P are pooled over all batches, like those of E. Training stores something slightly else: the mean
of the variances *within* its batches, each made unbiased as if pixels were independent. It is smaller than the pooled
variance by what the batch means vary, at most 1 / B of it for B images in a batch (pixels of one image vary together)
and less downstream of a BatchNorm, which takes out what is common to a batch. Pooled moments are chosen all the same,
because the parts then compare distributions of one and the same input: before the first BatchNorm E = P to the last
bit, and T = P where nothing is random. The difference within / pooled, a property of the stored statistics, is part of
`stale`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jumpout_export.batchnorm.judge.estimate import Estimate
from jumpout_export.report import Attribution, BatchNormLayer, Cause

CAUSES: tuple[Cause, Cause, Cause] = ("stale", "stochastic", "propagated")
# The typical channels are the central one in five.
_TYPICAL = 5


@dataclass(frozen=True)
class Parts:
    """The parts of one layer's drift, in the order of `CAUSES`."""

    log_ratio: Tensor  # (3, C) parts of ln r; they add up to it
    delta: Tensor  # (3, C) parts of delta, in units of tau; they add up to it
    median: tuple[float, float, float]  # parts of the median of ln r over channels; they add up to it
    of_variance: tuple[float, float, float]  # share of each part in the layer's squared drift by way of the variance
    # the same by way of the mean; all six add up to 1, and a negative one worked against the drift
    of_mean: tuple[float, float, float]

    @property
    def shares(self) -> tuple[float, float, float]:
        """Share of each part in the layer's squared drift; they add up to 1."""
        stale, stochastic, propagated = (one + two for one, two in zip(self.of_variance, self.of_mean, strict=True))
        return stale, stochastic, propagated

    @property
    def cause(self) -> Cause:
        """The part with the largest share."""
        shares = self.shares
        return CAUSES[shares.index(max(shares))]

    @property
    def attribution(self) -> Attribution:
        """The parts per channel, as the report holds them."""
        parts = {"log_ratio": self.log_ratio.tolist(), "delta": self.delta.tolist()}
        return Attribution(
            **{
                f"{name}_{cause}": part
                for name, three in parts.items()
                for cause, part in zip(CAUSES, three, strict=True)
            }
        )


def attribute(training: Estimate, renormalised: Estimate, serving: Estimate, usable: Tensor) -> Parts:
    """Returns the parts of one layer's drift, from T, P and E; channels that are not `usable`, (C,) bool, are NaN.

    The share of part k in the squared drift sum_c W_c^2 is sum_c [delta_k delta + lambda_k lambda (sqrt(r) - 1)^2 /
    lambda^2], lambda = ln r: what is left of the sum with all parts in the places of one, so that shares add up to 1.
    """
    log_ratio = _steps(training.log_ratio, renormalised.log_ratio, serving.log_ratio)
    delta = _steps(training.delta, renormalised.delta, serving.delta)
    known = usable & torch.isfinite(log_ratio).all(dim=0) & torch.isfinite(delta).all(dim=0)
    whole_log, whole_delta = serving.log_ratio[known], serving.delta[known]
    root = serving.r[known].sqrt() - 1
    # (sqrt(r) - 1) / ln r tends to 1/2 where r tends to 1.
    weight = torch.where(whole_log.abs() > 1e-6, root / whole_log, 0.5).square()
    squared = (whole_delta.square() + weight * whole_log.square()).sum()
    by_variance = (log_ratio[:, known] * whole_log * weight).sum(dim=1) / squared
    by_mean = (delta[:, known] * whole_delta).sum(dim=1) / squared
    return Parts(
        log_ratio=log_ratio.masked_fill(~usable, torch.nan),
        delta=delta.masked_fill(~usable, torch.nan),
        median=_three(_typical(log_ratio[:, known], whole_log)),
        of_variance=_three(by_variance.nan_to_num()),
        of_mean=_three(by_mean.nan_to_num()),
    )


def origin(rows: Sequence[BatchNormLayer], own: dict[str, bool]) -> str | None:
    """Returns the first drifting layer in call order that drifts on its own, that is not by what is propagated.

    Where none does (many small drifts upstream add up, or P was not measured), the first drifting layer. `own` says by
    name whether the drift of state P against the stored statistics is beyond the margin.
    """
    drifting = [row.name for row in rows if row.verdict == "drift"]
    return next((name for name in drifting if own.get(name, False)), next(iter(drifting), None))


def _steps(training: Tensor, renormalised: Tensor, serving: Tensor) -> Tensor:
    """(3, C): from R (0 in these units) to T, from T to P, from P to E."""
    return torch.stack([training, renormalised - training, serving - renormalised])


def _typical(parts: Tensor, whole: Tensor) -> Tensor:
    """(3,) parts of the median over channels of `whole`, (C,).

    One channel's parts would be noisy: they are the means over the central fifth of the channels by rank, and what
    these miss of the median is spread equally over the three.
    """
    channels = len(whole)
    if channels == 0:
        return parts.new_full((3,), torch.nan)
    count = max(channels // _TYPICAL, 1)
    count += (channels - count) % 2  # symmetric about the middle
    first = (channels - count) // 2
    typical = parts[:, whole.argsort()[first : first + count]].mean(dim=1)
    return typical + (whole.quantile(0.5) - typical.sum()) / 3


def _three(values: Tensor) -> tuple[float, float, float]:
    first, second, third = values.tolist()
    return first, second, third
