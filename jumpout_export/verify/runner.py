"""Runs the saved file on every provider and level, on every probe, against PyTorch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from jumpout_export.errors import NotVerifiableError
from jumpout_export.log import log_step
from jumpout_export.model.axes import Axes, declared_axes
from jumpout_export.model.batches import Batch, Progress
from jumpout_export.model.probes import Probe, as_they_came
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.signature import tensors
from jumpout_export.onnxfile.computed import Reads
from jumpout_export.onnxfile.numbers import Number, numbers_in
from jumpout_export.report import Check, VerifyReport, counted
from jumpout_export.runtime.kernels import describe_bfloat16
from jumpout_export.runtime.placement import check_placement
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.runtime.session import LEVELS, ProviderLostError, Session
from jumpout_export.text import first_line, joined
from jumpout_export.verify.branches import BRANCHES, Branches
from jumpout_export.verify.constants.proof import prove_constants
from jumpout_export.verify.divergence.suspects import Suspects
from jumpout_export.verify.magnitudes import check_magnitudes
from jumpout_export.verify.numbers import NUMBERS, numbers_check
from jumpout_export.verify.sizes import SIZES, describe, sizes_in_file
from jumpout_export.verify.trials import Effort, Trial, Trials
from jumpout_export.verify.values.compare import Comparison
from jumpout_export.verify.values.loss import OWN_LOSS, Loss
from jumpout_export.verify.values.reference import Expected, Reference
from jumpout_export.verify.values.scale import Scale, source
from jumpout_export.verify.values.shown import check_constant
from jumpout_export.verify.verdicts import Seen, report_of, with_what_no_value_shows

# Before the name of a check that is about the file that the model was read from.
OTHER = "other file: "
_BY_NAME = "what serves a file asks by name: write it with {}, an argument of torch.onnx.export"


def run_providers(
    file: SavedFile,
    original: nn.Module,
    folded: nn.Module,
    batches: Iterable[Batch],
    providers: tuple[str, ...],
    *,
    loss: Loss = OWN_LOSS,
    axes: Axes | None = None,
    allow: Iterable[str] = (),
    allow_constant: tuple[str, ...] = (),
    made_up: bool = True,
    thorough: bool = False,
    seed: int = 0,
    recorded: bool = False,
    progress: Progress | None = None,
    other: SavedFile | None = None,
) -> VerifyReport:
    """Returns the comparison alone: the saved file on each provider against a model on the CPU.

    Args:
        file: the saved file.
        original: the model in eval mode, nothing replaced: what the file is compared with.
        folded: the folded model, which gives the inputs their names.
        batches: inputs on the CPU, in the model's own precision; taken one at a time.
        providers: names, such as `cpu`.
        loss: gives batches in the file's precision, and takes in every one that is read.
        axes: of the inputs, where they are known. A file says which are open, not which is the batch; without them an
            open first axis of the first input is.
        allow: module paths in which, and below which, random numbers may be drawn.
        allow_constant: names of outputs that need not depend on the inputs.
        made_up: compare on inputs that nobody gave, too.
        thorough: sweep more sizes of the open axes.
        seed: of the made-up inputs.
        recorded: whether the file was made of this very model by recording it, with no condition on the batch size:
            then PyTorch runs the largest batch only where the file does not give what the samples give alone.
        progress: called as progress(what, done, total).
        other: the file that the model was read from, if it was: what that one decides is tried, too.
    """
    iterator = iter(batches)
    given = next(iterator)
    first = loss.inputs(given)
    seen = Seen(Reference(original, first, folded=folded, allow=allow), allow_constant=tuple(allow_constant))
    runner = _Runner(file, seen, progress)
    for provider in providers:
        runner.open(provider)
    files = {"": file} if other is None else {"": file, OTHER: other}
    opened = runner.axes(first, axes)
    plans = [sizes_in_file(one, opened, first, name + SIZES) for name, one in files.items() if seen.sessions]
    sizes = tuple(moved for plan, _ in plans for moved in plan)
    effort = Effort(made_up=made_up, thorough=thorough, sizes=sizes, seed=seed, recorded=recorded)
    trials = Trials(seen, first, seen.axes, effort)
    with contextlib.ExitStack() as stack:
        branches = [stack.enter_context(Branches(one, name + BRANCHES)) for name, one in files.items()]
        for trial in trials.of_first() if seen.sessions else ():
            runner.take(trial, branches)
        start = 0
        for batch in itertools.chain([given], iterator):
            loss.add(batch)
            if not seen.sessions:
                break
            inputs = loss.inputs(batch)
            for probe in as_they_came(inputs, start, seen.axes):
                runner.take(trials.of_data(probe), branches)
            start += inputs.size
        log_step("verify: compare the constants with the weights")
        others = None if other is None else numbers_in(Reads(other.proto, str(other.path.parent)))
        constants = prove_constants(file.path, original, first, seen.axes.size, file.proto, others)
        numbers = constants.numbers, constants.lost
        for own in numbers if seen.sessions else ():
            for trial in trials.of_numbers(own, floats=other is not None):
                runner.take(trial, branches)
        branched = [check for one in branches if (check := one.check()) is not None]
    where = {"": "PyTorch's program", OTHER: file.path.name}
    for own, name in zip(numbers, where, strict=True):
        checks, notes = numbers_check(own, trials.tried, name + NUMBERS, where[name])
        seen.checks += checks
        constants.notes += notes
    for plan, said in plans:
        refused = [text for moved in plan if (text := describe(moved)) in trials.refused]
        also = f"; not shown, as PyTorch itself does not run it: {joined(refused)}" if refused else ""
        seen.checks += [] if said is None else [said.model_copy(update={"note": said.note + also})]
    if not runner.measure_own_errors_again() and made_up:
        runner.try_magnitudes(original, first, [*constants.numbers, *constants.lost] if other is not None else [])
    report = report_of(seen, providers)
    report.notes += [text] if (text := describe_bfloat16(file.proto)) else []
    return with_what_no_value_shows(report, file, original, first, seen, runner.suspects, constants, branched)


class _Runner:
    """Runs all sessions on all probes and takes down what they did."""

    def __init__(self, file: SavedFile, seen: Seen, progress: Progress | None) -> None:
        self.seen = seen
        self.suspects = Suspects()
        self._file, self._progress = file, progress
        self._written: set[str] = set()  # labels of the sessions that run the graph as it is written
        self._names_checked = False
        self._numbers = itertools.count(1)
        self._examples: dict[str, Batch] = {}

    def open(self, provider: str) -> None:
        for level in LEVELS:
            label = f"{provider}/{level}"
            try:
                session = self._file.session(provider, level)
            except NotVerifiableError as error:
                self.seen.unusable[provider] = str(error)
                self.seen.checks.append(Check(name=provider, verdict="not_run", note=str(error)))
                return
            except Exception as error:  # ONNX Runtime raises a dozen types without a common base
                self.seen.checks.append(Check(name=f"{label}/session", verdict="fail", note=first_line(error)))
                continue
            if not session.provider.is_fallback:
                self.seen.checks.append(check_placement(label, provider, session.nodes, self._file.path))
            self._written |= {label} if level == LEVELS[0] else set()
            self.seen.sessions.append((session, Comparison(label, session.provider.must_repeat, self.seen.scales)))

    def axes(self, batch: Batch, known: Axes | None) -> Axes:
        """Returns the axes that the file leaves open."""
        shapes, names = next(((session.shapes, session.inputs) for session, _ in self.seen.sessions), ([], []))
        declared = declared_axes(shapes, names, batch)
        # Of a fixed batch size only: that an open one is open has to be in the file.
        self.seen.axes = known if known is not None and known.size is not None else declared
        return self.seen.axes

    def take(self, trial: Trial, branches: Iterable[Branches]) -> None:
        """Compares every session on a probe, as long as there is a session to run."""
        probe, expected, itself = trial.probe, trial.expected, trial.itself
        log_step(f"verify: compare on {probe.group}")
        if not self.seen.sessions or not expected:
            return
        if self._progress is not None:
            self._progress("verify: batch", next(self._numbers), None)
        self._examples.setdefault(source(probe.group), probe.batch)
        self._check_names([output.name for output in expected])
        if source(probe.group) == "data":
            self.seen.outputs.see(probe.batch, self.seen.axes.batched)
        self._measure(probe, expected)
        for session, comparison in list(self._sessions_for(probe)):
            try:
                got = _run(session, comparison, probe, twice=probe.group == "data")
            except ProviderLostError as error:
                self._lose(error)
                continue
            if got and itself is not None and not comparison.agrees(probe.group, expected, got[0]):
                expected, itself = itself().expected, None
                self._measure(probe, expected)
            if not expected:  # PyTorch cannot run it, which a check says
                return
            for label, values in zip((probe.group, f"{probe.group}, second run"), got, strict=False):
                comparison.add(label, probe.start, expected, values)
            self.suspects.add(comparison, probe)
        for one in branches:
            one.run(probe.batch)

    def _measure(self, probe: Probe, expected: list[Expected]) -> None:
        for output in expected:
            self.seen.outputs.add(probe.group, output)
            self.seen.scales.setdefault((source(probe.group), output.name), Scale()).add(output, new=False)

    def _sessions_for(self, probe: Probe) -> list[tuple[Session, Comparison]]:
        """All of them, or of a large batch those that are optimized, as it is served.

        What a size decides is in the graph, so that both levels show it; what the optimizer does shows at any size.
        """
        optimized = [one for one in self.seen.sessions if one[1].label not in self._written]
        return optimized if probe.large and optimized else self.seen.sessions

    def try_magnitudes(self, original: nn.Module, first: Batch, numbers: Sequence[Number]) -> None:
        """Compares one session of each provider, the plainest, on larger and smaller inputs."""
        reference = self.seen.reference
        plain = {
            comparison.label.partition("/")[0]: (comparison.label, session)
            for session, comparison in reversed(self.seen.sessions)
        }
        exact = reference.exact if reference.has_double else None
        sessions = list(plain.values())
        try:
            check = check_magnitudes(
                self._file.path, original, sessions, reference.own, exact, first, self.seen.axes, numbers
            )
        except ProviderLostError as error:
            self._lose(error)
            self.try_magnitudes(original, first, numbers)
            return
        self.seen.checks += [check] if check else []

    def _lose(self, error: ProviderLostError) -> None:
        """Takes all sessions of a provider out: what was not compared any more may be wrong."""
        if error.provider not in self.seen.unusable:
            self.seen.unusable[error.provider] = str(error)
            self.seen.checks.append(Check(name=error.provider, verdict="not_run", note=str(error)))
        self.seen.sessions[:] = [one for one in self.seen.sessions if one[0].provider.name != error.provider]

    def measure_own_errors_again(self) -> bool:
        """Where a limit is exceeded, on more inputs: a few samples alone show too little of PyTorch's own errors.

        Returns whether one is exceeded all the same.
        """
        has_reference = not self.seen.reference.problem
        beyond = set().union(*(comparison.beyond(has_reference) for _, comparison in self.seen.sessions))
        for kind in beyond & self._examples.keys():
            for output in itertools.chain.from_iterable(self.seen.reference.nearby(self._examples[kind])):
                self.seen.scales[kind, output.name].add(output, new=False)
        return any(comparison.beyond(has_reference) for _, comparison in self.seen.sessions if beyond)

    def _check_names(self, outputs: list[str]) -> None:
        """Takes the sessions out whose inputs or outputs are not the model's: there is nothing to compare."""
        if self._names_checked:
            return
        self._names_checked = True
        check_constant(self.seen.allow_constant, outputs)
        for session, comparison in list(self.seen.sessions):
            wrong = [
                f"the file's {what} are {', '.join(found) or 'none'}, the model's are {', '.join(wanted) or 'none'}"
                + (f"; {_BY_NAME.format(f'{what[:-1]}_names={wanted}')}" if len(found) == len(wanted) else "")
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


def _run(session: Session, comparison: Comparison, probe: Probe, *, twice: bool) -> list[list[Tensor]]:
    """Returns what there is to compare: nothing where it cannot run, of a second run what need not be the same."""
    values = tensors(probe.batch)
    try:
        first = session.run(values)
        second = session.run(values) if twice else first
    except ProviderLostError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        reason = session.provider.explain_error(error) or first_line(error)
        comparison.problems.append(f"{probe.group}: ONNX Runtime cannot run it: {reason}")
        return []
    comparison.runs += twice
    if not twice or same_bits(first, second):
        return [first]
    comparison.differing_runs.append(f"{probe.group}: two runs differ")
    return [first] if comparison.must_repeat else [first, second]
