"""The rows of the BatchNorm report: one layer's score, verdict, cause and explanation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jumpout_export.batchnorm.advice.alpha import advice_sentence
from jumpout_export.batchnorm.judge import explain
from jumpout_export.batchnorm.judge.attribute import CAUSES, Parts, attribute, origin
from jumpout_export.batchnorm.judge.calls import differing_calls
from jumpout_export.batchnorm.judge.estimate import Estimate, discoveries, estimate
from jumpout_export.batchnorm.judge.intervals import data_distance, part_errors
from jumpout_export.batchnorm.judge.small_batches import explaining_batch
from jumpout_export.batchnorm.judge.verdicts import Judge, Judged, observed, unusable
from jumpout_export.batchnorm.measure.collect import Collected
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.moments import MOST_CALLS, Moments
from jumpout_export.report import AlphaAdvice, BatchNormCall, BatchNormLayer


@dataclass(frozen=True)
class Measured:
    """What the check measured: the states E, P and T, the last two None where they were not measured.

    With a `reference`, its state E, P and T are those of its samples.
    The intervals miss the truth with probability `level`; `advice` is what the law of the scaled mask says, by layer.
    """

    serving: Collected
    renormalised: Collected | None = None
    training: Collected | None = None
    reference: Collected | None = None
    level: float = 0.05
    advice: Mapping[str, AlphaAdvice] = field(default_factory=dict)


def layer_rows(layers: Sequence[Layer], measured: Measured, judge: Judge) -> tuple[list[BatchNormLayer], str | None]:
    """Returns the rows of the report in call order, and the name of the layer where the drift starts."""
    order = [layer for layer, _ in observed(layers, measured.serving)]
    # Unusable statistics are reported even where this forward did not come by.
    order += [layer for layer in layers if layer.name not in measured.serving.moments and unusable(layer)]
    made = []
    poisoned: Layer | None = None
    judged = judge.judge(layers, measured.serving, measured.level)
    for layer in order:
        made.append(_Row(layer, measured, judge, judged.get(layer.name), poisoned))
        poisoned = poisoned or (layer if unusable(layer) else None)
    rows = [one.row for one in made]
    first = None
    if any(row.verdict == "drift" for row in rows):
        own = _by_themselves(layers, measured, judge)
        first = origin(rows, own | {row.name: True for row in rows if row.cause == "data"})
    reached: str | None = None
    for one in made:
        reached = first if one.row.name == first else reached
        one.explain(reached)
    return rows, first


def _by_themselves(layers: Sequence[Layer], measured: Measured, judge: Judge) -> dict[str, bool]:
    """Whether each layer drifts by what it sees below re-normalised BatchNorms, too, or stores what is unusable."""
    seen = measured.renormalised
    judged = {} if seen is None else judge.judge(layers, seen, measured.level)
    drifting = {name: one.verdict == "drift" for name, one in judged.items()}
    return drifting | {layer.name: True for layer in layers if unusable(layer)}


class _Row:
    """One layer of the report in the making; what cannot be measured is said before what is."""

    def __init__(
        self, layer: Layer, measured: Measured, judge: Judge, judged: Judged | None, poisoned: Layer | None
    ) -> None:
        self._layer, self._measured, self._judge, self._poisoned = layer, measured, judge, poisoned
        self._moments = measured.serving.moments.get(layer.name)
        self._judged = judged
        self._parts: Parts | None = None
        self._other_data = False  # whether the samples are shown to be others than those of the reference
        self.row = BatchNormLayer(
            name=layer.name,
            kind=layer.kind,
            channels=layer.channels,
            samples=self._moments.samples if self._moments is not None else 0,
            verdict="inconclusive",
            w=math.nan,
            w_low=math.nan,
            w_high=math.nan,
            advice=measured.advice.get(layer.name),
        )
        if not layer.tracked:
            return
        if self._moments is not None and judged is not None:
            self._measure(self._moments, judged)
        if unusable(layer):
            self.row.verdict, self.row.cause = "drift", "stale"
            self.row.w = self.row.w_low = self.row.w_high = math.inf

    def explain(self, first: str | None) -> None:
        """Writes the note, now that it is known which layer is the origin; None if this one is called before it."""
        layer, row, judge, judged = self._layer, self.row, self._judge, self._judged
        if not layer.tracked:
            sentences = [explain.untracked_sentence(layer)]
        elif unusable(layer):
            sentences = [explain.unusable_sentence(layer)]
        elif judged is None:
            sentences = [explain.not_finite_sentence(layer, self._poisoned)]
        else:
            guessed, explaining = judge.guessed, self._explaining(judged)
            sentences = [
                explain.verdict_sentence(
                    judged, row.samples, judge.warn, judge.fail, guessed=guessed, explaining=explaining
                )
            ]
            sentences += explain.few_channels_sentence(judged)
            differing = differing_calls(row.calls, judge.warn)
            if row.verdict == "drift":
                sentences += explain.cause_sentences(
                    self._parts,
                    row.name,
                    first,
                    guessed=guessed,
                    frozen=layer.frozen,
                    advice=differing,
                    reference=self._measured.reference is not None,
                    explaining=explaining,
                    intervals=row.part_intervals if judged.by_w else {},
                )
                if row.advice is not None:
                    sentences.append(advice_sentence(row.advice, row.stochastic))
            elif differing:
                sentences.append(differing)
        if layer.tracked:
            sentences += explain.facts(layer, self._moments, None if judged is None else judged.score, judge.warn)
        row.note = " ".join(sentences)
        if layer.frozen:  # a call that names no layers would leave it alone
            row.note = row.note.replace(explain.CALL, explain.CALL[:-1] + f", layers=[{row.name!r}])")

    def _explaining(self, judged: Judged) -> int | None:
        """The batch size of training by which noise alone explains an undecided or drifting layer."""
        if self._moments is None or judged.verdict == "ok" or not judged.by_w:
            return None
        if explain.few_channels_sentence(judged):  # noise is in all channels alike
            return None
        return explaining_batch(
            self._layer, self._moments, judged.score, self._judge.batch_size(self._measured.serving)
        )

    def _measure(self, moments: Moments, judged: Judged) -> None:
        row, judge, eps, score = self.row, self._judge, self._layer.eps, judged.score
        broken = self._layer.unusable_channels().to(score.delta.device)
        row.w, row.w_low, row.w_high = score.w, score.low, score.high
        row.w_measured, row.w_noise = score.measured, score.floor
        row.verdict, row.drifting_channels = judged.verdict, list(judged.channels)
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
            row.samples_needed = score.samples_needed(judge.warn, row.samples)
        if 1 < moments.calls <= MOST_CALLS:
            row.calls = [_call(moments, sums, eps, ~broken) for sums in moments.call_sums]
        self._attribute(serving, ~broken, judged)

    def _attribute(self, serving: Estimate, usable: Tensor, judged: Judged) -> None:
        measured, eps = self._measured, self._layer.eps
        others = [measured.training, measured.renormalised, *([measured.reference] if measured.reference else [])]
        found = [None if seen is None else seen.moments.get(self._layer.name) for seen in others]
        moments = [one for one in found if one is not None and one.finite]
        if self._moments is None or len(moments) < len(found):
            return
        states = [*(estimate(one, eps) for one in moments), serving]
        known = torch.isfinite(torch.stack([one.log_ratio for one in states])).all(dim=0) & usable
        if not known.any():
            return
        row = self.row
        parts = self._parts = attribute(states, usable)
        row.attribution = parts.attribution
        row.stale, row.stochastic, row.propagated = parts.median[:3]
        checked = None
        if measured.reference is not None:
            row.data, checked = parts.median[3], self._moments
            self._compare_data(moments[2], known)
        noise = others[0].noise.get(self._layer.name) if others[0] is not None else None
        halves = part_errors(moments if checked else [*moments, self._moments], checked, eps, known, noise)
        row.part_intervals = {
            cause: [part - half, part + half]
            for cause, part, half in zip(CAUSES, parts.median, halves, strict=False)
            if math.isfinite(half)
        }
        if not judged.by_w:  # the others agree, and say nothing about why these do not
            among = torch.zeros_like(usable)
            among[list(judged.channels)] = True
            self._parts = attribute(states, among)
        row.cause = self._parts.cause(data=self._other_data) if row.verdict == "drift" else None

    def _compare_data(self, reference: Moments, known: Tensor) -> None:
        """Measures how far the samples that are checked are from those of the reference, for this layer."""
        if self._moments is None:
            return
        eps, measured = self._layer.eps, self._measured
        apart = data_distance(self._moments, reference, eps, known, measured.level)
        self.row.w_data, self.row.w_data_low, self.row.w_data_high = apart.w, apart.low, apart.high
        # Over all layers the samples are called other ones by mistake at most as often as one interval misses.
        strict = measured.level / max(len(measured.serving.moments), 1)
        self._other_data = data_distance(self._moments, reference, eps, known, strict).low > 0


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
