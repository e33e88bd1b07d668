"""The moments of what a BatchNorm layer sees: sums over images that add up across batches, passes and processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from jumpout_export.batchnorm.layers import Layer

# Image i belongs to fold i % FOLDS: interleaved, so that no split into batches changes the folds.
FOLDS = 32
# Very wide layers have fewer folds, so that their sums stay in the hundreds of MB.
WIDE_CHANNELS, WIDE_FOLDS = 1 << 16, 8
# Rows of the sums: images, then the sums of a, b, a^2, b^2 and a b over images.
N, A, B, AA, BB, AB = range(6)
# A layer called more often in one forward (a recurrent network) gets no sums of its own per call.
MOST_CALLS = 64
# Numbers held in float64 at once while the layers of one forward are added up.
_CHUNK = 1 << 20
# Numbers of an activation worked on at once on a CPU: 1 MB in float32.
_CACHED = 1 << 18


class Moments:
    """The additive moments of one layer's input.

    The unit is an image, because the pixels of one image are correlated: a and b are the means over an image's pixels
    of x and x^2, with x shifted by the stored mean and divided by the stored tau = sqrt(running_var + eps) (by 0 and 1
    in channels whose statistics are unusable). The shift removes the cancellation in b - a^2.

    Everything but shift and scale is a sum or a count (`calls`: a maximum), so that moments of the same stored
    statistics merge exactly, in any order: `merge`.

    Attributes:
        shift: (C,) float64, what was subtracted.
        scale: (C,) float64, what it was divided by.
        sums: (folds, 6, C) float64: rows n, Sa, Sb, Saa, Sbb, Sab per fold of images.
        call_sums: where the layer is called several times per forward, (6, C) float64 for each call in turn.
        count: values per channel: images times pixels.
        images: images that reached the layer.
        calls: calls of the layer in one forward, the most seen.
        per_instance: the layer is an InstanceNorm: its variance is the average over images of each image's own,
            unbiased over its pixels, and b is that alone.
    """

    def __init__(self, layer: Layer) -> None:
        self.per_instance = layer.per_instance
        self.shift, self.scale = _units(layer)
        channels = self.shift.shape[0]
        folds = FOLDS if channels <= WIDE_CHANNELS else WIDE_FOLDS
        self.sums = torch.zeros(folds, 6, channels, dtype=torch.float64, device=self.shift.device)
        self.call_sums: list[Tensor] = []
        self.count = self.images = self.calls = 0

    @property
    def total(self) -> Tensor:
        """(6, C) the sums over all images."""
        return self.sums.sum(dim=0)

    @property
    def finite(self) -> bool:
        """Whether the input held neither NaN nor infinity."""
        return bool(torch.isfinite(self.sums).all())

    @property
    def unbias(self) -> float:
        """The factor n / (n - 1) of the unbiased variance, n = images x pixels; 1 for a single value."""
        if self.per_instance:
            return 1.0
        return self.count / max(self.count - 1, 1)

    def merge(self, other: Moments) -> None:
        """Adds what `other` saw of the same layer with the same stored statistics, for example in another process."""
        self.sums += other.sums
        for index, sums in enumerate(other.call_sums):
            self._call(index).add_(sums)
        self.count += other.count
        self.images += other.images
        self.calls = max(self.calls, other.calls)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Returns mean and unbiased variance v n / (n - 1) of the input, (C,) float64 each, n = images x pixels.

        Raises:
            ValueError: if there is one value per channel only.
        """
        if self.count < 2:
            raise ValueError("the variance of a single value per channel is undefined; pass more images")
        n, a, b = self.total[[N, A, B]]
        m = a / n
        v = b / n if self.per_instance else (b / n - m.square()).clamp_min(0) * self.unbias
        return self.shift + self.scale * m, self.scale.square() * v

    def add_calls(self, calls: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Adds several calls of one forward, (N, C) a and b each, and pools them.

        The same images several times are no more images: their calls are averaged, each weighing the same, as the
        running average weighs them. Calls on other numbers of images count as further images.
        """
        if len(calls) <= MOST_CALLS:
            for index, (a, b) in enumerate(calls):
                self._call(index).add_(_products(a, b).sum(dim=0))
        if len({a.shape for a, _ in calls}) == 1:
            calls = [(torch.stack([a for a, _ in calls]).mean(dim=0), torch.stack([b for _, b in calls]).mean(dim=0))]
        for a, b in calls:
            add_images([self], a, b)

    def _call(self, index: int) -> Tensor:
        while len(self.call_sums) <= index:
            self.call_sums.append(torch.zeros_like(self.sums[0]))
        return self.call_sums[index]


class ForwardMoments:
    """Takes the inputs of all layers during one forward and adds them to their moments at its end.

    All layers at once: a network of 50 BatchNorms would otherwise pay for a thousand small operations per batch. During
    the forward an input is reduced to one mean and one variance per image and channel, and not held.

    Attributes:
        moments: by layer name, in call order; a layer that no forward reached is missing.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        # Made now: a state may hide the stored statistics while the model runs.
        self._made = {layer.name: Moments(layer) for layer in layers}
        self.moments: dict[str, Moments] = {}
        self._pending: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._values: dict[str, int] = {}

    def take(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the input of one call of the layer `name`, (N, C, *); returns its (N, C) means and variances."""
        mean, var = _mean_and_variance_per_image(x.detach())
        pixels = math.prod(x.shape[2:])
        own = var * (pixels / (pixels - 1)) if self._made[name].per_instance and pixels > 1 else var
        self._pending.setdefault(name, []).append((mean, own))
        self._values[name] = self._values.get(name, 0) + pixels * len(x)
        return mean, var

    def discard(self) -> None:
        """Forgets a forward that failed."""
        self._pending, self._values = {}, {}

    def end_forward(self) -> int:
        """Adds what was taken and returns how many images reached the first layer."""
        pending, values = self._pending, self._values
        self.discard()
        alike: dict[tuple[object, ...], list[str]] = {}
        for name, calls in pending.items():
            moments = self.moments.setdefault(name, self._made[name])
            moments.count += values[name]
            moments.calls = max(moments.calls, len(calls))
            if len(calls) > 1:
                moments.add_calls([_in_units([moments], mean, var) for mean, var in calls])
            else:
                mean = calls[0][0]
                key = (len(mean), mean.dtype, mean.device, moments.images, len(moments.sums), moments.sums.device)
                alike.setdefault(key, []).append(name)
        for names in alike.values():
            for chunk in _chunks(names, [pending[name][0][0].numel() for name in names]):
                group = [self.moments[name] for name in chunk]
                mean = torch.cat([pending[name][0][0] for name in chunk], dim=1)
                var = torch.cat([pending[name][0][1] for name in chunk], dim=1)
                add_images(group, *_in_units(group, mean, var))
        return len(next(iter(pending.values()))[0][0]) if pending else 0


def of_batch(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and biased variance of a batch, (C,) each, of the (N, C) means and variances of its images."""
    center = mean.mean(dim=0)
    return center, var.mean(dim=0) + (mean - center).square().mean(dim=0)


def add_images(group: Sequence[Moments], a: Tensor, b: Tensor) -> None:
    """Adds N images to layers that have seen equally many: (N, C) a and b, the channels of the layers side by side."""
    images, folds = group[0].images, len(group[0].sums)
    fold = torch.arange(images, images + len(a), device=a.device) % folds
    products = _products(a, b)
    sums = torch.zeros(folds, *products.shape[1:], dtype=torch.float64, device=a.device)
    sums.index_add_(0, fold, products)
    for moments, part in zip(group, sums.split([len(moments.shift) for moments in group], dim=2), strict=True):
        moments.sums += part
        moments.images += len(a)


def _mean_and_variance_per_image(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) each; the variance is the biased one over pixels."""
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    if x.ndim == 2:
        return x.clone(), torch.zeros_like(x)  # a copy, because the model may write into its input later
    pixels = tuple(range(2, x.ndim))
    if x.is_cuda:
        var, mean = torch.var_mean(x, pixels, correction=0)
        return mean, var
    # On a CPU var_mean is 10 to 30 times slower than this. Centred before squaring, float32 is enough for the sum. Some
    # images at a time, so that what is in between stays in the cache: a large batch at once takes 5 times as long.
    means, variances = [], []
    for part in x.split(max(1, _CACHED // max(math.prod(x.shape[1:]), 1))):
        mean = part.mean(pixels, keepdim=True)
        means.append(mean.flatten(1))
        variances.append((part - mean).square_().mean(pixels))
    return torch.cat(means), torch.cat(variances)


def _in_units(group: Sequence[Moments], mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a and b, (N, C) float64 each, of (N, C) means and variances per image."""
    shift = torch.cat([moments.shift for moments in group])
    scale = torch.cat([moments.scale for moments in group])
    a = (mean.to(shift) - shift) / scale
    of_mean = torch.cat([moments.shift.new_full(moments.shift.shape, not moments.per_instance) for moments in group])
    return a, var.to(shift) / scale.square() + of_mean * a.square()


def _products(a: Tensor, b: Tensor) -> Tensor:
    """(N, 6, C) what the rows of the sums add up."""
    return torch.stack([torch.ones_like(a), a, b, a * a, b * b, a * b], dim=1)


def _chunks(names: Sequence[str], sizes: Sequence[int]) -> Iterator[list[str]]:
    chunk: list[str] = []
    held = 0
    for name, size in zip(names, sizes, strict=True):
        if chunk and held + size > _CHUNK:
            yield chunk
            chunk, held = [], 0
        chunk.append(name)
        held += size
    if chunk:
        yield chunk


def _units(layer: Layer) -> tuple[Tensor, Tensor]:
    if not layer.tracked:
        zeros = torch.zeros(layer.channels, dtype=torch.float64, device=_device(layer.module))
        return zeros, torch.ones_like(zeros)
    mean, var = layer.statistics()
    unusable = layer.unusable_channels()
    shift = torch.where(unusable, 0.0, mean.double())
    scale = torch.where(unusable, 1.0, var.double() + layer.eps).sqrt()
    return shift, scale


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
