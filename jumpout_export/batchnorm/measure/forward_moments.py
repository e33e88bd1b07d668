"""Takes what every BatchNorm of a network gets during a forward, and adds it to their moments at the end of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from jumpout_export.batchnorm.measure.groups import GroupedMoments
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.likeness import Likeness
from jumpout_export.batchnorm.measure.moments import Moments, add_samples
from jumpout_export.errors import ArgumentError

# Numbers held in float64 at once while the layers of one forward are added up.
_CHUNK = 1 << 20
# Numbers of an activation worked on at once on a CPU: 1 MB in float32.
_CACHED = 1 << 18


class ForwardMoments:
    """Takes the inputs of all layers during one forward and adds them to their moments at its end.

    All layers at once: a network of 50 BatchNorms would otherwise pay for a thousand small operations per batch. During
    the forward an input is reduced to one mean and one variance per sample and channel, and not held.

    Each sample weighs the same, or `by_pixels`: as many as there are of it where the layer sees it. With `by_batch` the
    moments have sums of each batch, too.

    Attributes:
        moments: by layer name, in call order; a layer that no forward reached is missing.
        samples: how many samples the forward that comes is of, None where that is not known.
        sizes: by layer name, how many values per channel a sample had, each number that was seen.
        groups: (N,) to which group each sample of the forward that comes belongs, None where samples are the unit.
        likeness: what the first layer sees of each sample.
        incomplete: names of layers that were called on some channels, and not on the others of the same samples.
    """

    def __init__(
        self, layers: Sequence[Layer], *, by_pixels: bool = False, grouped: bool = False, by_batch: bool = False
    ) -> None:
        # Made now: a state may hide the stored statistics while the model runs.
        make = GroupedMoments if grouped else partial(Moments, by_pixels=by_pixels)
        self._made: dict[str, Moments] = {layer.name: make(layer, by_batch=by_batch) for layer in layers}
        self._grouped = grouped
        self.groups: Tensor | None = None
        self._by_pixels = by_pixels
        self.moments: dict[str, Moments] = {}
        self.samples: int | None = None
        self.incomplete: set[str] = set()
        self.sizes: dict[str, set[float]] = {}
        self.likeness = Likeness()
        self._pending: dict[str, list[_Call]] = {}
        self._values: dict[str, int] = {}
        self._parts: dict[str, list[_Parts]] = {}

    def take(self, name: str, x: Tensor, channels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Takes the input of one call of the layer `name`; returns its means and variances per row and channel.

        Args:
            name: of the layer.
            x: (N, C, *), or with `channels` (N, K, *). If it holds k times as many rows as the forward has samples, as
                tokens that were flattened into the batch, k in a row are of one sample.
            channels: (K,) the channels that this call is about, where it is not about all.

        Returns:
            (N, C) or (N, K) each, of rows.
        """
        mean, var = _mean_and_variance_per_sample(x.detach())
        per_instance, pixels = self._made[name].per_instance, math.prod(x.shape[2:])
        own = var * (pixels / (pixels - 1)) if per_instance and pixels > 1 else var
        of_sample = _rows_of_one_sample_together(mean, own, self.samples, per_instance)
        if channels is None:
            self._add(name, *of_sample, pixels * len(x))
        else:
            whole = self._parts.setdefault(name, [])
            fits = next((one for one in whole if one.lack(channels, of_sample[0])), None)
            if fits is None:
                fits = _Parts(of_sample[0], len(self._made[name].shift))
                whole.append(fits)
            fits.put(channels, *of_sample)
            if fits.complete:
                whole.remove(fits)
                self._add(name, fits.mean, fits.var, pixels * len(x))
        return mean, var

    def _add(self, name: str, mean: Tensor, var: Tensor, values: int) -> None:
        of_sample = values / max(len(mean), 1)
        self.sizes.setdefault(name, set()).add(of_sample)
        weight = mean.new_full((len(mean),), of_sample, dtype=torch.float64)
        self._pending.setdefault(name, []).append(_Call(mean, var, weight if self._by_pixels else None))
        self._values[name] = self._values.get(name, 0) + values

    def discard(self) -> None:
        """Forgets a forward that failed."""
        self._pending, self._values, self._parts = {}, {}, {}

    def end_forward(self) -> int:
        """Adds what was taken and returns how many samples reached the first layer."""
        self.incomplete |= {name for name, whole in self._parts.items() if whole}
        pending, values = self._pending, self._values
        self.discard()
        if self._grouped:
            return self._end_grouped(pending, values)
        for calls in itertools.islice(pending.values(), 1):
            self.likeness.add(calls[0].mean, calls[0].var)
        for name, calls in pending.items():
            moments = self.moments.setdefault(name, self._made[name])
            moments.count += values[name]
            moments.calls = max(moments.calls, len(calls))
            if len(calls) > 1 and sum(len(call.mean) for call in calls) == self.samples:
                # Each is of other samples of the batch, as in a loop over them.
                pending[name] = [_side_by_side(calls, 0)]
        alike: dict[tuple[object, ...], list[str]] = {}
        for name, calls in pending.items():
            moments = self.moments[name]
            if len(calls) > 1:
                moments.add_calls([(*_in_units([moments], call), call.weight) for call in calls])
            else:
                mean = calls[0].mean
                key = (len(mean), mean.dtype, mean.device, moments.samples, len(moments.sums), moments.sums.device)
                # Layers of other resolutions have other weights.
                alike.setdefault((name, *key) if self._by_pixels else key, []).append(name)
        for names in alike.values():
            for chunk in _chunks(names, [pending[name][0].mean.numel() for name in names]):
                group = [self.moments[name] for name in chunk]
                call = _side_by_side([pending[name][0] for name in chunk], 1)
                add_samples(group, *_in_units(group, call), call.weight)
        for name in pending:
            self.moments[name].forwards += 1
        return len(next(iter(pending.values()))[0].mean) if pending else 0

    def _end_grouped(self, pending: dict[str, list[_Call]], values: dict[str, int]) -> int:
        """The same with groups of samples as the unit, each layer by itself."""
        for name, calls in pending.items():
            moments = self._made[name]
            if not isinstance(moments, GroupedMoments) or self.groups is None:
                continue
            self.moments[name] = moments
            moments.count += values[name]
            moments.calls = max(moments.calls, len(calls))
            several = [_in_units([moments], call) for call in calls]
            if len({a.shape for a, _ in several}) == 1:  # the same samples several times are no more samples
                several = [(torch.stack([a for a, _ in several]).mean(0), torch.stack([b for _, b in several]).mean(0))]
            for a, b in several:
                if len(a) % len(self.groups):
                    raise ArgumentError(
                        "groups",
                        f"groups named {len(self.groups)} samples of a batch, of which BatchNorm `{name}` saw {len(a)}"
                        "; give one value for each sample",
                    )
                moments.add(a, b, self.groups.repeat_interleave(len(a) // len(self.groups)))
                add_samples([moments.alone], a, b)
            moments.alone.forwards += 1
        return len(self.groups) if pending and self.groups is not None else 0

    def settle(self) -> None:
        """Works out the sums of groups, which are put together first."""
        for moments in self.moments.values():
            if isinstance(moments, GroupedMoments):
                moments.settle()


class _Call(NamedTuple):
    """What one call got: (N, C) means and variances of samples, and (N,) what they weigh, None if the same."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None


def _side_by_side(calls: Sequence[_Call], dim: int) -> _Call:
    """Calls as one: of other samples (`dim` 0), or of other channels of the same samples (1)."""
    weights = [call.weight for call in calls if call.weight is not None]
    weight = None if not weights else torch.cat(weights) if dim == 0 else weights[0]
    return _Call(torch.cat([call.mean for call in calls], dim), torch.cat([call.var for call in calls], dim), weight)


class _Parts:
    """Means and variances of one call of all channels, put together from calls of some."""

    def __init__(self, like: Tensor, channels: int) -> None:
        self.mean, self.var = (like.new_zeros(len(like), channels) for _ in range(2))
        self._there = torch.zeros(channels, dtype=torch.bool)

    @property
    def complete(self) -> bool:
        """Whether no channel is missing."""
        return bool(self._there.all())

    def lack(self, channels: Tensor, mean: Tensor) -> bool:
        """Whether these channels are missing, and are of as many samples."""
        return len(mean) == len(self.mean) and not bool(self._there[channels].any())

    def put(self, channels: Tensor, mean: Tensor, var: Tensor) -> None:
        """Puts some channels in."""
        place = channels.to(mean.device)
        self.mean[:, place], self.var[:, place] = mean, var
        self._there[channels] = True


def of_batch(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and biased variance of a batch, (C,) each, of the (N, C) means and variances of its samples."""
    center = mean.mean(dim=0)
    return center, var.mean(dim=0) + (mean - center).square().mean(dim=0)


def _rows_of_one_sample_together(
    mean: Tensor, var: Tensor, samples: int | None, per_instance: bool
) -> tuple[Tensor, Tensor]:
    """(samples, C) each of (N, C) where N is a multiple of the samples; rows of a sample are correlated."""
    if not samples or len(mean) <= samples or len(mean) % samples:
        return mean, var
    mean, var = (rows.view(samples, -1, rows.shape[1]) for rows in (mean, var))
    between = 0.0 if per_instance else mean.var(dim=1, correction=0)
    return mean.mean(dim=1), var.mean(dim=1) + between


def _mean_and_variance_per_sample(x: Tensor) -> tuple[Tensor, Tensor]:
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
    # samples at a time, so that what is in between stays in the cache: a large batch at once takes 5 times as long.
    means, variances = [], []
    for part in x.split(max(1, _CACHED // max(math.prod(x.shape[1:]), 1))):
        mean = part.mean(pixels, keepdim=True)
        means.append(mean.flatten(1))
        variances.append((part - mean).square_().mean(pixels))
    return torch.cat(means), torch.cat(variances)


def _in_units(group: Sequence[Moments], call: _Call) -> tuple[Tensor, Tensor]:
    """Returns a and b, (N, C) float64 each, of the means and variances of a call."""
    shift = torch.cat([moments.shift for moments in group])
    scale = torch.cat([moments.scale for moments in group])
    a = (call.mean.to(shift) - shift) / scale
    of_mean = torch.cat([moments.shift.new_full(moments.shift.shape, not moments.per_instance) for moments in group])
    return a, call.var.to(shift) / scale.square() + of_mean * a.square()


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
