"""The batches, replayed the same way on every pass."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DistributedSampler, RandomSampler

from jumpout_export.batchnorm.measure.distributed import ALONE, Ranks
from jumpout_export.batchnorm.measure.groups import GroupNumbers, Groups
from jumpout_export.batchnorm.measure.states import untracked_named
from jumpout_export.errors import ArgumentError
from jumpout_export.log import log_step
from jumpout_export.model.batches import Progress, device_of, split_batch, tensors_in
from jumpout_export.model.randomness import (
    get_generator_state,
    is_generator,
    rng_restored,
    same_bits,
    set_generator_state,
)
from jumpout_export.model.wrappers import plain_calls

ForwardFn = Callable[[nn.Module, Any], Any]
# What a sample weighs: as much as any other, or as many pixels as a layer sees of it.
WeighBy = Literal["samples", "pixels"]

# A loader that cannot say how long it is may be endless; nobody needs more samples than this for statistics.
MOST_SAMPLES = 1 << 22
# So many samples of each pass's first batch are compared with those of the first pass.
_FIRST = 4


@dataclass(frozen=True)
class Step:
    """One batch, ready to run."""

    run: Callable[[], Any]  # calls the model on the batch and returns its output
    size: int | None  # number of samples, or None where only the model or `forward_fn` knows
    labels: Tensor | None  # (N,) integer class labels, or None
    groups: Tensor | None = None  # (N,) numbers of the groups that the samples belong to, where there are groups
    first_input: Tensor | None = None  # the first tensor that the model gets, where that is known


class PassDoneError(BaseException):
    """Raised by what visits the steps of a pass, to end it; not an Exception, so that nothing takes it for an error."""


@dataclass(frozen=True)
class Replayed:
    """How much one pass saw: `samples` in `batches` batches."""

    samples: int
    batches: int


class Feed:
    """Runs a model over its batches, as often as wanted, always on the same samples in the same order.

    Generator states are the same at the start of every pass, so that a shuffling or augmenting loader repeats itself,
    and are restored after it. Wrappers do not get in the way: see `plain_calls`. A model that writes into its input
    gets a copy, so that a list of batches stays what it is.

    The arguments are those of `check_batchnorm`, with the processes that share the samples as `ranks`: `batches` holds
    this one's, and each runs its share of `samples`, or with None all, which an endless loader never gives.

    Attributes:
        weigh_by: what a sample weighs in the statistics of a layer.
        first: the first step of the first pass, for a closer look once the pass is done; None before.

    Raises:
        ValueError: if `batches` is a one-shot iterator, `samples` is not positive, or `weigh_by` is neither of the two.
        TypeError: if `batches` is not iterable, or is itself a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        samples: int | None = None,
        forward_fn: ForwardFn | None = None,
        device: torch.device | str | None = None,
        progress: Progress | None = None,
        ranks: Ranks = ALONE,
        weigh_by: WeighBy = "samples",
        groups: Groups | None = None,
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
        if samples is not None and samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}; pass None for all samples")
        if weigh_by not in get_args(WeighBy):
            raise ArgumentError("weigh_by", f"weigh_by must be 'samples' or 'pixels', got {weigh_by!r}")
        if groups is not None and (weigh_by == "pixels" or ranks.size > 1):
            other = "weigh_by='pixels'" if weigh_by == "pixels" else "several processes"
            raise ArgumentError("groups", f"groups= and {other} do not go together; leave one of them out")
        self._groups = None if groups is None else GroupNumbers(groups)
        self.weigh_by = weigh_by
        self.model = model
        self._batches = batches
        self._limit = ranks.share(samples)
        self.ranks = ranks
        self._forward_fn = forward_fn
        self._device = device if device is not None else device_of(model)
        self._progress = progress
        self._samples: int | None = None
        self._first_samples: list[Tensor] | None = None
        self._writes = False
        self.first: Step | None = None

    @property
    def grouped(self) -> bool:
        """Whether groups of samples are the unit, not samples."""
        return self._groups is not None

    def alone(self, samples: int) -> Feed:
        """Returns the first samples of this process's batches, for passes that no other process knows of."""
        own = copy.copy(self)
        own.ranks, own._samples = ALONE, None
        own._limit = samples if self._limit is None else min(samples, self._limit)
        return own

    def replay(self, what: str, visit: Callable[[Step], int]) -> Replayed:
        """Calls `visit` with every step of one pass, for it to run and to return the number of samples it saw.

        Raises:
            ValueError: if there is no sample in the batches, they are others than on the pass before, or there is no
                end to them.
        """
        log_step(f"BatchNorm: {what}")
        samples = batches = 0
        total: int | None = None
        with self.ranks.together(), rng_restored(), _generators_restored(self._batches), self._named():
            if self._limit == 0:
                raise ValueError(f"{self.ranks.size} processes are more than samples were asked for; start fewer")
            for batch in self._batches:
                if batches == 0:
                    self._compare_first(batch)
                step = self._step(batch)
                self.first = self.first or step
                seen = visit(step)
                samples += seen if step.size is None else step.size
                batches += 1
                if batches == 1:
                    total = self._total(samples)
                done = self._limit is not None and samples >= self._limit
                if self._progress is not None:
                    self._progress(what, samples, samples if done else total)
                if done:
                    break
                if total is None and samples > MOST_SAMPLES:
                    raise ValueError(
                        f"batches did not end after {samples} samples and do not say how many there are; pass samples=N"
                    )
            if self._samples not in (None, samples):
                raise ValueError(
                    f"batches must give the same samples on every pass, got {self._samples} samples and then {samples}"
                    "; pass a list or a DataLoader"
                )
            if samples == 0:
                raise ValueError("batches is empty: there is nothing to measure on; pass at least one batch")
            self._samples = samples
        return Replayed(*(sum(counts) for counts in zip(*self.ranks.gather((samples, batches)), strict=True)))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        with plain_calls(self.model), untracked_named(self.model):
            yield

    def _step(self, batch: Any) -> Step:
        forward_fn, careful = self._forward_fn, self.first is None
        size = labels = first = groups = None
        inputs: Any = batch
        if self._groups is not None:
            groups, batch = self._groups.split(batch)
        try:
            split = split_batch(batch, self.model, self._device)
            plain = [value for value in (*split.args, *split.kwargs.values()) if isinstance(value, Tensor)]
            # Of nested inputs, such as a list of samples, the samples are counted where they reach the model.
            size, labels = next((len(value) for value in plain if value.ndim), None), split.labels
            first = next(iter(plain), None)
            if groups is not None and size not in (None, len(groups)):
                raise ArgumentError(
                    "groups", f"groups must be one value for each sample, got {len(groups)} for a batch of {size}"
                )
            if forward_fn is None:
                inputs = (split.args, split.kwargs)
        except TypeError:
            if forward_fn is None:
                raise
            # forward_fn may know what this batch is; labels are what a network of one input leaves over.
            with contextlib.suppress(TypeError):
                labels = split_batch(batch, nn.Identity(), self._device).labels

        def call(own: Any) -> Any:
            return self.model(*own[0], **own[1]) if forward_fn is None else forward_fn(self.model, own)

        return Step(lambda: self._call(call, inputs, careful), size, labels, groups, first)

    def _call(self, function: Callable[[Any], Any], inputs: Any, careful: bool) -> Any:
        """Calls `function` on `inputs`, and on a copy where the model may write into it.

        A batch is run several times. The first one is always copied, which shows whether the model writes.
        """
        if not (careful or self._writes):
            return function(inputs)
        own = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
        tensors = [tensor for tensor in tensors_in(own) if not tensor.is_inference()]
        versions = [tensor._version for tensor in tensors]
        try:
            return function(own)
        finally:
            self._writes |= versions != [tensor._version for tensor in tensors]

    def _compare_first(self, batch: Any) -> None:
        """Keeps a few samples of the first batch; on later passes, raises a ValueError if they are not the same."""
        dense = [tensor for tensor in tensors_in(batch) if tensor.layout == torch.strided and not tensor.is_nested]
        samples = [tensor[:_FIRST].detach().clone() if tensor.ndim else tensor.clone() for tensor in dense]
        if self._first_samples is not None and not same_bits(samples, self._first_samples):
            raise ValueError(
                "batches must give the same samples on every pass, but the first batch is another one than before: the "
                "loader draws from a generator of its own, or its workers live on (persistent_workers=True); pass a "
                "list or a DataLoader that repeats itself"
            )
        self._first_samples = samples

    def _total(self, first: int) -> int | None:
        """Estimates the samples of a pass from the number of batches and the size of the first."""
        count = batch_count(self._batches)
        if count is None:
            return self._limit
        return first * count if self._limit is None else min(first * count, self._limit)


