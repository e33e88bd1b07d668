"""The static proof: what a saved ONNX file holds, without running it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from jumpout_export.errors import LoadError
from jumpout_export.export.checks import counted, first_line
from jumpout_export.export.extras import require_onnx
from jumpout_export.export.protos import ABSOLUTE_PATH, DEFAULT_DOMAINS, Site, sites, tensors, texts
from jumpout_export.export.session import open_session
from jumpout_export.report import Check, VerifyReport

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, TensorProto

RANDOM_OPERATORS = frozenset(
    {"RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Bernoulli", "Multinomial"}
)
# ai.onnx.ml is part of ONNX; every other domain needs somebody's library at serving time.
_STANDARD_DOMAINS = DEFAULT_DOMAINS | {"ai.onnx.ml"}


def inspect_onnx(path: str | os.PathLike[str]) -> VerifyReport:
    """Returns the static proof that an ONNX file holds nothing random and nothing in training mode.

    Subgraphs and local functions included, it holds: no random operator, no Dropout whose training_mode could be
    true, no BatchNormalization in training mode, no operator from a custom domain, no absolute path in metadata or
    doc strings, no external data outside the file's folder; the ONNX checker accepts it and ONNX Runtime loads it.

    Args:
        path: the file.

    Returns:
        A report of kind `inspect`; each check counts violations, limit 0.

    Raises:
        LoadError: if there is no such file or it is not a readable ONNX model.
        ImportError: if onnx or onnxruntime is missing.
    """
    require_onnx("onnx", "onnxruntime")
    path = Path(path)
    model = load_onnx(path)
    checks = inspect_file(path, model)
    return VerifyReport(
        kind="inspect",
        passed=all(check.verdict == "pass" for check in checks),
        checks=checks,
        path=str(path),
        sha256=file_sha256(path),
        notes=[f"opset {default_opset(model)}, IR version {model.ir_version}, {len(model.graph.node)} nodes"],
    )


def inspect_file(path: Path, model: ModelProto) -> list[Check]:
    """Returns the checks of `inspect_onnx` on a file whose protobuf (without external data) is `model`."""
    every = list(sites(model))
    functions = {(function.domain, function.name) for function in model.functions}
    leaving = [f"{tensor.name}: {text}" for tensor in tensors(model) if (text := _leaves(path, tensor))]
    checks = [
        counted(
            "file/random nodes", _where(every, lambda site: _standard(site) and site.node.op_type in RANDOM_OPERATORS)
        ),
        counted("file/training dropout", _where(every, _dropout_may_train)),
        counted("file/training batchnorm", _where(every, _batchnorm_may_train)),
        counted("file/training graphs", [f"training_info {index}" for index in range(len(model.training_info))]),
        counted("file/custom operators", _where(every, lambda site: _custom(site, functions))),
        counted(
            "file/local paths", sorted({match[0] for text in texts(model) for match in ABSOLUTE_PATH.finditer(text)})
        ),
        counted("file/external data", leaving),
    ]
    return [*checks, _onnx_checker(path, leaving), _onnxruntime_loads(path, leaving)]


def load_onnx(path: Path) -> ModelProto:
    """Returns the file's protobuf without external data.

    Raises:
        LoadError: if there is no such file or it is not a readable ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise LoadError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError) as error:
        raise LoadError(f"{path}: not a readable ONNX model ({str(error).splitlines()[0]})") from error
    # protobuf reads a file that was cut off between two fields, or is empty, without a complaint.
    missing = [
        name
        for name, there in (
            ("IR version", model.ir_version),
            ("opset", model.opset_import),
            ("graph outputs", model.graph.output),
        )
        if not there
    ]
    if missing:
        raise LoadError(f"{path}: not a readable ONNX model (it has no {', no '.join(missing)}; is it cut off?)")
    return model


def default_opset(model: ModelProto) -> int:
    """Returns the version of ONNX's own operators that the file uses, 0 if it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _dropout_may_train(site: Site) -> bool:
    node = site.node
    if node.op_type != "Dropout" or not _standard(site):
        return False
    if site.opset < 7:
        return not _provably(_attribute(site, "is_test"), 1)
    if site.opset < 12 or len(node.input) < 3 or not node.input[2]:
        return False
    return not _is_false(site, node.input[2])


def _batchnorm_may_train(site: Site) -> bool:
    node = site.node
    if node.op_type != "BatchNormalization" or not _standard(site):
        return False
    if site.opset < 7:
        return not _provably(_attribute(site, "is_test"), 1)
    if site.opset < 14:  # up to opset 13 the further outputs switch training on
        return any(node.output[1:])
    mode = _attribute(site, "training_mode")
    return mode is not None and not _provably(mode, 0)


def _is_false(site: Site, name: str) -> bool:
    from onnx import TensorProto, numpy_helper

    tensor = site.constants.get(name)
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL or tensor.data_type != TensorProto.BOOL:
        return False
    array = numpy_helper.to_array(tensor)
    return array.size > 0 and not array.any()


def _attribute(site: Site, name: str) -> AttributeProto | None:
    return next((attribute for attribute in site.node.attribute if attribute.name == name), None)


def _provably(attribute: AttributeProto | None, value: int) -> bool:
    """Whether the attribute has the value; one that a function takes from its caller is not known here."""
    return attribute is not None and not attribute.ref_attr_name and attribute.i == value


def _standard(site: Site) -> bool:
    return site.node.domain in DEFAULT_DOMAINS


def _custom(site: Site, functions: set[tuple[str, str]]) -> bool:
    return site.node.domain not in _STANDARD_DOMAINS and (site.node.domain, site.node.op_type) not in functions


def _leaves(path: Path, tensor: TensorProto) -> str:
    """Where external data lies if that is not inside the model's folder; empty if all is well."""
    from onnx import TensorProto

    if tensor.data_location != TensorProto.EXTERNAL:
        return ""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    folder = path.parent.resolve()
    inside = location and not ABSOLUTE_PATH.match(location) and (folder / location).resolve().is_relative_to(folder)
    return "" if inside else location or "no location"


def _onnx_checker(path: Path, leaving: list[str]) -> Check:
    import onnx

    if leaving:
        return Check(name="file/onnx checker", verdict="not_run", note="external data lies outside the folder")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and shape inference raise several types
        return Check(name="file/onnx checker", verdict="fail", note=first_line(error))
    return Check(name="file/onnx checker", verdict="pass", note="onnx.checker accepts the file, shapes included")


def _onnxruntime_loads(path: Path, leaving: list[str]) -> Check:
    import onnxruntime

    if leaving:
        return Check(name="file/onnxruntime", verdict="not_run", note="external data lies outside the folder")
    try:
        open_session(path, "cpu", "off")
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        return Check(name="file/onnxruntime", verdict="fail", note=first_line(error))
    return Check(name="file/onnxruntime", verdict="pass", note=f"ONNX Runtime {onnxruntime.__version__} loads the file")


def _where(every: Iterable[Site], bad: Callable[[Site], bool]) -> list[str]:
    return [site.where for site in every if bad(site)]
