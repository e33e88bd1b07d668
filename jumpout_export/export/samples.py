"""Which inputs a file is compared on: the given images in batches of several sizes, and random ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jumpout_export.export.signature import batch_axis, tensors, with_tensors
from jumpout_export.nn.batches import Batch

# One image, two, and a size that is neither even nor a vector's width.
SIZES = (1, 2, 7)


@dataclass(frozen=True)
class Sample:
    """A batch to compare on.

    Attributes:
        group: `batch=7`, `data` (the images in batches as they came) or `random batch=7`.
        batch: the inputs.
        start: number of the first image within the group.
    """

    group: str
    batch: Batch
    start: int = 0


def samples(batches: Iterable[Batch], size: int | None, seed: int) -> Iterator[Sample]:
    """Yields what to compare on.

    Args:
        batches: the images; at least one batch. Taken one at a time.
        size: the file's fixed batch size, None where it is open.
        seed: of the random inputs.
    """
    sizes = SIZES if size is None else (size,)
    iterator = iter(batches)
    first = next(iterator)
    for count in sizes:
        yield Sample(f"batch={count}", rows(first, range(count)))
    start = 0
    for batch in itertools.chain([first], iterator):
        step = batch.size if size is None else size
        for offset in range(0, batch.size, step):
            yield Sample("data", rows(batch, range(offset, offset + step)), start + offset)
        start += batch.size
    generator = torch.Generator().manual_seed(seed)
    for count in sizes:
        yield Sample(f"random batch={count}", _random_like(rows(first, range(count)), first, generator))


def rows(batch: Batch, index: range) -> Batch:
    """Returns these images of a batch; numbers beyond its end start again at its first."""
    chosen = torch.tensor(index) % batch.size
    return with_tensors(batch, [value[chosen] if batch_axis(batch, value) else value for value in tensors(batch)])


def noise_like(batch: Batch, generator: torch.Generator) -> Batch:
    """Returns random inputs made of the batch's own elements, on its device."""
    return _random_like(batch, batch, generator)


def _random_like(shape: Batch, source: Batch, generator: torch.Generator) -> Batch:
    """Noise made of the images' own elements: an index stays a valid index, a positive quantity stays positive."""
    drawn = [
        _draw(value, target, generator) if batch_axis(source, value) else value
        for value, target in zip(tensors(source), tensors(shape), strict=True)
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
