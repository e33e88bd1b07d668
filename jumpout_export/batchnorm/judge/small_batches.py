"""Whether small batches in training explain how far a layer is off: what stored averages of them look like.

Training normalises each batch that a BatchNorm sees by itself, so it is the micro-batch of gradient accumulation, and
the batch of one process without SyncBatchNorm, that says how noisy the stored average is. Small batches also store too
small a variance: within a batch of B samples, that between samples is short by 1 / B of itself.
"""

from __future__ import annotations

import math

from jumpout_export.batchnorm.judge.estimate import estimate, stored_noise
from jumpout_export.batchnorm.judge.score import Score, stored_samples
from jumpout_export.batchnorm.measure.held import samples_held
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.moments import Moments


def explaining_batch(layer: Layer, moments: Moments, score: Score, batch_size: float) -> int | None:
    """Returns the largest batch of training by which W would be 0 within one standard error.

    None where that is no smaller than `batch_size`, the one that the score reckons with, or where no batch, however
    small, explains it.
    """
    averaged = bool(layer.batches_tracked) and not layer.fixed and layer.momentum != 0
    if not averaged or samples_held(layer.module) or score.w == 0 or moments.per_instance or moments.units < 2:
        return None
    total = estimate(moments, layer.eps)
    excess = score.measured**2 - (score.floor**2 - score.stored_floor**2)
    pixels = moments.count / moments.samples
    one_error = (score.high**2 - score.w**2) / 2  # the interval is about two of them wide, to either side
    between = total.delta_se2 * moments.samples

    def explained(batch: int, errors: int = 1) -> bool:
        """Whether averages of such batches are as far from exact statistics, within so many standard errors."""
        held = stored_samples(layer.module, batch, guessed=False, calls=moments.calls)
        noise = float(total.noise.mean()) * stored_noise(moments, layer.eps, held)
        short = (total.v - between / batch) * (batch * pixels / (batch * pixels - 1))
        ratio = (total.v / short.clamp_min(1e-6 * total.v.clamp_min(1e-12))).clamp_min(1)
        error = one_error * math.sqrt(
            (1 + stored_noise(moments, layer.eps, held)) / (1 + stored_noise(moments, layer.eps, score.stored_samples))
        )
        return noise + float((ratio.sqrt() - 1).square().mean()) + errors * error >= excess

    least, most = (1 if pixels > 1 else 2), int(batch_size)
    if most < least or not explained(least, errors=2) or explained(most):
        return None
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if explained(middle) else (least, middle)
    return least
