"""Exports a model: audit, fold, convert, inspect, verify; the file appears only if every check passed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from jumpout_export.errors import ConversionError, NotFoldableError
from jumpout_export.export.audit import audit_model
from jumpout_export.export.checks import first_line
from jumpout_export.export.convert import convert
from jumpout_export.export.extras import require_onnx
from jumpout_export.export.fold import fold, unwrap
from jumpout_export.export.golden import FOLDER, Golden, compute_golden, publish_golden, stage_golden
from jumpout_export.export.graph import file_sha256, inspect_file, load_onnx
from jumpout_export.export.provenance import provenance, with_tolerance
from jumpout_export.export.runner import run_providers
from jumpout_export.export.session import check_providers
from jumpout_export.export.signature import onnx_batch
from jumpout_export.export.verify import STATE_PASSED, first_and_all, not_run
from jumpout_export.nn.batches import Batch, Progress
from jumpout_export.report import BatchNormReport, Check, ExportReport, FoldedLayer, VerifyReport

# ONNX Runtime reads nothing older.
_OLDEST_OPSET = 7
_STEPS = 5


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Any,
    *,
    calibration: Any = None,
    providers: Iterable[str] = ("cpu",),
    opset: int | None = None,
    dynamic_batch: bool = True,
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
        model: in train or eval mode, on any device; its eval network is exported.
        path: the file to write, ending in `.onnx`; its folder must exist.
        example: one batch (a tensor, a tuple, a dict of keyword inputs, or with labels).
        calibration: batches to verify on (all of them), or one batch; default the example.
        providers: ONNX Runtime providers to verify on, of `cpu`, `cuda`. Where `cuda` cannot be used, its verdict is
            `not_run` and nothing is published.
        opset: ONNX opset; default 18, in which torch's converter is written. Honoured, or the check `convert` fails.
        dynamic_batch: leave the batch size open (verified at 1, 2 and 7; an image's result must not depend on the
            others in its batch), or fix it to the example's.
        allow: module paths that may draw random numbers in eval mode without changing the result. It silences the
            audit, not the proof: a file with a random node in it is never published.
        keep_debug_info: keep the converter's source lines in the file, with paths cut to file names.
        batchnorm: the check of the exported weights, for the report and the file's metadata.
        golden: folder, or a name for one; after a pass `test_data_set_0/input_0.pb, output_0.pb` appears in it. The
            file's metadata then says how far a replay may be off (`export/tolerance.py`).
        seed: of the random inputs.
        progress: called as progress(what, done, total).

    Returns:
        A report, truthy exactly when the file was published. A failed check does not raise.

    Raises:
        ValueError: if an argument is out of its range, a folder missing, or there is nothing to compare.
        TypeError: if an argument has the wrong type, or the model cannot be copied.
        ImportError: if onnx, onnxscript or onnxruntime is missing.

    Example:
        >>> report = export_onnx(model, "model.onnx", torch.randn(2, 3, 32, 32), calibration=loader)
        >>> print(report.passed, [check.name for check in report.checks if check.verdict != "pass"])
        True []
    """
    target, golden_folder = check_arguments(path, golden, opset)
    providers = check_providers(providers)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    allow = (allow,) if isinstance(allow, str) else tuple(allow)
    batch = onnx_batch(example, model)
    batches = iter([batch]) if calibration is None else first_and_all(calibration, model, "calibration")[1]

    draft = _Draft(target, providers, batchnorm)
    _tell(progress, "audit", 0)
    audit = audit_model(model)
    draft.add(audit.checks, audit.notes)
    if draft.failed:
        return draft.report(not_run(providers, "the model failed the audit"))
    _tell(progress, "fold", 1)
    try:
        folded = fold(model, batch, allow=allow)
    except NotFoldableError as error:
        draft.add([Check(name=error.check, verdict="fail", note=str(error))])
        return draft.report(not_run(providers, "the model has no deterministic eval network"))
    draft.add([STATE_PASSED], folded.notes)
    draft.folded = folded.layers
    draft.metadata = provenance(model, folded.layers, batchnorm)
    network, original = folded.model.cpu(), folded.original.cpu()
    golden_data = draft.golden(original, network, batch, dynamic_batch) if golden_folder else None

    # Everything in this folder disappears on the way out, however that happens; in the target's own folder, so that
    # the last step is a rename.
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}.", dir=target.parent) as name:
        file = Path(name) / target.name
        _tell(progress, "convert", 2)
        try:
            converted = convert(
                network,
                batch,
                file,
                opset=opset,
                dynamic_batch=dynamic_batch,
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
        draft.add(inspect_file(file, load_onnx(file)))
        _tell(progress, "verify", 4)
        result = run_providers(file, original, network, batches, providers, allow=allow, seed=seed, progress=progress)
        report = draft.report(result, file)
        if report:
            staged = stage_golden(golden_data, Path(name)) if golden_data else None
            _rename(file, target)
            if golden_folder and staged:
                publish_golden(staged, golden_folder)
        _tell(progress, "done", 5)
        return report


def check_arguments(
    path: str | os.PathLike[str], golden: str | os.PathLike[str] | None, opset: int | None
) -> tuple[Path, Path | None]:
    """Returns `path` and `golden` as paths if `export_onnx` would take them; cheap, for a caller with long work ahead.

    Raises:
        ValueError: if one is out of its range or a folder is missing.
        TypeError: if one has the wrong type.
        ImportError: if onnx, onnxscript or onnxruntime is missing.
    """
    target = _check_path(path)
    golden_folder = _check_golden(golden)
    require_onnx()
    _check_opset(opset)
    return target, golden_folder


@dataclass
class _Draft:
    """What is known of the export so far."""

    target: Path
    providers: tuple[str, ...]
    batchnorm: BatchNormReport | None
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folded: tuple[FoldedLayer, ...] = ()
    opset: int = 0
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(check.verdict == "fail" for check in self.checks)

    def add(self, checks: Iterable[Check], notes: Iterable[str] = ()) -> None:
        self.checks += checks
        self.notes += notes

    def golden(self, original: nn.Module, network: nn.Module, batch: Batch, dynamic_batch: bool) -> Golden | None:
        """The golden data; without any, a failed check says why."""
        try:
            return compute_golden(original, network, batch, dynamic_batch=dynamic_batch)
        except Exception as error:  # the user's forward may raise anything
            note = f"PyTorch itself cannot run the first images of the example: {first_line(error)}"
            self.add([Check(name="golden", verdict="fail", note=note)])
            return None

    def report(self, result: VerifyReport, file: Path | None = None) -> ExportReport:
        """The report; passed only if the comparison in `result` and every check did."""
        self.add(result.checks, result.notes)
        return ExportReport(
            passed=bool(result) and all(check.verdict == "pass" for check in self.checks),
            providers=result.providers,
            checks=self.checks,
            path=str(self.target),
            sha256=file_sha256(file) if file else "",
            notes=self.notes,
            folded=list(self.folded),
            opset=self.opset,
            batchnorm=self.batchnorm,
            provenance=self.metadata,
        )


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

    newest = defs.onnx_opset_version()
    if opset is None:
        return
    if not isinstance(opset, int) or isinstance(opset, bool):
        raise TypeError(f"opset must be an int, got {type(opset).__name__}")
    if not _OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset must be in [{_OLDEST_OPSET}, {newest}], which the installed onnx knows, got {opset}")


def _tell(progress: Progress | None, step: str, done: int) -> None:
    if progress is not None:
        progress(f"export: {step}", done, _STEPS)


def _rename(file: Path, target: Path) -> None:
    """Moves the finished file to its place; after a power cut there is the old file or the whole new one."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(file, target)
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
