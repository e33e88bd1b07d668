"""The sentences of the BatchNorm report: what, how much, why, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from jumpout_export.batchnorm.judge.attribute import CAUSES, Parts
from jumpout_export.batchnorm.judge.score import GUESSED_NOISE, MIN_SAMPLES, Score
from jumpout_export.batchnorm.judge.verdicts import Judged
from jumpout_export.batchnorm.measure.layers import Layer, label
from jumpout_export.batchnorm.measure.moments import Moments
from jumpout_export.report import Cause
from jumpout_export.text import count, some_of

CALL = "recalibrate_batchnorm(model, batches)"
FIX = f"recalibrate it with {CALL}"
_FIX = FIX[0].upper() + FIX[1:]
_MOMENTUM: dict[float | None, str] = {
    None: "Momentum is None: it stores the plain average of all training batches, the earliest included.",
    0: "Momentum is 0, so training never updates its statistics.",
    1: "Momentum is 1, so it stores the statistics of the last batch only.",
}
# A second cause with less of the drift than this is not worth a sentence.
SECOND_CAUSE = 0.25
# Nor is what takes less of it away.
AGAINST = 0.05
# Such a share of a layer's channels is few.
FEW_CHANNELS = 1 / 16


def verdict_sentence(
    judged: Judged, samples: int, warn: float, fail: float, *, guessed: bool, explaining: int | None = None
) -> str:
    """Says what a layer's verdict is and how much it is off; `explaining` is what `explaining_batch` returns."""
    score = judged.score
    if not judged.by_w:
        return _channels(judged, fail)
    if judged.verdict == "ok":
        return _agrees(score)
    if judged.verdict == "inconclusive":
        return _undecided(score, samples, warn, guessed=guessed, explaining=explaining)
    degree = "Severe drift" if score.low > fail else "Drift"
    # A dead channel of a layer with eps = 0 has a ratio of exactly 0.
    ratio = float(score.log_ratio.exp().nanquantile(0.5))
    offset = float(score.delta.abs().nanquantile(0.95))
    return (
        f"{degree}: the variance it is served is {ratio:.2f} times the stored one (median channel) and the mean is "
        f"off by up to {offset:.2f} stored standard deviations (95% of channels)."
    )


def _agrees(score: Score) -> str:
    """Says what is left of W without noise, and that what was measured is more."""
    parts = f"{score.measured:.3f} was measured, and noise alone makes {score.floor:.3f}"
    if score.high < 0.0005:
        return f"Agrees: a W of {parts}; nothing systematic is left."
    return f"Agrees: the systematic part of W is at most {score.high:.3f}; a W of {parts}."


def _channels(judged: Judged, fail: float) -> str:
    """Names the channels by which a layer drifts whose W does not show it."""
    score, channels = judged.score, judged.channels
    worst, total = channels[0], len(score.delta)
    what = f"channel {worst} of {total} is beyond {fail:g} by itself"
    if len(channels) > 1:
        named = some_of([str(channel) for channel in channels])
        what = f"{len(channels)} of {total} channels ({named}) are beyond {fail:g} by themselves, {worst} the farthest"
    ratio, offset = float(score.log_ratio[worst].exp()), float(score.delta[worst])
    return (
        f"Severe drift of single channels: {what}: the variance it is served is {ratio:.3g} times the stored one and "
        f"the mean is off by {offset:+.2f} stored standard deviations. "
        f"W of the layer is {score.w:.3f}, the root mean square over all its channels."
    )


def few_channels_sentence(judged: Judged) -> list[str]:
    """Names the channels that make half of W squared where a layer drifts by few of them; else there is no sentence."""
    if judged.verdict != "drift" or not judged.by_w:
        return []
    squares = judged.score.channel_w.square().nan_to_num(0)
    ordered, order = squares.sort(descending=True)
    half = int((ordered.cumsum(0) < ordered.sum() / 2).sum()) + 1
    if half > len(squares) * FEW_CHANNELS:
        return []
    share, named = (
        float(ordered[:half].sum() / ordered.sum()),
        some_of([str(channel) for channel in order[:half].tolist()]),
    )
    one = f"Channel {named} of {len(squares)} makes" if half == 1 else f"Channels {named} of {len(squares)} make"
    return [f"{one} {share:.0%} of W squared."]


