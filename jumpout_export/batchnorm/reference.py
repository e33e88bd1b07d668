"""What training sees: the states from which the causes of a drift are told, measured on a set of samples.

Without a reference they are those of the samples that are checked. With one, `measure_reference`, they are those of
samples of training, measured once for as many sets as are checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jumpout_export.batchnorm.advice.alpha import advise
from jumpout_export.batchnorm.measure.collect import Collected, collect_states
from jumpout_export.batchnorm.measure.feed import Feed, Step
from jumpout_export.batchnorm.measure.inputs import InputMoments
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.noise import is_noisy, noise_of_forwards
from jumpout_export.batchnorm.measure.states import RENORMALISED, SERVING, TRAINING
from jumpout_export.errors import ArgumentError
from jumpout_export.model.randomness import same_bits
from jumpout_export.report import AlphaAdvice

# Statistics of smaller batches are so noisy that normalising by them changes what later layers see; so are those of
# batches this many times smaller than in training.
SMALL_BATCH, MUCH_SMALLER = 16, 4
# Batches that run in the training state at least, with other noise each, where a layer drifts.
DRAWS = 32
STATES = (SERVING, RENORMALISED, TRAINING)


@dataclass
class Origins:
    """The states of one set of samples, and a closer look at them where a layer drifts.

    Attributes:
        serving: the state E.
        renormalised: the state P, None where it could not be measured.
        training: the state T, the same.
        notes: sentences on what could not be measured.
        advice: what the law of the scaled mask says by layer, once `look_closer` was called.
    """

    feed: Feed
    layers: Sequence[Layer]
    serving: Collected
    renormalised: Collected | None = None
    training: Collected | None = None
    notes: list[str] = field(default_factory=list)
    advice: dict[str, AlphaAdvice] = field(default_factory=dict)
    _looked: bool = False

    @classmethod
    def of(cls, feed: Feed, layers: Sequence[Layer], seen: Sequence[Collected], trained: int | None) -> Origins:
        """Returns what of the collected states E, or E, P and T, can be used; `trained` is the batch size if known."""
        serving, *others = seen
        if not others:
            return cls(feed, layers, serving)
        renormalised, training = (None if state.failure or not state.batches else state for state in others)
        if renormalised is not None and training is not None:
            training.noise = {
                name: noise_of_forwards(training.moments[name], renormalised.moments[name])
                for name in _noisy(training, renormalised)
            }
        return cls(feed, layers, serving, renormalised, training, _notes(serving, others, trained))

    def look_closer(self) -> None:
        """Repeats the training state with other noise where few batches ran in it, and asks the law of the mask.

        Jumpout draws one rate per batch, so few batches say little about the noise, however many samples they hold.
        """
        if self._looked or self.training is None or self.renormalised is None:
            return
        self._looked = True
        _draw_more(self.feed, self.layers, self.training, self.renormalised)
        ranks = self.feed.ranks
        with ranks.together():  # by the batches of the first process: it needs few
            advice = advise(self.feed, moving(self.layers)) if ranks.rank == 0 else {}
        self.advice = ranks.gather(advice)[0]


@dataclass
class Reference:
    """Samples of training, measured by `measure_reference` for any number of checks of the same model.

    Attributes:
        origins: its states.
        inputs: (C,) mean and standard deviation of the first input, None where it is no picture.
    """

    origins: Origins
    inputs: tuple[Tensor, Tensor] | None
    _stored: dict[str, list[Tensor]]

    @property
    def samples(self) -> int:
        """How many samples it has."""
        return self.origins.serving.samples

    def require_model(self, layers: Sequence[Layer]) -> None:
        """Checks that it was measured in the model that is checked, with the same statistics.

        Raises:
            ArgumentError: if it was not: its moments are in units of the stored statistics.
        """
        if not same_bits(self._stored, _stored(layers)):
            raise ArgumentError(
                "reference",
                "was measured with other BatchNorm statistics than the model stores now; measure it again, or pass its "
                "batches",
            )


def measure_reference(
    feed_of: Callable[[Iterable[Any]], Feed], batches: Iterable[Any], layers: Sequence[Layer], trained: int | None
) -> Reference:
    """Returns the states of samples of training, for checks of other samples.

    Args:
        feed_of: makes what runs the model over batches.
        batches: the samples of training.
        layers: what is measured.
        trained: the batch size of training where it is known.
    """
    inputs = InputMoments()

    def watch(step: Step, _: list[Collected]) -> bool:
        inputs.add(step.first_input)
        return False

    try:
        feed = feed_of(batches)
        seen = collect_states(
            feed, layers, STATES, "measuring the reference", renormalised=moving(layers), enough=watch
        )
    except (ValueError, TypeError) as error:
        error.add_note("This was the reference, not the samples that are checked.")
        raise
    origins = Origins.of(feed, layers, seen, trained)
    return Reference(origins, inputs.mean_and_deviation(feed.ranks), _stored(layers))


def moving(layers: Sequence[Layer]) -> list[Layer]:
    """Returns the layers that normalise by their batch in training; a frozen one normalises by what it stores."""
    return [layer for layer in layers if not layer.frozen]


def _stored(layers: Sequence[Layer]) -> dict[str, list[Tensor]]:
    return {layer.name: [buffer.clone() for buffer in layer.statistics()] for layer in layers if layer.tracked}


def _notes(serving: Collected, others: Sequence[Collected], trained: int | None) -> list[str]:
    """What cannot be measured of P and T, and why."""
    not_measured = "Why layers drift was not measured: "
    for state, where in zip(others, ("with batch statistics", "in training mode"), strict=True):
        if state.failure:
            return [f"{not_measured}{where} the model fails with {state.failure}"]
    skipped = max(state.skipped for state in others)
    alone = "a BatchNorm gets one value per channel, which cannot be normalised by itself"
    if not all(state.batches for state in others):
        return [f"{not_measured}in every batch {alone}; pass larger batches."]
    notes = []
    if skipped:
        notes.append(f"Why layers drift was measured without {skipped} samples, in whose batches {alone}.")
    batch = serving.samples / serving.batches
    if batch < SMALL_BATCH or (trained is not None and batch * MUCH_SMALLER <= trained):
        wanted = "at least 16" if trained is None else f"{trained}, as in training"
        notes.append(
            f"Batches of {batch:.0f} samples are small, and noise in their statistics passes for propagated and "
            f"stochastic parts; pass batches of {wanted}, to see why layers drift."
        )
    return notes


def _draw_more(feed: Feed, layers: Sequence[Layer], training: Collected, without: Collected) -> None:
    noisy = _noisy(training, without)
    for draw in range(1, math.ceil(DRAWS / training.batches) if noisy else 1):
        (again,) = collect_states(
            feed,
            layers,
            [TRAINING],
            "checking BatchNorm, other noise",
            renormalised=moving(layers),
            required=0,
            draw=draw,
        )
        if again.failure:
            return
        for name in again.moments.keys() & set(noisy):
            training.moments[name].merge(again.moments[name])
            more = noise_of_forwards(again.moments[name], without.moments[name])
            training.noise[name] = torch.cat([training.noise[name], more])


def _noisy(training: Collected, without: Collected) -> list[str]:
    """Names of the layers that noise reaches."""
    both = [name for name in training.moments if name in without.moments]
    return [name for name in both if is_noisy(training.moments[name], without.moments[name])]
