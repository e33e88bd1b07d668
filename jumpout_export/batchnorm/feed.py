"""The batches, replayed the same way on every pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.nn.batches import Progress, split_batch
from jumpout_export.nn.randomness import rng_restored

ForwardFn = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Step:
    """One batch, ready to run.

    Attributes:
        run: calls the model on the batch and returns its output.
        size: number of images, or None where only `forward_fn` knows.
        labels: (N,) int64 class labels, or None.
    """

    run: Callable[[], Any]
    size: int | None
    labels: Tensor | None


@dataclass(frozen=True)
class Replayed:
    """How much one pass saw: `images` in `batches` batches."""

    images: int
    batches: int


class Feed:
    """Runs a model over its batches, as often as wanted, always on the same images in the same order.

    Generator states are the same at the start of every pass, so that a shuffling or augmenting loader repeats itself,
    and are restored after it.

    Args:
        model: the model.
        batches: anything that can be iterated more than once, of batches that `split_batch` understands.
        images: a pass ends with the batch that reaches this many images; None for all.
        forward_fn: `forward_fn(model, batch)` replaces the call; it gets the batch as the loader yields it.
        device: where batches go; None: where the model's first parameter is.
        progress: called with the number of images done.

    Raises:
        ValueError: if `batches` is a one-shot iterator, or `images` is not positive.
        TypeError: if `batches` is not iterable, or is itself a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        images: int | None = None,
        forward_fn: ForwardFn | None = None,
        device: torch.device | str | None = None,
        progress: Progress | None = None,
    ) -> None:
        if isinstance(batches, Tensor | Mapping):
            raise TypeError(
                f"batches must be a list or DataLoader of batches, got one {type(batches).__name__}; pass [batch]"
            )
        if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
            raise TypeError(f"batches must be a list or DataLoader of batches, got {type(batches).__name__}")
        if isinstance(batches, Iterator):
            raise ValueError(
                f"batches must be iterable more than once, got a one-shot {type(batches).__name__}; "
                "pass a list or a DataLoader"
            )
        if images is not None and images < 1:
            raise ValueError(f"images must be at least 1, got {images}; pass None for all images")
        self.model = model
        self._batches = batches
        self._limit = images
        self._forward_fn = forward_fn
        self._device = device if device is not None else _device_of(model)
        self._progress = progress
        self._images: int | None = None

    def replay(self, what: str, visit: Callable[[Step], int]) -> Replayed:
        """Calls `visit` with every step of one pass; it returns the number of images it saw.

        Args:
            what: what the pass does, for the progress display.
            visit: runs the step.

        Raises:
            ValueError: if there is no image in the batches, or another number of them than on the pass before.
        """
        images = batches = 0
        total: int | None = None
        with rng_restored(), _generators_restored(self._batches):
            for batch in self._batches:
                step = self._step(batch)
                seen = visit(step)
                images += seen if step.size is None else step.size
                batches += 1
                if batches == 1:
                    total = self._total(images)
                done = self._limit is not None and images >= self._limit
                if self._progress is not None:
                    self._progress(what, images, images if done else total)
                if done:
                    break
        if self._images not in (None, images):
            raise ValueError(
                f"batches must give the same images on every pass, got {self._images} images and then {images}; "
                "pass a list or a DataLoader"
            )
        if images == 0:
            raise ValueError("batches is empty: there is nothing to measure on; pass at least one batch")
        self._images = images
        return Replayed(images, batches)

    def _step(self, batch: Any) -> Step:
        if self._forward_fn is None:
            split = split_batch(batch, self.model, self._device)
            return Step(lambda: split(self.model), split.size, split.labels)
        forward_fn = self._forward_fn
        try:
            split = split_batch(batch, self.model, self._device)
            size, labels = split.size, split.labels
        except (TypeError, ValueError):
            # Only forward_fn knows what this batch is: the images are then counted where they reach the model.
            size, labels = None, None
        return Step(lambda: forward_fn(self.model, batch), size, labels)

    def _total(self, first: int) -> int | None:
        """Estimates the images of a pass from the number of batches and the size of the first."""
        try:
            total: int | None = first * len(self._batches)  # type: ignore[arg-type]
        except TypeError:  # a loader over an iterable data set has no length
            return self._limit
        return total if self._limit is None or total is None else min(total, self._limit)


def _device_of(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextlib.contextmanager
def _generators_restored(batches: Any) -> Iterator[None]:
    """Restores the generators that belong to a DataLoader and its samplers; the global ones are restored elsewhere."""
    sampler, batch_sampler = getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)
    owners = (batches, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    saved = [(generator, generator.get_state()) for generator in found if isinstance(generator, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in saved:
            generator.set_state(state)
