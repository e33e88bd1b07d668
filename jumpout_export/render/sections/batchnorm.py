"""The section about BatchNorm: drift per layer before and after recalibration, where it starts, what to do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from jumpout_export.render.blocks import Block, Items, Plot, Plots, Section
from jumpout_export.render.headline import badness
from jumpout_export.render.numbers import number, score, score_interval
from jumpout_export.render.plots import batchnorm as plots_batchnorm
from jumpout_export.render.plots.style import MANY_ROWS
from jumpout_export.render.sections.causes import CAUSES, attribution_plot, cause_sections
from jumpout_export.render.sections.channels import channel_sections
from jumpout_export.render.sections.layers import layer_tables
from jumpout_export.render.sections.outputs import outputs_section
from jumpout_export.report import BatchNormReport
from jumpout_export.text import count

_MANY_REASONS = 12


def batchnorm_sections(report: BatchNormReport, after: BatchNormReport | None = None) -> list[Section]:
    """Returns the drift per layer, the effect on the outputs, the causes and the channels, where they were measured.

    Args:
        report: the check, of the model as trained if `after` is given.
        after: the check after recalibration.
    """
    # A report that did not pass is falsy, so presence is always asked with `is None`.
    checks = [report] if after is None else [report, after]
    times = [""] if after is None else [" before", " after"]
    blocks: list[Block] = [Plots((*_drift(report, after), *attribution_plot(report)))] if report.layers else []
    blocks += layer_tables(report, after)
    origins = [sentence for check, when in zip(checks, times, strict=True) for sentence in _origin(check, when)]
    blocks += [Items(tuple(origins))] if origins else []
    reasons = [reason for check, when in zip(checks, times, strict=True) for reason in _reasons(check, when)]
    if len(reasons) > _MANY_REASONS:
        more = f"And {count(len(reasons) - _MANY_REASONS, 'layer')} more; `report.json` holds the note of each."
        reasons = [*reasons[:_MANY_REASONS], more]
    blocks += [Items(tuple(reasons), "Why, and what to do")] if reasons else []
    settled, notes = _settled(checks), _notes(checks, times)
    said = Items(tuple(notes), "Notes on the check")
    blocks += [said] if notes and not settled else []
    section = Section(
        "batchnorm",
        "BatchNorm: training against serving",
        f"W is how far a layer's stored statistics are from what it sees in serving, in standard deviations: "
        f"0 is perfect, {number(report.warn)} is the margin, {number(report.fail)} is severe.",
        f"Measured on {count(report.samples, 'sample')} in eval mode, with every dropout or jumpout off. W times the "
        "layer's scale gamma is the RMS change that recalibrating makes in its output. The bars are 95% intervals "
        "with whole samples as the unit. A layer drifts when its whole interval lies above the margin, is ok when "
        "the whole interval lies below it, and is inconclusive otherwise or where noise alone could make such a W.",
        tuple(blocks),
        settled=settled,
    )
    effects = [check.outputs for check in checks if check.outputs is not None]
    sections = [section, *(outputs_section(effect, settled=bool(settled)) for effect in effects[:1])]
    # What is folded away may not hide what has to be known.
    sections += [Section("check-notes", said.title, "", "", (replace(said, title=""),))] if notes and settled else []
    return sections + cause_sections(report) + channel_sections(report, after)


def _settled(checks: list[BatchNormReport]) -> str:
    """Says that all layers agree, where they do and always did."""
    layers = checks[0].layers
    if not layers or not all(checks) or any(check.not_observed for check in checks):
        return ""
    worst = max(layers, key=badness)
    return f"{count(len(layers), 'layer')} agree, largest W {score(worst.w)} at `{worst.name}`"


def _drift(report: BatchNormReport, after: BatchNormReport | None) -> list[Plot]:
    """The plot of W; with a check after recalibration two, side by side and on one scale."""
    many = len(report.layers) > MANY_ROWS
    caption = (
        f"{'One mark' if many else 'One row'} per layer in call order with its 95% interval, on a logarithmic scale, "
        f"against the margins. Arrows at the low edge stand for less than {number(plots_batchnorm.LOWEST_W)}."
    )
    draw = partial(plots_batchnorm.drift, warn=report.warn, fail=report.fail)
    if after is None or not after.layers:
        return [Plot("drift", "Drift W per layer", caption, partial(draw, report.layers), wide=many)]
    before = partial(draw, report.layers, beside=after.layers)
    later = partial(draw, after.layers, name="drift-after", beside=report.layers)
    return [
        Plot("drift", "Drift W per layer, before", caption, before, wide=many),
        Plot("drift-after", "After recalibration", "The same layers on the same scale.", later, wide=many),
    ]


def _origin(report: BatchNormReport, when: str) -> list[str]:
    layer = next((layer for layer in report.layers if layer.name == report.origin), None)
    if report.origin is None or layer is None:
        return []
    cause = f" Mostly {layer.cause}: {CAUSES[layer.cause]}." if layer.cause is not None else ""
    sentence = (
        f"Origin{when}: `{layer.name}`, where the drift starts: W {score(layer.w)}, "
        f"95% {score_interval(layer.w_low, layer.w_high)}.{cause}"
    )
    return [sentence]


def _reasons(report: BatchNormReport, when: str) -> list[str]:
    return [f"`{layer.name}`{when}: {layer.note}" for layer in report.layers if layer.note and layer.verdict != "ok"]


def _notes(checks: list[BatchNormReport], times: list[str]) -> list[str]:
    common = set.intersection(*(set(check.notes) for check in checks))
    notes = dict.fromkeys(
        note if note in common else f"{when.strip().capitalize()}: {note}"
        for check, when in zip(checks, times, strict=True)
        for note in check.notes
    )
    missed = dict.fromkeys(name for check in checks for name in check.not_observed)
    unsaid = [f"`{name}`" for name in missed if not any(f"`{name}`" in note for note in notes)]
    if unsaid:
        notes[f"The forward pass did not reach {', '.join(unsaid)}; what they store was not checked."] = None
    return list(notes)
