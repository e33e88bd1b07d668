"""The verdict of a report as one symbol, one word and one sentence."""

from __future__ import annotations

import math
from pathlib import PureWindowsPath

from jumpout_export.render.blocks import Cell, state
from jumpout_export.render.numbers import number, percent, score, score_interval
from jumpout_export.report import (
    BatchNormLayer,
    BatchNormReport,
    BatchNormSetsReport,
    Check,
    ExportReport,
    PipelineReport,
    Report,
    VerifyReport,
)
from jumpout_export.text import count, some_of

_CLAIMS = {
    "inspect": "holds no trace of training-time noise",
    "fold": "is the same network without training-time noise",
}


def headline(report: Report) -> tuple[Cell, str]:
    """Returns the verdict and the sentence that gives its reason.

    The verdict is PASS exactly for a truthy report in which something was checked.
    """
    if isinstance(report, PipelineReport):
        return _pipeline(report)
    if isinstance(report, BatchNormReport):
        return _batchnorm(report)
    if isinstance(report, BatchNormSetsReport):
        return _sets(report)
    return _verify(report)


def is_published(report: VerifyReport) -> bool:
    """Returns whether the file that is reported on is there; an export or a fold that did not pass writes none."""
    return report.passed or not isinstance(report, ExportReport)


def says_little(check: Check) -> bool:
    """Returns whether a check that failed shows only that something differs, and not why or which weights."""
    return check.name not in (
        "nested tensors",
        "complex outputs",
        "batchnorm constants",
        "weights",
        "quantized",
        "quantized weights",
    )


def worst_layer(report: BatchNormReport) -> BatchNormLayer | None:
    """Returns the layer with the largest W, one whose W is NaN only if there is no other; None without layers."""
    return max(report.layers, key=badness, default=None)


def drifting_channels(layer: BatchNormLayer, most: int = 3) -> str:
    """Returns which channels of a layer drift by themselves: `channel 3 of 64`, `channels 3, 5 and 2 more of 64`."""
    numbers = layer.drifting_channels
    named = some_of([str(channel) for channel in numbers], most)
    return f"{'channel' if len(numbers) == 1 else 'channels'} {named} of {layer.channels}"


def badness(layer: BatchNormLayer) -> float:
    """Returns what layers are sorted by: W, and below any number where it could not be measured."""
    return -math.inf if math.isnan(layer.w) else layer.w


def _batchnorm(report: BatchNormReport) -> tuple[Cell, str]:
    layers, total = report.layers, count(len(report.layers), "BatchNorm layer")
    worst = worst_layer(report)
    if report.verdict == "drift":
        drifting = [layer for layer in layers if layer.verdict == "drift"]
        if not drifting:
            return state("FAIL"), "The stored BatchNorm statistics are not those that serving sees."
        origin = next((layer for layer in drifting if layer.name == report.origin), drifting[0])
        starting = f"{len(drifting)} of {total} drift{'s' if len(drifting) == 1 else ''}, starting at `{origin.name}`"
        if origin.drifting_channels and not origin.w_low > report.warn:
            return state("FAIL"), f"{starting}: {drifting_channels(origin)}, beyond {number(report.fail)} by itself."
        interval = score_interval(origin.w_low, origin.w_high)
        return state("FAIL"), f"{starting}: W {score(origin.w)} (95% {interval}), margin {number(report.warn)}."
    if worst is None:
        return state("NOT RUN"), "No BatchNorm layer was checked."
    if report.verdict == "inconclusive":
        undecided = [layer for layer in layers if layer.verdict == "inconclusive"] or [worst]
        return state("INCONCLUSIVE"), (
            f"{len(undecided)} of {total} could not be decided with {count(report.samples, 'sample')}, first "
            f"`{undecided[0].name}`: {_ended(undecided[0].note or _open_interval(undecided[0], report.warn))}"
        )
    return state("PASS"), (
        f"The statistics stored in {total} agree with what serving sees: the largest W is {score(worst.w)} at "
        f"`{worst.name}`, the margin {number(report.warn)}."
    )


def _sets(report: BatchNormSetsReport) -> tuple[Cell, str]:
    checks, total = report.sets, count(len(report.sets), "set")
    if not checks:
        return state("NOT RUN"), "No set of samples was checked."
    name = next((name for name, check in checks.items() if check.verdict == report.verdict), next(iter(checks)))
    verdict, sentence = _batchnorm(checks[name])
    if report:
        return verdict, f"The stored BatchNorm statistics agree with what serving sees of all {total} of samples."
    alike = sum(check.verdict == report.verdict for check in checks.values())
    return verdict, f"{alike} of {total} of samples, first {name}: {sentence}"


def _recalibrated(before: BatchNormReport, after: BatchNormReport) -> tuple[Cell, str]:
    verdict, sentence = _batchnorm(after)
    was, now = worst_layer(before), worst_layer(after)
    if not after or was is None or now is None:
        return verdict, f"After recalibration: {sentence[0].lower()}{sentence[1:]}"
    drifting = sum(layer.verdict == "drift" for layer in before.layers)
    return verdict, (
        f"{drifting} of {count(len(before.layers), 'BatchNorm layer')} drifted; recalibrating brought the largest W "
        f"from {score(was.w)} to {score(now.w)}, margin {number(after.warn)}."
    )


