"""Any report as a document: what to say first, then one section per stage of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jumpout_export.render.blocks import Cell, Document, Fact, Section, state
from jumpout_export.render.headline import headline, worst_layer
from jumpout_export.render.numbers import percent, score
from jumpout_export.render.sections.batchnorm import batchnorm_sections
from jumpout_export.render.sections.export import folded_section, folded_summary, parity_section
from jumpout_export.render.sections.layers import kinds
from jumpout_export.render.sections.quantized import quantized_section
from jumpout_export.render.sections.run import environment_section, notes_section, provenance_section, training_section
from jumpout_export.render.sections.sets import sets_sections
from jumpout_export.report import (
    BatchNormReport,
    BatchNormSetsReport,
    Check,
    ExportReport,
    PipelineReport,
    Report,
    VerifyReport,
)
from jumpout_export.text import count

_TITLES = {
    "batchnorm": "BatchNorm check",
    "batchnorm_sets": "BatchNorm check of several sets of samples",
    "verify": "ONNX verification",
    "inspect": "ONNX inspection",
    "export": "ONNX export",
    "fold": "ONNX fold",
}


def build_document(report: Report) -> Document:
    """Returns `report` in words, tables and plots.

    Control characters in names and notes are replaced: a name from a hostile file must not steer a terminal.

    Args:
        report: any report of `report.py`.

    Raises:
        TypeError: if `report` is none of them.
    """
    if not isinstance(report, Report):
        allowed = "BatchNormReport, BatchNormSetsReport, VerifyReport, ExportReport or PipelineReport"
        raise TypeError(f"only a report can be rendered: got {type(report).__name__}, allowed is {allowed}")
    report = visible(report)
    verdict, sentence = headline(report)
    if isinstance(report, PipelineReport):
        title, facts, sections = report.title, _pipeline_facts(report), _pipeline_sections(report)
    elif isinstance(report, BatchNormSetsReport):
        title, facts, sections = _TITLES[report.kind], _sets_facts(report), sets_sections(report)
    elif isinstance(report, BatchNormReport):
        title, facts, sections = _TITLES[report.kind], _batchnorm_facts(report), batchnorm_sections(report)
    else:
        title, facts, sections = _TITLES[report.kind], _verify_facts(report), _verify_sections(report)
    # Versions and the like come last: a note may say what failed.
    sections = sorted([*sections, *notes_section(report)], key=lambda section: section.background)
    return Document(title, verdict, sentence, tuple(facts), tuple(sections))


def _pipeline_sections(report: PipelineReport) -> list[Section]:
    sections = training_section(report.training)
    if report.before is not None:
        sections += batchnorm_sections(report.before, report.after)
    elif report.after is not None:
        sections += batchnorm_sections(report.after)
    if report.export is not None:
        sections += folded_section(report.export) + quantized_section(report.export) + parity_section(report.export)
        sections += provenance_section(report.export)
    return sections + environment_section(report.environment)


def _verify_sections(report: VerifyReport) -> list[Section]:
    environment = environment_section(report.environment)
    if not isinstance(report, ExportReport):
        return quantized_section(report) + parity_section(report) + environment
    checks = [check for check in (report.batchnorm_before, report.batchnorm) if check is not None]
    sections = batchnorm_sections(*checks) if checks else []
    sections += folded_section(report) + quantized_section(report) + parity_section(report)
    return sections + provenance_section(report) + environment


def _pipeline_facts(report: PipelineReport) -> list[Fact]:
    training, before, after, export = report.training, report.before, report.after, report.export
    facts = []
    if training is None:
        facts.append(Fact("Train", state("not run")))
    else:
        accuracy = training.test_accuracy or training.train_accuracy
        facts.append(Fact("Train", state("done"), f"{percent(accuracy[-1])} accuracy" if accuracy else ""))
    if before is None:
        facts.append(Fact("Check BatchNorm", state("not run")))
    else:
        fixed = before.verdict == "drift" and bool(after)
        facts.append(Fact("Check BatchNorm", state("drift, fixed" if fixed else before.verdict), _largest(before)))
    if after is None:
        facts.append(Fact("Recalibrate", state("not needed" if before else "not run")))
    else:
        facts.append(Fact("Recalibrate", state(after.verdict), _largest(after)))
    return facts + (_export_facts(export) if export is not None else [Fact("Export", state("not run"))])


def _export_facts(report: ExportReport) -> list[Fact]:
    # A failed export without a folded layer may have ended before the fold.
    done = state("done" if report.folded or report.passed else "not run")
    return [Fact("Fold", done, folded_summary(report.folded)), *_parity_facts(report)]


def _verify_facts(report: VerifyReport) -> list[Fact]:
    if not isinstance(report, ExportReport):
        return _parity_facts(report)
    checks = {"BatchNorm before": report.batchnorm_before, "BatchNorm": report.batchnorm}
    facts = [Fact(name, state(it.verdict), _largest(it)) for name, it in checks.items() if it is not None]
    return facts + _export_facts(report)


def _parity_facts(report: VerifyReport) -> list[Fact]:
    facts = []
    name = "Inspect" if report.kind == "inspect" else "Verify"
    if not report.providers:
        facts.append(Fact(name, headline(report)[0], _passed(report.checks)))
    for provider, result in report.providers.items():
        checks = [check for check in report.checks if check.name.startswith(f"{provider}/")]
        facts.append(Fact(f"{name} on {provider}", state(result.verdict), _passed(checks) if checks else ""))
    return facts


def _passed(checks: Sequence[Check]) -> str:
    return f"{sum(check.verdict == 'pass' for check in checks)} of {count(len(checks), 'check')}"


def _batchnorm_facts(report: BatchNormReport) -> list[Fact]:
    worst = worst_layer(report)
    ok = sum(layer.verdict == "ok" for layer in report.layers)
    facts = [Fact("Layers that agree", Cell(f"{ok} of {len(report.layers)}"), kinds(report.layers))]
    facts += [Fact("Largest W", Cell(score(worst.w)), worst.name)] if worst is not None else []
    spread = [f"on {report.ranks} processes"] if report.ranks > 1 else []
    spread += ["stopped early"] if report.stopped_early else []
    return [*facts, Fact("Samples", Cell(f"{report.samples:,}"), ", ".join(spread))]


def _sets_facts(report: BatchNormSetsReport) -> list[Fact]:
    ok = sum(check.verdict == "ok" for check in report.sets.values())
    return [Fact("Sets that agree", Cell(f"{ok} of {len(report.sets)}"))]


def _largest(report: BatchNormReport) -> str:
    worst = worst_layer(report)
    return f"largest W {score(worst.w)}" if worst else "no layers"


def visible(report: Report) -> Report:
    """Returns a report whose texts hold no control characters, and no others that cannot be seen."""
    return type(report).model_validate(_visible(report.model_dump()))


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(map(_visible_character, value))
    if isinstance(value, dict):
        return {_visible(key): _visible(item) for key, item in value.items()}
    return [_visible(item) for item in value] if isinstance(value, list) else value


def _visible_character(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()
