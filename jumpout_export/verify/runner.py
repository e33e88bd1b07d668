"""Runs the saved file on every provider and level, on every sample, against PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from jumpout_export.budget import FACTOR, ILL_CONDITIONED, ceiling, describe_budget
from jumpout_export.errors import NotVerifiableError
from jumpout_export.model.axes import Axes, declared_axes
from jumpout_export.model.batches import Batch, Progress
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.samples import Sample, rows, samples
from jumpout_export.model.signature import Output, tensors
from jumpout_export.report import Check, ProviderReport, VerifyReport, counted
from jumpout_export.runtime.placement import check_placement
from jumpout_export.runtime.session import LEVELS, Session, open_session
from jumpout_export.text import first_line
from jumpout_export.verify.branches import Branches
from jumpout_export.verify.constants.batchnorms import batchnorms_in_file, constants_check
from jumpout_export.verify.constants.weights import weights_check
from jumpout_export.verify.divergence.samples import Suspects
from jumpout_export.verify.values.compare import Comparison
from jumpout_export.verify.values.independence import depends_on_others
from jumpout_export.verify.values.reference import Expected, Reference
from jumpout_export.verify.values.scale import Scale, Scales, source


def run_providers(
    path: Path,
    original: nn.Module,
    folded: nn.Module,
    batches: Iterable[Batch],
    providers: tuple[str, ...],
    *,
    axes: Axes | None = None,
    allow: Iterable[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> VerifyReport:
    """Returns the comparison alone: the saved file on each provider against a model on the CPU.

    Args:
        path: the file.
        original: the model in eval mode, nothing replaced: what the file is compared with.
        folded: the folded model, whose bits are compared with the original's.
        batches: inputs on the CPU.
        providers: of `cpu`, `cuda`.
        axes: of the inputs, where they are known. A file says which are open, not which is the batch; without them an
            open first axis of the first input is.
        allow: module paths in which, and below which, random numbers may be drawn.
        seed: of the random inputs.
        progress: called as progress(what, done, total).
    """
    iterator = iter(batches)
    first = next(iterator)
    runner = _Runner(Reference(original, first, folded=folded, allow=allow))
    for provider in providers:
        runner.open(path, provider)
    axes = runner.axes(first, axes)
    for sample in samples(iter([first]), axes, seed, runner.can_run):
        runner.prime(sample)
    with Branches(path) as branches:
        for number, sample in enumerate(samples(itertools.chain([first], iterator), axes, seed, runner.can_run)):
            if not runner.sessions:
                break
            if progress is not None:
                progress("verify: sample", number + 1, None)
            expected = runner.run(sample)
            if expected:
                branches.run(sample.batch)
            if expected and axes.size is None and sample.batch.size > 1 and sample.group != "data":
                runner.compare_alone(sample, expected)
        branched = branches.check()
    return runner.located(runner.report(providers), path, original, first, branched)


class _Runner:
    """Runs all sessions on all samples and keeps what they did."""

    def __init__(self, reference: Reference) -> None:
        self.sessions: list[tuple[Session, Comparison]] = []
        self._reference = reference
        self._inputs = reference.inputs
        self._names_checked = False
        self._scales: Scales = {}
        self._checks: list[Check] = []
        self._unusable: dict[str, str] = {}
        self._dependent: list[str] = []
        self._with_batch: dict[str, None] = {}
        self._axes: Axes | None = None
        self._moved: list[str] = []
        self._suspects = Suspects()
        self._primed: dict[tuple[str, int], list[Expected]] = {}
        self._examples: dict[str, Batch] = {}

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
            if not session.provider.is_fallback:
                self._checks.append(check_placement(label, provider, session.nodes, path))
            self.sessions.append((session, Comparison(label, session.provider.must_repeat, self._scales)))

    def axes(self, batch: Batch, known: Axes | None) -> Axes:
        """Returns the axes that the file leaves open."""
        shapes, names = next(((session.shapes, session.inputs) for session, _ in self.sessions), ([], []))
        declared = declared_axes(shapes, names, batch)
        # Of a fixed batch size only: that an open one is open has to be in the file.
        self._axes = known if known is not None and known.size is not None else declared
        return self._axes

    def can_run(self, batch: Batch) -> bool:
        """Whether PyTorch itself runs a batch."""
        try:
            self._reference.exact(batch)
        except Exception:  # the user's forward may raise anything; that it does is the answer
            return False
        return True

    def prime(self, sample: Sample) -> None:
        """Takes in how large outputs are: one image alone does not tell a small channel from one that crosses zero."""
        if sample.group.startswith("batch=") or not self.sessions:
            return  # repeats the images
        try:
            expected = self._reference(sample.batch)
        except Exception:  # the same happens, and is reported, when the sample is compared
            return
        self._primed[sample.group, sample.start] = expected
        kinds = ("sizes",) if source(sample.group) == "sizes" else ("data", "random", "sizes")
        for output, kind in itertools.product(expected, kinds):
            self._scales.setdefault((kind, output.name), Scale()).prime(output)

    def run(self, sample: Sample) -> list[Expected]:
        """Compares every session on a sample; returns what PyTorch says, nothing if it cannot run it."""
        try:
            # The samples of the first batch were run to prime the scales, and are the same.
            expected = self._primed.pop((sample.group, sample.start), None) or self._reference(sample.batch)
        except Exception as error:  # the user's forward may raise anything
            hint = "does the model fix its batch size? then export with dynamic_batch=False"
            note = f"PyTorch itself cannot run it: {first_line(error)}; {hint}"
            self._checks.append(Check(name=f"torch/{sample.group}", verdict="fail", note=note))
            return []
        if not sample.group.startswith("batch="):  # repeats the images
            self._examples.setdefault(source(sample.group), sample.batch)
        self._check_names([output.name for output in expected])
        for output in expected:
            self._scales.setdefault((source(sample.group), output.name), Scale()).add(output, sample.group == "data")
        if source(sample.group) == "sizes":
            self._moved.append(sample.group.removeprefix("sizes "))
        for session, comparison in self.sessions:
            _run_twice(session, comparison, sample, expected)
            self._suspects.add(comparison, sample)
        return expected

    def compare_alone(self, sample: Sample, expected: list[Expected]) -> None:
        """Compares images alone with the same images in their batch."""
        together = [Output(one.name, one.exact) for one in expected]
        double = not self._reference.problem
        try:
            found = depends_on_others(sample, together, self._reference.exact, double=double)
        except Exception as error:  # the user's forward may raise anything
            self._dependent.append(f"{sample.group}: PyTorch cannot run one image alone: {first_line(error)}")
            return
        self._with_batch |= dict.fromkeys(found)
        self._dependent += [text for text in found.values() if text]

    def report(self, providers: tuple[str, ...]) -> VerifyReport:
        has_reference = not self._reference.problem
        self._measure_own_errors_again(has_reference)
        checks = [*self._reference.checks(), *self._checks, *self._model_checks()]
        for _, comparison in self.sessions:
            checks += comparison.checks(has_reference)
        verdicts = {provider: self._verdict(provider, checks) for provider in providers}
        compared = sum(comparison.values for _, comparison in self.sessions)
        if not compared and not self._unusable:
            checks.append(Check(name="compared", measured=0, verdict="fail", note="nothing was compared"))
        passed = all(verdict.verdict == "pass" for verdict in verdicts.values())
        good = compared > 0 and all(check.verdict == "pass" for check in checks)
        return VerifyReport(passed=passed and good, providers=verdicts, checks=checks, notes=self._notes())

    def _measure_own_errors_again(self, has_reference: bool) -> None:
        """Where a limit is exceeded, on more inputs: a few images alone show too little of PyTorch's own errors."""
        beyond = set().union(*(comparison.beyond(has_reference) for _, comparison in self.sessions))
        for kind in beyond & self._examples.keys():
            for output in itertools.chain.from_iterable(self._reference.nearby(self._examples[kind])):
                self._scales[kind, output.name].add(output, new=False)

    def located(
        self, report: VerifyReport, path: Path, original: nn.Module, first: Batch, branches: Check | None
    ) -> VerifyReport:
        """Returns the report with the verdicts on what no value shows, and with the first layer that differs."""
        size = self._axes.size if self._axes is not None else None
        batchnorms, notes = batchnorms_in_file(path, original, first, size)
        images = rows(first, range(min(2, first.size) if size is None else size))
        more = (constants_check(original, batchnorms), weights_check(path, original, images, batchnorms), branches)
        checks = report.checks + [check for check in more if check is not None]
        found = self._suspects.look(path, original, report.checks, batchnorms, size is not None)
        return report.model_copy(
            update={
                "checks": checks,
                "passed": report.passed and all(check.verdict == "pass" for check in checks),
                "first_divergence": found.layer if found is not None else None,
                "notes": [*([found.note] if found is not None else []), *report.notes, *notes],
            }
        )

    def _model_checks(self) -> list[Check]:
        """What makes the model itself unfit, however well the file agrees with it."""
        checks = []
        if self._scales:
            coarse = [
                f"PyTorch's own error on output `{name}` ({kind}) is {scale.own_coarse:.1%} of its size, above "
                f"{max(ILL_CONDITIONED, ceiling(scale.dtype)):.0%}: {scale.why}, no file can be told from a wrong one"
                for (kind, name), scale in self._scales.items()
                if scale.own_coarse > max(ILL_CONDITIONED, ceiling(scale.dtype))
            ]
            checks.append(counted("conditioning", coarse, "PyTorch's own error is small"))
        if self.sessions and self._axes is not None and self._axes.names:
            named = [name for name in self._axes.names if name not in self._axes.anonymous]
            text = f"the file leaves {', '.join(self._axes.names)} open, but PyTorch runs no other size that was tried"
            if self._moved:
                checks.append(counted("dynamic axes", [], f"compared at {', '.join(self._moved)}"))
            elif named:
                checks.append(counted("dynamic axes", [text]))
            else:  # a file whose writer did not know the sizes promises nothing about them
                checks.append(Check(name="dynamic axes", verdict="pass", note=text))
        if self._with_batch or self._dependent:
            hint = "an image's result depends on the others in its batch; dynamic_batch=False (--static) fixes the size"
            problems = [f"{text}; {hint}" if text is self._dependent[-1] else text for text in self._dependent]
            good = f"images alone have the values they have in a batch: {', '.join(self._with_batch)}"
            checks.append(counted("batch independence", problems, good))
        return checks

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
        compared = dict.fromkeys(scale.dtype for scale in self._scales.values() if scale.own_errors.numel())
        notes = [f"error limit per output: {describe_budget(dtype, not problem)}" for dtype in compared]
        if problem:
            notes.append(f"compared with PyTorch's own precision, because the model fails in float64: {problem}")
        notes += [
            f"ill-conditioned: PyTorch's own error on output `{name}` ({kind}) is {scale.own_coarse:.1%} of its size, "
            f"so a right file may fail: the ceiling of the limit is {ceiling(scale.dtype):.1%}"
            for (kind, name), scale in self._scales.items()
            if FACTOR * scale.own_coarse > ceiling(scale.dtype)
        ]
        return notes


def _run_twice(session: Session, comparison: Comparison, sample: Sample, expected: list[Expected]) -> None:
    values = tensors(sample.batch)
    try:
        first, second = session.run(values), session.run(values)
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        reason = session.provider.explain_error(error) or first_line(error)
        comparison.problems.append(f"{sample.group}: ONNX Runtime cannot run it: {reason}")
        return
    comparison.runs += 1
    if not same_bits(first, second):
        comparison.differing_runs.append(f"{sample.group}: two runs differ")
        if not comparison.must_repeat:
            comparison.add(f"{sample.group}, second run", sample.start, expected, second)
    comparison.add(sample.group, sample.start, expected, first)
