"""What follows from a comparison: the verdicts on every provider, on the model, and on what no value shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from jumpout_export.model.axes import Axes
from jumpout_export.model.batches import Batch
from jumpout_export.model.probes import rows
from jumpout_export.report import Check, ProviderReport, VerifyReport, counted, passes
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.runtime.session import Session
from jumpout_export.text import count
from jumpout_export.tolerances import FACTOR, ILL_CONDITIONED, ceiling, describe_budget
from jumpout_export.verify.constants.proof import Constants
from jumpout_export.verify.divergence.suspects import Suspects
from jumpout_export.verify.reasons import known_reasons
from jumpout_export.verify.recalibrated import explained
from jumpout_export.verify.values.compare import Comparison
from jumpout_export.verify.values.reference import Reference
from jumpout_export.verify.values.scale import Scales
from jumpout_export.verify.values.shown import Moves, shown_check


@dataclass
class Seen:
    """What PyTorch and the sessions did on everything that was compared."""

    reference: Reference  # PyTorch
    # those that there is something to compare with, and what they did
    sessions: list[tuple[Session, Comparison]] = field(default_factory=list)
    scales: Scales = field(default_factory=dict)  # how large outputs are
    checks: list[Check] = field(default_factory=list)  # verdicts so far
    unusable: dict[str, str] = field(default_factory=dict)  # why a provider cannot be used here
    with_batch: dict[str, None] = field(default_factory=dict)  # outputs that were compared with those of samples alone
    dependent: list[str] = field(default_factory=list)  # how a sample's result depends on the others in its batch
    axes: Axes = field(default_factory=lambda: Axes((), None, ()))  # that the file leaves open
    allow_constant: tuple[str, ...] = ()  # outputs that need not move
    outputs: Moves = field(default_factory=Moves)  # which outputs moved
    moved: list[str] = field(default_factory=list)  # other sizes of further axes that were compared at


def report_of(seen: Seen, providers: tuple[str, ...]) -> VerifyReport:
    """Returns the verdicts on every provider, on the values and on the model itself."""
    has_reference = not seen.reference.problem
    checks = [*seen.reference.checks(), *seen.checks, *_model_checks(seen)]
    for _, comparison in seen.sessions:
        checks += comparison.checks(has_reference)
    verdicts = {provider: _verdict(seen, provider, checks) for provider in providers}
    compared = sum(comparison.values for _, comparison in seen.sessions)
    if not compared and not seen.unusable:
        checks.append(Check(name="compared", measured=0, verdict="fail", note="nothing was compared"))
    return VerifyReport(passed=passes(checks, verdicts), providers=verdicts, checks=checks, notes=_notes(seen))


def _model_checks(seen: Seen) -> list[Check]:
    """What makes the model itself unfit, however well the file agrees with it."""
    checks = []
    if seen.scales:
        coarse = [
            f"PyTorch's own error on output `{name}` ({kind}) is {scale.own_coarse:.1%} of its size, above "
            f"{max(ILL_CONDITIONED, ceiling(scale.dtype)):.0%}: {scale.why}, no file can be told from a wrong one"
            for (kind, name), scale in seen.scales.items()
            if scale.own_coarse > max(ILL_CONDITIONED, ceiling(scale.dtype))
        ]
        checks.append(counted("conditioning", coarse, "PyTorch's own error is small"))
    if seen.sessions and seen.axes.names:
        named = [name for name in seen.axes.names if name not in seen.axes.anonymous]
        text = f"the file leaves {', '.join(seen.axes.names)} open, but PyTorch runs no other size that was tried"
        if seen.moved:
            checks.append(counted("dynamic axes", [], f"compared at {', '.join(seen.moved)}"))
        elif named:
            checks.append(counted("dynamic axes", [text]))
        else:  # a file whose writer did not know the sizes promises nothing about them
            checks.append(Check(name="dynamic axes", verdict="pass", note=text))
    if seen.with_batch or seen.dependent:
        hint = "a sample's result depends on the others in its batch; dynamic_batch=False (--static) fixes the size"
        problems = [f"{text}; {hint}" if text is seen.dependent[-1] else text for text in seen.dependent]
        good = f"samples alone have the values they have in a batch: {', '.join(seen.with_batch)}"
        checks.append(counted("batch independence", problems, good))
    elif seen.sessions and seen.axes.size is not None and seen.axes.names:
        text = (
            f"not shown: the batch size is fixed, and what lies along {', '.join(seen.axes.names)} may depend on others"
        )
        checks.append(Check(name="batch independence", verdict="not_run", required=False, note=text))
    return checks


def _verdict(seen: Seen, provider: str, checks: list[Check]) -> ProviderReport:
    if provider in seen.unusable:
        return ProviderReport(verdict="not_run", reason=seen.unusable[provider])
    own = [check for check in checks if check.name.startswith((f"{provider}/", "torch/"))]
    failed = [check for check in own if check.blocks]
    if failed:
        return ProviderReport(verdict="fail", reason=f"{failed[0].name}: {failed[0].note}")
    if any(comparison.values and comparison.label.startswith(f"{provider}/") for _, comparison in seen.sessions):
        return ProviderReport(verdict="pass")
    return ProviderReport(verdict="fail", reason="nothing was compared")


def _notes(seen: Seen) -> list[str]:
    problem = seen.reference.problem
    compared = dict.fromkeys(scale.dtype for scale in seen.scales.values() if scale.own_errors)
    notes = [f"error limit per output: {describe_budget(dtype, not problem)}" for dtype in compared]
    if seen.reference.samples_own:
        runs = f"{count(seen.reference.samples_own, 'sample')} in the model's own precision"
        runs += f" and {seen.reference.samples_double} in float64" if seen.reference.samples_double else ""
        notes.append(f"PyTorch was run on {runs} to compare with")
    for provider in dict.fromkeys(session.provider for session, _ in seen.sessions):
        if provider.runtime.python:
            version = provider.runtime.facts()["version"]
            notes.append(
                f"{provider.name} is that of onnxruntime {version} in another Python, {provider.runtime.python}"
            )
    if problem:
        notes.append(f"compared with PyTorch's own precision, because the model fails in float64: {problem}")
    notes += [
        f"ill-conditioned: PyTorch's own error on output `{name}` ({kind}) is {scale.own_coarse:.1%} of its size, "
        f"so a right file may fail: the ceiling of the limit is {ceiling(scale.dtype):.1%}"
        for (kind, name), scale in seen.scales.items()
        if FACTOR * scale.own_coarse > ceiling(scale.dtype)
    ]
    return notes


def with_what_no_value_shows(
    report: VerifyReport,
    file: SavedFile,
    original: nn.Module,
    first: Batch,
    seen: Seen,
    suspects: Suspects,
    constants: Constants,
    branches: Iterable[Check],
) -> VerifyReport:
    """Returns the report on the values with the verdicts on constants and branches, and the first layer that differs.

    `branches` says of each file with branches whether all were run.
    """
    size = seen.axes.size
    reasons = [] if report.passed else known_reasons(original, first)
    samples = rows(first, range(min(2, first.size) if size is None else size), seen.axes.batched or None)
    shown = shown_check(seen.outputs, original, samples, seen.allow_constant)
    checks = [*reasons, *report.checks, *constants.checks, *branches, *shown]
    checks = explained(checks, constants.located)
    found = suspects.look(file.path, original, report.checks, constants, size is not None)
    return report.model_copy(
        update={
            "checks": checks,
            "passed": passes(checks, report.providers),
            "first_divergence": found.layer if found is not None else None,
            "notes": [*([found.note] if found is not None else []), *report.notes, *constants.notes],
        }
    )
