"""Which inputs a file is compared on: the given images in batches of several sizes, and random ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jumpout_export.model.axes import Axes, describe_sizes, other_sizes
from jumpout_export.model.batches import Batch
from jumpout_export.model.signature import batch_axis, tensors, with_tensors

# One image, two, and a size that is neither even nor a vector's width.
SIZES = (1, 2, 7)
# Images where further axes are moved: another number again.
_MOVED = 3


@dataclass(frozen=True)
class Sample:
    """A batch to compare on."""

    group: str  # `batch=7`, `data` (the images in batches as they came), `sizes batch=3 height=9` or `random batch=7`
    batch: Batch  # the inputs
    start: int = 0  # number of the first image within the group
    batched: Sequence[bool] | None = None  # whether the first axis of each input is the batch


def samples(
    batches: Iterable[Batch], axes: Axes, seed: int, runs: Callable[[Batch], bool] = lambda _: True
) -> Iterator[Sample]:
    """Yields what to compare on: batches, at least one, are taken one at a time, and every open axis is moved.

    `runs` is asked whether the model takes other sizes along further open axes; `seed` is of the random inputs.
    """
    iterator = iter(batches)
    first = next(iterator)
    yield from of_first(first, axes, runs)
    start = 0
    for batch in itertools.chain([first], iterator):
        yield from as_they_came(batch, start, axes)
        start += batch.size
    yield from at_random(first, axes, seed)


def of_first(first: Batch, axes: Axes, runs: Callable[[Batch], bool] = lambda _: True) -> Iterator[Sample]:
    """Yields the first batch cut or repeated to several sizes, and with every further open axis moved."""
    for count in _sizes(axes):
        yield Sample(f"batch={count}", rows(first, range(count), axes.batched), 0, axes.batched)
    if axes.names:
        count = _MOVED if axes.size is None else axes.size
        for batch in other_sizes(rows(first, range(count), axes.batched), axes, runs):
            yield Sample(f"sizes batch={count} {describe_sizes(batch, axes)}", batch, 0, axes.batched)


def as_they_came(batch: Batch, start: int, axes: Axes) -> Iterator[Sample]:
    """Yields a batch, in parts of the size that the file takes; `start` is the number of its first image."""
    step = batch.size if axes.size is None else axes.size
    for offset in range(0, batch.size, step):
        yield Sample("data", rows(batch, range(offset, offset + step), axes.batched), start + offset, axes.batched)


def at_random(first: Batch, axes: Axes, seed: int) -> Iterator[Sample]:
    """Yields random inputs of several sizes, made of the elements of the first batch."""
    generator = torch.Generator().manual_seed(seed)
    for count in _sizes(axes):
        batch = _random_like(rows(first, range(count), axes.batched), first, generator, axes.batched)
        yield Sample(f"random batch={count}", batch, 0, axes.batched)


def _sizes(axes: Axes) -> tuple[int, ...]:
    return SIZES if axes.size is None else (axes.size,)


def rows(batch: Batch, index: Sequence[int], batched: Sequence[bool] | None = None) -> Batch:
    """Returns the images with these numbers; numbers beyond the batch's end start again at its first.

    `batched` says which inputs' first axis is the batch; without it, all that are as long as the batch.
    """
    chosen = torch.tensor(index) % batch.size
    pairs = zip(tensors(batch), _batched(batch, batched), strict=True)
    return with_tensors(batch, [value[chosen] if is_batch else value for value, is_batch in pairs])


def noise_like(batch: Batch, generator: torch.Generator) -> Batch:
    """Returns random inputs made of the batch's own elements, on its device."""
    return _random_like(batch, batch, generator, None)


def jittered(batch: Batch, generator: torch.Generator, least: int = 24) -> Iterator[Batch]:
    """Yields the batch with inputs smaller by up to 2^-10 of themselves, until `least` images were yielded.

    The model rounds differently on each, while every output keeps about its size: so often is a rounding error drawn
    anew. Smaller, so that what is in [0, 1] or [-1, 1] stays there.
    """
    for _ in range(-(-least // batch.size)):
        values = []
        for value in tensors(batch):
            noise = torch.rand(value.shape, generator=generator) if value.is_floating_point() else None
            values.append(value if noise is None else value * (1 - noise * 2**-10).to(value))
        yield with_tensors(batch, values)


def _batched(batch: Batch, batched: Sequence[bool] | None) -> Sequence[bool]:
    return [batch_axis(batch, value) for value in tensors(batch)] if batched is None else batched


def _random_like(shape: Batch, source: Batch, generator: torch.Generator, batched: Sequence[bool] | None) -> Batch:
    """Noise made of the images' own elements: an index stays a valid index, a positive quantity stays positive."""
    drawn = [
        _draw(value, target, generator) if is_batch else value
        for value, target, is_batch in zip(tensors(source), tensors(shape), _batched(source, batched), strict=True)
    ]
    return with_tensors(shape, drawn)


def _draw(value: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    flat = value.reshape(-1)
    if not flat.numel():
        return target
    # A constant image, such as torch.zeros, has nothing to draw from.
    if value.is_floating_point() and bool((flat == flat[0]).all()):
        return torch.randn(target.shape, generator=generator, dtype=torch.float32).to(value)
    return flat[torch.randint(flat.numel(), target.shape, generator=generator).to(flat.device)]
