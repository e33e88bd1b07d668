"""The verdict on every layer of a model, by its W and by its single channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jumpout_export.batchnorm.judge.channels import ChannelTest, channels_beyond
from jumpout_export.batchnorm.judge.estimate import estimate, stored_noise
from jumpout_export.batchnorm.judge.score import GUESSED_NOISE, Score, score_layer, stored_samples
from jumpout_export.batchnorm.measure.collect import Collected
from jumpout_export.batchnorm.measure.held import samples_held
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.moments import Moments
from jumpout_export.report import BatchNormVerdict


@dataclass(frozen=True)
class Judged:
    """What is known of a layer whose input is finite: how far it is off, and the verdict."""

    score: Score
    verdict: BatchNormVerdict
    channels: tuple[int, ...] = ()  # those that are beyond `fail` by themselves, the farthest first
    by_w: bool = True  # whether the verdict is that of its W, not of single channels alone


@dataclass(frozen=True)
class Judge:
    """By what the layers are judged: the margins of drift and of severe drift, and the samples in a batch of training.

    That number is None where it has to be guessed. `repeats` is how many samples are alike, where they are not
    independent.
    """

    warn: float
    fail: float
    training_batch_size: int | None = None
    repeats: float = 1.0

    @property
    def guessed(self) -> bool:
        """Whether the batch size of training is a guess."""
        return self.training_batch_size is None

    def batch_size(self, seen: Collected) -> float:
        """Returns the batch size of training, or that of the check in its place."""
        return self.training_batch_size or seen.samples / max(seen.batches, 1)

    def score(self, layer: Layer, moments: Moments, seen: Collected, level: float) -> Score:
        """Returns the score of one layer whose input is finite."""
        return score_layer(moments, layer.eps, self._stored(layer, moments, seen), level, repeats=self.repeats)

    def judge(self, layers: Sequence[Layer], seen: Collected, level: float) -> dict[str, Judged]:
        """Returns by name what is known of the layers that can be measured, at intervals of this level.

        A layer drifts by its W, or by a single channel that is beyond `fail`.
        """
        scores, tests = {}, {}
        for layer, moments in observed(layers, seen):
            if not layer.tracked or not moments.finite:
                continue
            scores[layer.name] = self.score(layer, moments, seen, level)
            tests[layer.name] = ChannelTest(
                estimate(moments, layer.eps),
                moments.scale,
                ~layer.unusable_channels().to(moments.scale.device),
                moments.units,
                self._stored(layer, moments, seen),
                stored_noise(moments, layer.eps, self._stored(layer, moments, seen)),
                GUESSED_NOISE if self.guessed else 1.0,
                self.repeats,
            )
        channels = channels_beyond(tests, self.fail, level)
        return {name: self._judged(score, channels[name]) for name, score in scores.items()}

    def together(self, layers: Sequence[Layer], seen: Collected, level: float) -> BatchNormVerdict:
        """Returns `inconclusive` as long as more samples may decide a layer at this level, else what is decided."""
        skipped = {layer.name for layer in layers if unusable(layer)}
        judged = self.judge(layers, seen, level)
        verdicts = {one.verdict for name, one in judged.items() if name not in skipped}
        if "inconclusive" in verdicts:
            return "inconclusive"
        return "drift" if "drift" in verdicts else "ok"

    def _judged(self, score: Score, channels: list[int]) -> Judged:
        verdict = score.verdict(self.warn, self.fail, guessed=self.guessed)
        if channels and verdict != "drift":
            return Judged(score, "drift", tuple(channels), by_w=False)
        return Judged(score, verdict, tuple(channels))

    def _stored(self, layer: Layer, moments: Moments, seen: Collected) -> float:
        average = stored_samples(
            layer.module,
            self.batch_size(seen),
            guessed=self.guessed,
            calls=moments.calls,
            counted=not moments.outside,
        )
        return samples_held(layer.module) or average


def observed(layers: Sequence[Layer], seen: Collected) -> list[tuple[Layer, Moments]]:
    """Returns the layers that the forward reached, in call order, with their moments."""
    by_name = {layer.name: layer for layer in layers}
    return [(by_name[name], moments) for name, moments in seen.moments.items()]


def unusable(layer: Layer) -> bool:
    """Whether the layer stores statistics that are not finite or give no positive variance."""
    return layer.tracked and bool(layer.unusable_channels().any())
