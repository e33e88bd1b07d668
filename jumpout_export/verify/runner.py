"""Runs the saved file on every provider and level, on every sample, against PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from jumpout_export.errors import NotVerifiableError
from jumpout_export.model.axes import Axes, declared_axes
from jumpout_export.model.batches import Batch, Progress
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.samples import Sample, as_they_came, at_random, of_first, samples
from jumpout_export.model.signature import Output, tensors
from jumpout_export.report import Check, VerifyReport, counted
from jumpout_export.runtime.placement import check_placement
from jumpout_export.runtime.session import LEVELS, Session, open_session
from jumpout_export.text import first_line
from jumpout_export.verify.branches import Branches
from jumpout_export.verify.divergence.samples import Suspects
from jumpout_export.verify.values.compare import Comparison
from jumpout_export.verify.values.independence import depends_on_others
from jumpout_export.verify.values.loss import OWN_LOSS, Loss
from jumpout_export.verify.values.reference import Expected, Reference
from jumpout_export.verify.values.scale import Scale, source
from jumpout_export.verify.verdicts import Seen, report_of, with_what_no_value_shows


def run_providers(
    path: Path,
    original: nn.Module,
    folded: nn.Module,
    batches: Iterable[Batch],
    providers: tuple[str, ...],
    *,
    loss: Loss = OWN_LOSS,
    axes: Axes | None = None,
    allow: Iterable[str] = (),
    allow_constant: tuple[str, ...] = (),  # noqa: ARG001
    made_up: bool = True,  # noqa: ARG001
    thorough: bool = False,  # noqa: ARG001
    seed: int = 0,
    progress: Progress | None = None,
) -> VerifyReport:
    """Returns the comparison alone: the saved file on each provider against a model on the CPU.

    Args:
        path: the file.
        original: the model in eval mode, nothing replaced: what the file is compared with.
        folded: the folded model, whose bits are compared with the original's.
        batches: inputs on the CPU, in the model's own precision; taken one at a time.
        providers: of `cpu`, `cuda`.
        loss: gives batches in the file's precision, and takes in every one that is read.
        axes: of the inputs, where they are known. A file says which are open, not which is the batch; without them an
            open first axis of the first input is.
        allow: module paths in which, and below which, random numbers may be drawn.
        allow_constant: names of outputs that need not depend on the inputs.
        made_up: compare on inputs that nobody gave, too.
        thorough: sweep more sizes of the open axes.
        seed: of the random inputs.
        progress: called as progress(what, done, total).
    """
    iterator = iter(batches)
    given = next(iterator)
    first = loss.inputs(given)
    runner = _Runner(path, Seen(Reference(original, first, folded=folded, allow=allow)), progress)
    for provider in providers:
        runner.open(provider)
    axes = runner.axes(first, axes)
    for sample in samples(iter([first]), axes, seed, runner.can_run):
        runner.prime(sample)
    with Branches(path) as branches:
        runner.take(of_first(first, axes, runner.can_run), branches)
        start = 0
        for batch in itertools.chain([given], iterator):
            loss.add(batch)
            if not runner.seen.sessions:
                break
            inputs = loss.inputs(batch)
            runner.take(as_they_came(inputs, start, axes), branches)
            start += inputs.size
        runner.take(at_random(first, axes, seed), branches)
        branched = branches.check()
    runner.measure_own_errors_again()
    report = report_of(runner.seen, providers)
    return with_what_no_value_shows(report, path, original, first, axes.size, runner.suspects, branched)


class _Runner:
    """Runs all sessions on all samples and takes down what they did."""

    def __init__(self, path: Path, seen: Seen, progress: Progress | None) -> None:
        self.seen = seen
        self.suspects = Suspects()
        self._path, self._progress = path, progress
        self._names_checked = False
        self._numbers = itertools.count(1)
        self._primed: dict[tuple[str, int], list[Expected]] = {}
        self._examples: dict[str, Batch] = {}

    def open(self, provider: str) -> None:
        for level in LEVELS:
            label = f"{provider}/{level}"
            try:
                session = open_session(self._path, provider, level)
            except NotVerifiableError as error:
                self.seen.unusable[provider] = str(error)
                self.seen.checks.append(Check(name=provider, verdict="not_run", note=str(error)))
                return
            except Exception as error:  # ONNX Runtime raises a dozen types without a common base
                self.seen.checks.append(Check(name=f"{label}/session", verdict="fail", note=first_line(error)))
                continue
            if not session.provider.is_fallback:
                self.seen.checks.append(check_placement(label, provider, session.nodes, self._path))
            self.seen.sessions.append((session, Comparison(label, session.provider.must_repeat, self.seen.scales)))

    def axes(self, batch: Batch, known: Axes | None) -> Axes:
        """Returns the axes that the file leaves open."""
        shapes, names = next(((session.shapes, session.inputs) for session, _ in self.seen.sessions), ([], []))
        declared = declared_axes(shapes, names, batch)
        # Of a fixed batch size only: that an open one is open has to be in the file.
        self.seen.axes = known if known is not None and known.size is not None else declared
        return self.seen.axes

    def can_run(self, batch: Batch) -> bool:
        """Whether PyTorch itself runs a batch."""
        try:
            self.seen.reference.exact(batch)
        except Exception:  # the user's forward may raise anything; that it does is the answer
            return False
        return True

    def prime(self, sample: Sample) -> None:
        """Takes in how large outputs are: one image alone does not tell a small channel from one that crosses zero."""
        if sample.group.startswith("batch=") or not self.seen.sessions:
            return  # repeats the images
        try:
            expected = self.seen.reference(sample.batch)
        except Exception:  # the same happens, and is reported, when the sample is compared
            return
        self._primed[sample.group, sample.start] = expected
        kinds = ("sizes",) if source(sample.group) == "sizes" else ("data", "random", "sizes")
        for output, kind in itertools.product(expected, kinds):
            self.seen.scales.setdefault((kind, output.name), Scale()).prime(output)

    def take(self, some: Iterable[Sample], branches: Branches) -> None:
        """Runs samples, as long as there is a session to run."""
        for sample in some if self.seen.sessions else ():
            if self._progress is not None:
                self._progress("verify: sample", next(self._numbers), None)
            expected = self._run(sample)
            if expected:
                branches.run(sample.batch)
            if expected and self.seen.axes.size is None and sample.batch.size > 1 and sample.group != "data":
                self._compare_alone(sample, expected)
            if not self.seen.sessions:
                return

    def measure_own_errors_again(self) -> None:
        """Where a limit is exceeded, on more inputs: a few images alone show too little of PyTorch's own errors."""
        has_reference = not self.seen.reference.problem
        beyond = set().union(*(comparison.beyond(has_reference) for _, comparison in self.seen.sessions))
        for kind in beyond & self._examples.keys():
            for output in itertools.chain.from_iterable(self.seen.reference.nearby(self._examples[kind])):
                self.seen.scales[kind, output.name].add(output, new=False)

    def _run(self, sample: Sample) -> list[Expected]:
        """Compares every session on a sample; returns what PyTorch says, nothing if it cannot run it."""
        try:
            # The samples of the first batch were run to prime the scales, and are the same.
            expected = self._primed.pop((sample.group, sample.start), None) or self.seen.reference(sample.batch)
        except Exception as error:  # the user's forward may raise anything
            hint = "does the model fix its batch size? then export with dynamic_batch=False"
            note = f"PyTorch itself cannot run it: {first_line(error)}; {hint}"
            self.seen.checks.append(Check(name=f"torch/{sample.group}", verdict="fail", note=note))
            return []
        if not sample.group.startswith("batch="):  # repeats the images
            self._examples.setdefault(source(sample.group), sample.batch)
        self._check_names([output.name for output in expected])
        for output in expected:
            scale = self.seen.scales.setdefault((source(sample.group), output.name), Scale())
            scale.add(output, sample.group == "data")
        if source(sample.group) == "sizes":
            self.seen.moved.append(sample.group.removeprefix("sizes "))
        for session, comparison in self.seen.sessions:
            _run_twice(session, comparison, sample, expected)
            self.suspects.add(comparison, sample)
        return expected

    def _compare_alone(self, sample: Sample, expected: list[Expected]) -> None:
        """Compares images alone with the same images in their batch."""
        together = [Output(one.name, one.exact) for one in expected]
        double = not self.seen.reference.problem
        try:
            found = depends_on_others(sample, together, self.seen.reference.exact, double=double)
        except Exception as error:  # the user's forward may raise anything
            self.seen.dependent.append(f"{sample.group}: PyTorch cannot run one image alone: {first_line(error)}")
            return
        self.seen.with_batch |= dict.fromkeys(found)
        self.seen.dependent += [text for text in found.values() if text]

    def _check_names(self, outputs: list[str]) -> None:
        """Takes the sessions out whose inputs or outputs are not the model's: there is nothing to compare."""
        if self._names_checked:
            return
        self._names_checked = True
        for session, comparison in list(self.seen.sessions):
            wrong = [
                f"the file's {what} are {', '.join(found) or 'none'}, the model's are {', '.join(wanted) or 'none'}"
                for what, found, wanted in (
                    ("inputs", session.inputs, self.seen.reference.inputs),
                    ("outputs", session.outputs, outputs),
                )
                if found != wanted
            ]
            good = f"inputs {', '.join(self.seen.reference.inputs)}; outputs {', '.join(outputs)}"
            self.seen.checks.append(counted(f"{comparison.label}/names", wrong, good))
            if wrong:
                self.seen.sessions.remove((session, comparison))


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
