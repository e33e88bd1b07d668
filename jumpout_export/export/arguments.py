"""The arguments of an export that can be judged before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from jumpout_export.disk import check_target
from jumpout_export.errors import ArgumentError, ArgumentTypeError
from jumpout_export.extras import require_onnx
from jumpout_export.onnxfile.load import DEFAULT_OPSET
from jumpout_export.onnxfile.manifest import FOLDER
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
