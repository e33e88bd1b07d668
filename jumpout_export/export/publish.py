"""Exports a model: audit, fold, convert, inspect, verify; the file appears only if every check passed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from jumpout_export.disk import private_folder, writing
from jumpout_export.errors import ConversionError, NotFoldableError
from jumpout_export.export.convert import convert
from jumpout_export.export.draft import Draft
from jumpout_export.export.golden import FOLDER, staged_golden
from jumpout_export.export.provenance import provenance, with_tolerance
from jumpout_export.export.replace import replace_export
from jumpout_export.extras import require_onnx
from jumpout_export.fold.network.audit import audit_model
from jumpout_export.fold.network.folded import STATE_PASSED, fold
from jumpout_export.fold.network.half import check_dtype, half_batch, half_copy
from jumpout_export.fold.network.subject import subject_of
from jumpout_export.model.axes import choose_axes
from jumpout_export.model.batches import Progress
from jumpout_export.model.signature import first_and_all, onnx_batch
from jumpout_export.onnxfile.load import DEFAULT_OPSET, load_onnx
from jumpout_export.onnxfile.metadata import DTYPE, RANDOM
from jumpout_export.report import BatchNormReport, Check, ExportReport, not_run
from jumpout_export.runtime.loads import inspect_file
from jumpout_export.runtime.providers import check_providers
from jumpout_export.runtime.session import newest_opset
from jumpout_export.verify.noise.on_purpose import excused, is_random, no_golden, random_on_purpose, verify_random
from jumpout_export.verify.runner import run_providers
from jumpout_export.verify.values.precision import PrecisionLoss

_STEPS = 5


def export_onnx(
    model: nn.Module | ExportedProgram,
    path: str | os.PathLike[str],
    example: Any,
    *,
    calibration: Any = None,
    providers: Iterable[str] = ("cpu",),
    opset: int | None = None,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    dtype: torch.dtype | None = None,
    external_data: bool | None = None,
    allow: Iterable[str] = (),
    keep_debug_info: bool = False,
    batchnorm: BatchNormReport | None = None,
    golden: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ExportReport:
    """Writes the model's eval network as ONNX, if it is proven free of training noise and equal to PyTorch.

    Audits the model, folds a copy (`fold_model`), converts it, inspects the file (`inspect_onnx`) and runs it in ONNX
    Runtime (`verify_onnx`), all on a temporary file in the target's folder. Only after every check passed is it
    renamed to `path`; otherwise nothing appears there and an older file stays as it was. The model is not changed.
    The same model gives the same bytes from any folder.

    Args:
        model: in train or eval mode, on any device, or an exported program; its eval network is exported.
        path: the file to write, ending in `.onnx`; its folder must exist.
        example: one batch (a tensor, a tuple, a dict of keyword inputs, or with labels).
        calibration: batches to verify on (all of them), or one batch; default the example.
        providers: ONNX Runtime providers to verify on, of `cpu`, `cuda`. Where `cuda` cannot be used, its verdict is
            `not_run` and nothing is published.
        opset: ONNX opset, from 18, in which torch's converter is written and which is the default, up to the newest
            that ONNX Runtime accepts. Honoured, or the check `convert` fails.
        dynamic_batch: leave the batch size open (verified at 1, 2 and 7; an image's result must not depend on the
            others in its batch), or fix it to the example's. Which inputs have an entry per image is found by trying.
        dynamic_axes: further open axes, for example {"image": {2: "height", 3: "width"}}; axes of one name have one
            size. Verified at other sizes, all moved at once; `{"mask": {0: "batch"}}` says that axis 0 is the batch.
        dtype: torch.float16 exports a half-precision copy that takes and returns float16. It is verified against the
            float64 run of the same rounded weights; the check `precision` says how far it is from the model.
        external_data: write the weights to `NAME.onnx.<hash>.data` beside the file; by default only if they take more
            than 2 GiB.
        allow: module paths that may draw random numbers in eval mode. If the file then holds random nodes (Monte-Carlo
            dropout), it is random on purpose: report and metadata say so, the network without that noise is verified
            as any other, and with it the mean and spread of every output over many runs. Where the result does not
            depend on what is drawn, the file is deterministic and proven to be.
        keep_debug_info: keep the converter's source lines in the file, with paths cut to file names.
        batchnorm: the check of the exported weights, for the report and the file's metadata.
        golden: folder, or a name for one; after a pass `test_data_set_0/input_0.pb, output_0.pb` appears in it. The
            file's metadata then says how far a replay may be off (`export/golden.py`).
        seed: of the random inputs.
        progress: called as progress(what, done, total).

    Returns:
        A report, truthy exactly when the file was published. A failed check does not raise.

    Raises:
        ValueError: if an argument is out of its range, a folder missing or not writable, the disk full, there is
            nothing to compare, or golden data is asked for of a file that is random on purpose.
        TypeError: if an argument has the wrong type, or the model cannot be copied.
        ImportError: if onnx, onnxscript or onnxruntime is missing.

    Example:
        >>> report = export_onnx(model, "model.onnx", torch.randn(2, 3, 32, 32), calibration=loader)
        >>> print(report.passed, [check.name for check in report.checks if check.verdict != "pass"])
        True []
    """
    target, golden_folder = check_arguments(path, golden, opset, dtype)
    providers = check_providers(providers)
    subject = subject_of(model)
    allow = (allow,) if isinstance(allow, str) else tuple(allow)
    batch = onnx_batch(example, subject.module)
    batches = iter([batch]) if calibration is None else first_and_all(calibration, subject.module, "calibration")[1]

    draft = Draft(target, batchnorm)
    _tell(progress, "audit", 0)
    audit = audit_model(subject)
    draft.add(audit.checks, audit.notes)
    if draft.failed:
        return draft.report(not_run(providers, "the model failed the audit"))
    _tell(progress, "fold", 1)
    try:
        folded = fold(subject, batch, allow=allow)
    except NotFoldableError as error:
        draft.refuse(error, subject)
        return draft.report(not_run(providers, "the model has no deterministic eval network"))
    draft.add([STATE_PASSED], folded.notes)
    draft.folded = folded.layers
    draft.metadata = provenance(subject, folded.layers, batchnorm, dtype)
    network, original = folded.model.cpu(), folded.original.cpu()
    if golden_folder and is_random(original, batch, allow):
        raise ValueError(no_golden(allow))
    if dynamic_batch and (fixed := subject.fixed_batch()):
        draft.add([Check(name="convert", verdict="fail", note=fixed)])
        return draft.report(not_run(providers, "the model was not converted"))
    axes = choose_axes(network, batch, dynamic_batch, dynamic_axes)
    loss = None
    if dtype == torch.float16:
        try:
            half, half_original = half_copy(network, batch), half_copy(original, batch)
        except ConversionError as error:
            draft.add([Check(name="convert", verdict="fail", note=str(error))])
            return draft.report(not_run(providers, "the model was not converted"))
        loss = PrecisionLoss(original, half)
        batch, batches = half_batch(batch), loss.watch(batches)
        network, original = half, half_original
        draft.metadata |= {DTYPE: "float16"}
    golden_data = draft.golden(original, network, batch, axes) if golden_folder else None

    with contextlib.ExitStack() as stack:
        # In the target's own folder, so that the last step is a rename.
        with writing(target):
            folder = stack.enter_context(private_folder(target))
        file = folder / target.name
        _tell(progress, "convert", 2)
        try:
            with writing(target):
                converted = convert(
                    network,
                    batch,
                    file,
                    opset=opset,
                    axes=axes,
                    external_data=external_data,
                    keep_debug_info=keep_debug_info,
                    metadata=with_tolerance(draft.metadata, golden_data.tolerance if golden_data else {}),
                )
        except ConversionError as error:
            draft.add([Check(name="convert", verdict="fail", note=str(error))])
            return draft.report(not_run(providers, "the model was not converted"))
        draft.opset = converted.opset
        draft.add(
            [Check(name="convert", verdict="pass", note=f"opset {converted.opset}")],
            [f"the converter says: {line}" for line in converted.said],
        )
        _tell(progress, "inspect", 3)
        purpose = random_on_purpose(file, allow)
        draft.add(
            excused(inspect_file(file, load_onnx(file)), purpose), [f"NOT deterministic: {purpose}"] if purpose else []
        )
        _tell(progress, "verify", 4)
        if purpose:
            draft.metadata[RANDOM] = purpose
            if golden_folder:
                raise ValueError(no_golden(allow))
            result = verify_random(file, original, batches, providers, allow=allow, seed=seed, progress=progress)
        else:
            result = run_providers(
                file, original, network, batches, providers, axes=axes, allow=allow, seed=seed, progress=progress
            )
        draft.add([loss.check()] if loss else [])
        report = draft.report(result, file, converted.data)
        if report:
            with writing(target), staged_golden(golden_data, golden_folder) as staged:
                replace_export(file, converted.data, target, staged)
        _tell(progress, "done", 5)
        return report


def check_arguments(
    path: str | os.PathLike[str],
    golden: str | os.PathLike[str] | None,
    opset: int | None,
    dtype: torch.dtype | None = None,
) -> tuple[Path, Path | None]:
    """Returns `path` and `golden` as paths if `export_onnx` would take these; cheap, for a caller with long work ahead.

    Raises:
        ValueError: if one is out of its range or a folder is missing.
        TypeError: if one has the wrong type.
        ImportError: if onnx, onnxscript or onnxruntime is missing.
    """
    target = _check_path(path)
    golden_folder = _check_golden(golden)
    check_dtype(dtype)
    require_onnx()
    _check_opset(opset)
    return target, golden_folder


def _check_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or path, got {type(path).__name__}")
    target = Path(path)
    if target.suffix != ".onnx":
        raise ValueError(f"path must end in .onnx, got {str(target)!r}")
    if not target.parent.is_dir():
        raise ValueError(f"the folder of path does not exist: {str(target.parent)!r}")
    if target.is_dir():
        raise ValueError(f"path is a folder, not a file: {str(target)!r}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ValueError(f"the folder of path cannot be written to: {str(target.parent)!r}")
    return target


def _check_golden(golden: str | os.PathLike[str] | None) -> Path | None:
    if golden is None:
        return None
    folder = Path(golden)
    if not folder.is_dir() and (folder.exists() or not folder.parent.is_dir()):
        raise ValueError(f"golden data needs a folder, or a name in an existing one, got {str(folder)!r}")
    if (folder / FOLDER).exists() and not (folder / FOLDER).is_dir():
        raise ValueError(f"golden data needs the folder {str(folder / FOLDER)!r}, there is a file of that name")
    return folder


def _check_opset(opset: int | None) -> None:
    from onnx import defs

    if opset is None:
        return
    if not isinstance(opset, int) or isinstance(opset, bool):
        raise TypeError(f"opset must be an int, got {type(opset).__name__}")
    newest = newest_opset()
    if not DEFAULT_OPSET <= opset <= newest:
        raise ValueError(
            f"opset must be in [{DEFAULT_OPSET}, {newest}], got {opset}; {newest} is the newest that the installed "
            f"ONNX Runtime accepts (onnx knows {defs.onnx_opset_version()}), {DEFAULT_OPSET} the oldest that torch's "
            "converter writes"
        )


def _tell(progress: Progress | None, step: str, done: int) -> None:
    if progress is not None:
        progress(f"export: {step}", done, _STEPS)
