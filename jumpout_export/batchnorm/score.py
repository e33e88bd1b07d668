"""From moments to numbers with error bars: how far a layer's stored statistics are from what it sees when served."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from jumpout_export.batchnorm.collect import AA, AB, BB, A, B, Moments, N
from jumpout_export.report import BatchNormVerdict

# Below this a jackknife interval means little; the layer is then undecided.
MIN_IMAGES = 8
# Nobody trains BatchNorm on much smaller batches; checking on small ones must not excuse drift as training noise.
MIN_TRAINING_BATCH = 32


@dataclass(frozen=True)
class Score:
    """How far one layer's stored statistics (R) are from the measured ones (E), in units of tau = sqrt(s2 + eps).

    Attributes:
        delta: (C,) (m - mu) / tau.
        log_ratio: (C,) ln r, with r = (v + eps) / (s2 + eps).
        delta_se: (C,) standard error of delta from the sampling of images.
        log_ratio_se: (C,) the same of log_ratio.
        w: debiased RMS over channels of sqrt(delta^2 + (sqrt(r) - 1)^2).
        low: lower end of its 95% interval, which covers the sampling of images.
        high: upper end.
        floor: what noise alone makes of w: that of the images and that left in the stored moving average.
        constant: (C,) bool, channels whose input never varied.
    """

    delta: Tensor
    log_ratio: Tensor
    delta_se: Tensor
    log_ratio_se: Tensor
    w: float
    low: float
    high: float
    floor: float
    constant: Tensor

    @property
    def channel_w(self) -> Tensor:
        """(C,) W of each channel, not debiased."""
        return _w2(self.delta, self.log_ratio).sqrt()

    def verdict(self, margin: float) -> BatchNormVerdict:
        """Equivalence with three values: what is not shown to be within the margin or beyond it is undecided.

        Drift must also stand out three times from the noise, because a short moving average is off by that much in
        healthy networks too.
        """
        if self.high < margin:
            return "ok"
        return "drift" if self.low > max(margin, 3 * self.floor) else "inconclusive"

    def images_needed(self, margin: float, images: int) -> int | None:
        """Returns about how many images would decide; None where more images would not, or not a reasonable number."""
        half = self.high - self.w if self.w < margin else self.w - self.low
        distance = abs(self.w - margin)
        if not math.isfinite(half) or distance == 0:
            return None
        needed = math.ceil(images * (half / distance) ** 2)  # the interval shrinks with the root of the images
        return needed if images < needed <= 1000 * images else None


def score_layer(moments: Moments, eps: float, stored_images: float) -> Score:
    """Returns the score of one layer.

    Args:
        moments: of the layer's input, shifted and scaled by its stored statistics.
        eps: the layer's eps.
        stored_images: how many images the stored moving average holds; infinity for noiseless buffers.
    """
    unbias = moments.count / max(moments.count - 1, 1)
    scaled_eps = eps / moments.scale.square()
    total = _Estimate(moments.total, scaled_eps, unbias)
    folds = moments.sums[moments.sums[:, N].amax(dim=1) > 0]
    w2 = float(total.debiased_w2(stored_images))
    if moments.images < MIN_IMAGES:
        half = math.inf
    else:
        without = _Estimate(moments.total - folds, scaled_eps, unbias).debiased_w2(stored_images)
        half = _student(len(folds) - 1) * math.sqrt((len(folds) - 1) * float(without.var(correction=0)))
    unknown = torch.full_like(total.delta, math.inf)
    return Score(
        delta=total.delta,
        log_ratio=total.log_ratio,
        delta_se=total.delta_se2.sqrt() if moments.images > 1 else unknown,
        log_ratio_se=total.log_ratio_se2.sqrt() if moments.images > 1 else unknown,
        w=_root(w2),
        low=_root(w2 - half),
        high=_root(w2 + half),
        floor=_root(float(total.noise(stored_images).mean())),
        constant=total.v <= 1e-12 * (1 + total.delta.square()),
    )


def stored_images(module: _BatchNorm, batch_size: float) -> float:
    """Returns how many images' worth of noise the stored statistics carry: B (2 - m) / m for an average of momentum m.

    `momentum=None` averages all B * num_batches_tracked images. The training batch size is not stored; it is taken to
    be that of the check, and at least 32. Infinity (no noise) where training never updated the buffers.
    """
    batch_size = max(batch_size, MIN_TRAINING_BATCH)
    tracked = 0 if module.num_batches_tracked is None else int(module.num_batches_tracked)
    if tracked == 0 or module.momentum == 0:
        return math.inf
    if module.momentum is None:
        return batch_size * tracked
    return batch_size * (2 - module.momentum) / module.momentum


class _Estimate:
    """delta, r and their sampling variances from sums (..., 6, C), in units of tau.

    m = mean a and v = mean b - m^2; v's influence function is psi = (b - mean b) - 2 m (a - mean a), so its sampling
    variance is Var(psi) / N, and the delta method gives Var(ln r) = Var(psi) / N / r^2.
    """

    def __init__(self, sums: Tensor, scaled_eps: Tensor, unbias: float) -> None:
        n = sums[..., N, :]
        a, b = sums[..., A, :] / n, sums[..., B, :] / n
        sample = n / (n - 1).clamp_min(1)
        var_a = (sums[..., AA, :] / n - a.square()) * sample
        var_b = (sums[..., BB, :] / n - b.square()) * sample
        cov = (sums[..., AB, :] / n - a * b) * sample
        var_psi = var_b - 4 * a * cov + 4 * a.square() * var_a
        self.n = n
        self.delta = a
        self.v = (b - a.square()).clamp_min(0) * unbias
        self.r = self.v + scaled_eps
        self.log_ratio = self.r.log()
        self.delta_se2 = var_a.clamp_min(0) / n
        # r is 0 only for a constant channel with eps = 0; nothing was sampled there.
        self.log_ratio_se2 = torch.where(self.r > 0, var_psi.clamp_min(0) / n / self.r.square(), 0.0)

    def noise(self, stored_images: float) -> Tensor:
        """(..., C) what noise of images and of the stored average adds to W^2; Var(sqrt r) = r Var(ln r) / 4."""
        both = 1 + self.n / stored_images
        return both * (self.delta_se2 + self.r * self.log_ratio_se2 / 4)

    def debiased_w2(self, stored_images: float) -> Tensor:
        """(...) mean over channels of W^2 less what noise adds to it."""
        return (_w2(self.delta, self.log_ratio) - self.noise(stored_images)).mean(dim=-1)


def _w2(delta: Tensor, log_ratio: Tensor) -> Tensor:
    return delta.square() + ((log_ratio / 2).exp() - 1).square()


def _root(square: float) -> float:
    return math.sqrt(max(square, 0.0)) if not math.isnan(square) else math.nan


def _student(freedom: int) -> float:
    """The 97.5% quantile of Student's t, by the Cornish-Fisher series in 1 / freedom (Abramowitz & Stegun 26.7.5)."""
    z = 1.959964
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
