"""From moments to numbers with error bars: how far a layer's stored statistics are from what it sees when served."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jumpout_export.batchnorm.judge.estimate import Estimate, estimate, stored_noise, student_quantile
from jumpout_export.batchnorm.measure.moments import Moments, N
from jumpout_export.model import norms
from jumpout_export.report import BatchNormVerdict

# Below this a jackknife interval means little; the layer is then undecided.
MIN_SAMPLES = 8
# Nobody trains BatchNorm on much smaller batches; checking on small ones must not excuse drift as training noise.
MIN_TRAINING_BATCH = 32
# Of F.batch_norm.
TORCHS_MOMENTUM = 0.1
# Where the batch size of training is a guess, drift has to stand out this many times from the noise of the stored
# average: batches nine times smaller than guessed make three times that noise.
GUESSED_NOISE = 3.0
# Where the variance is carried by fewer samples than this, and by a smaller share of them, tails are heavy.
HEAVY_COUNT, HEAVY_SHARE = 100, 0.05


@dataclass(frozen=True)
class Score:
    """How far one layer's stored statistics (R) are from the measured ones (E), in units of tau = sqrt(s2 + eps)."""

    delta: Tensor  # (C,) (m - mu) / tau
    log_ratio: Tensor  # (C,) ln r, with r = (v + eps) / (s2 + eps)
    delta_se: Tensor  # (C,) standard error of delta, by sampling
    log_ratio_se: Tensor  # (C,) the same of log_ratio
    p_values: Tensor  # (C,) of the hypothesis that both are noise, that of the stored average included
    w: float  # debiased RMS over channels of sqrt(delta^2 + (sqrt(r) - 1)^2)
    low: float  # lower end of its interval, which covers sampling and the noise in the stored average
    high: float  # upper end
    measured: float  # w before what noise adds is taken off
    floor: float  # what noise alone makes of w: that of the samples and that left in the stored moving average
    stored_floor: float  # what the noise in the stored moving average alone makes of w
    stored_samples: float  # how many samples the stored moving average holds
    constant: Tensor  # (C,) bool, channels whose input never varied
    units: int = MIN_SAMPLES  # samples, or groups of them where they are the unit
    carrying: float = math.inf  # as good as so many of them carry the variance, in the channels that are least certain

    @property
    def heavy_tailed(self) -> bool:
        """Whether few samples carry most of the variance, so that no set of this size knows it well."""
        return self.carrying < min(HEAVY_SHARE * self.units, HEAVY_COUNT)

    @property
    def channel_w(self) -> Tensor:
        """(C,) W of each channel, not debiased."""
        return (self.delta.square() + ((self.log_ratio / 2).exp() - 1).square()).sqrt()

    def verdict(self, warn: float, fail: float = math.inf, *, guessed: bool = True) -> BatchNormVerdict:
        """Equivalence with three values: what is not shown to be within the margin or beyond it is undecided.

        W is the systematic part: what the noise of a short moving average adds is taken off, because it is there in
        healthy networks too. A layer whose average carries as much noise as severe drift is never ok, though. Where the
        batch size of training, on which that noise depends, is a guess, drift must stand out three times from it.
        """
        if self.high < warn and self.stored_floor < fail:
            return "ok"
        beyond = max(warn, GUESSED_NOISE * self.stored_floor) if guessed else warn
        return "drift" if self.low > beyond else "inconclusive"

    def samples_needed(self, margin: float, samples: int) -> int | None:
        """Returns about how many samples would decide; None where more would not, or not a reasonable number."""
        # In W^2, in which the interval is symmetric: near 0 that of W would only shrink with the fourth root of n.
        half = self.high**2 - self.w**2
        distance = abs(self.w**2 - margin**2)
        if not math.isfinite(half) or distance == 0 or half == 0:
            return None
        # The interval shrinks as the root of 1 / samples + 1 / stored_samples, whose second part stays.
        per_sample = (1 / samples + 1 / self.stored_samples) * (distance / half) ** 2 - 1 / self.stored_samples
        if per_sample <= 0:
            return None
        needed = math.ceil(1 / per_sample)
        return needed if samples < needed <= 1000 * samples else None