def _undecided(score: Score, samples: int, warn: float, *, guessed: bool, explaining: int | None) -> str:
    """Says why a layer is undecided, and how many samples would decide, if a number of samples would."""
    between = f"Undecided: W lies between {score.low:.3f} and {score.high:.3f}, the margin is {warn:g}"
    if score.units < MIN_SAMPLES:
        unit = "samples" if score.units == samples else "groups of samples"
        return f"Undecided: {score.units} {unit} are too few for an error bar; pass at least {MIN_SAMPLES}."
    if not math.isfinite(score.high):
        return f"Undecided: the samples are too alike for an error bar; pass at least {MIN_SAMPLES} independent ones."
    needed = score.samples_needed(warn, samples)
    if score.heavy_tailed:
        more = "" if needed is None else f" (about {_round(needed - samples)} more would decide)"
        return f"{between}{more}; {_heavy_tails(score)}."
    decided_but_for_noise = score.low > warn or score.high < warn
    if needed is not None and not decided_but_for_noise:
        return f"{between}; about {_round(needed - samples)} more samples would decide."
    if decided_but_for_noise or score.stored_samples < samples:
        unless = ", say training_batch_size= if training used larger batches" if guessed else ""
        rule = f"; as the batch size of training is a guess, drift has to exceed {GUESSED_NOISE:.0f} times that"
        alone = "" if explaining is None else f"; {_small_batches(explaining)}"
        return (
            f"{between}, and the noise in the stored average alone makes {score.stored_floor:.3f}"
            f"{rule if guessed and score.low > warn else ''}{alone}; {FIX}{unless}, or train longer with a smaller "
            "momentum."
        )
    return f"{between}; W is too close to the margin for more samples to decide; {FIX}, or set another margin."


def _heavy_tails(score: Score) -> str:
    """Names the share of the samples that carry the variance, and what helps."""
    few = max(round(score.carrying), 1)
    return (
        f"as few as {few} of {score.units:,} samples ({few / score.units:.1%}) carry most of its variance, in the "
        "channels that are least certain, so neither these samples nor a moving average know it well. What helps: to "
        "train on, where that is so after a few steps; to look at these samples and at what lets them grow (learning "
        f"rate, missing clipping); {FIX}, on as many samples as there are"
    )


def small_batches_sentence(explaining: int) -> str:
    """Says that small batches in training make such a drift in a healthy network."""
    sentence = _small_batches(explaining)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _small_batches(explaining: int) -> str:
    return (
        f"noise alone explains this if a training batch held at most {count(explaining, 'sample')}, as micro-batches "
        "of gradient accumulation and batches of single processes do (training_batch_size= is the size of these)"
    )


def cause_sentences(
    parts: Parts | None,
    name: str,
    origin: str | None,
    *,
    guessed: bool = True,
    frozen: bool = False,
    advice: str = "",
    explaining: int | None = None,
    reference: bool = False,
    intervals: Mapping[Cause, Sequence[float]] = MappingProxyType({}),
) -> list[str]:
    """Says why a layer drifts, where its parts were measured, and what to do about it, or gives other `advice`.

    `origin` is the layer where the drift starts, if it is called before this one; `explaining` the batch size of
    training by which noise alone explains what is stale; `reference` says whether the samples of training were given;
    `intervals` are those of the parts of the median ln r.
    """
    if parts is None:
        if advice:
            return [advice]
        if origin in (None, name):
            return [*([] if explaining is None else [small_batches_sentence(explaining)]), f"{_FIX}."]
        return [f"{label(origin)} before it drifts too and may be the reason; {FIX}."]
    shares = parts.shares
    first, second, *_ = sorted(shares, key=lambda cause: shares[cause], reverse=True)
    if first == "stale" and explaining is not None and not advice:
        return [
            small_batches_sentence(explaining),
            f"{_FIX}; if the batches were larger, the average lags or training sees other samples than serving.",
        ]
    # What works against the drift is no part of it: shares are those of what makes it, and it is said what is undone.
    making = sum(share for share in shares.values() if share > 0)
    of_it = {cause: share / making for cause, share in shares.items()}
    also = f", {of_it[second]:.0%} {second}" if of_it[second] >= SECOND_CAUSE else ""
    against = {cause: -share for cause, share in of_it.items() if -share >= AGAINST}
    undone = [f"{cause} parts make it {share:.0%} smaller" for cause, share in against.items()]
    return [
        f"{_share(of_it[first])} is {first}{also}: {_effect(parts, first, intervals)}.",
        *([f"{_capital(' and '.join(undone))}."] if undone else []),
        advice or _advice(first, name, origin, guessed=guessed, frozen=frozen, reference=reference),
    ]


