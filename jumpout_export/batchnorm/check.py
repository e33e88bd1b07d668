"""Checks that the running statistics stored in a model agree with what its BatchNorm layers see when it is served."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from jumpout_export.batchnorm import explain
from jumpout_export.batchnorm.collect import Collected, collect
from jumpout_export.batchnorm.feed import Feed, ForwardFn
from jumpout_export.batchnorm.layers import Layer, batchnorm_layers, label, select_layers
from jumpout_export.batchnorm.outputs import output_effect
from jumpout_export.batchnorm.score import score_layer, stored_images
from jumpout_export.batchnorm.solve import solve_near
from jumpout_export.batchnorm.states import SERVING
from jumpout_export.nn.batches import Progress
from jumpout_export.report import BatchNormLayer, BatchNormReport, BatchNormVerdict, OutputEffect

# The effect on the outputs is measured on a copy whose layers are this exact, in units of W, or as exact as this many
# passes make it: a network of 50 BatchNorms would take 50.
OUTPUT_TOLERANCE = 1e-3
OUTPUT_PASSES = 10


def check_batchnorm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    images: int = 4096,
    warn: float = 0.05,
    fail: float = 0.15,
    forward_fn: ForwardFn | None = None,
    device: torch.device | str | None = None,
    outputs: bool = True,
    progress: Progress | None = None,
) -> BatchNormReport:
    """Returns how far the stored BatchNorm statistics of `model` are from what serving sees, with error bars.

    The model runs as it is served: dropout and jumpout off, BatchNorm with running statistics. It is left exactly as
    it was found: flags, buffers, hooks, generator states, also after an exception.

    Args:
        model: a model with BatchNorm layers, in any mode.
        batches: a list or DataLoader of batches (tensor, tuple, list or dict; a last integer tensor is labels).
        images: a pass ends with the batch that reaches this many images.
        warn: margin in units of W: a layer is `ok` if its W is shown to be below, `drift` if shown to be above.
            0.05 is 10% of the variance.
        fail: margin from which the drift is called severe, at least `warn`.
        forward_fn: `forward_fn(model, batch)` replaces the call; it gets the batch as the loader yields it.
        device: where batches go; None: where the model's first parameter is.
        outputs: also measure what recalibration would change at the outputs, which takes further passes: a batch
            pass, at most ten that make the copy exact, and one with two forwards.
        progress: called as `progress(what, images done, images in all or None)`.

    Returns:
        The report, truthy exactly when every layer is `ok`.

    Raises:
        ValueError: if the model has no BatchNorm, `batches` is empty or a one-shot iterator, or a margin or `images`
            is out of range.
        TypeError: if `batches` or a batch is of the wrong type.

    Example:
        >>> report = check_batchnorm(model, loader)
        >>> report.verdict, report.origin
    """
    if not 0 < warn <= fail:
        raise ValueError(f"margins must satisfy 0 < warn <= fail, got warn={warn:g}, fail={fail:g}")
    layers = batchnorm_layers(model)
    feed = Feed(model, batches, images=images, forward_fn=forward_fn, device=device, progress=progress)
    seen = collect(feed, layers, SERVING, "checking BatchNorm")
    rows = _rows(layers, seen, warn, fail)
    report = BatchNormReport(
        verdict=_overall(rows),
        origin=next((row.name for row in rows if row.verdict == "drift"), None),
        images=seen.images,
        warn=warn,
        fail=fail,
        layers=rows,
        not_observed=[layer.name for layer in layers if layer.name not in seen.moments],
    )
    report.notes += _notes(report, images)
    if outputs:
        report.outputs, note = _outputs(feed, layers, seen)
        report.notes += note
    return report


def _rows(layers: list[Layer], seen: Collected, warn: float, fail: float) -> list[BatchNormLayer]:
    by_name = {layer.name: layer for layer in layers}
    order = [by_name[name] for name in seen.moments]
    # Unusable statistics are reported even where this forward did not come by.
    order += [layer for layer in layers if layer.name not in seen.moments and _unusable(layer)]
    rows: list[BatchNormLayer] = []
    poisoned: Layer | None = None
    for layer in order:
        rows.append(_row(layer, seen, poisoned, warn, fail))
        if poisoned is None and _unusable(layer):
            poisoned = layer
    origin = next((row.name for row in rows if row.verdict == "drift"), None)
    for row in rows:
        if origin is not None and row.verdict == "drift" and row.name != origin:
            row.note += f" {label(origin)} before it drifts too and may be the reason."
    return rows


def _row(layer: Layer, seen: Collected, poisoned: Layer | None, warn: float, fail: float) -> BatchNormLayer:
    """One layer of the report; what cannot be measured is said before what is."""
    moments = seen.moments.get(layer.name)
    row = BatchNormLayer(
        name=layer.name,
        kind=type(layer.module).__name__,
        channels=layer.module.num_features,
        images=moments.images if moments is not None else 0,
        verdict="inconclusive",
        w=math.nan,
        w_low=math.nan,
        w_high=math.nan,
    )
    if not layer.tracked:
        row.note = explain.untracked_sentence(layer)
        return row
    score = None
    if moments is not None and moments.finite:
        score = score_layer(moments, layer.module.eps, stored_images(layer.module, seen.images / seen.batches))
        unusable = layer.unusable_channels().to(score.delta.device)
        row.delta = score.delta.masked_fill(unusable, math.nan).tolist()
        row.log_ratio = score.log_ratio.masked_fill(unusable, math.nan).tolist()
        row.delta_se = score.delta_se.masked_fill(unusable, math.nan).tolist()
        row.log_ratio_se = score.log_ratio_se.masked_fill(unusable, math.nan).tolist()
        row.worst_channel = int(score.channel_w.masked_fill(unusable, math.inf).argmax())
    if _unusable(layer):
        row.verdict = "drift"
        row.w = row.w_low = row.w_high = math.inf
        sentences = [explain.unusable_sentence(layer)]
    elif score is None:
        sentences = [explain.not_finite_sentence(layer, poisoned)]
    else:
        row.verdict = score.verdict(warn)
        row.w, row.w_low, row.w_high = score.w, score.low, score.high
        sentences = [explain.verdict_sentence(score, row.verdict, row.images, warn, fail)]
    row.note = " ".join([*sentences, *explain.facts(layer, moments, score)])
    return row


def _overall(rows: list[BatchNormLayer]) -> BatchNormVerdict:
    verdicts = {row.verdict for row in rows}
    if "drift" in verdicts:
        return "drift"
    # Nothing measured is nothing shown.
    return "ok" if verdicts == {"ok"} else "inconclusive"


def _notes(report: BatchNormReport, asked: int) -> list[str]:
    notes = []
    if report.not_observed:
        names = ", ".join(map(label, report.not_observed))
        notes.append(f"The forward pass did not reach {names}; what they store was not compared with anything.")
    if report.images < asked:
        notes.append(f"Only {report.images} of {asked} images were there; pass more for narrower error bars.")
    if report.origin is not None:
        drifting = [row for row in report.layers if row.verdict == "drift"]
        notes.append(
            f"{len(drifting)} of {len(report.layers)} BatchNorm layers drift; {label(report.origin)} is the first."
        )
    if report.verdict == "inconclusive":
        undecided = [row for row in report.layers if row.verdict == "inconclusive"]
        if undecided:
            notes.append(f"{len(undecided)} of {len(report.layers)} BatchNorm layers are undecided.")
    return notes


def _outputs(feed: Feed, layers: list[Layer], seen: Collected) -> tuple[OutputEffect | None, list[str]]:
    if not seen.moments:
        return None, []
    try:
        solution = solve_near(feed, select_layers(layers, None), OUTPUT_TOLERANCE, OUTPUT_PASSES)
        effect = output_effect(feed, solution)
    except (ValueError, TypeError) as error:
        # The statistics are reported all the same: this is the part of the answer that could not be had, and why.
        return None, [f"The effect on the outputs was not measured: {error}."]
    if solution.remaining <= OUTPUT_TOLERANCE:
        return effect, []
    note = (
        f"The effect on the outputs is that of a copy which after {solution.passes} passes still was "
        f"W = {solution.remaining:.3f} from exact."
    )
    return effect, [note]


def _unusable(layer: Layer) -> bool:
    return layer.tracked and bool(layer.unusable_channels().any())
