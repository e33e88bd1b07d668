"""The moments of what a BatchNorm layer sees: sums over samples that add up across batches, passes and processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.model.batches import device_of

# Sample i belongs to fold i % FOLDS: interleaved, so that no split into batches changes the folds.
FOLDS = 32
# Very wide layers have fewer folds, so that their sums stay in the hundreds of MB.
WIDE_CHANNELS, WIDE_FOLDS = 1 << 16, 8
# Rows of the sums: samples, then the sums of a, b, a^2, b^2 and a b over samples.
N, A, B, AA, BB, AB = range(6)
# One more row where samples weigh by their pixels: the sum of squared weights. The others are weighted sums then.
SQUARES = 6
# A layer called more often in one forward (a recurrent network) gets no sums of its own per call.
MOST_CALLS = 64


class Moments:
    """The additive moments of one layer's input.

    The unit is a sample, because the pixels of one sample are correlated: a and b are the means over a sample's pixels
    of x and x^2, with x shifted by the stored mean and divided by the stored tau = sqrt(running_var + eps) (by 0 and 1
    in channels whose statistics are unusable). The shift removes the cancellation in b - a^2.

    Everything but shift and scale is a sum or a count (`calls`: a maximum), so that moments of the same stored
    statistics merge exactly, in any order: `merge`.

    Attributes:
        shift: (C,) float64, what was subtracted.
        scale: (C,) float64, what it was divided by.
        sums: (folds, 6, C) float64: rows n, Sa, Sb, Saa, Sbb, Sab per fold of samples; 7 rows, weighted, if samples
            weigh by their pixels.
        call_sums: where the layer is called several times per forward, (6, C) or (7, C) float64 for each call in turn.
        batches: (folds, 6, C) or (folds, 7, C) float64, the same sums per batch, batch i in fold i % folds; None where
            they were not asked for. `merge` leaves them alone.
        forwards: how many batches reached the layer.
        count: values per channel: samples times pixels.
        samples: samples that reached the layer.
        calls: calls of the layer in one forward, the most seen.
        outside: its buffers were used by calls outside of its module, which counts no batches.
        per_instance: the layer is an InstanceNorm: its variance is the average over samples of each sample's own,
            unbiased over its pixels, and b is that alone.
    """

    def __init__(self, layer: Layer, *, by_pixels: bool = False, by_batch: bool = False) -> None:
        self.per_instance = layer.per_instance
        self.shift, self.scale = _units(layer)
        channels = self.shift.shape[0]
        folds = FOLDS if channels <= WIDE_CHANNELS else WIDE_FOLDS
        rows = SQUARES + 1 if by_pixels else SQUARES
        self.sums = torch.zeros(folds, rows, channels, dtype=torch.float64, device=self.shift.device)
        self.batches = torch.zeros_like(self.sums) if by_batch else None
        self.call_sums: list[Tensor] = []
        self.count = self.samples = self.calls = self.forwards = 0
        self.outside = False

    @property
    def units(self) -> int:
        """How many independent units there are: samples."""
        return self.samples

    @property
    def total(self) -> Tensor:
        """(6, C), or (7, C) where samples weigh by their pixels: the sums over all samples."""
        return self.sums.sum(dim=0)

    @property
    def finite(self) -> bool:
        """Whether the input held neither NaN nor infinity."""
        return bool(torch.isfinite(self.sums).all())

    @property
    def unbias(self) -> float:
        """The factor n / (n - 1) of the unbiased variance, n = samples x pixels; 1 for a single value."""
        if self.per_instance:
            return 1.0
        return self.count / max(self.count - 1, 1)

    def merge(self, other: Moments) -> None:
        """Adds what `other` saw of the same layer with the same stored statistics, for example in another process."""
        self.sums += other.sums
        for index, sums in enumerate(other.call_sums):
            self._call(index).add_(sums)
        self.count += other.count
        self.samples += other.samples
        self.calls = max(self.calls, other.calls)
        self.outside |= other.outside

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Returns mean and unbiased variance v n / (n - 1) of the input, (C,) float64 each, n = samples x pixels.

        Raises:
            ValueError: if there is one value per channel only.
        """
        if self.count < 2:
            raise ValueError("the variance of a single value per channel is undefined; pass more samples")
        n, a, b = self.total[[N, A, B]]
        m = a / n
        v = b / n if self.per_instance else (b / n - m.square()).clamp_min(0) * self.unbias
        return self.shift + self.scale * m, self.scale.square() * v

    def add_calls(self, calls: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        """Adds several calls of one forward, (N, C) a and b and (N,) weights each, and pools them.

        The same samples several times are no more samples: their calls are averaged, each weighing the same, as the
        running average weighs them, or by its pixels. Calls on other numbers of samples count as further samples.
        """
        if len(calls) <= MOST_CALLS:
            for index, (a, b, weight) in enumerate(calls):
                self._call(index).add_(_products(a, b, weight).sum(dim=0))
        if len({a.shape for a, *_ in calls}) == 1:
            calls = [_average(calls)]
        for call in calls:
            add_samples([self], *call)

    def _call(self, index: int) -> Tensor:
        while len(self.call_sums) <= index:
            self.call_sums.append(torch.zeros_like(self.sums[0]))
        return self.call_sums[index]


def add_samples(group: Sequence[Moments], a: Tensor, b: Tensor, weight: Tensor | None = None) -> None:
    """Adds N samples to layers that have seen equally many: (N, C) a and b, the channels of the layers side by side.

    `weight` is (N,), the pixels of each sample, where samples weigh by them, and None where they weigh the same.
    """
    samples, folds = group[0].samples, len(group[0].sums)
    fold = torch.arange(samples, samples + len(a), device=a.device) % folds
    products = _products(a, b, weight)
    sums = torch.zeros(folds, *products.shape[1:], dtype=torch.float64, device=a.device)
    sums.index_add_(0, fold, products)
    for moments, part in zip(group, sums.split([len(moments.shift) for moments in group], dim=2), strict=True):
        moments.sums += part
        moments.samples += len(a)
        if moments.batches is not None:
            moments.batches[moments.forwards % folds] += part.sum(dim=0)


def _products(a: Tensor, b: Tensor, weight: Tensor | None) -> Tensor:
    """(N, 6, C), or (N, 7, C) with weights: what the rows of the sums add up."""
    rows = [torch.ones_like(a), a, b, a * a, b * b, a * b]
    if weight is None:
        return torch.stack(rows, dim=1)
    w = weight.to(a)[:, None]
    return torch.stack([*rows, w.expand_as(a)], dim=1) * w[:, None]


def _average(calls: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Several calls on the same samples as one, each with its weight."""
    a, b = torch.stack([a for a, _, _ in calls]), torch.stack([b for _, b, _ in calls])
    weights = [weight.to(a) for _, _, weight in calls if weight is not None]
    if not weights:
        return a.mean(dim=0), b.mean(dim=0), None
    w = torch.stack(weights)
    total = w.sum(dim=0)
    share = (w / total)[..., None]
    return (a * share).sum(dim=0), (b * share).sum(dim=0), total


def _units(layer: Layer) -> tuple[Tensor, Tensor]:
    if not layer.tracked:
        zeros = torch.zeros(layer.channels, dtype=torch.float64, device=device_of(layer.module))
        return zeros, torch.ones_like(zeros)
    mean, var = layer.statistics()
    unusable = layer.unusable_channels()
    shift = torch.where(unusable, 0.0, mean.double())
    scale = torch.where(unusable, 1.0, var.double() + layer.eps).sqrt()
    return shift, scale
