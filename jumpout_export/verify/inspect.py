"""The static proof of a saved file, for a person: its checks, and notes on noise, purpose and NaN."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jumpout_export.errors import NotVerifiableError
from jumpout_export.extras import require_onnx
from jumpout_export.fold.file.read import read_noise
from jumpout_export.log import log_step
from jumpout_export.onnxfile.data import sha256_of_all, unchanged_checks
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.onnxfile.manifest import manifest_checks
from jumpout_export.onnxfile.metadata import RANDOM, entries
from jumpout_export.onnxfile.static import usable_data
from jumpout_export.onnxfile.training import random_nodes
from jumpout_export.onnxfile.walk import default_opset, tensors
from jumpout_export.report import Check, VerifyReport, passes
from jumpout_export.runtime.loads import inspect_file

if TYPE_CHECKING:
    from onnx import ModelProto

_FLOATS = (1, 10, 11, 16)  # TensorProto's FLOAT, FLOAT16, DOUBLE, BFLOAT16


def inspect_onnx(path: str | os.PathLike[str]) -> VerifyReport:
    """Returns the static proof that an ONNX file holds nothing random and nothing in training mode.

    Subgraphs and local functions included, it holds: no random operator, no Dropout whose training_mode could be
    true, no BatchNormalization in training mode, no operator from a custom domain, no function that has the name of an
    operator of a runtime's own, no absolute path in metadata or doc strings, no external data but in plain files of the
    file's own folder, no input of an impossible size, no tensor without its data; the ONNX checker accepts it and ONNX
    Runtime loads it. What a manifest beside it names has the digests that stand there; that there is none is a note.
    The notes say whether `fold_onnx` can take the noise out, and which weights hold NaN.

    Args:
        path: the file.

    Returns:
        A report of kind `inspect`; each check counts violations, limit 0.

    Raises:
        LoadError: if there is no such file or it is not a readable ONNX model.
        ImportError: if onnx, onnx_ir or onnxruntime is missing.
    """
    require_onnx("onnx", "onnxruntime", "onnx_ir")
    path = Path(path)
    before = sha256_of_all(path.parent, [path.name])
    model = load_onnx(path)
    log_step(f"inspect: {path.name}")
    checks = inspect_file(path, model)
    data = usable_data(path, model, checks)
    before |= sha256_of_all(path.parent, data)
    notes = [
        f"opset {default_opset(model)}, IR version {model.ir_version}, {len(model.graph.node)} nodes",
        *_about_noise(model, checks),
        *_about_purpose(model),
        *_with_nan(model, checks),
    ]
    manifest, about_manifest = manifest_checks(path, data)
    checks += manifest
    notes += about_manifest
    checks += unchanged_checks(path.parent, before)
    return VerifyReport(
        kind="inspect",
        passed=passes(checks),
        checks=checks,
        path=str(path),
        sha256=before[path.name],
        data_files=data,
        data_sha256={name: before[name] for name in data},
        notes=notes,
    )


def _about_noise(model: ModelProto, checks: list[Check]) -> list[str]:
    """What `fold_onnx` would do about the noise that was found; nothing for a file without, or a broken one."""
    verdicts = {check.name.removeprefix("file/"): check.verdict for check in checks}
    noisy = "fail" in {verdicts[name] for name in ("random nodes", "training dropout", "training batchnorm")}
    whole = {verdicts["onnx checker"], verdicts["tensors"]} == {"pass"}
    if not noisy or not whole:
        return []
    try:
        refused = read_noise(model).noise.refused
    except NotVerifiableError as error:
        refused = [str(error)]
    return ["the noise cannot be taken out", *refused] if refused else ["`jumpout-export fold` can take the noise out"]


def _about_purpose(model: ModelProto) -> list[str]:
    """What the metadata says about noise that is wanted; it excuses nothing."""
    text = entries(model).get(RANDOM)
    but = "" if random_nodes(model) else "; but nothing in it is random"
    return [] if text is None else [f"the file's metadata says that it is {text}{but}"]


def _with_nan(model: ModelProto, checks: list[Check]) -> list[str]:
    """The weights that hold NaN, as notes."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    if any(check.verdict != "pass" for check in checks if check.name == "file/tensors"):
        return []
    notes = []
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type not in _FLOATS:
            continue
        count = int(np.isnan(numpy_helper.to_array(tensor).astype(np.float32)).sum())
        notes += [f"`{tensor.name or 'a constant'}` holds {count} NaN"] * bool(count)
    return notes