def batch_count(batches: Iterable[Any]) -> int | None:
    """Returns how many batches there are, None if that is not known."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader over an iterable data set has a __len__, which raises this
        return None


def drawn_at_random(batches: Any) -> bool:
    """Whether it is known that the first samples are drawn at random from all: a loader that shuffles."""
    sampler = getattr(batches, "sampler", None) or getattr(getattr(batches, "batch_sampler", None), "sampler", None)
    return isinstance(sampler, RandomSampler) or bool(getattr(batches, "shuffled", False))


@contextlib.contextmanager
def _generators_restored(batches: Any) -> Iterator[None]:
    """Restores the generators of a loader, its samplers and its data set; the global ones are restored elsewhere."""
    batch_sampler, dataset = getattr(batches, "batch_sampler", None), getattr(batches, "dataset", None)
    samplers = (getattr(batches, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    owners = (batches, *samplers, dataset, getattr(dataset, "transform", None))
    values = [value for owner in owners for value in getattr(owner, "__dict__", {}).values()]
    with contextlib.ExitStack() as stack:
        for generator in filter(is_generator, values):
            stack.callback(set_generator_state, generator, get_generator_state(generator))
        yield


def padding_notes(batches: Any) -> list[str]:
    """Returns a sentence if the sampler of a DataLoader repeats samples, most of the time none."""
    batch_sampler = getattr(batches, "batch_sampler", None)
    for sampler in (getattr(batches, "sampler", None), getattr(batch_sampler, "sampler", None)):
        if not isinstance(sampler, DistributedSampler):
            continue
        length = len(sampler.dataset)  # type: ignore[arg-type]
        repeated = sampler.total_size - length
        if repeated > 0:
            note = (
                f"The DistributedSampler repeats {repeated} of {length} samples to give all {sampler.num_replicas} "
                "processes as many, and they count twice; pass the sampler drop_last=True, or a plain loader."
            )
            return [note]
    return []
