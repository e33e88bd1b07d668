"""What recalibrating would change at the model's outputs: the deployed model against itself with new statistics."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jumpout_export.batchnorm.measure.distributed import merge_fields
from jumpout_export.batchnorm.measure.feed import Feed, Step
from jumpout_export.batchnorm.measure.levels import on_first_step
from jumpout_export.batchnorm.measure.states import SERVING, in_state
from jumpout_export.batchnorm.solve import Solution, current
from jumpout_export.effect.classes import Classes, are_labels, is_classifier, log_probabilities
from jumpout_export.effect.paired import Z95
from jumpout_export.errors import ArgumentError
from jumpout_export.model.held import first_tensor
from jumpout_export.report import OutputEffect

# One-sided 5% level of the refusal.
Z95_ONE_SIDED = 1.644854
SIGNIFICANT = 0.05


def output_effect(feed: Feed, solution: Solution) -> OutputEffect:
    """Returns the effect on the first output tensor, batch by batch, so that memory does not grow with the samples.

    KL, flip rate and, with labels, accuracy, NLL and calibration are measured where the output is (N, K >= 2): rows
    that are non-negative and sum to one are taken as probabilities, others as logits. An output (N, K, *) is taken so
    where there are labels (N, *), as in segmentation; its values count one by one and its error bars have samples as
    the unit, so that there is no McNemar test. Labels outside [0, K) are left out, labels of another shape or of
    floating point ignored. The model is left exactly as it was found.

    Raises:
        TypeError: if the output holds no tensor.
        ValueError: if its shape depends on the statistics.
    """
    before = [current(new.layer) for new in solution.corrected]
    shift, classes = _Shift(), Classes()

    def visit(step: Step) -> int:
        for old in before:
            old.put()
        deployed = first_tensor(step.run()).double()
        for new in solution.corrected:
            new.put()
        recalibrated = first_tensor(step.run()).double()
        if deployed.shape != recalibrated.shape:
            raise ValueError(
                "the outputs change shape when recalibrated, from "
                f"{tuple(deployed.shape)} to {tuple(recalibrated.shape)}, so they cannot be compared"
            )
        shift.add(deployed, recalibrated)
        labels = step.labels if are_labels(step.labels, deployed) else None
        if is_classifier(deployed) and (deployed.ndim == 2 or labels is not None):
            classes.add(log_probabilities(deployed), log_probabilities(recalibrated), labels)
        return deployed.shape[0] if deployed.ndim else 1

    with torch.no_grad(), in_state(feed.model, [], SERVING):
        seen = feed.replay("comparing outputs", visit)
    merge_fields(feed.ranks, shift)
    merge_fields(feed.ranks, classes)
    return OutputEffect(samples=seen.samples, logit_shift=shift.result(), **classes.result())


def require_labels(feed: Feed) -> None:
    """Looks at the first batch, so that missing labels are found before the work.

    Raises:
        ValueError: if it holds no labels that fit the model's output.
    """
    found: list[str] = []

    def visit(step: Step) -> None:
        output = first_tensor(step.run())
        if not (is_classifier(output) and are_labels(step.labels, output)):
            found.append(f"an output {tuple(output.shape)} and {_described(step.labels)}")

    with torch.no_grad(), in_state(feed.model, [], SERVING):
        on_first_step(feed, visit)
    if found:
        raise ArgumentError(
            "refuse_if_worse",
            f"refuse_if_worse needs labels to judge by, got {found[0]}; pass batches of (inputs, labels) or dicts with "
            "`labels`, integer classes (N,) for an output (N, K)",
        )


def worsening(effect: OutputEffect) -> str:
    """Returns what recalibrating makes significantly worse, with the numbers; empty if nothing.

    The NLL is worse if its mean rises by more than the paired error bar allows (one-sided, 5% level), the accuracy if
    it falls and McNemar's p is below 0.05 (for an output per pixel: if its whole interval is below 0).

    Raises:
        ValueError: if fewer than two samples have a label.
    """
    numbers = (effect.nll_before, effect.nll_after, effect.nll_change_low, effect.nll_change_high)
    nll_before, nll_after, nll_low, nll_high = (math.nan if value is None else value for value in numbers)
    if effect.labelled < 2 or effect.nll_change_low is None:
        raise ArgumentError(
            "refuse_if_worse",
            f"refuse_if_worse needs at least two samples with a valid label, got {effect.labelled}; "
            "labels must be classes from 0 to K - 1 for an output (N, K)",
        )
    found = []
    change, error = nll_after - nll_before, (nll_high - nll_low) / 2 / Z95
    broken = math.isfinite(nll_before) and not math.isfinite(nll_after)
    if broken or change > Z95_ONE_SIDED * error:
        found.append(
            f"the negative log likelihood rises from {nll_before:.4f} to {nll_after:.4f} "
            f"(change {change:+.4f}, 95% interval {nll_low:+.4f} to {nll_high:+.4f})"
        )
    top1_before, top1_after = effect.top1_before or 0.0, effect.top1_after or 0.0
    low, high = effect.top1_change_low or 0.0, effect.top1_change_high or 0.0
    significant = high < 0 if effect.mcnemar_p is None else effect.mcnemar_p < SIGNIFICANT
    if top1_after < top1_before and significant:
        test = "" if effect.mcnemar_p is None else f", McNemar p = {effect.mcnemar_p:.2g}"
        found.append(
            f"the top-1 accuracy falls from {top1_before:.2%} to {top1_after:.2%} "
            f"(95% interval of the change {low:+.2%} to {high:+.2%}{test})"
        )
    return " and ".join(found)


class _Shift:
    """RMS change of the outputs over their standard deviation, from additive sums."""

    def __init__(self) -> None:
        # Values, y, y^2, change^2. Float64 holds the square of any float32 without a shift by the mean.
        self._sums = torch.zeros(4, dtype=torch.float64)

    def add(self, before: Tensor, after: Tensor) -> None:
        change = (after - before).square().sum()
        self._sums += torch.stack(
            [change.new_tensor(before.numel()), before.sum(), before.square().sum(), change]
        ).cpu()

    def result(self) -> float:
        n, y, yy, change = self._sums
        if change == 0:
            return 0.0
        return float((change / (yy - y.square() / n).clamp_min(0)).sqrt())


def _described(labels: Any) -> str:
    if not isinstance(labels, Tensor):
        return "no labels" if labels is None else f"labels of type {type(labels).__name__}"
    return f"labels {tuple(labels.shape)} of {labels.dtype}"
