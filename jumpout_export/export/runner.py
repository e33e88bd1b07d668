"""Runs the saved file on every provider and level, on every sample, against PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from jumpout_export.errors import NotVerifiableError
from jumpout_export.export.budget import describe_budget
from jumpout_export.export.checks import counted, first_line
from jumpout_export.export.compare import Comparison, Scale, Scales, source
from jumpout_export.export.reference import Expected, Reference
from jumpout_export.export.samples import Sample, samples
from jumpout_export.export.session import LEVELS, Session, open_session
from jumpout_export.export.signature import input_names, tensors
from jumpout_export.nn.batches import Batch, Progress
from jumpout_export.nn.randomness import same_bits
from jumpout_export.report import Check, ProviderReport, VerifyReport


def run_providers(
    path: Path,
    folded: nn.Module,
    batches: Iterable[Batch],
    providers: tuple[str, ...],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> VerifyReport:
    """Returns the comparison alone: the saved file on each provider against a folded model on the CPU."""
    iterator = iter(batches)
    first = next(iterator)
    reference = Reference(folded, first)
    runner = _Runner(reference, input_names(folded, first))
    for provider in providers:
        runner.open(path, provider)
    sizes = {session.batch for session, _ in runner.sessions}
    for number, sample in enumerate(samples(itertools.chain([first], iterator), next(iter(sizes), None), seed)):
        if not runner.sessions:
            break
        if progress is not None:
            progress("verify", number, None)
        runner.run(sample)
    return runner.report(providers)


class _Runner:
    """Runs all sessions on all samples and keeps what they did."""

    def __init__(self, reference: Reference, inputs: list[str]) -> None:
        self.sessions: list[tuple[Session, Comparison]] = []
        self._reference = reference
        self._inputs = inputs
        self._names_checked = False
        self._scales: Scales = {}
        self._checks: list[Check] = []
        self._unusable: dict[str, str] = {}

    def open(self, path: Path, provider: str) -> None:
        for level in LEVELS:
            label = f"{provider}/{level}"
            try:
                session = open_session(path, provider, level)
            except NotVerifiableError as error:
                self._unusable[provider] = str(error)
                self._checks.append(Check(name=provider, verdict="not_run", note=str(error)))
                return
            except Exception as error:  # ONNX Runtime raises a dozen types without a common base
                self._checks.append(Check(name=f"{label}/session", verdict="fail", note=first_line(error)))
                continue
            self.sessions.append((session, Comparison(label, must_repeat=provider == "cpu")))

    def run(self, sample: Sample) -> None:
        try:
            expected = self._reference(sample.batch)
        except Exception as error:  # the user's forward may raise anything
            hint = "does the model fix its batch size? then export with dynamic_batch=False"
            note = f"PyTorch itself cannot run it: {first_line(error)}; {hint}"
            self._checks.append(Check(name=f"torch/{sample.group}", verdict="fail", note=note))
            return
        self._check_names([output.name for output in expected])
        for output in expected:
            self._scales.setdefault((source(sample.group), output.name), Scale()).add(output)
        for session, comparison in self.sessions:
            _run_twice(session, comparison, sample, expected)

    def report(self, providers: tuple[str, ...]) -> VerifyReport:
        checks = list(self._checks)
        has_reference = not self._reference.problem
        for _, comparison in self.sessions:
            checks += comparison.checks(self._scales, has_reference)
        verdicts = {provider: self._verdict(provider, checks) for provider in providers}
        compared = sum(comparison.values for _, comparison in self.sessions)
        if not compared and not self._unusable:
            checks.append(Check(name="compared", measured=0, verdict="fail", note="nothing was compared"))
        passed = all(verdict.verdict == "pass" for verdict in verdicts.values())
        good = compared > 0 and all(check.verdict == "pass" for check in checks)
        return VerifyReport(passed=passed and good, providers=verdicts, checks=checks, notes=self._notes())

    def _check_names(self, outputs: list[str]) -> None:
        """Takes the sessions out whose inputs or outputs are not the model's: there is nothing to compare."""
        if self._names_checked:
            return
        self._names_checked = True
        for session, comparison in list(self.sessions):
            wrong = [
                f"the file's {what} are {', '.join(found) or 'none'}, the model's are {', '.join(wanted) or 'none'}"
                for what, found, wanted in (
                    ("inputs", session.inputs, self._inputs),
                    ("outputs", session.outputs, outputs),
                )
                if found != wanted
            ]
            good = f"inputs {', '.join(self._inputs)}; outputs {', '.join(outputs)}"
            self._checks.append(counted(f"{comparison.label}/names", wrong, good))
            if wrong:
                self.sessions.remove((session, comparison))

    def _verdict(self, provider: str, checks: list[Check]) -> ProviderReport:
        if provider in self._unusable:
            return ProviderReport(verdict="not_run", reason=self._unusable[provider])
        own = [check for check in checks if check.name.startswith((f"{provider}/", "torch/"))]
        failed = [check for check in own if check.verdict != "pass"]
        if failed:
            return ProviderReport(verdict="fail", reason=f"{failed[0].name}: {failed[0].note}")
        if not any(label.startswith(f"{provider}/") for label in self._labels()):
            return ProviderReport(verdict="fail", reason="nothing was compared")
        return ProviderReport(verdict="pass")

    def _labels(self) -> list[str]:
        return [comparison.label for _, comparison in self.sessions if comparison.values]

    def _notes(self) -> list[str]:
        problem = self._reference.problem
        notes = [f"error limit per output: {describe_budget(not problem)}"]
        if problem:
            notes.append(f"compared with PyTorch's own precision, because the model fails in float64: {problem}")
        notes += [
            f"ill-conditioned: PyTorch's own error on output `{name}` ({kind}) is {scale.own_error / scale.size:.0%} "
            "of its largest value, so the comparison is as coarse"
            for (kind, name), scale in self._scales.items()
            if scale.own_error > 0.01 * scale.size > 0
        ]
        return notes


def _run_twice(session: Session, comparison: Comparison, sample: Sample, expected: list[Expected]) -> None:
    values = tensors(sample.batch)
    try:
        first, second = session.run(values), session.run(values)
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        comparison.problems.append(f"{sample.group}: ONNX Runtime cannot run it: {first_line(error)}")
        return
    comparison.runs += 1
    if not same_bits(first, second):
        comparison.differing_runs.append(f"{sample.group}: two runs differ")
    comparison.add(sample.group, sample.start, expected, first)
