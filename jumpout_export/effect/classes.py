"""What a change does to the outputs of a classifier: accuracy, likelihood and calibration on the same samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jumpout_export.effect.paired import CalibrationGap, PairedChange, accuracy_change_interval, mcnemar_p

ECE_BINS = 15


class Classes:
    """Sums over samples of what only classifiers have, so that they add up; (2, ...) holds before and after."""

    def __init__(self) -> None:
        self._values = self._valid = self._labelled = self._gained = self._lost = 0
        self._per_sample = True  # one class per sample, not one per pixel
        self._kl = self._flips = 0.0
        self._right = torch.zeros(2, dtype=torch.float64)
        self._nll = torch.zeros(2, dtype=torch.float64)
        self._nll_change, self._right_change = PairedChange(), PairedChange()
        # Per bin of confidence: values right less confidence summed. Its absolute sum over bins is the ECE.
        self._gap = CalibrationGap(ECE_BINS)

    def add(self, before: Tensor, after: Tensor, labels: Tensor | None) -> None:
        """Takes (N, K, *) log probabilities and (N, *) labels."""
        samples, classes = before.shape[:2]
        self._per_sample &= before.ndim == 2
        before, after = (log_p.movedim(1, -1).reshape(-1, classes) for log_p in (before, after))
        self._values += len(before)
        # A class of probability 0 adds nothing: 0 ln 0 = 0.
        self._kl += float(torch.where(before.isneginf(), 0.0, before.exp() * (before - after)).sum())
        self._flips += float((before.argmax(1) != after.argmax(1)).sum())
        if labels is None:
            return
        labels = labels.reshape(-1).to(before.device, torch.int64)
        valid = (labels >= 0) & (labels < classes)
        sample = torch.arange(samples, device=labels.device).repeat_interleave(len(labels) // max(samples, 1))[valid]
        sides = [self._add_side(side, log_p[valid], labels[valid]) for side, log_p in enumerate((before, after))]
        (right_before, nll_before, *gap_before), (right_after, nll_after, *gap_after) = sides
        self._gap.add(samples, sample, gap_before, gap_after)
        zeros = nll_before.new_zeros(samples)
        counts = zeros.index_add(0, sample, torch.ones_like(nll_before))
        self._labelled += int((counts > 0).sum())
        self._valid += len(sample)
        self._gained += int((right_after > right_before).sum())
        self._lost += int((right_after < right_before).sum())
        self._nll_change.add(zeros.index_add(0, sample, nll_after - nll_before), counts)
        self._right_change.add(zeros.index_add(0, sample, right_after - right_before), counts)

    def _add_side(self, side: int, log_p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Adds the values of one side; returns whether each is right (0 or 1), its NLL, its bin and its gap there."""
        confidence, best = log_p.exp().max(dim=1)
        right = (best == labels).double()
        nll = F.nll_loss(log_p, labels, reduction="none")
        bins = (confidence.nan_to_num() * ECE_BINS).long().clamp(0, ECE_BINS - 1)
        self._right[side] += right.sum().cpu()
        self._nll[side] += nll.sum().cpu()
        return right, nll, bins, right - confidence

    def result(self) -> dict[str, Any]:
        """Returns what `OutputEffect` has of it, by the names of its fields; nothing where nothing was added."""
        if self._values == 0:
            return {}
        found: dict[str, Any] = {"kl": self._kl / self._values, "flip_rate": self._flips / self._values}
        if self._labelled == 0:
            return found
        for name, sums in (("top1", self._right), ("nll", self._nll), ("ece", self._gap.size())):
            found[f"{name}_before"], found[f"{name}_after"] = (sums / self._valid).tolist()
        found["labelled"] = self._labelled
        nll = self._nll_change.interval()
        if self._per_sample:
            found["mcnemar_p"] = mcnemar_p(self._gained, self._lost)
            top1: tuple[float, float] | None = accuracy_change_interval(self._gained, self._lost, self._labelled)
        else:
            top1 = self._right_change.interval()
        for name, ends in (("top1", top1), ("nll", nll), ("ece", self._gap.interval())):
            if ends is not None:
                found[f"{name}_change_low"], found[f"{name}_change_high"] = ends
        return found


def is_classifier(output: Tensor) -> bool:
    """Returns whether an output may be (N, K, *) scores of K >= 2 classes."""
    return output.ndim >= 2 and output.shape[1] >= 2


def are_labels(labels: Any, output: Tensor) -> bool:
    """Returns whether these are class indices (N, *) for an output (N, K, *); one-hot or soft labels are not."""
    return (
        isinstance(labels, Tensor)
        and not labels.is_floating_point()
        and not labels.is_complex()
        and output.ndim >= 2
        and labels.shape == output.shape[:1] + output.shape[2:]
    )


def log_probabilities(y: Tensor, like: Tensor | None = None) -> Tensor:
    """Returns the (N, K, *) log probabilities of an output that is either probabilities already or logits.

    What is not exact is taken for what `like` is, the exact output of the same samples; probabilities are made to add
    up to 1 then.
    """
    exact = y if like is None else like
    if bool((exact >= 0).all()) and bool(((exact.sum(dim=1) - 1).abs() < 1e-3).all()):
        return y.log() if like is None else (y.clamp(min=0) / y.clamp(min=0).sum(dim=1, keepdim=True)).log()
    return y.log_softmax(dim=1)
