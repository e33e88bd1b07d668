"""What the noise of training makes of each batch: its sums with the noise on, less those of the same batch without.

Jumpout draws one rate per batch, so all samples of a batch vary together. Folds of samples, each of which has some of
every batch, do not show that; forwards do, whose noise is independent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jumpout_export.batchnorm.measure.groups import GroupedMoments
from jumpout_export.batchnorm.measure.moments import Moments, N


def by_sample(moments: Moments) -> Moments:
    """Returns the moments with samples as the unit, also where groups are: noise knows nothing of groups."""
    return moments.alone if isinstance(moments, GroupedMoments) else moments


def noise_of_forwards(noisy: Moments, without: Moments) -> Tensor:
    """Returns (J, rows, C) what the noise adds to the sums of each forward, or of each fold of forwards.

    The first row, which would be 0, holds the samples of the forward. Both moments have sums by batch.
    """
    one, other = by_sample(noisy).batches, by_sample(without).batches
    if one is None or other is None:
        raise ValueError("the noise of forwards needs sums by batch")
    there = one[:, N].amax(dim=1) > 0
    added = (one - other)[there]
    added[:, N] = one[there, N]
    return added


def is_noisy(one: Moments, without: Moments) -> bool:
    """Whether the noise reaches a layer at all."""
    return not torch.equal(one.sums, without.sums)
