"""The rows of the BatchNorm report: one layer's score, verdict, cause and explanation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jumpout_export.batchnorm.advice.alpha import advice_sentence
from jumpout_export.batchnorm.judge import explain
from jumpout_export.batchnorm.judge.attribute import Parts, attribute, origin
from jumpout_export.batchnorm.judge.calls import differing_calls
from jumpout_export.batchnorm.judge.estimate import Estimate, discoveries, estimate
from jumpout_export.batchnorm.judge.score import Score, score_layer, stored_images
from jumpout_export.batchnorm.measure.collect import Collected
from jumpout_export.batchnorm.measure.held import images_held
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.moments import MOST_CALLS, Moments
from jumpout_export.report import AlphaAdvice, BatchNormCall, BatchNormLayer, BatchNormVerdict


@dataclass(frozen=True)
class Judge:
    """By what the layers are judged: the margins of drift and of severe drift, and the images in a batch of training.

    That number is None where it has to be guessed.
    """

    warn: float
    fail: float
    training_batch_size: int | None = None

    @property
    def guessed(self) -> bool:
        """Whether the batch size of training is a guess."""
        return self.training_batch_size is None

    def score(self, layer: Layer, moments: Moments, seen: Collected, level: float) -> Score:
        """Returns the score of one layer whose input is finite."""
        batch = self.training_batch_size or seen.images / max(seen.batches, 1)
        average = stored_images(layer.module, batch, guessed=self.guessed, calls=moments.calls)
        stored = images_held(layer.module) or average
        return score_layer(moments, layer.eps, stored, level)

    def verdict(self, score: Score) -> BatchNormVerdict:
        """Returns the verdict on a layer with this score."""
        return score.verdict(self.warn, self.fail, guessed=self.guessed)

    def decides(self, layers: Sequence[Layer], seen: Collected, level: float) -> bool:
        """Whether every layer is decided, or nothing would decide it, at an interval of this level."""
        return all(
            self.verdict(self.score(layer, moments, seen, level)) != "inconclusive"
            for layer, moments in _observed(layers, seen)
            if layer.tracked and not unusable(layer) and moments.finite
        )


@dataclass(frozen=True)
class Measured:
    """What the check measured: the states E, P and T, the last two None where they were not measured.

    The intervals miss the truth with probability `level`; `advice` is what the law of the scaled mask says, by layer.
    """

    serving: Collected
    renormalised: Collected | None = None
    training: Collected | None = None
    level: float = 0.05
    advice: Mapping[str, AlphaAdvice] = field(default_factory=dict)


def layer_rows(layers: Sequence[Layer], measured: Measured, judge: Judge) -> tuple[list[BatchNormLayer], str | None]:
    """Returns the rows of the report in call order, and the name of the layer where the drift starts."""
    order = [layer for layer, _ in _observed(layers, measured.serving)]
    # Unusable statistics are reported even where this forward did not come by.
    order += [layer for layer in layers if layer.name not in measured.serving.moments and unusable(layer)]
    made = []
    poisoned: Layer | None = None
    for layer in order:
        made.append(_Row(layer, measured, judge, poisoned))
        poisoned = poisoned or (layer if unusable(layer) else None)
    rows = [one.row for one in made]
    first = origin(rows, {one.row.name: one.drifts_by_itself() for one in made if one.row.verdict == "drift"})
    reached: str | None = None
    for one in made:
        reached = first if one.row.name == first else reached
        one.explain(reached)
    return rows, first


def unusable(layer: Layer) -> bool:
    """Whether the layer stores statistics that are not finite or give no positive variance."""
    return layer.tracked and bool(layer.unusable_channels().any())


class _Row:
    """One layer of the report in the making; what cannot be measured is said before what is."""

    def __init__(self, layer: Layer, measured: Measured, judge: Judge, poisoned: Layer | None) -> None:
        self._layer, self._measured, self._judge, self._poisoned = layer, measured, judge, poisoned
        self._moments = measured.serving.moments.get(layer.name)
        self._score: Score | None = None
        self._parts: Parts | None = None
        self.row = BatchNormLayer(
            name=layer.name,
            kind=layer.kind,
            channels=layer.channels,
            images=self._moments.images if self._moments is not None else 0,
            verdict="inconclusive",
            w=math.nan,
            w_low=math.nan,
            w_high=math.nan,
            advice=measured.advice.get(layer.name),
        )
        if not layer.tracked:
            return
        if self._moments is not None and self._moments.finite:
            self._measure(self._moments)
        if unusable(layer):
            self.row.verdict, self.row.cause = "drift", "stale"
            self.row.w = self.row.w_low = self.row.w_high = math.inf

    def drifts_by_itself(self) -> bool:
        """Whether what the layer sees below re-normalised BatchNorms is beyond the margin, too."""
        if unusable(self._layer):
            return True
        seen = self._measured.renormalised
        moments = None if seen is None else seen.moments.get(self._layer.name)
        if seen is None or moments is None or not moments.finite:
            return False
        return self._judge.verdict(self._judge.score(self._layer, moments, seen, self._measured.level)) == "drift"

    def explain(self, first: str | None) -> None:
        """Writes the note, now that it is known which layer is the origin; None if this one is called before it."""
        layer, row, judge = self._layer, self.row, self._judge
        if not layer.tracked:
            sentences = [explain.untracked_sentence(layer)]
        elif unusable(layer):
            sentences = [explain.unusable_sentence(layer)]
        elif self._score is None:
            sentences = [explain.not_finite_sentence(layer, self._poisoned)]
        else:
            guessed = judge.guessed
            sentences = [
                explain.verdict_sentence(self._score, row.verdict, row.images, judge.warn, judge.fail, guessed=guessed)
            ]
            differing = differing_calls(row.calls, judge.warn)
            if row.verdict == "drift":
                sentences += explain.cause_sentences(
                    self._parts, row.name, first, guessed=guessed, frozen=layer.frozen, advice=differing
                )
                if row.advice is not None:
                    sentences.append(advice_sentence(row.advice, row.stochastic))
            elif differing:
                sentences.append(differing)
        if layer.tracked:
            sentences += explain.facts(layer, self._moments, self._score, judge.warn)
        row.note = " ".join(sentences)
        if layer.frozen:  # a call that names no layers would leave it alone
            row.note = row.note.replace(explain.CALL, explain.CALL[:-1] + f", layers=[{row.name!r}])")

    def _measure(self, moments: Moments) -> None:
        row, judge, eps = self.row, self._judge, self._layer.eps
        score = self._score = judge.score(self._layer, moments, self._measured.serving, self._measured.level)
        broken = self._layer.unusable_channels().to(score.delta.device)
        row.w, row.w_low, row.w_high = score.w, score.low, score.high
        row.verdict = judge.verdict(score)
        row.delta, row.log_ratio, row.delta_se, row.log_ratio_se = (
            values.masked_fill(broken, math.nan).tolist()
            for values in (score.delta, score.log_ratio, score.delta_se, score.log_ratio_se)
        )
        channel_w = score.channel_w.masked_fill(broken, math.inf)
        row.worst_channel = int(channel_w.argmax())
        flagged = discoveries(score.p_values.masked_fill(broken, math.nan)) | broken
        row.flagged = [channel for channel in channel_w.argsort(descending=True).tolist() if flagged[channel]]
        serving = estimate(moments, eps)
        _summarise(row, serving, ~broken)
        if row.verdict == "inconclusive" and not broken.any():
            row.images_needed = score.images_needed(judge.warn, row.images)
        if 1 < moments.calls <= MOST_CALLS:
            row.calls = [_call(moments, sums, eps, ~broken) for sums in moments.call_sums]
        self._attribute(serving, ~broken)

    def _attribute(self, serving: Estimate, usable: Tensor) -> None:
        found = []
        for seen in (self._measured.training, self._measured.renormalised):
            moments = None if seen is None else seen.moments.get(self._layer.name)
            if moments is None or not moments.finite:
                return
            found.append(estimate(moments, self._layer.eps))
        if not torch.isfinite(torch.stack([one.log_ratio[usable] for one in (*found, serving)])).all(dim=0).any():
            return
        row = self.row
        parts = self._parts = attribute(found[0], found[1], serving, usable)
        row.attribution = parts.attribution
        row.stale, row.stochastic, row.propagated = parts.median
        row.cause = parts.cause if row.verdict == "drift" else None


def _observed(layers: Sequence[Layer], seen: Collected) -> list[tuple[Layer, Moments]]:
    """The layers that the forward reached, in call order."""
    by_name = {layer.name: layer for layer in layers}
    return [(by_name[name], moments) for name, moments in seen.moments.items()]


def _summarise(row: BatchNormLayer, serving: Estimate, usable: Tensor) -> None:
    """Fills in the numbers per layer, over channels that can be compared."""
    known = usable & torch.isfinite(serving.log_ratio)
    if not known.any():
        return
    delta, r = serving.delta[known], serving.r[known]
    row.median_log_ratio = float(serving.log_ratio[known].quantile(0.5))
    row.delta_p95 = float(delta.abs().quantile(0.95))
    # KL(E || R) + KL(R || E) of normals with means delta and 0, variances r and 1.
    row.symmetric_kl = float(((r + 1 / r - 2 + delta.square() * (1 + 1 / r)) / 2).mean())
    row.max_ratio = float(torch.maximum(r, 1 / r).quantile(0.5))


def _call(moments: Moments, sums: Tensor, eps: float, usable: Tensor) -> BatchNormCall:
    one = estimate(moments, eps, sums)
    known = usable & torch.isfinite(one.log_ratio)
    if not known.any():
        return BatchNormCall(w=math.nan, median_log_ratio=math.nan, delta_rms=math.nan)
    return BatchNormCall(
        w=float((one.w2 - one.noise)[known].mean().clamp_min(0).sqrt()),
        median_log_ratio=float(one.log_ratio[known].quantile(0.5)),
        delta_rms=float(one.delta[known].square().mean().sqrt()),
    )