def facts(layer: Layer, moments: Moments | None, score: Score | None, warn: float) -> list[str]:
    """Returns sentences on what is special about a layer, most of them none."""
    found = []
    if layer.frozen:
        found.append("Frozen: training leaves its statistics alone; it is recalibrated only if named in `layers`.")
    found += _kind(layer)
    if moments is not None and moments.outside:
        found.append(
            "Not called itself: F.batch_norm is handed its buffers, which counts no batches, and updates them in "
            "training only where the call says training=True."
        )
    elif layer.batches_tracked == 0:
        found.append("Never trained: num_batches_tracked is 0 (or its checkpoint does not store the counter).")
    if not layer.fixed and layer.momentum in _MOMENTUM:
        found.append(_MOMENTUM[layer.momentum])
    if moments is not None and moments.calls > 1:
        found.append(f"Called {moments.calls} times per forward; the calls are pooled.")
    if score is not None:
        constant = int(score.constant.sum())
        silent = int(((layer.statistics()[1].to(score.constant.device) == 0) & ~score.constant).sum())
        if constant:
            found.append(f"{constant} of {len(score.constant)} channels have zero variance (dead or constant input).")
        if silent:
            found.append(
                f"running_var is 0 in {silent} channels whose input varies; they are amplified by 1 / sqrt(eps) = "
                f"{1 / math.sqrt(layer.eps) if layer.eps > 0 else math.inf:.0f}."
            )
        if score.heavy_tailed and score.low > warn:
            tails = _heavy_tails(score)
            found.append(f"{tails[0].upper()}{tails[1:]}.")
        if score.high < warn <= score.stored_floor:
            found.append(
                f"The noise left in the stored average makes W = {score.stored_floor:.3f} by itself, as in any "
                "training with such batches; recalibrating removes it."
            )
    return found


def _kind(layer: Layer) -> list[str]:
    """Sentences on layers that are not simply one BatchNorm, most of them none."""
    found = []
    if layer.aliases:
        also = ", ".join(map(label, layer.aliases))
        found.append(f"Also {also}: one module under several names, which is one layer.")
    if layer.per_instance:
        found.append(
            "InstanceNorm: compared with the averages over samples of each sample's own mean and variance, which is "
            "what it stores. In training it normalises each sample by itself and serves with the averages: that "
            "difference remains, and without running statistics (track_running_stats=False) there would be none."
        )
    if layer.fused:
        found.append(
            f"Part of the quantisation-aware {layer.fused}, which rounds weights to ranges that were observed with the "
            "stored variance: it is recalibrated only if named in `layers`, and the ranges must be observed anew then; "
            "better recalibrate the float model before it is prepared."
        )
    return found


def untracked_sentence(layer: Layer) -> str:
    """Says why a layer without running statistics cannot be checked."""
    return (
        f"BatchNorm {layer.label} has no running statistics (track_running_stats=False): its output depends on the "
        "batch it is served in, and it cannot be exported as constants; train it with track_running_stats=True."
    )


