"""What recalibrating would change at the model's outputs: the deployed model against itself with new statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jumpout_export.batchnorm.feed import Feed, Step
from jumpout_export.batchnorm.solve import Solution, current
from jumpout_export.batchnorm.states import SERVING, in_state
from jumpout_export.nn.batches import first_tensor
from jumpout_export.report import OutputEffect

ECE_BINS = 15


def output_effect(feed: Feed, solution: Solution) -> OutputEffect:
    """Returns the effect on the first output tensor, batch by batch, so that memory does not grow with the images.

    KL, flip rate and, with labels, accuracy, NLL and calibration are measured where the output is (N, K >= 2): rows
    that are non-negative and sum to one are taken as probabilities, others as logits. Labels outside [0, K) are left
    out. The model is left exactly as it was found.

    Raises:
        TypeError: if the output holds no tensor.
        ValueError: if its shape depends on the statistics.
    """
    before = [current(new.layer) for new in solution.corrected]
    shift, classes = _Shift(), _Classes()

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
        if deployed.ndim == 2 and deployed.shape[1] >= 2:
            classes.add(_log_probabilities(deployed), _log_probabilities(recalibrated), step.labels)
        return deployed.shape[0] if deployed.ndim else 1

    with torch.no_grad(), in_state(feed.model, [], SERVING):
        seen = feed.replay("comparing outputs", visit)
    return OutputEffect(images=seen.images, logit_shift=shift.result(), **classes.result())


class _Shift:
    """RMS change of the outputs over their standard deviation."""

    def __init__(self) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._origin: Tensor | None = None

    def add(self, before: Tensor, after: Tensor) -> None:
        if self._origin is None:
            self._origin = before.mean()  # a shift near the mean, so that the variance below does not cancel
        y = before - self._origin
        change = (after - before).square().sum()
        self._sums += torch.stack([y.new_tensor(float(y.numel())), y.sum(), y.square().sum(), change]).cpu()

    def result(self) -> float:
        n, y, yy, change = self._sums
        if change == 0:
            return 0.0
        return float((change / (yy - y.square() / n).clamp_min(0)).sqrt())


class _Classes:
    """Sums over images of what only classifiers have; (2, ...) holds before and after."""

    def __init__(self) -> None:
        self._images = self._labelled = 0
        self._kl = self._flips = 0.0
        self._right = torch.zeros(2, dtype=torch.float64)
        self._nll = torch.zeros(2, dtype=torch.float64)
        # Per bin of confidence: images right less confidence summed. Its absolute sum over bins is the ECE.
        self._gap = torch.zeros(2, ECE_BINS, dtype=torch.float64)

    def add(self, before: Tensor, after: Tensor, labels: Tensor | None) -> None:
        """Takes (N, K) log probabilities and (N,) labels."""
        self._images += len(before)
        # A class of probability 0 adds nothing: 0 ln 0 = 0.
        self._kl += float(torch.where(before.isneginf(), 0.0, before.exp() * (before - after)).sum())
        self._flips += float((before.argmax(1) != after.argmax(1)).sum())
        if labels is None or labels.ndim != 1 or len(labels) != len(before) or labels.is_floating_point():
            return
        valid = (labels >= 0) & (labels < before.shape[1])
        labels = labels[valid].to(before.device, torch.int64)
        self._labelled += len(labels)
        for side, log_p in enumerate((before[valid.to(before.device)], after[valid.to(before.device)])):
            confidence, best = log_p.exp().max(dim=1)
            right = (best == labels).double()
            self._right[side] += right.sum().cpu()
            self._nll[side] += F.nll_loss(log_p, labels, reduction="sum").cpu()
            bins = (confidence.nan_to_num() * ECE_BINS).long().clamp(0, ECE_BINS - 1)
            self._gap[side].index_add_(0, bins.cpu(), (right - confidence).cpu())

    def result(self) -> dict[str, Any]:
        if self._images == 0:
            return {}
        found: dict[str, Any] = {"kl": self._kl / self._images, "flip_rate": self._flips / self._images}
        if self._labelled:
            ece = self._gap.abs().sum(dim=1)
            for name, sums in (("top1", self._right), ("nll", self._nll), ("ece", ece)):
                found[f"{name}_before"], found[f"{name}_after"] = (sums / self._labelled).tolist()
        return found


def _log_probabilities(y: Tensor) -> Tensor:
    """(N, K) log probabilities of an output that is either probabilities already or logits."""
    if bool((y >= 0).all()) and bool(((y.sum(dim=1) - 1).abs() < 1e-3).all()):
        return y.log()
    return y.log_softmax(dim=1)
