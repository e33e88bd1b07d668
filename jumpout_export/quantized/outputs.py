"""What a quantized file gives in place of the model's outputs, on a provider and level, and what that does to accuracy.

Names, number, shapes and dtypes are held as strictly as a float file's. Accuracy and likelihood are compared sample by
sample with the model's, each against a margin, with a verdict of three values (`effect/margins.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jumpout_export.effect.classes import Classes, are_labels, is_classifier, log_probabilities
from jumpout_export.effect.margins import LEAST_SAMPLES, samples_needed, within_margin
from jumpout_export.model.axes import Axes
from jumpout_export.model.batches import Batch
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.signature import Output, tensors
from jumpout_export.quantized.power import Power
from jumpout_export.quantized.settings import Quantized
from jumpout_export.report import Check, CheckVerdict, OutputEffect, OutputVerdict, QuantizedOutputs, counted, limited
from jumpout_export.runtime.session import Session
from jumpout_export.text import count, first_line

_SWITCH = "to judge by signal to noise alone: accuracy=False (--no-accuracy)"


@dataclass
class Served:
    """What one session of the file gave, next to the model."""

    label: str  # for example `cpu/all`
    session: Session
    axes: Axes  # of the inputs
    problems: list[str] = field(default_factory=list)
    not_finite: dict[str, int] = field(default_factory=dict)
    differing: list[str] = field(default_factory=list)
    runs: int = 0
    values: int = 0
    samples: int = 0
    _power: dict[str, Power] = field(default_factory=dict)
    _classes: Classes = field(default_factory=Classes)
    _shape: tuple[int, ...] = ()  # of the first output
    _labels: str = "no labels"  # what was given in their place
    _changes: list[Tensor] = field(default_factory=lambda: [torch.zeros(4, dtype=torch.float64)])

    def add(self, group: str, batch: Batch, own: Sequence[Output], labels: Tensor | None, *, twice: bool) -> None:
        """Runs a batch, whose outputs in PyTorch are `own`; those of other batch sizes have no labels."""
        try:
            got = self.session.run(tensors(batch))
            again = self.session.run(tensors(batch)) if twice else got
        except Exception as error:  # ONNX Runtime raises a dozen types without a common base
            reason = self.session.provider.explain_error(error) or first_line(error)
            self.problems.append(f"{group}: ONNX Runtime cannot run it: {reason}")
            return
        self.runs += 1
        if not same_bits(got, again):
            self.differing.append(f"{group}: two runs differ")
        for want, have in zip(own, got, strict=True):
            if (have.dtype, have.shape) != (want.tensor.dtype, want.tensor.shape):
                self.problems.append(
                    f"{group}: output `{want.name}` is {_kind(have)}, in PyTorch it is {_kind(want.tensor)}"
                )
                return
            self.values += have.numel()
            broken = int((~torch.isfinite(have)).sum())
            self.not_finite[want.name] = self.not_finite.get(want.name, 0) + broken
            if group == "data" and have.is_floating_point():
                self._power.setdefault(want.name, Power()).add(want.tensor.numpy(), have.numpy())
        if group == "data":
            self._add_effect(own[0].tensor.double(), got[0].double(), labels)

    def _add_effect(self, before: Tensor, after: Tensor, labels: Tensor | None) -> None:
        self._shape, self.samples = tuple(before.shape), self.samples + (len(before) if before.ndim else 1)
        size, change = before.new_tensor(before.numel()), (after - before).square().sum()
        self._changes.append(torch.stack([size, before.sum(), before.square().sum(), change]))
        if labels is not None and not are_labels(labels, before):
            self._labels = f"labels {tuple(labels.shape)} of {labels.dtype} for an output {tuple(before.shape)}"
            labels = None
        if is_classifier(before) and (before.ndim == 2 or labels is not None):
            self._classes.add(log_probabilities(before), log_probabilities(after, before), labels)

    def effect(self) -> OutputEffect:
        """Returns what changes at the first output."""
        n, y, yy, change = torch.stack(self._changes).sum(dim=0).tolist()
        spread = max(yy - y * y / max(n, 1), 0.0)
        shift = 0.0 if change == 0 else math.sqrt(change / spread) if spread else math.inf
        return OutputEffect(samples=self.samples, logit_shift=shift, **self._classes.result())

    def judged(self, limits: Quantized) -> tuple[QuantizedOutputs, list[Check]]:
        """Returns what is known of the outputs, and the verdicts on all of it."""
        broken = [f"output `{name}` has {n} NaN or infinite values" for name, n in self.not_finite.items() if n]
        checks = [
            counted(f"{self.label}/outputs", self.problems, f"shapes and dtypes agree in {count(self.runs, 'run')}"),
            counted(f"{self.label}/finite", broken, f"{self.values} values are finite"),
            self._repeatable(),
        ]
        if not self.runs or self.problems:
            return QuantizedOutputs(), checks
        effect = self.effect()
        checks.append(self._noise(limits))
        if not limits.accuracy:
            return QuantizedOutputs(effect=effect, sqnr=self._sqnr()), checks
        top1, nll = self._top1(effect, limits), self._nll(effect, limits)
        needed = [one.needed or math.inf for one in (top1, nll) if one.verdict == "inconclusive"]
        found = QuantizedOutputs(effect=effect, sqnr=self._sqnr(), top1=top1.verdict, nll=nll.verdict)
        found.samples_needed = int(max(needed)) if needed and math.isfinite(max(needed)) else None
        return found, [*checks, top1.check, nll.check]

    def _repeatable(self) -> Check:
        name, good = f"{self.label}/repeatable", "two runs agree bitwise"
        if self.session.provider.must_repeat or not self.differing:
            return counted(name, self.differing, good)
        return Check(name=name, measured=len(self.differing), verdict="pass", note="two runs differ in a bit")

    def _sqnr(self) -> float | None:
        return min((one.sqnr for one in self._power.values()), default=None)

    def _noise(self, limits: Quantized) -> Check:
        """At each level, because integer kernels may saturate where the graph as it is written does not."""
        name = f"{self.label}/noise"
        worst = max(self._power, key=lambda one: self._power[one].noise_to_signal, default=None)
        if worst is None:
            return limited(name, 0.0, limits.most_noise, "no floating-point output")
        power = self._power[worst]
        note = f"signal to noise {power.sqnr:.1f} dB at output `{worst}`, limit {limits.min_sqnr:g} dB"
        return limited(name, power.noise_to_signal, limits.most_noise, note)

    def _top1(self, effect: OutputEffect, limits: Quantized) -> _Judged:
        name, margin = f"{self.label}/top-1", limits.top1_margin
        if effect.top1_change_low is None or effect.top1_change_high is None:
            return self._without(name, margin, effect)
        change = (effect.top1_after or 0.0) - (effect.top1_before or 0.0)
        note = (
            f"{effect.top1_before:.2%} in PyTorch, {effect.top1_after:.2%} in the file: {100 * change:+.2f} points "
            f"(95% {100 * effect.top1_change_low:+.2f} to {100 * effect.top1_change_high:+.2f})"
        )
        note += "" if effect.mcnemar_p is None else f", McNemar p {effect.mcnemar_p:.2g}"
        return _judge(name, -effect.top1_change_high, -effect.top1_change_low, margin, effect.labelled, note, "")

    def _nll(self, effect: OutputEffect, limits: Quantized) -> _Judged:
        name, margin = f"{self.label}/likelihood", limits.nll_margin
        low, high = effect.nll_change_low, effect.nll_change_high
        if effect.nll_before is None or effect.nll_after is None or low is None or high is None:
            return self._without(name, margin, effect)
        change = effect.nll_after - effect.nll_before
        note = f"{effect.nll_before:.4f} nats in PyTorch, {effect.nll_after:.4f} in the file: {change:+.4f}"
        if math.isinf(effect.nll_after) and math.isfinite(effect.nll_before):
            note += "; the right class has probability 0 for a sample"
            return _Judged("fails", None, Check(name=name, measured=math.inf, limit=margin, verdict="fail", note=note))
        note += f" (95% {low:+.4f} to {high:+.4f})"
        return _judge(name, low, high, margin, effect.labelled, note, " nats")

    def _without(self, name: str, margin: float, effect: OutputEffect) -> _Judged:
        """Accuracy was asked for, and nothing says what is right."""
        if not self._shape or len(self._shape) < 2 or self._shape[1] < 2:
            why = f"an output {self._shape} is no scores of classes (N, K); {_SWITCH}"
        elif effect.labelled:
            why = f"only {count(effect.labelled, 'sample')} with a label"
        else:
            why = f"the batches hold {self._labels}: give (inputs, labels) with classes from 0 to K - 1; {_SWITCH}"
        check = Check(name=name, limit=margin, verdict="not_run", note=f"inconclusive: {why}")
        return _Judged("inconclusive", None, check)


@dataclass(frozen=True)
class _Judged:
    verdict: OutputVerdict
    needed: int | None  # samples
    check: Check


def _judge(name: str, low: float, high: float, margin: float, samples: int, note: str, unit: str) -> _Judged:
    """The verdict on a change for the worse; what is measured is the end of its interval that decides."""
    verdict, needed = within_margin(low, high, margin), samples_needed(low, high, margin, samples)
    if samples < LEAST_SAMPLES:
        verdict, needed = "inconclusive", max(needed or 0, LEAST_SAMPLES)
    note += f", {count(samples, 'labelled sample')}"
    if verdict == "inconclusive":
        more = f"about {count(needed, 'labelled sample')}" if needed else "no known number of samples"
        note = f"inconclusive: {note}; {more} would decide"
    measured = low if verdict == "fails" else high
    found: dict[OutputVerdict, CheckVerdict] = {"ok": "pass", "fails": "fail", "inconclusive": "not_run"}
    note += f"; the margin is {margin:g}{unit}"
    return _Judged(
        verdict, needed, Check(name=name, measured=measured, limit=margin, verdict=found[verdict], note=note)
    )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
