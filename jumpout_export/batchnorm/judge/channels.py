"""Single channels that are severely off, however many healthy ones their layer has.

A layer's W is the root mean square over its channels: one of 512 that is off by a whole standard deviation makes .044
of it. So every channel is tested by itself for a W beyond `fail`, with the error rate over all channels of the model
held by Holm (1979): the chance that any healthy channel is called drifting is at most that of one interval.

Channels are many and their tails heavy, so the bounds are rectangular, for mean and variance, and allow for what no
standard error shows: samples so rare that none is among those that were seen, or in the stored average. Of n samples a
share of ln(1 / level) / n may be missing with probability `level`. What they can add is bounded by taking that none
deviates by more than `RARE` standard deviations, the channel's own or a typical channel's of its layer, whichever is
larger; in channels with heavier tails than a normal one's by more, as the root of the kurtosis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jumpout_export.batchnorm.judge.estimate import Estimate, student_quantile
from jumpout_export.batchnorm.judge.score import MIN_SAMPLES

RARE = 8.0


@dataclass(frozen=True)
class ChannelTest:
    """The test of every channel of one layer for a W beyond a margin.

    Attributes:
        total: the estimate from all samples, in units of the stored tau.
        scale: (C,) the stored tau.
        usable: (C,) bool, channels whose stored statistics can be compared; the others are tested elsewhere.
        units: how many samples there are, or groups of them.
        stored_samples: how many samples the stored average holds; infinity for noiseless buffers.
        stored: how noisy that average is, in sampling variances of what was measured.
        inflation: how many times larger its standard error may be than those make it.
        repeats: how many samples are alike where they are not independent.
    """

    total: Estimate
    scale: Tensor
    usable: Tensor
    units: int
    stored_samples: float
    stored: float
    inflation: float = 1.0
    repeats: float = 1.0

    @property
    def count(self) -> int:
        """How many channels are tested."""
        return int(self.usable.sum())

    def low(self, level: float) -> Tensor:
        """Returns (C,) a lower bound of each channel's W, above it with probability `level` at most; 0 if unusable."""
        total = self.total
        if self.count == 0 or self.units < MIN_SAMPLES * self.repeats:
            return torch.zeros_like(total.delta)
        noise = math.sqrt(self.repeats + self.inflation**2 * self.stored)
        z = noise * student_quantile(int(self.units / self.repeats) - 1, level / 2)
        # One sample of the last batch weighs up to twice what one of as many equal samples does.
        rare = math.log(4 / level) * (self.repeats / self.units + 2 / self.stored_samples)
        spread = total.v.sqrt()
        # The kurtosis less 1, which is 2 where the channel is normal and has one pixel.
        tail = (self.units * total.log_ratio_se2 / 2).clamp_min(1).sqrt()
        largest = RARE * tail * spread.maximum(self.scale[self.usable].quantile(0.5) / self.scale)
        # A share p of the samples that makes p A^2 of the variance moves the mean by p A, at most sqrt(p) deviations.
        missing = (rare * largest).clamp_max(math.sqrt(rare)) * spread.clamp_min(1)
        mean = (total.delta.abs() - z * total.delta_se2.sqrt() - missing).clamp_min(0)
        error = z * total.log_ratio_se2.sqrt()
        # The error bar of a variance shrinks with the variance: a sum downwards and a factor upwards, the wider ones.
        least = total.r * (1 - error) - rare * largest.square()
        most = total.r * error.exp() + rare * largest.square()
        ratio = (least.clamp_min(1).sqrt() - 1).maximum(1 - most.clamp_max(1).sqrt())
        return (mean.square() + ratio.square()).sqrt().masked_fill(~self.usable, 0).nan_to_num(0, 0, 0)


def channels_beyond(tests: Mapping[str, ChannelTest], margin: float, level: float) -> dict[str, list[int]]:
    """Returns by layer the channels whose W is beyond `margin`, the farthest first.

    By Holm's step-down over all channels of all layers: with R of m rejected, the others are tested at level / (m - R).
    """
    total = sum(test.count for test in tests.values())
    found: dict[str, list[int]] = {name: [] for name in tests}
    rejected = -1
    while rejected < (now := sum(map(len, found.values()))) < total:
        rejected = now
        for name, test in tests.items():
            low = test.low(level / (total - rejected))
            order = low.argsort(descending=True).tolist()
            found[name] = [channel for channel, bound in zip(order, low[order].tolist(), strict=True) if bound > margin]
    return found
