"""The arguments of an export that can be judged before any work is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from jumpout_export.disk import check_target
from jumpout_export.errors import ArgumentError, ArgumentTypeError
from jumpout_export.extras import require_onnx
from jumpout_export.onnxfile.load import DEFAULT_OPSET
from jumpout_export.onnxfile.manifest import FOLDER
from jumpout_export.quantized.make import KINDS as QUANTIZED_KINDS
from jumpout_export.quantized.settings import Quantized
from jumpout_export.runtime.session import newest_opset
from jumpout_export.verify.precision import Precision, precision_of


def check_arguments(
    path: str | os.PathLike[str],
    golden: str | os.PathLike[str] | None,
    opset: int | None,
    dtype: torch.dtype | None = None,
) -> tuple[Path, Path | None, Precision]:
    """Returns `path` and `golden` as paths and `dtype` as its precision, if `export_onnx` would take these; cheap.

    Raises:
        ValueError: if one is out of its range or a folder is missing.
        TypeError: if one has the wrong type.
        ImportError: if onnx, onnxscript or onnxruntime is missing.
    """
    target = check_target(path, "path")
    golden_folder = _check_golden(golden)
    precision = precision_of(dtype)
    require_onnx()
    _check_opset(opset)
    return target, golden_folder, precision


def check_quantize(quantize: str | None, calibration: Any, limits: Quantized | None, others: dict[str, Any]) -> None:
    """Checks the arguments of a quantized export against each other.

    Args:
        quantize: the kind, or None.
        calibration: data for the ranges, or None.
        limits: of the verdict, or None.
        others: arguments that a quantized export does not take, by name; those that are false were not given.

    Raises:
        ValueError: if one does not fit.
    """
    if quantize is None:
        for name, value in (("quantize_calibration", calibration), ("quantized", limits)):
            if value is not None:
                hint = "give quantize='int8' (--quantize int8), too"
                raise ArgumentError(name, f"{name} is for a quantized export: {hint}")
        return
    if quantize not in QUANTIZED_KINDS:
        raise ArgumentError("quantize", f"quantize must be {' or '.join(map(repr, QUANTIZED_KINDS))}, got {quantize!r}")
    if calibration is None:
        raise ArgumentError(
            "quantize_calibration",
            "a quantized export takes the ranges of activations from samples as in serving: give batches as "
            "quantize_calibration= (--calibration DATA)",
        )
    for name, value in others.items():
        if value:
            text = f"{name} and quantize={quantize!r} exclude each other: what is quantized is one float32 file"
            raise ArgumentError(name, text)


def _check_golden(golden: str | os.PathLike[str] | None) -> Path | None:
    if golden is None:
        return None
    folder = Path(golden)
    if not folder.is_dir() and (folder.exists() or not folder.parent.is_dir()):
        raise ArgumentError("golden", f"golden data needs a folder, or a name in an existing one, got {str(folder)!r}")
    if (folder / FOLDER).exists() and not (folder / FOLDER).is_dir():
        raise ArgumentError(
            "golden", f"golden data needs the folder {str(folder / FOLDER)!r}, there is a file of that name"
        )
    return folder


def _check_opset(opset: int | None) -> None:
    from onnx import defs

    if opset is None:
        return
    if not isinstance(opset, int) or isinstance(opset, bool):
        raise ArgumentTypeError("opset", f"opset must be an int, got {type(opset).__name__}")
    newest = newest_opset()
    if not DEFAULT_OPSET <= opset <= newest:
        raise ArgumentError(
            "opset",
            f"opset must be in [{DEFAULT_OPSET}, {newest}], got {opset}; {newest} is the newest that the installed "
            f"ONNX Runtime accepts (onnx knows {defs.onnx_opset_version()}), {DEFAULT_OPSET} the oldest that torch's "
            "converter writes",
        )