def _verify(report: VerifyReport) -> tuple[Cell, str]:
    # Takes both kinds of slash for what they are: the report may be of another system.
    file = f"`{PureWindowsPath(report.path).name}`" if report.path else "The ONNX file"
    total = count(len(report.checks), "check")
    verdicts = [check.verdict for check in report.checks]
    aside = "".join(f" {name} was not run: {_ended(reason)}" for name, reason in _reasons(report, "not_run"))
    if report.passed:
        if "pass" not in verdicts:
            return state("NOT RUN"), f"{file}: nothing was compared.{aside}"
        where = " and ".join(name for name, _ in _reasons(report, "pass"))
        warnings = [check for check in report.checks if check.verdict == "warning"]
        other = f"`{PureWindowsPath(report.against).name}`" if report.against else "the PyTorch model"
        claim = _CLAIMS.get(report.kind, f"equals {other}")
        if report.quantization is not None:
            claim = f"is {other}, rounded to integers, within the limits that were asked for"
        verdict = state("PASS, WITH WARNINGS" if warnings else "PASS")
        if isinstance(report, ExportReport) and "jumpout_export.random" in report.provenance:
            claim = "is random on purpose, NOT deterministic, with the distribution of the PyTorch model"
            verdict = state("PASS, RANDOM ON PURPOSE")
        scope = total if set(verdicts) == {"pass"} else f"{verdicts.count('pass')} of {total}"
        warned = f" {count(len(warnings), 'warning')}, first {_failure(warnings[0])}" if warnings else ""
        return verdict, f"{file} {claim}: {scope} passed{f' on {where}' if where else ''}.{aside}{warned}"
    unpublished = " Nothing was written; an older file, if there is one, is unchanged." * (not is_published(report))
    failed = sorted((check for check in report.checks if check.verdict == "fail"), key=says_little)
    reasons = [_where_it_starts(report.first_divergence)] if report.first_divergence is not None else []
    reasons += [f"{len(failed)} of {total} failed, first {_failure(failed[0])}"] if failed else []
    explained = {check.name.split("/")[0] for check in failed}
    reasons += [
        f"{name} failed: {_ended(reason)}" for name, reason in _reasons(report, "fail") if name not in explained
    ]
    if not reasons and (aside or "not_run" in verdicts):
        skipped = f" {verdicts.count('not_run')} of {total} were not run." if "not_run" in verdicts else ""
        missing = [check for check in report.checks if check.blocks and check.name not in report.providers]
        skipped += f" First {_failure(missing[0])}" if missing else ""
        return state("NOT VERIFIED"), f"{file} could not be verified here.{aside}{skipped}{unpublished}"
    if not reasons:
        reasons = [_ended(note) for note in report.notes] or ["nothing was compared."]
    return state("FAIL"), f"{file}: {' '.join(reasons)}{unpublished}"


def _pipeline(report: PipelineReport) -> tuple[Cell, str]:
    parts = []
    if report.before is not None and report.after is not None:
        parts.append(_recalibrated(report.before, report.after))
    else:
        parts += [_batchnorm(check) for check in (report.before, report.after) if check is not None]
    if report.export is not None:
        parts.append(_verify(report.export))
    bad = [part for part in parts if part[0].tone in {"bad", "warn"}]
    if bad:
        word = next((cell for cell, _ in bad if cell.tone == "bad"), bad[0][0])
        return word, " ".join(sentence for _, sentence in bad)
    if all(cell.tone == "none" for cell, _ in parts):
        return state("NOT RUN"), " ".join(["Nothing was checked.", *(sentence for _, sentence in parts)])
    sentences = [sentence for _, sentence in parts]
    if report.training is not None and report.training.test_accuracy:
        sentences.insert(0, f"Trained to {percent(report.training.test_accuracy[-1])} test accuracy.")
    if report.export is None:
        sentences.append("Nothing was exported.")
    return state("PASS"), " ".join(sentences)


def _open_interval(layer: BatchNormLayer, margin: float) -> str:
    return f"W lies between {score(layer.w_low)} and {score(layer.w_high)}, the margin is {number(margin)}"


def _where_it_starts(layer: str) -> str:
    if layer == ".":
        return "The first difference is in what the model's own forward computes."
    return f"The first layer that differs is `{layer}`."


def _failure(check: Check) -> str:
    if check.measured is None and check.limit is None:
        size = ""
    else:
        size = f", measured {number(check.measured)}, limit {number(check.limit)}"
    return f"`{check.name}`{size}{f': {_ended(check.note)}' if check.note else '.'}"


def _reasons(report: VerifyReport, verdict: str) -> list[tuple[str, str]]:
    return [(name, provider.reason) for name, provider in report.providers.items() if provider.verdict == verdict]


def _ended(text: str) -> str:
    text = text.strip() or "no reason was given"
    return text if text.endswith((".", "!", "?")) else f"{text}."
