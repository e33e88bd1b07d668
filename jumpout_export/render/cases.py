"""A report as test cases, as whoever counts tests takes it: one for each check or layer, and one for the verdict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from jumpout_export.render.blocks import Cell, state
from jumpout_export.render.headline import drifting_channels, headline
from jumpout_export.render.numbers import number, score_interval
from jumpout_export.report import (
    BatchNormLayer,
    BatchNormReport,
    BatchNormSetsReport,
    BatchNormVerdict,
    CheckVerdict,
    PipelineReport,
    Report,
    VerifyReport,
)

_OF_LAYERS: dict[BatchNormVerdict, CheckVerdict] = {"ok": "pass", "drift": "fail", "inconclusive": "not_run"}
_COMMANDS = {"batchnorm": "check-bn", "batchnorm_sets": "check-bn"}
_OWN_FORWARD = "."  # how `first_divergence` says that it is in no layer


@dataclass(frozen=True)
class Case:
    """One thing that was checked, or the verdict on all of them.

    Attributes:
        name: of the check or the layer; no other case of its part has it.
        verdict: of the check. A layer that is undecided was not run to the end: `not_run`.
        measured: in the unit that the note names, a layer's W; None where it is not a number.
        limit: the largest allowed value, in the same unit.
        layer: module path of the layer concerned; empty where there is none.
        note: what is to be known of it, for a person.
        word: how the report says the verdict, where that is another word: `drift`, `inconclusive`.
    """

    name: str
    verdict: CheckVerdict
    measured: float | None = None
    limit: float | None = None
    layer: str = ""
    note: str = ""
    word: str = ""

    @property
    def state(self) -> Cell:
        """The verdict as a person sees it: symbol and word."""
        return state(self.word or self.verdict)

    def sentence(self) -> str:
        """Returns what was measured, the limit, the layer and the note in one line; empty if there is none of it."""
        facts = [] if self.measured is None else [f"measured {number(self.measured)}"]
        facts += [] if self.limit is None else [f"limit {number(self.limit)}"]
        facts += [f"layer {self.layer}"] if self.layer else []
        return ": ".join(filter(None, (", ".join(facts), self.note)))


def parts_of(report: Report) -> dict[str, Report]:
    """Returns the reports that a report is made of, by what made them: `verify`, `check-bn`, `check-bn night.npz`."""
    parts: dict[str, Report] = {}
    if isinstance(report, BatchNormSetsReport):
        parts = {f"{_COMMANDS[report.kind]} {name}": one for name, one in report.sets.items()}
    elif isinstance(report, PipelineReport):
        parts = {
            _COMMANDS.get(part.kind, part.kind): part for part in (report.batchnorm, report.export) if part is not None
        }
    return parts or {_COMMANDS.get(report.kind, report.kind): report}


def cases_of(report: Report) -> list[Case]:
    """Returns a case for each check, or for each BatchNorm layer, of a part of a report."""
    if isinstance(report, VerifyReport):
        return _distinct([_of_check(report, i) for i in range(len(report.checks))])
    if isinstance(report, BatchNormReport):
        unseen = [Case(name, "not_run", layer=name, note="the layer was not measured") for name in report.not_observed]
        return _distinct([*(_of_layer(layer, report) for layer in report.layers), *unseen])
    return []


def verdict_of(report: Report) -> Case:
    """Returns the verdict on a whole report: `pass` or `warning` exactly if it passed, `not_run` if nothing decides."""
    cell, sentence = headline(report)
    layer = _layer(report.first_divergence) if isinstance(report, VerifyReport) else ""
    if isinstance(report, BatchNormReport):
        layer = report.origin or ""
    verdict: CheckVerdict = "fail" if cell.tone == "bad" else "not_run"
    if report and "PASS" in cell.text:
        verdict = "pass" if cell.tone == "good" else "warning"
    return Case("verdict", verdict, layer=layer, note=sentence)


def _of_check(report: VerifyReport, index: int) -> Case:
    check = report.checks[index]
    of_values = check.name.split("/")[0] in report.providers  # what is wrong in the file itself is in no layer
    layer = _layer(report.first_divergence) if check.verdict == "fail" and of_values else ""
    return Case(check.name, check.verdict, check.measured, check.limit, layer, check.note)


def _of_layer(layer: BatchNormLayer, report: BatchNormReport) -> Case:
    facts = [f"W, 95% {score_interval(layer.w_low, layer.w_high)}"]
    if layer.drifting_channels and not layer.w_low > report.warn:
        facts.append(f"{drifting_channels(layer)} beyond {number(report.fail)} by itself")
    facts += [f"cause {layer.cause}"] if layer.cause else []
    note = "; ".join([", ".join(facts), *([layer.note] if layer.note else [])])
    return Case(layer.name, _OF_LAYERS[layer.verdict], layer.w, report.warn, layer.name, note, layer.verdict)


def _layer(divergence: str | None) -> str:
    return "the model's own forward" if divergence == _OWN_FORWARD else divergence or ""


def _distinct(cases: list[Case]) -> list[Case]:
    """Readers of test results drop a second case of the same name: it is told apart by its number."""
    seen = Counter(verdict=1)
    named = []
    for case in cases:
        seen[case.name] += 1
        named.append(case if seen[case.name] == 1 else replace(case, name=f"{case.name} ({seen[case.name]})"))
    return named
