"""Verifies a saved ONNX file in ONNX Runtime against the PyTorch model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from jumpout_export.errors import NotFoldableError, NotVerifiableError
from jumpout_export.extras import require_onnx
from jumpout_export.filenetwork.network import FileNetwork
from jumpout_export.fold.network.audit import audit_model
from jumpout_export.fold.network.folded import STATE_PASSED, fold
from jumpout_export.fold.network.subject import subject_of
from jumpout_export.log import log_step
from jumpout_export.model.batches import Batch, Progress
from jumpout_export.model.signature import first_and_all
from jumpout_export.onnxfile.data import sha256_of_all, unchanged_checks
from jumpout_export.onnxfile.manifest import manifest_checks
from jumpout_export.onnxfile.static import can_be_run, of_another_writer, usable_data
from jumpout_export.quantized.about import about_quantized
from jumpout_export.quantized.settings import Quantized, limits_of
from jumpout_export.report import Check, VerifyReport, not_run, passes
from jumpout_export.runtime.loads import inspect_file
from jumpout_export.runtime.providers import check_providers, providers_in
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.text import names_of
from jumpout_export.verify.other_file import AS_RUN, check_as_run, check_open_axes, check_other_file
from jumpout_export.verify.precision import precision_of_file
from jumpout_export.verify.runner import run_providers
from jumpout_export.verify.values.loss import Loss


def verify_onnx(
    path: str | os.PathLike[str],
    model: nn.Module | ExportedProgram | str | os.PathLike[str],
    inputs: Any,
    providers: Iterable[str] = ("cpu",),
    *,
    provider_python: str | os.PathLike[str] | None = None,
    allow_constant: Iterable[str] = (),
    made_up: bool = True,
    thorough: bool = False,
    quantized: bool | Quantized = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> VerifyReport:
    """Returns whether an ONNX file computes what the model computes in eval mode, and is free of training noise.

    The file is inspected (`inspect_onnx`) and run in ONNX Runtime, with its optimizer off and fully on: on all given
    samples as they come, and on batches of 1, 2, 3, one more than the first one holds, 17 (or 2 more), and where the
    file computes something from a size, on both sides of what that decides; they hold given samples and some made of
    these, in changing places, and each has to have the values that it has alone. Names, number, shapes and dtypes
    must agree exactly, nothing may be NaN or infinite, two runs on the CPU must agree bitwise, and the error against a
    float64 copy of the model must stay within `tolerances.py`. A file that is changed meanwhile fails; `sha256` is of
    the file before. What a manifest beside it names must have the digests that stand there; that there is none is a
    note. Paths of a machine in it, and metadata that it lacks, are warnings. The model must be free of
    randomness and state in eval mode, and with an open batch size samples must not depend on each other. It is not
    changed.

    The constants of every BatchNorm are recomputed from its buffers and compared with those in the file, folded into
    another layer or not. The other weights are looked for in the file bit for bit: one with wrong values fails, one
    that is not there is named. A branch of an If, or a body of a Loop, that no input runs fails. Where values differ,
    the first layer that does is named by its module path in
    `first_divergence` (`.` for what the model's own forward computes), with what was seen there as the first note.

    A quantized file is not the model to the last digits. With `quantized` it is judged by what its rounding costs: by
    its scales, weights within half a step, clipped values, signal to noise per tensor, and accuracy and likelihood on
    labelled samples against a margin; without its rounding its graph has to be the model as strictly as any other
    (`quantized/verdict.py`). What few samples leave open is inconclusive, and no pass.

    Args:
        path: the file; any ONNX file whose inputs and outputs are named as `export_onnx` names them.
        model: the PyTorch model, in train or eval mode, on any device, or an exported program; or the path of another
            ONNX file, such as the one that this was simplified, optimized or converted from. That file is inspected,
            too, and its nodes are run by PyTorch and by onnx's reference implementation, in float64 as the reference;
            that ONNX Runtime gives the same for it is a check of its own.
        inputs: one batch (a tensor, tuple or dict), or an iterable of batches, with or without labels. For another
            file, tensors in the order of its inputs, or by their names.
        providers: of `cpu`, `cuda`, `openvino`. Of one that cannot be used the verdict is `not_run`, and the report not
            passed.
        provider_python: the Python of another environment, which has the onnxruntime with these providers: all but the
            `cpu` run there, in a process of their own. By default everything runs in this one.
        allow_constant: names of outputs that may be the same for every input. Of another one that never moved nothing
            was shown; its check is `not_run` and the report not passed.
        made_up: compare on inputs made of the first batch's, too, and not on what was given alone.
        thorough: sweep more sizes of the open axes.
        quantized: judge the file as a quantized one, with the limits of `Quantized()` or those given. Its outputs are
            compared on all inputs, its tensors looked at on the first four batches.
        seed: of the made-up inputs.
        progress: called as progress(what, done, total).

    Returns:
        A report of kind `verify`; of a file that is judged as a quantized one `quantization` has the numbers.

    Raises:
        LoadError: if there is no such file or it is not a readable ONNX model.
        ConversionError: if the file is one in float16, made here, and the model does not run in float16.
        ValueError: if `inputs` is empty, a provider unknown, or `provider_python` no program.
        TypeError: if the model is no nn.Module, cannot be copied, or a batch holds something else than tensors.
        ImportError: if onnx or onnxruntime is missing.
    """
    providers, limits = check_providers(providers), limits_of(quantized)
    require_onnx("onnx", "onnxruntime")
    path = Path(path)
    log_step(f"verify: {path.name}")
    before = sha256_of_all(path.parent, [path.name])
    file = SavedFile(path)
    proto = file.proto
    other = FileNetwork(model) if isinstance(model, str | os.PathLike) else None
    subject = subject_of(model if other is None else other)
    first, batches = first_and_all(inputs if other is None else other.batches(inputs), subject.module, "inputs")
    audit = audit_model(subject)
    checks = [*of_another_writer(inspect_file(path, proto, file.session), proto), *audit.checks]
    data = usable_data(path, proto, checks)
    before |= sha256_of_all(path.parent, data)
    manifest, about_manifest = manifest_checks(path, data)
    checks += manifest
    notes = [*audit.notes]
    try:
        if other is not None:
            checks += [check_other_file(other), check_open_axes(proto, other), check_as_run(other, first)]
            notes.append(f"compared with {other.path}, sha256 {other.sha256[other.path.name]}")
        with subject.untouched(), providers_in(provider_python, providers):
            folded = fold(subject, first)
            notes += folded.notes
            result = not_run(providers, "the file is not run")
            if can_be_run(checks):
                precision = precision_of_file(proto, first)
                original, network = folded.original.cpu(), folded.model.cpu()
                prepared = precision.prepare(original, first)
                loss = precision.loss(original, prepared)
                notes += precision.notes()
                compare = run_providers if limits is None else partial(_as_quantized, limits=limits)
                result = compare(
                    file,
                    prepared,
                    precision.prepare(network, first),
                    batches,
                    providers,
                    loss=loss,
                    allow_constant=names_of(allow_constant),
                    made_up=made_up,
                    thorough=thorough,
                    seed=seed,
                    progress=progress,
                    other=None if other is None else SavedFile(other.path),
                )
                checks += loss.checks()
            checks.append(STATE_PASSED)
    except NotFoldableError as error:
        checks.append(Check(name=error.check, verdict="fail", note=str(error)))
        nothing = "the PyTorch model has no deterministic eval network"
        result = not_run(providers, nothing if other is None else "the other file is nothing to compare with")
    except NotVerifiableError as error:
        checks.append(Check(name=AS_RUN, verdict="not_run", note=str(error)))
        result = not_run(providers, "the other file is nothing to compare with")
    checks += [*(about_quantized(proto) if limits is None and not result else []), *result.checks]
    checks += unchanged_checks(path.parent, before)
    checks += [] if other is None else unchanged_checks(other.path.parent, other.sha256)
    return VerifyReport(
        passed=bool(result) and passes(checks, result.providers),
        providers=result.providers,
        first_divergence=result.first_divergence,
        checks=checks,
        path=str(path),
        sha256=before[path.name],
        data_files=data,
        data_sha256={name: before[name] for name in data},
        against=str(other.path) if other is not None else "",
        quantization=result.quantization,
        notes=[*notes, *result.notes, *about_manifest],
    )


def _as_quantized(
    file: SavedFile,
    original: nn.Module,
    folded: nn.Module,
    batches: Iterable[Batch],
    providers: tuple[str, ...],
    *,
    loss: Loss,
    limits: Quantized,
    **options: Any,
) -> VerifyReport:
    """Judges the file as `run_providers` does, by what its rounding costs."""
    from jumpout_export.quantized.verdict import judge_quantized

    given = (dataclasses.replace(loss.inputs(batch), labels=batch.labels) for batch in batches)
    return judge_quantized(file, original, folded, given, providers, limits=limits, prove=run_providers, **options)