def score_layer(
    moments: Moments, eps: float, stored_samples: float, level: float = 0.05, *, repeats: float = 1.0
) -> Score:
    """Returns the score of one layer, whose interval misses the truth with probability `level`.

    `stored_samples` is how many samples the stored moving average holds; infinity for noiseless buffers. `repeats` is
    how many samples are alike where they are not independent: their sampling then is as noisy as that of so many times
    fewer.
    """
    total = estimate(moments, eps)
    # The stored average is a sample like ours, of another size: it errs the same way, only more or less.
    stored = stored_noise(moments, eps, stored_samples)
    noise = float(total.noise.mean())
    w2 = float(total.w2.mean()) - noise * (repeats + stored)
    half = math.inf
    if moments.units >= MIN_SAMPLES * repeats:  # of the fold's own spread, in the first or second power of its error
        half = _half_width(moments, eps, level) * repeats * math.sqrt(1 + stored / repeats)
    unknown = torch.full_like(total.delta, math.inf)
    return Score(
        delta=total.delta,
        log_ratio=total.log_ratio,
        delta_se=(total.delta_se2 * repeats).sqrt() if moments.samples > 1 else unknown,
        log_ratio_se=(total.log_ratio_se2 * repeats).sqrt() if moments.samples > 1 else unknown,
        p_values=total.p_values(stored, repeats) if moments.samples > 1 else torch.full_like(unknown, math.nan),
        w=_root(w2),
        low=_root(w2 - half),
        high=_root(w2 + half),
        measured=_root(float(total.w2.mean())),
        floor=_root(noise * (repeats + stored)),
        stored_floor=_root(noise * stored),
        stored_samples=stored_samples,
        constant=total.v <= 1e-12 * (_varying(total.v, moments.scale) + total.delta.square()),
        units=moments.units,
        carrying=_carrying(total, moments.units),
    )


def _varying(v: Tensor, scale: Tensor) -> Tensor:
    """(C,) what a channel that varies has of variance, in units of the stored one.

    That is 1, and less where the stored one is beyond what the layer's channels have.
    """
    typical = (v * scale.square()).nanquantile(0.5)
    return (typical / scale.square()).clamp_max(1) if typical > 0 else torch.ones_like(v)


def stored_samples(
    module: Any, batch_size: float, *, guessed: bool = True, calls: int = 1, counted: bool = True
) -> float:
    """Returns how many samples' worth of noise the stored statistics carry: B (2 - m) / m for an average of momentum m.

    `momentum=None` averages all B * num_batches_tracked samples. Infinity (no noise) where training never updated the
    buffers. Each of the `calls` per forward updates the average. Where B is `guessed`, because a model does not store
    that of its training, it is the check's, and taken to be at least 32. Where batches are not `counted`, because
    F.batch_norm is handed the buffers, they are taken for a moving average, of torch's own momentum if it says none.
    """
    if guessed:
        batch_size = max(batch_size, MIN_TRAINING_BATCH)
    # A fixed layer such as torchvision's FrozenBatchNorm2d has neither.
    tracked, momentum = norms.batches_tracked(module), norms.momentum(module)
    if not counted:
        tracked, momentum = tracked or 1, TORCHS_MOMENTUM if momentum is None else momentum
    if not tracked or momentum == 0:
        return math.inf
    updates = tracked if momentum is None else (2 - momentum) / momentum
    return max(batch_size, batch_size * updates / max(calls, 1))


def _carrying(total: Estimate, units: int) -> float:
    """The participation number of samples in the variance, (sum q)^2 / sum q^2 of what each adds to it.

    By channel n / (1 + Var(psi) / v^2), the mean over channels weighted with what their sampling adds to W^2: 1 where
    one sample has all of the variance, n / 3 for normal values.
    """
    # ln r has eps beside v; the variance itself is what samples carry.
    relative = units * total.log_ratio_se2 * (total.r / total.v.clamp_min(1e-300)).square()
    number = (units / (1 + relative)).nan_to_num(float(units))
    weight = total.noise.nan_to_num(0, 0, 0)
    return float((weight * number).sum() / weight.sum()) if float(weight.sum()) > 0 else math.inf


def _half_width(moments: Moments, eps: float, level: float) -> float:
    """Half the width of the sampling interval of W^2, by a jackknife over folds of samples.

    Near W = 0 it is too wide by up to sqrt(2), because a jackknife counts squared errors twice. That is left so: taking
    it off makes the upper end fail twice as often as it may where W is as large as the noise.
    """
    if moments.units < MIN_SAMPLES:
        return math.inf
    folds = moments.sums[moments.sums[:, N].amax(dim=1) > 0]
    without = estimate(moments, eps, moments.total - folds)
    w2 = (without.w2 - without.noise).mean(dim=-1)
    freedom = len(folds) - 1
    return student_quantile(freedom, level) * math.sqrt(freedom * float(w2.var(correction=0)))


def _root(square: float) -> float:
    return math.sqrt(max(square, 0.0)) if not math.isnan(square) else math.nan