def unusable_sentence(layer: Layer) -> str:
    """Says which stored statistics are unusable."""
    unusable = layer.unusable_channels()
    several, first = int(unusable.sum()), int(torch.nonzero(unusable)[0])
    mean, var = (float(buffer[first]) for buffer in layer.statistics())
    usual = "the usual reason is overflow in mixed precision"
    if math.isfinite(mean) and math.isfinite(var):
        usual = "the usual reason is an average or a merge of models with negative weights"
    return (
        f"BatchNorm {layer.label} stores unusable statistics in {several} of {len(unusable)} channels (channel "
        f"{first}: mean {mean:g}, variance {var:g}), so what it serves is NaN, infinite or constant; {usual}; {FIX}."
    )


def not_finite_sentence(layer: Layer, poisoned: Layer | None) -> str:
    """Says why a layer whose input is not finite could not be measured."""
    if poisoned is not None:
        return (
            f"The input of {layer.label} holds NaN or infinity because of {poisoned.label} before it; fix that first."
        )
    return f"The input of {layer.label} holds NaN or infinity; look at the data and at the layers before it."


def _share(share: float) -> str:
    return "All of it" if share >= 0.995 else f"{share:.0%} of it"


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _effect(parts: Parts, cause: Cause, intervals: Mapping[Cause, Sequence[float]]) -> str:
    """What a cause does to the variance or, if that is most of it, to the mean."""
    index = CAUSES.index(cause)
    who = {
        "stale": "what training sees now has",
        "stochastic": "without dropout or jumpout the input has",
        "propagated": "the stored statistics of BatchNorms before it give it",
        "data": "these samples have",
    }[cause]
    if parts.of_variance[index] >= parts.of_mean[index]:
        spread = _rms(parts.log_ratio[index])
        if abs(parts.median[index]) < spread / 2:
            return f"{who} larger variances in some channels and smaller ones in others, by {spread:.0%} (RMS)"
        change = math.expm1(parts.median[index])
        compared = {
            "stale": "than is stored",
            "stochastic": "than with it",
            "propagated": "than batch statistics do",
            "data": "than those of the reference",
        }
        more = "larger" if change > 0 else "smaller"
        ends = [math.expm1(end) for end in intervals.get(cause, ())]
        interval = f", 95% {ends[0]:+.0%} to {ends[1]:+.0%}" if ends else ""
        return f"{who} a variance {abs(change):.0%} {more} {compared[cause]} (median channel{interval})"
    return f"{who} another mean, by {_rms(parts.delta[index]):.2f} stored standard deviations (RMS over channels)"


def _rms(part: Tensor) -> float:
    return float(part[torch.isfinite(part)].square().mean().sqrt())


def _advice(cause: Cause, name: str, origin: str | None, *, guessed: bool, frozen: bool, reference: bool) -> str:
    if cause == "propagated" and origin in (None, name):
        return f"{_FIX}, and all layers with it: it adds up from layers that are within the margin by themselves."
    if cause == "propagated":
        return f"Fix {label(origin or name)} first; {CALL} corrects them in that order."
    if cause == "data":
        return (
            "Compare how they are made with how those of the reference are: mean and std, value range, order of "
            f"colours, size, source; if they are what is served all the same, {FIX}."
        )
    if frozen:
        return f"{_FIX}."
    if cause == "stochastic":
        return f"{_FIX}; to train without it, use another alpha, less noise, or noise only behind the last BatchNorm."
    smaller = ", and say training_batch_size= if training used smaller batches" if guessed else ""
    if not reference:
        return (
            "Either the average lags behind the weights or saw augmentation that serving lacks, or these samples are "
            "others than those of training: check with reference=, some batches of training, to know which; the "
            f"first is mended by recalibrating, {CALL}, the second perhaps by preprocessing the samples as in "
            f"training{smaller}."
        )
    return (
        f"{_FIX}; if it comes back, end training at a small learning rate so that the average catches up, look for "
        f"augmentation that serving lacks{smaller}."
    )


def _round(number: int) -> int:
    """Two significant digits, upwards: an estimate should not look exact."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    return -(-number // unit) * unit
