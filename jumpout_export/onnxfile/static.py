"""The static proof: what a saved ONNX file holds, without running it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from jumpout_export.onnxfile.data import changed_data, data_sizes, describe_data, misplaced
from jumpout_export.onnxfile.functions import ambiguous
from jumpout_export.onnxfile.load import broken
from jumpout_export.onnxfile.metadata import PREFIX, entries
from jumpout_export.onnxfile.sizes import impossible, large_values
from jumpout_export.onnxfile.training import batchnorm_may_train, draws, dropout_may_train, places
from jumpout_export.onnxfile.walk import ABSOLUTE_PATH, DEFAULT_DOMAINS, Site, sites, tensors, texts
from jumpout_export.report import Check, counted
from jumpout_export.text import first_line

if TYPE_CHECKING:
    from onnx import ModelProto

# ai.onnx.ml is part of ONNX; every other domain needs somebody's library at serving time.
_STANDARD_DOMAINS = DEFAULT_DOMAINS | {"ai.onnx.ml"}
# What tells a clean file from another, and not a right one from a wrong one.
_HYGIENE = ("file/local paths", "file/metadata")


def static_checks(path: Path, model: ModelProto) -> list[Check]:
    """Returns the checks of `inspect_onnx` that need no runtime; `model` is the protobuf without external data."""
    every = list(sites(model))
    functions = {(function.domain, function.name) for function in model.functions}
    leaving = [f"{tensor.name}: {text}" for tensor in tensors(model) if (text := misplaced(path.parent, tensor))]
    leaving = leaving or changed_data(path, model)
    checks = [
        counted("file/random nodes", places(every, draws)),
        counted("file/training dropout", places(every, dropout_may_train)),
        counted("file/training batchnorm", places(every, batchnorm_may_train)),
        counted("file/training graphs", [f"training_info {index}" for index in range(len(model.training_info))]),
        counted("file/custom operators", places(every, lambda site: _custom(site, functions))),
        counted("file/functions", ambiguous(model)),
        counted(
            "file/local paths", sorted({match[0] for text in texts(model) for match in ABSOLUTE_PATH.finditer(text)})
        ),
        counted("file/external data", leaving, "none" if leaving else _ship(path, model)),
        counted("file/input sizes", impossible(model.graph.input)),
        counted("file/value sizes", large_values(model)),
        counted("file/tensors", [text for tensor in tensors(model) if (text := broken(tensor))]),
    ]
    return [*checks, _onnx_checker(path, leaving)]


def metadata_check(model: ModelProto) -> Check:
    """Returns the check that a file says where it comes from: versions, weights, and how exact each output is."""
    nothing = f"no metadata of {PREFIX.rstrip('.')}: the file does not say of which weights and versions it was made"
    return counted("file/metadata", [] if entries(model) else [nothing], "the file says how it was made")


def of_another_writer(checks: Iterable[Check], model: ModelProto) -> list[Check]:
    """Returns the checks of a file that was written elsewhere, where hygiene is a warning: no value depends on it."""
    return [
        check.model_copy(update={"verdict": "warning"}) if check.name in _HYGIENE and check.verdict == "fail" else check
        for check in (*checks, metadata_check(model))
    ]


def usable_data(path: Path, model: ModelProto, checks: Iterable[Check]) -> dict[str, int]:
    """Returns the files that the weights lie in, name to bytes; none where that check of the file failed."""
    return data_sizes(path, model) if can_be_opened(checks) else {}


def can_be_opened(checks: Iterable[Check]) -> bool:
    """Returns whether opening the file whose checks these are reads nothing but files that belong to it."""
    return all(check.verdict == "pass" for check in checks if check.name == "file/external data")


def can_be_run(checks: Iterable[Check]) -> bool:
    """Returns whether the file whose checks these are may be run: opening it reads nothing else, running it ends."""
    needed = ("file/external data", "file/input sizes", "file/value sizes")
    return all(check.verdict == "pass" for check in checks if check.name in needed)


def _custom(site: Site, functions: set[tuple[str, str]]) -> bool:
    return site.node.domain not in _STANDARD_DOMAINS and (site.node.domain, site.node.op_type) not in functions


def _onnx_checker(path: Path, leaving: list[str]) -> Check:
    import onnx

    if leaving:
        return Check(name="file/onnx checker", verdict="not_run", note="external data is not opened")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and shape inference raise several types
        return Check(name="file/onnx checker", verdict="fail", note=first_line(error))
    return Check(name="file/onnx checker", verdict="pass", note="onnx.checker accepts the file, shapes included")


def _ship(path: Path, model: ModelProto) -> str:
    sizes = data_sizes(path, model)
    return f"weights lie in {describe_data(sizes)}: ship all of these files" if sizes else "none"
