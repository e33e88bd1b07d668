"""The steps of an export, in their order: prepare, write, inspect, verify, replace.

A step takes the job and what earlier steps returned, and returns what it made; what it found goes to the job's draft.
It raises `RefusedError` where there is nothing for the next step to do, with the reason in the draft.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from jumpout_export.disk import writing
from jumpout_export.errors import ArgumentError, ConversionError, NotFoldableError
from jumpout_export.export.convert import convert
from jumpout_export.export.golden import Golden, compute_golden, staged_golden
from jumpout_export.export.job import Draft, Job, RefusedError
from jumpout_export.export.offers import fixed_rows
from jumpout_export.export.provenance import provenance, with_tolerance
from jumpout_export.export.replace import replace_export
from jumpout_export.export.statistics import staged_weights, statistics_check
from jumpout_export.export.triton import Served, entry_notes, staged_entry
from jumpout_export.export.triton_config import configuration
from jumpout_export.fold.network.audit import audit_model
from jumpout_export.fold.network.folded import STATE_PASSED, fold
from jumpout_export.model.axes import Axes, choose_axes
from jumpout_export.model.batches import Batch
from jumpout_export.onnxfile.manifest import Manifest, digests_of, manifest_of
from jumpout_export.onnxfile.metadata import MAGNITUDES, PREFIX, QUANTIZED, TOLERANCE, add_entries
from jumpout_export.onnxfile.static import metadata_check
from jumpout_export.quantized.make import quantize_file
from jumpout_export.quantized.told import told
from jumpout_export.quantized.verdict import judge_quantized
from jumpout_export.report import Check, ExportReport, VerifyReport, not_run, passes
from jumpout_export.runtime.loads import inspect_file
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.text import first_line
from jumpout_export.verify.magnitudes import NAME
from jumpout_export.verify.noise.on_purpose import is_random
from jumpout_export.verify.noise.purpose import Deterministic, purpose_of, refusal
from jumpout_export.verify.precision import about_types, opset_for
from jumpout_export.verify.runner import run_providers
from jumpout_export.verify.values.loss import Loss


@dataclass(frozen=True)
class Prepared:
    """What is converted, and what the file will be compared with."""

    network: nn.Module  # the folded copy, in the precision of the file, on the CPU
    original: nn.Module  # the same with nothing replaced
    batch: Batch  # the example in that precision
    axes: Axes  # which axes of the inputs are left open
    loss: Loss  # how far the precision takes the network from the model
    golden: Golden | None  # data to lie beside the file; None if none is wanted, or it cannot be had


@dataclass(frozen=True)
class Written:
    """The file as it was converted."""

    saved: SavedFile  # under the name of the target
    data: Path | None  # the file beside it that its weights lie in, or None
    recorded: bool  # whether it was made of what the network does at any batch size


def prepare(job: Job) -> Prepared:
    """Audits and folds the model, and brings it to the precision of the file.

    Requires nothing. Ensures that the model is deterministic in eval mode, and says so in the draft.

    Raises:
        RefusedError: if the model fails the audit, has no deterministic eval network, or not as asked.
        ValueError: if an argument does not fit the model.
    """
    draft, subject = job.draft, job.subject
    job.tell("audit", 0)
    audit = audit_model(subject)
    draft.add(audit.checks, audit.notes)
    if draft.failed:
        raise RefusedError("the model failed the audit")
    statistics = statistics_check(subject.module, draft.batchnorm, job.require_batchnorm)
    draft.add(statistics)
    if not passes(statistics):
        raise RefusedError("the BatchNorm statistics were required to agree with serving")
    job.tell("fold", 1)
    try:
        folded = fold(subject, job.batch, allow=job.allow)
    except NotFoldableError as error:
        raise draft.not_foldable(error, subject) from error
    draft.add([STATE_PASSED], folded.notes)
    draft.folded = folded.layers
    draft.metadata = provenance(subject, folded.layers, draft.batchnorm, job.precision)
    network, original = folded.model.cpu(), folded.original.cpu()
    if job.needs_deterministic and is_random(original, job.batch, job.allow):
        raise refusal(job.needs_deterministic[0], job.allow)
    if job.dynamic_batch and (fixed := subject.fixed_batch()):
        raise draft.not_converted(fixed)
    axes = choose_axes(network, job.batch, job.dynamic_batch, job.dynamic_axes)
    draft.add([], fixed_rows(network, job.batch, axes))
    try:
        prepared, prepared_original = (job.precision.prepare(model, job.batch) for model in (network, original))
    except ConversionError as error:
        raise draft.not_converted(error) from error
    draft.metadata |= job.precision.metadata()
    batch, loss = job.precision.batch(job.batch), job.precision.loss(original, prepared)
    golden = _golden(draft, prepared_original, prepared, batch, axes) if job.golden_folder else None
    return Prepared(prepared, prepared_original, batch, axes, loss, golden)


def write(job: Job, prepared: Prepared, folder: Path) -> Written:
    """Converts the network.

    Requires a folder in the file system of the target. Ensures that the file is as asked, with the metadata
    of the draft.

    Raises:
        RefusedError: if the network cannot be converted as asked.
        ValueError: if the file cannot be written.
    """
    draft, file = job.draft, folder / job.target.name
    job.tell("convert", 2)
    try:
        conditions = job.subject.conditions(prepared.axes)
        with writing(job.target):
            converted = convert(
                prepared.network,
                prepared.batch,
                file,
                opset=job.opset or opset_for(prepared.network),
                axes=prepared.axes,
                external_data=job.external_data,
                keep_debug_info=job.keep_debug_info,
                metadata=with_tolerance(draft.metadata, prepared.golden.tolerance if prepared.golden else {}),
            )
    except ConversionError as error:
        raise draft.not_converted(error) from error
    draft.opset, draft.said = converted.opset, converted.said
    draft.add(
        [Check(name="convert", verdict="pass", note=f"opset {converted.opset}")],
        [*conditions, *converted.restrictions],
    )
    return Written(SavedFile(file), converted.data, converted.recorded and not conditions)


def inspect(job: Job, written: Written) -> Deterministic:
    """Inspects the file, and returns what it is meant to be: deterministic, or random on purpose.

    Requires a file that can be read. Ensures that one which is random on purpose says so, in its own metadata too.
    """
    job.tell("inspect", 3)
    saved = written.saved
    purpose = purpose_of(saved.proto, job.allow)
    purpose.mark(saved.path, saved.proto)
    job.draft.metadata |= purpose.metadata
    checks = [*inspect_file(saved.path, saved.proto, saved.session), metadata_check(saved.proto)]
    job.draft.add(purpose.excused(checks), purpose.notes)
    if any((check.name, check.verdict) == ("file/onnx checker", "fail") for check in checks):
        job.draft.add([], about_types(job.subject.module))
    return purpose


def verify(job: Job, prepared: Prepared, written: Written, purpose: Deterministic) -> VerifyReport:
    """Returns the comparison of the file in ONNX Runtime with the model.

    Requires a file that `inspect` has seen. Ensures that nothing but the draft changes.

    Raises:
        ValueError: if golden data or Triton is asked for of a file that is random on purpose, or Triton cannot take
            its tensors.
    """
    job.tell("verify", 4)
    purpose.refuse(job.needs_deterministic)
    if job.entry:
        configuration(written.saved.proto, job.entry.name, "", job.providers)
    result = purpose.verify(
        written.saved,
        prepared.original,
        prepared.network,
        job.batches,
        job.providers,
        loss=prepared.loss,
        axes=prepared.axes,
        allow_constant=job.allow_constant,
        made_up=job.made_up,
        thorough=job.thorough,
        seed=job.seed,
        recorded=written.recorded,
        progress=job.progress,
    )
    job.draft.add(prepared.loss.checks())
    return result


def quantize(
    job: Job, prepared: Prepared, written: Written, result: VerifyReport, folder: Path
) -> tuple[Written, VerifyReport]:
    """Quantizes the float file, and returns the new one with the verdict on it.

    Requires a float file that was verified with `result`. Ensures that without a pass of that nothing is made, that the
    checks of the float file are in the draft under `float/`, and that a file which passes says how it was judged.
    """
    asked, draft = job.quantize, job.draft
    if asked is None or not result or draft.failed:
        return written, result
    draft.checks = [_of_float(check) if check.name.startswith("file/") else check for check in draft.checks]
    draft.add(map(_of_float, result.checks), result.notes)
    job.tell("quantize", 4)
    place = folder / "quantized"
    place.mkdir()
    out = place / written.saved.path.name
    try:
        if written.data is not None:
            raise ValueError("the weights of the float file lie in a file beside it")
        samples = quantize_file(written.saved.path, out, (prepared.loss.inputs(one) for one in asked.calibration))
    except Exception as error:  # of ONNX Runtime's quantizer and of onnx, in a dozen types
        note = f"ONNX Runtime cannot quantize the file: {first_line(error)}"
        draft.add([Check(name="quantize", verdict="fail", note=note)])
        return written, not_run(job.providers, "the file was not quantized")
    made = SavedFile(out)
    checks = [*inspect_file(out, made.proto, made.session), metadata_check(made.proto)]
    judged = judge_quantized(
        made,
        prepared.original,
        prepared.network,
        asked.judged_on,
        job.providers,
        limits=asked.limits,
        prove=run_providers,
        axes=prepared.axes,
        allow_constant=job.allow_constant,
        made_up=job.made_up,
        thorough=job.thorough,
        seed=job.seed,
        progress=job.progress,
    )
    draft.add(checks)
    draft.metadata = {key: value for key, value in draft.metadata.items() if not key.startswith(TOLERANCE[:-1])}
    if judged and judged.quantization is not None:
        line = told(asked.kind, samples, judged.quantization)
        draft.metadata[QUANTIZED] = line
        add_entries(out, made.proto, {QUANTIZED: line})
    return Written(SavedFile(out), None, written.recorded), judged


def replace(job: Job, prepared: Prepared, written: Written, result: VerifyReport) -> ExportReport:
    """Returns the report; if it passed, the file is at its place, with its weights and golden data.

    Requires everything that was found in the draft. Ensures that otherwise nothing appears there,
    and that a file which breaks on inputs beyond the given ones says so in its metadata.

    Raises:
        ValueError: if something cannot be written.
    """
    for check in result.checks if result else ():
        if (check.name, check.verdict) == (NAME, "warning"):
            job.draft.metadata[MAGNITUDES] = check.note
            add_entries(written.saved.path, written.saved.proto, {MAGNITUDES: check.note})
    report = job.draft.report(result, written.saved.path, written.data)
    if report:
        with (
            writing(job.target),
            staged_golden(prepared.golden, job.golden_folder) as golden,
            staged_weights(job.subject.module, job.save_weights) as statistics,
        ):
            manifest = _manifest(written, golden, report)
            served = Served(written.saved.path, written.data, written.saved.proto, manifest, job.providers)
            with staged_entry(served, job.entry, job.target) as entry:
                replace_export(
                    *(written.saved.path, written.data, job.target, golden, statistics),
                    manifest.write(manifest_of(written.saved.path)),
                    entry,
                )
        if job.entry:
            report.notes += entry_notes(served, job.entry)
        if job.save_weights:
            report.notes.append(
                f"the file's weights are in {job.save_weights}: verify it with --weights {job.save_weights}"
            )
    job.tell("done", 5)
    return report


def _manifest(written: Written, golden: Path | None, report: ExportReport) -> Manifest:
    """What the manifest of the finished files says."""
    names = ("version", "torch", "onnx", "onnxscript", "onnxruntime")
    verdicts: dict[str, str] = {name: provider.verdict for name, provider in report.providers.items()}
    verdicts |= {"quantized": report.provenance[QUANTIZED]} if QUANTIZED in report.provenance else {}
    return dataclasses.replace(
        digests_of(written.saved.path, written.data, golden),
        versions={name: report.provenance[f"{PREFIX}{name}"] for name in names},
        verdicts=verdicts | {"batchnorm": report.batchnorm.verdict if report.batchnorm else "not_run"},
    )


def _golden(draft: Draft, original: nn.Module, network: nn.Module, batch: Batch, axes: Axes) -> Golden | None:
    """The golden data; without any, a failed check says why."""
    try:
        golden = compute_golden(original, network, batch, axes)
    except Exception as error:  # the user's forward may raise anything
        note = f"PyTorch itself cannot run the first samples of the example: {first_line(error)}"
        draft.add([Check(name="golden", verdict="fail", note=note)])
        return None
    bits = [name for name, value in {**golden.inputs, **golden.outputs}.items() if value.dtype == torch.bfloat16]
    if bits:
        what = ", ".join(f"`{name}`" for name in bits)
        raise ArgumentError("golden", f"golden data cannot be bfloat16, which no replay reads: {what}; leave it out")
    return golden


def _of_float(check: Check) -> Check:
    return check.model_copy(update={"name": f"float/{check.name}"})
