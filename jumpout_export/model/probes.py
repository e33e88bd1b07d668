"""Which inputs a file is compared on: the given samples in batches of several sizes, and some that are made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jumpout_export.model.axes import Axes
from jumpout_export.model.batches import Batch
from jumpout_export.model.signature import batch_axis, tensors, with_tensors

# Batch sizes that are always tried: one sample, two, three.
SIZES = (1, 2, 3)
# The largest batch is larger than the example, and shows every place up to here.
_LARGE = 17
# With `thorough`: powers of two up to here, and their neighbours.
_THOROUGH = 128
# Samples where further axes are moved: another number than the example's.
MOVED = 3
# Made-up inputs are smaller than a mixture of given ones by up to this share of themselves, value by value.
_NOISE = 2**-7


@dataclass(frozen=True)
class Probe:
    """A batch to compare on."""

    # `batch=17`, `data` (the samples in batches as they came), `sizes batch=3 height=9` or `made-up batch=8`
    group: str
    batch: Batch  # the inputs
    start: int = 0  # number of the first sample within the group
    batched: Sequence[bool] | None = None  # whether the first axis of each input is the batch
    large: bool = False  # whether it is larger than was given, and tried for its size alone


def sizes_to_try(example: int, *, thorough: bool = False) -> list[int]:
    """Returns the batch sizes that a file with an open batch is compared at, ascending.

    Args:
        example: samples in the first batch, which is compared as it came, too.
        thorough: also powers of two up to 128 and their neighbours.
    """
    sizes = {*SIZES, example + 1, max(_LARGE, example + 2)}
    if thorough:
        powers = [2**power for power in range(_THOROUGH.bit_length())]
        sizes |= {size for power in powers for size in (power - 1, power, power + 1)}
    return sorted(size for size in sizes if size >= 1)


def as_they_came(batch: Batch, start: int, axes: Axes) -> Iterator[Probe]:
    """Yields a batch, in parts of the size that the file takes; `start` is the number of its first sample."""
    step = batch.size if axes.size is None else axes.size
    for offset in range(0, batch.size, step):
        yield Probe("data", rows(batch, range(offset, offset + step), axes.batched), start + offset, axes.batched)


def rows(batch: Batch, index: Sequence[int], batched: Sequence[bool] | None = None) -> Batch:
    """Returns the samples with these numbers; numbers beyond the batch's end start again at its first.

    `batched` says which inputs' first axis is the batch; without it, all that are as long as the batch.
    """
    chosen = torch.tensor(index) % batch.size
    pairs = zip(tensors(batch), _batched(batch, batched), strict=True)
    return with_tensors(batch, [value[chosen] if is_batch else value for value, is_batch in pairs])


def joined_rows(batches: Sequence[Batch], batched: Sequence[bool]) -> Batch:
    """Returns the samples of several batches in one; an input that is no batch is the first one's."""
    columns = zip(*(tensors(batch) for batch in batches), strict=True)
    values = [torch.cat(column) if is_batch else column[0] for column, is_batch in zip(columns, batched, strict=True)]
    return with_tensors(batches[0], values)


def make_up(batch: Batch, count: int, generator: torch.Generator, batched: Sequence[bool] | None = None) -> Batch:
    """Returns inputs that nobody gave, but that respect what the given ones show.

    A sample's floating-point inputs are a convex mixture of two given samples, or of one and its mean, and a little
    smaller, value by value: what is ordered, between bounds or zero stays so. All else (integers, booleans, floats
    that are whole numbers, such as masks) comes from one of the two by whole rows, the same for all inputs. Only where
    a floating-point input is the same number everywhere, such as torch.zeros, is it normal noise.

    Args:
        batch: at least one sample.
        count: of samples to make.
        generator: of the random numbers, on the CPU.
        batched: whether the first axis of each input is the batch; an input of which it is not stays as it is.
    """
    size = batch.size
    first = torch.randint(size, (count,), generator=generator)
    second = (first + torch.randint(1, max(size, 2), (count,), generator=generator)) % size
    weight = 0.5 + 0.5 * torch.rand(count, generator=generator)
    values = [
        _mixed(value, first, second, weight, generator) if is_batch else value
        for value, is_batch in zip(tensors(batch), _batched(batch, batched), strict=True)
    ]
    return with_tensors(batch, values)


def jittered(batch: Batch, generator: torch.Generator, least: int = 24) -> Iterator[Batch]:
    """Yields the batch with inputs smaller by up to 2^-10 of themselves, until `least` samples were yielded.

    The model rounds differently on each, while every output keeps about its size: so often is a rounding error drawn
    anew. Smaller, so that what is in [0, 1] or [-1, 1] stays there.
    """
    for _ in range(-(-least // batch.size)):
        yield with_tensors(batch, [_smaller(value, 2**-10, generator) for value in tensors(batch)])


def _mixed(value: Tensor, first: Tensor, second: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
    one = value[first]
    if not value.is_floating_point() or not value.numel():
        return one
    if bool((value == value.flatten()[0]).all()):  # nothing to draw from
        return torch.randn(one.shape, generator=generator, dtype=torch.float32).to(value)
    if bool((value == value.round()).all()):
        return one
    axes = list(range(1, value.ndim))
    two = value[second] if len(value) > 1 else one.mean(axes, keepdim=True) if axes else one
    share = weight.reshape(-1, *[1] * (value.ndim - 1)).to(value)
    return _smaller(share * one + (1 - share) * two, _NOISE, generator)


def _smaller(value: Tensor, most: float, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value
    return value * (1 - torch.rand(value.shape, generator=generator) * most).to(value)


def _batched(batch: Batch, batched: Sequence[bool] | None) -> Sequence[bool]:
    return [batch_axis(batch, value) for value in tensors(batch)] if batched is None else batched
