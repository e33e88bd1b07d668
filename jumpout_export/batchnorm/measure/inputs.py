"""Mean and deviation of what a network is given, per channel: what tells one preprocessing from another."""

from __future__ import annotations

import torch
from torch import Tensor

from jumpout_export.batchnorm.measure.distributed import Ranks

# What has more is no picture, whose colours somebody could have scaled.
MOST_CHANNELS = 16


class InputMoments:
    """The sums of the first input, (N, C, *) with at most 16 channels; of other inputs it knows nothing."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (3, C) float64: values, their sum and that of their squares
        self._other = False

    def add(self, x: Tensor | None) -> None:
        """Takes the first input of one batch."""
        fits = x is not None and x.ndim >= 3 and x.is_floating_point() and x.shape[1] <= MOST_CHANNELS
        if x is None or not fits or (self._sums is not None and self._sums.shape[1] != x.shape[1]):
            self._other = True
            return
        values = x.detach().transpose(0, 1).flatten(1).double()
        count = values.new_full((values.shape[0],), values.shape[1])
        sums = torch.stack([count, values.sum(1), values.square().sum(1)]).cpu()
        self._sums = sums if self._sums is None else self._sums + sums

    def mean_and_deviation(self, ranks: Ranks) -> tuple[Tensor, Tensor] | None:
        """Returns (C,) mean and standard deviation over all samples of all processes; None where nothing is known."""
        own = ranks.gather(None if self._other else self._sums)
        if any(sums is None or sums.shape != own[0].shape for sums in own):
            return None
        count, first, second = torch.stack(own).sum(dim=0)
        mean = first / count
        deviation = (second / count - mean.square()).clamp_min(0).sqrt()
        return (mean, deviation) if bool(torch.isfinite(deviation).all()) else None
