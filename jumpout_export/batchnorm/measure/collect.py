"""Collects, in one pass and in memory independent of the number of samples, the moments of what each BatchNorm sees."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jumpout_export.batchnorm.measure.calls import Calls
from jumpout_export.batchnorm.measure.distributed import Ranks, merge_moments
from jumpout_export.batchnorm.measure.feed import Feed, PassDoneError, Step, WeighBy
from jumpout_export.batchnorm.measure.forward_moments import ForwardMoments, of_batch
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.likeness import Likeness
from jumpout_export.batchnorm.measure.moments import Moments
from jumpout_export.batchnorm.measure.states import State, preserved, put_into
from jumpout_export.model.norms import is_plain
from jumpout_export.model.randomness import reseed, rng_restored

# Seeds that one pass may use, one per batch.
_SEEDS = 1 << 24


@dataclass
class Collected:
    """What one pass saw in one state."""

    moments: dict[str, Moments]  # by layer name, in call order; a layer that the forward did not reach is missing
    samples: int = 0  # samples the model saw
    batches: int = 0  # batches they came in
    own_code: set[str] = field(default_factory=set)  # layers that ran, but normalise by code that cannot be followed
    skipped: int = 0  # samples in batches left out because a layer cannot normalise one value per channel by itself
    mixed: bool = False  # whether a layer, called once per forward, saw samples of different sizes
    failure: str = ""  # why this state was given up, empty if it was not; its moments are then of no use
    # What noise adds to the sums of each forward, by layer that it reaches: `noise_of_forwards`.
    noise: dict[str, Tensor] = field(default_factory=dict)
    likeness: Likeness = field(default_factory=Likeness)  # what the first layer sees of each sample of this process


def collect(feed: Feed, layers: Sequence[Layer], state: State, what: str) -> Collected:
    """Returns the moments of the inputs of `layers` over one pass in `state`, in which `layers` do as it says.

    The model is left exactly as it was found: flags, buffers, hooks, generator states, also after an exception.

    Raises:
        ValueError: if a layer must normalise by batch statistics and its batch holds one value per channel.
    """
    return collect_states(feed, layers, [state], what)[0]


def collect_states(
    feed: Feed,
    layers: Sequence[Layer],
    states: Sequence[State],
    what: str,
    *,
    renormalised: Sequence[Layer] | None = None,
    enough: Callable[[Step, list[Collected]], bool] | None = None,
    required: int = 1,
    draw: int = 0,
) -> list[Collected]:
    """Returns the moments of the inputs of `layers` in each of `states`, from one pass over the batches.

    Every batch runs in all states before the next one is loaded, so they see the same samples, augmented the same way.
    Every forward starts from the buffers as they were found and from generators seeded by the number of its batch: what
    it draws depends neither on the loader nor on the states before it, and the loader goes on from where it was.

    The first `required` states have to succeed. Another one that fails is given up, and `failure` says why; batches
    that cannot be normalised by themselves are left out of it. `renormalised` are the layers that normalise by batch
    statistics where a state says so, by default all. The pass ends early once `enough`, called after every batch, says
    so. Passes with another `draw` draw other noise.

    Raises:
        ValueError: as `collect`, in a state that has to succeed.
    """
    by_batch = {layer.name for layer in (layers if renormalised is None else renormalised)}
    handed = {layer.name for layer in layers if layer.name in by_batch and _can_be_handed(layer)}
    flagged = [layer for layer in layers if layer.name in by_batch - handed]
    by_pixels = feed.weigh_by == "pixels"
    passes = [
        _Pass(
            state,
            ForwardMoments(layers, by_pixels=by_pixels, grouped=feed.grouped, by_batch=state.batch_statistics),
            by_batch,
            handed,
        )
        for state in states
    ]
    collected = [one.collected for one in passes]
    with rng_restored():
        # Follows torch.manual_seed and does not move its generator; processes seeded alike draw other noise.
        seed = int(torch.randint(2**31, ())) + (draw * feed.ranks.size + feed.ranks.rank) * _SEEDS
    running = passes[0]

    def visit(step: Step) -> int:
        nonlocal running, seed
        samples = 0
        seed += 1
        with rng_restored():
            for index, one in enumerate(passes):
                if one.collected.failure:
                    continue
                running = one
                found.restore_buffers()
                put_into(found, flagged, one.state)
                reseed(seed)
                seen = one.run(step, calls, must_succeed=index < required)
                samples = samples or seen
        if enough is not None:
            for one in passes:
                one.forward.settle()
            found.restore_buffers()  # what is stored is looked at, not what the last state left there
            if enough(step, collected):
                raise PassDoneError
        return samples

    def take(layer: Layer, x: Tensor, channels: Tensor | None) -> bool:
        return running.take(layer, x, channels)

    calls = Calls(layers, take)
    with calls.hooked(), torch.no_grad(), preserved(feed.model) as found, contextlib.suppress(PassDoneError):
        feed.replay(what, visit)
    for one in passes:
        one.forward.settle()
        for name in one.forward.incomplete:
            one.collected.moments.pop(name, None)
        one.collected.mixed = any(len(seen) > 1 for name, seen in one.forward.sizes.items() if _once(one, name))
        one.collected.own_code |= calls.own_code | one.forward.incomplete
        _merge(feed.ranks, one.collected, layers, by_pixels=by_pixels)
    return collected


def size_notes(seen: Collected, weigh_by: WeighBy) -> list[str]:
    """Returns a sentence on what samples weigh where they have different sizes, else none."""
    if not seen.mixed:
        return []
    now = "each weighs the same" if weigh_by == "samples" else "each weighs as many pixels as a layer sees of it"
    other = "pixels" if weigh_by == "samples" else "samples"
    return [f"The samples have different sizes, and {now} (weigh_by={weigh_by!r}, or else {other!r})."]


def _once(one: _Pass, name: str) -> bool:
    return name in one.collected.moments and one.collected.moments[name].calls == 1


def _merge(ranks: Ranks, collected: Collected, layers: Sequence[Layer], *, by_pixels: bool) -> None:
    """Makes what every process collected in one state what all of them did."""
    if ranks.size == 1:
        collected.own_code -= collected.moments.keys()
        return
    counts = (collected.samples, collected.batches, collected.skipped)
    others = ranks.gather((counts, collected.mixed, collected.failure, collected.own_code))
    collected.samples, collected.batches, collected.skipped = (
        sum(column) for column in zip(*(counts for counts, *_ in others), strict=True)
    )
    failures = (f"{failure} (rank {rank})" for rank, (_, _, failure, _) in enumerate(others) if failure)
    collected.failure = next(failures, "")
    collected.mixed = any(mixed for _, mixed, *_ in others)
    collected.own_code = set().union(*(names for *_, names in others))
    merge_moments(ranks, collected.moments, layers, by_pixels=by_pixels)
    collected.own_code -= collected.moments.keys()


class _OneValueError(ValueError):
    """A batch that cannot be normalised by itself."""


class _Pass:
    """One state's share of a pass."""

    def __init__(self, state: State, forward: ForwardMoments, by_batch: set[str], handed: set[str]) -> None:
        self.state = state
        # Layers that normalise by the batch, and those of them that are handed its statistics.
        self.by_batch = by_batch if state.batch_statistics else set()
        self.handed = handed if state.batch_statistics else set()
        self.forward = forward
        self.collected = Collected(self.forward.moments, likeness=self.forward.likeness)

    def take(self, layer: Layer, x: Tensor, channels: Tensor | None) -> bool:
        """Takes what a layer normalises; returns whether the call that normalises has to be told to take the batch."""
        if layer.name in self.by_batch and x.numel() == x.shape[1]:
            raise _OneValueError(
                f"BatchNorm {layer.label} got a batch with one value per channel, which has no variance to normalise "
                f"by in the {self.state.name} state; pass larger batches, or use method='exact'"
            )
        mean, var = self.forward.take(layer.name, x, channels)
        if layer.name in self.handed:
            for buffer, value in zip(layer.statistics(), of_batch(mean, var), strict=True):
                buffer.copy_(value)
        return layer.name in self.by_batch

    def run(self, step: Step, calls: Calls, *, must_succeed: bool) -> int:
        """Runs one batch and returns its samples; without `must_succeed`, what goes wrong is written down."""
        seen = self.collected
        self.forward.samples, self.forward.groups = step.size, step.groups
        try:
            with calls.forward():
                step.run()
        except Exception as error:
            self.forward.discard()
            if must_succeed:
                raise
            if isinstance(error, _OneValueError):
                seen.skipped += step.size or 0
            else:
                seen.failure = f"{type(error).__name__}: {error}"
            return 0
        reached = self.forward.end_forward()
        for name in calls.outside & seen.moments.keys():
            seen.moments[name].outside = True
        samples = reached if step.size is None else step.size
        seen.samples += samples
        seen.batches += 1
        return samples


def _can_be_handed(layer: Layer) -> bool:
    """Whether the layer normalises by its batch when it is given the batch's statistics in eval mode.

    That costs a CPU a third of what batch normalisation in training mode does, and SyncBatchNorm neither waits for
    other processes nor refuses a CPU. Buffers in half precision would round the statistics.
    """
    if not is_plain(layer.module) or not layer.tracked:
        return False
    return all(buffer.dtype in (torch.float32, torch.float64) for buffer in layer.statistics())
