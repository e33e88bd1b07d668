"""Where a layer's drift comes from: stale buffers, stochastic layers being off, BatchNorms upstream, or other data.

The stored statistics R are compared with three states that saw the same samples: T (training: noise on, batch
statistics), P (noise off, batch statistics) and E (serving: noise off, stored statistics). With all of them in units of
the same tau, ln(E/R) = ln(T/R) + ln(P/T) + ln(E/P), and likewise for the means: exactly additive. With a reference, T,
P and E are measured on its samples, and the step from E there to E of what is checked is a fourth part: data.

The moments of T and P are pooled over all batches, like those of E. Training stores something slightly else: the mean
of the variances *within* its batches, each made unbiased as if pixels were independent. It is smaller than the pooled
variance by what the batch means vary, at most 1 / B of it for B samples in a batch (pixels of one sample vary together)
and less downstream of a BatchNorm, which takes out what is common to a batch. Pooled moments are chosen all the same,
because the parts then compare distributions of one and the same input: before the first BatchNorm E = P to the last
bit, and T = P where nothing is random. The difference within / pooled, a property of the stored statistics, is part of
`stale`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jumpout_export.batchnorm.judge.estimate import Estimate
from jumpout_export.report import Attribution, BatchNormLayer, Cause

CAUSES: tuple[Cause, ...] = ("stale", "stochastic", "propagated", "data")
# The typical channels are the central one in five.
_TYPICAL = 5


@dataclass(frozen=True)
class Parts:
    """The K parts of one layer's drift, three or with a reference four, in the order of `CAUSES`."""

    log_ratio: Tensor  # (K, C) parts of ln r; they add up to it
    delta: Tensor  # (K, C) parts of delta, in units of tau; they add up to it
    median: tuple[float, ...]  # parts of the median of ln r over channels; they add up to it
    of_variance: tuple[float, ...]  # share of each part in the layer's squared drift by way of the variance
    # the same by way of the mean; both add up to 1, and a negative one worked against the drift
    of_mean: tuple[float, ...]

    @property
    def shares(self) -> dict[Cause, float]:
        """Share of each part in the layer's squared drift; they add up to 1."""
        both = zip(self.of_variance, self.of_mean, strict=True)
        return dict(zip(CAUSES, (one + two for one, two in both), strict=False))

    def cause(self, *, data: bool = True) -> Cause:
        """Returns the part with the largest share; `data` says whether the data may be named."""
        shares = {cause: share for cause, share in self.shares.items() if data or cause != "data"}
        return max(shares, key=lambda cause: shares[cause])

    @property
    def attribution(self) -> Attribution:
        """The parts per channel, as the report holds them."""
        parts = {"log_ratio": self.log_ratio.tolist(), "delta": self.delta.tolist()}
        return Attribution(
            **{
                f"{name}_{cause}": part
                for name, several in parts.items()
                for cause, part in zip(CAUSES, several, strict=False)
            }
        )


def attribute(states: Sequence[Estimate], usable: Tensor) -> Parts:
    """Returns the parts of one layer's drift; channels that are not `usable`, (C,) bool, are NaN.

    `states` are T, P and E, or with a reference its T, P and E and the E of what is checked; the last one is served.

    The share of part k in the squared drift sum_c W_c^2 is sum_c [delta_k delta + lambda_k lambda (sqrt(r) - 1)^2 /
    lambda^2], lambda = ln r: what is left of the sum with all parts in the places of one, so that shares add up to 1.
    """
    serving = states[-1]
    log_ratio = steps([state.log_ratio for state in states])
    delta = steps([state.delta for state in states])
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
        median=tuple(typical(log_ratio[:, known], whole_log).tolist()),
        of_variance=tuple(by_variance.nan_to_num().tolist()),
        of_mean=tuple(by_mean.nan_to_num().tolist()),
    )


def origin(rows: Sequence[BatchNormLayer], own: dict[str, bool]) -> str | None:
    """Returns the first drifting layer in call order that drifts on its own, that is not by what is propagated.

    Where none does (many small drifts upstream add up, or P was not measured), the first drifting layer. `own` says by
    name whether the drift of state P against the stored statistics is beyond the margin.
    """
    drifting = [row.name for row in rows if row.verdict == "drift"]
    return next((name for name in drifting if own.get(name, False)), next(iter(drifting), None))


def steps(states: Sequence[Tensor]) -> Tensor:
    """Returns (K, ..., C): from R (0 in these units) to the first state, from that to the second, and so on."""
    return torch.stack([states[0], *(after - before for before, after in itertools.pairwise(states))])


def typical(parts: Tensor, whole: Tensor) -> Tensor:
    """Returns (K, ...) parts of the median over channels of `whole`, (..., C), of which (K, ..., C) are the parts.

    One channel's parts would be noisy: they are the means over the central fifth of the channels by rank, and what
    these miss of the median is spread equally over them.
    """
    channels = whole.shape[-1]
    if channels == 0:
        return parts.new_full(parts.shape[:-1], torch.nan)
    count = max(channels // _TYPICAL, 1)
    count += (channels - count) % 2  # symmetric about the middle
    first = (channels - count) // 2
    central = whole.argsort(dim=-1)[..., first : first + count]
    mean = parts.gather(-1, central.expand(*parts.shape[:-1], count)).mean(dim=-1)
    return mean + (whole.quantile(0.5, dim=-1) - mean.sum(dim=0)) / len(parts)
