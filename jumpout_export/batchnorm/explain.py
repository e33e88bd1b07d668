"""The sentences of the BatchNorm report: what, how much, and what to do."""

from __future__ import annotations

import math

import torch

from jumpout_export.batchnorm.collect import Moments
from jumpout_export.batchnorm.layers import Layer
from jumpout_export.batchnorm.score import MIN_IMAGES, Score
from jumpout_export.report import BatchNormVerdict

FIX = "recalibrate it with recalibrate_batchnorm(model, batches)"


def verdict_sentence(score: Score, verdict: BatchNormVerdict, images: int, warn: float, fail: float) -> str:
    """Says what a layer's verdict is and what to do about it."""
    if verdict == "ok":
        return f"Agrees: W is at most {score.high:.3f}."
    if verdict == "inconclusive":
        return undecided_sentence(score, images, warn)
    degree = "Severe drift" if score.low > fail else "Drift"
    ratio = float(score.log_ratio.median().exp())
    offset = float(score.delta.abs().quantile(0.95))
    return (
        f"{degree}: the variance it is served is {ratio:.2f} times the stored one (median channel) and the mean is "
        f"off by up to {offset:.2f} stored standard deviations (95% of channels); {FIX}."
    )


def undecided_sentence(score: Score, images: int, warn: float) -> str:
    """Says why a layer is undecided, and how many images would decide."""
    between = f"Undecided: W lies between {score.low:.3f} and {score.high:.3f}, the margin is {warn:g}"
    if images < MIN_IMAGES:
        return f"Undecided: {images} images are too few for an error bar; pass at least {MIN_IMAGES}."
    needed = score.images_needed(warn, images)
    if needed is not None:
        return f"{between}; about {_round(needed - images)} more images would decide."
    if score.low > warn:
        return f"{between}, and noise alone makes {score.floor:.3f}; train longer with a smaller momentum, or {FIX}."
    return f"{between}; W is so close to the margin that more images would hardly decide."


def facts(layer: Layer, moments: Moments | None, score: Score | None) -> list[str]:
    """Returns sentences on what is special about a layer, most of them none."""
    module = layer.module
    found = []
    if layer.frozen:
        found.append("Frozen: training leaves its statistics alone; it is recalibrated only if named in `layers`.")
    if module.num_batches_tracked is not None and int(module.num_batches_tracked) == 0:
        found.append("Never trained: num_batches_tracked is 0 (or its checkpoint does not store the counter).")
    if module.momentum == 0:
        found.append("Momentum is 0, so training never updates its statistics.")
    if module.momentum == 1:
        found.append("Momentum is 1, so it stores the statistics of the last batch only.")
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
                f"{1 / math.sqrt(module.eps) if module.eps > 0 else math.inf:.0f}."
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
    count, first = int(unusable.sum()), int(torch.nonzero(unusable)[0])
    mean, var = (float(buffer[first]) for buffer in layer.statistics())
    return (
        f"BatchNorm {layer.label} stores unusable statistics in {count} of {len(unusable)} channels (channel {first}: "
        f"mean {mean:g}, variance {var:g}), so what it serves is NaN, infinite or constant; the usual reason is "
        f"overflow in mixed precision; {FIX}."
    )


def not_finite_sentence(layer: Layer, poisoned: Layer | None) -> str:
    """Says why a layer whose input is not finite could not be measured."""
    if poisoned is not None:
        return (
            f"The input of {layer.label} holds NaN or infinity because of {poisoned.label} before it; fix that first."
        )
    return f"The input of {layer.label} holds NaN or infinity; look at the data and at the layers before it."


def _round(number: int) -> int:
    """Two significant digits, upwards: an estimate should not look exact."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    return -(-number // unit) * unit
