"""Takes what every BatchNorm of a network gets during a forward, and adds it to their moments at the end of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.moments import Moments, add_images

# Numbers held in float64 at once while the layers of one forward are added up.
_CHUNK = 1 << 20
# Numbers of an activation worked on at once on a CPU: 1 MB in float32.
_CACHED = 1 << 18


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
