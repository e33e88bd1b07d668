"""Exports a model: prepare, convert, inspect, verify, replace; the file appears only if every check passed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from jumpout_export.disk import private_folder
from jumpout_export.errors import NotFoldableError
from jumpout_export.export.arguments import check_arguments, check_quantize
from jumpout_export.export.job import Draft, Job, RefusedError, quantize_of
from jumpout_export.export.statistics import check_weights_target
from jumpout_export.export.steps import inspect, prepare, replace, verify, write
from jumpout_export.export.steps import quantize as quantize_step
from jumpout_export.export.triton import check_entry
from jumpout_export.fold.network.subject import subject_of
from jumpout_export.model.batches import Batch, Progress
from jumpout_export.model.signature import first_and_all, onnx_batch
from jumpout_export.quantized.settings import Quantized
from jumpout_export.report import BatchNormReport, ExportReport, not_run
from jumpout_export.runtime.providers import check_providers, providers_in
from jumpout_export.text import names_of


def export_onnx(
    model: nn.Module | ExportedProgram,
    path: str | os.PathLike[str],
    example: Any,
    *,
    calibration: Any = None,
    providers: Iterable[str] = ("cpu",),
    provider_python: str | os.PathLike[str] | None = None,
    opset: int | None = None,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    dtype: torch.dtype | None = None,
    external_data: bool | None = None,
    allow: Iterable[str] = (),
    allow_constant: Iterable[str] = (),
    made_up: bool = True,
    thorough: bool = False,
    keep_debug_info: bool = False,
    batchnorm: BatchNormReport | None = None,
    require_batchnorm: bool = False,
    quantize: str | None = None,
    quantize_calibration: Any = None,
    quantized: Quantized | None = None,
    golden: str | os.PathLike[str] | None = None,
    save_weights: str | os.PathLike[str] | None = None,
    triton: str | os.PathLike[str] | None = None,
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
        providers: ONNX Runtime providers to verify on, of `cpu`, `cuda`, `openvino`. Of one that cannot be used the
            verdict is `not_run`, and nothing is published.
        provider_python: the Python of another environment, whose onnxruntime has these providers (`verify_onnx`).
        opset: ONNX opset, from 18, in which torch's converter is written and which is the default, up to the newest
            that ONNX Runtime accepts. Honoured, or the check `convert` fails.
        dynamic_batch: leave the batch size open (verified at 1, 2, 3, more than the example's and 17; a sample's
            result must not depend on its place and the others in its batch), or fix it to the example's. Which inputs
            have an entry per sample is found by trying.
        dynamic_axes: further open axes, for example {"image": {2: "height", 3: "width"}}; axes of one name have one
            size. Verified at other sizes, all moved at once; `{"mask": {0: "batch"}}` says that axis 0 is the batch.
        dtype: torch.float16 or torch.bfloat16 exports a copy that takes and returns it. It is verified against the
            float64 run of the same rounded weights; the check `precision` says how far it is from the model. For
            bfloat16 most providers lack kernels: where one does, its verdict is `not_run` and names the nodes.
        external_data: write the weights to `NAME.onnx.<hash>.data` beside the file; by default only if they take more
            than 2 GiB.
        allow: module paths that may draw random numbers in eval mode. If the file then holds random nodes (Monte-Carlo
            dropout), it is random on purpose: report and metadata say so, the network without that noise is verified
            as any other, and with it the mean and spread of every output over many runs. Where the result does not
            depend on what is drawn, the file is deterministic and proven to be.
        allow_constant: names of outputs that may be the same for every input. Of another one that never moved nothing
            was shown; its check is `not_run` and nothing is published.
        made_up: compare on inputs made of the example's, too (mixtures of its samples), and not on given ones alone.
        thorough: sweep more sizes of the open axes.
        keep_debug_info: keep the converter's source lines in the file, with paths cut to file names.
        batchnorm: the check of the exported weights, for the report and the file's metadata. Drift is a warning.
        require_batchnorm: publish nothing if that check found drift, or could not decide.
        quantize: "int8" makes a quantized file of the proven float one, with ONNX Runtime's static quantizer, and
            publishes that, if it passes `verify_onnx(..., quantized=...)`. The float file is verified on the first
            four batches of `calibration` then; accuracy is compared on all of them, which need labels.
        quantize_calibration: batches, or one, that `quantize` takes the ranges of activations from; samples as in
            serving, best others than `calibration`.
        quantized: limits of that verdict.
        golden: folder, or a name for one; after a pass `test_data_set_0/input_0.pb, output_0.pb` appears in it. The
            file's metadata then says how far a replay may be off (`export/golden.py`).
        save_weights: a file ending in `.safetensors` for the model's weights, which appears together with the file:
            of a model whose BatchNorm was recalibrated nothing else holds the new statistics.
        triton: a model repository of Triton Inference Server, or a name for one in an existing folder. After a pass
            `NAME/config.pbtxt` and `NAME/1/model.onnx` appear in it, NAME being that of the file. Triton serves it on
            the providers that it was verified on, in batches of several requests if every input and output begins
            with the open batch axis. What an export wrote there is replaced, anything else is not.
        seed: of the made-up inputs.
        progress: called as progress(what, done, total).

    Returns:
        A report, truthy exactly when the file was published. A failed check does not raise.

    Raises:
        ValueError: if an argument is out of its range, a folder missing or not writable, the disk full, there is
            nothing to compare, or golden data or Triton is asked for of a file that is random on purpose.
        TypeError: if an argument has the wrong type, or the model cannot be copied.
        ImportError: if onnx, onnxscript or onnxruntime is missing.

    Example:
        >>> report = export_onnx(model, "model.onnx", torch.randn(2, 3, 32, 32), calibration=loader)
        >>> print(report.passed, [check.name for check in report.checks if check.verdict != "pass"])
        True []
    """
    excluded = {"dtype": dtype, "golden": golden, "external_data": external_data, "allow": names_of(allow)}
    check_quantize(quantize, quantize_calibration, quantized, excluded)
    target, golden_folder, precision = check_arguments(path, golden, opset, dtype)
    providers = check_providers(providers)
    subject = subject_of(model)
    batch = onnx_batch(example, subject.module)
    batches: Iterable[Batch]
    batches = first_and_all([batch] if calibration is None else calibration, subject.module, "calibration")[1]
    asked = None
    if quantize is not None:
        asked, batches = quantize_of(quantize, quantize_calibration, quantized, batches, subject.module)
    job = Job(
        subject=subject,
        batch=batch,
        batches=batches,
        target=target,
        golden_folder=golden_folder,
        entry=check_entry(triton, target, providers),
        save_weights=check_weights_target(save_weights),
        require_batchnorm=require_batchnorm,
        providers=providers,
        precision=precision,
        opset=opset,
        dynamic_batch=dynamic_batch,
        dynamic_axes=dynamic_axes,
        external_data=external_data,
        allow=names_of(allow),
        allow_constant=names_of(allow_constant),
        made_up=made_up,
        thorough=thorough,
        keep_debug_info=keep_debug_info,
        seed=seed,
        progress=progress,
        draft=Draft(target, batchnorm),
        quantize=asked,
    )
    try:
        # In the target's own folder, so that the last step is a rename.
        with providers_in(provider_python, providers), private_folder(target) as folder:
            with subject.untouched():
                prepared = prepare(job)
                written = write(job, prepared, folder)
                purpose = inspect(job, written)
                result = verify(job, prepared, written, purpose)
                if asked is not None:
                    written, result = quantize_step(job, prepared, written, result, folder)
            return replace(job, prepared, written, result)
    except NotFoldableError as error:
        refused = job.draft.not_foldable(error, subject)
    except RefusedError as error:
        refused = error
    return job.draft.report(not_run(providers, str(refused)))
