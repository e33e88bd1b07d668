"""The static proof: what a saved ONNX file holds, without running it."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpout_export.errors import LoadError, NotVerifiableError
from jumpout_export.export.checks import counted, first_line
from jumpout_export.export.external import changed_data, data_sizes, describe_data, sha256_of
from jumpout_export.export.extras import require_onnx
from jumpout_export.export.metadata import RANDOM, entries
from jumpout_export.export.protos import ABSOLUTE_PATH, DEFAULT_DOMAINS, Site, messages, sites, tensors, texts
from jumpout_export.export.refold_noise import RANDOM_OPERATORS
from jumpout_export.export.refold_proof import Runner
from jumpout_export.export.refold_read import read_noise
from jumpout_export.export.unchanged import sha256_of_all, unchanged_checks
from jumpout_export.export.value_sizes import inferred_values
from jumpout_export.report import Check, VerifyReport

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto

# A protobuf message ends there.
_MAX_BYTES = 2**31 - 1
_FLOATS = (1, 10, 11, 16)  # TensorProto's FLOAT, FLOAT16, DOUBLE, BFLOAT16
# Of one value in the graph, 8 GiB of float32; a file that makes larger ones is not run.
MOST_ELEMENTS = 1 << 31
# ai.onnx.ml is part of ONNX; every other domain needs somebody's library at serving time.
_STANDARD_DOMAINS = DEFAULT_DOMAINS | {"ai.onnx.ml"}


def inspect_onnx(path: str | os.PathLike[str]) -> VerifyReport:
    """Returns the static proof that an ONNX file holds nothing random and nothing in training mode.

    Subgraphs and local functions included, it holds: no random operator, no Dropout whose training_mode could be
    true, no BatchNormalization in training mode, no operator from a custom domain, no absolute path in metadata or
    doc strings, no external data but in plain files of the file's own folder, no input of an impossible size, no tensor
    without its data; the ONNX checker accepts it and ONNX Runtime loads it. The notes say whether `fold_onnx` can take
    the noise out, and which weights hold NaN.

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
    before = sha256_of_all(path.parent, [path.name])
    model = load_onnx(path)
    checks = inspect_file(path, model)
    data = usable_data(path, model, checks)
    before |= sha256_of_all(path.parent, data)
    notes = [
        f"opset {default_opset(model)}, IR version {model.ir_version}, {len(model.graph.node)} nodes",
        *_about_noise(model, checks),
        *_about_purpose(model),
        *_with_nan(model, checks),
    ]
    checks += unchanged_checks(path.parent, before)
    return VerifyReport(
        kind="inspect",
        passed=all(check.verdict == "pass" for check in checks),
        checks=checks,
        path=str(path),
        sha256=before[path.name],
        data_files=data,
        notes=notes,
    )


def inspect_file(path: Path, model: ModelProto) -> list[Check]:
    """Returns the checks of `inspect_onnx` on a file whose protobuf (without external data) is `model`."""
    every = list(sites(model))
    functions = {(function.domain, function.name) for function in model.functions}
    leaving = [f"{tensor.name}: {text}" for tensor in tensors(model) if (text := _leaves(path, tensor))]
    leaving = leaving or changed_data(path, model)
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
        counted("file/external data", leaving, "none" if leaving else _ship(path, model)),
        counted("file/input sizes", impossible(model.graph.input)),
        counted("file/value sizes", _large_values(model)),
        counted("file/tensors", [text for tensor in tensors(model) if (text := _broken(tensor))]),
    ]
    return [*checks, _onnx_checker(path, leaving), _onnxruntime_loads(path, leaving)]


def usable_data(path: Path, model: ModelProto, checks: Iterable[Check]) -> dict[str, int]:
    """Returns the files that the weights lie in, name to bytes; none where that check of the file failed."""
    bad = any(check.verdict != "pass" for check in checks if check.name == "file/external data")
    return {} if bad else data_sizes(path, model)


def random_nodes(model: ModelProto) -> list[str]:
    """Returns the nodes that draw random numbers at every run, for a person; a Dropout that may be in training mode."""
    every = list(sites(model))
    return _where(
        every, lambda site: (_standard(site) and site.node.op_type in RANDOM_OPERATORS) or _dropout_may_train(site)
    )


def impossible(values: Iterable[ValueInfoProto], least: int = 1, most: int = 1 << 28) -> list[str]:
    """Returns the values of a fixed size that nobody can mean: to run them would end for want of memory, or never.

    Args:
        values: with their declared or inferred shapes.
        least: the smallest size of an axis that is allowed.
        most: number of elements that is allowed; 2^28 are 1 GiB of float32.
    """
    found = []
    for value in values:
        axes = value.type.tensor_type.shape.dim
        sizes = [axis.dim_value for axis in axes if axis.HasField("dim_value")]
        if any(size < least for size in sizes) or math.prod(sizes) > most:
            shape = ", ".join(str(axis.dim_value) if axis.HasField("dim_value") else axis.dim_param for axis in axes)
            found.append(f"{value.name}: [{shape}], allowed are axes from {least} and {most} elements")
    return found


def can_be_run(checks: Iterable[Check]) -> bool:
    """Returns whether the file whose checks these are may be run: opening it reads nothing else, running it ends."""
    needed = ("file/external data", "file/input sizes", "file/value sizes")
    return all(check.verdict == "pass" for check in checks if check.name in needed)


def load_onnx(path: Path) -> ModelProto:
    """Returns the file's protobuf without external data.

    Raises:
        LoadError: if there is no such file or it is not a readable ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise LoadError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    if path.stat().st_size > _MAX_BYTES:
        raise LoadError(f"{path}: not a readable ONNX model (it is larger than 2 GiB, the most that protobuf reads)")
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError) as error:
        raise LoadError(f"{path}: not a readable ONNX model ({first_line(error)})") from error
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
    if not all(map(_is_text, messages(model))):
        raise LoadError(f"{path}: not a readable ONNX model (it holds names or texts that are not UTF-8)")
    return model


def default_opset(model: ModelProto) -> int:
    """Returns the version of ONNX's own operators that the file uses, 0 if it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file, in hex."""
    return sha256_of(path)


def _is_text(message: Any) -> bool:
    """Whether all text in the message is UTF-8; protobuf reads other bytes too, and hands them on as bytes."""
    if message.DESCRIPTOR.name == "TensorProto":  # to list its fields would copy its data
        return isinstance(message.name, str) and isinstance(message.doc_string, str)
    texts = [value for field, value in message.ListFields() if field.type == field.TYPE_STRING]
    return all(isinstance(part, str) for text in texts for part in ([text] if isinstance(text, str | bytes) else text))


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
    if _broken(tensor):
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


def _large_values(model: ModelProto) -> list[str]:
    """The values that no machine would hold; an invalid graph is for the ONNX checker to explain."""
    try:
        return impossible(inferred_values(model), 0, MOST_ELEMENTS)
    except Exception as error:  # onnx raises several types
        return [f"no sizes can be inferred ({first_line(error)})"]


def _leaves(path: Path, tensor: TensorProto) -> str:
    """What is wrong with where external data lies; empty if it is a plain file in the model's folder."""
    from onnx import TensorProto

    if tensor.data_location != TensorProto.EXTERNAL:
        return ""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    if not location.isprintable() or not location:
        return f"{location!r} is no file name"
    folder = path.parent.resolve()
    file = folder / location
    inside = not ABSOLUTE_PATH.match(location) and ".." not in file.parts and file.resolve().is_relative_to(folder)
    if not inside:
        return f"{location} is outside of the model's folder"
    if file.resolve() != file:
        return f"{location} is reached through a symbolic link"
    if not file.is_file():
        return f"{location} is no file"
    return f"{location} has several hard links" if file.stat().st_nlink > 1 else ""


def _broken(tensor: TensorProto) -> str:
    """What is wrong with a tensor in the file; neither the checker nor ONNX Runtime looks at all of it."""
    from onnx import TensorProto, helper, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        return ""
    name, elements = tensor.name or "a constant", math.prod(tensor.dims)
    if any(size < 0 for size in tensor.dims):
        return f"{name} has a negative size"
    try:
        if tensor.HasField("raw_data") and tensor.data_type <= TensorProto.BFLOAT16:
            found = len(tensor.raw_data)
            wanted = elements * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            return "" if found == wanted else f"{name} has {found} bytes, its shape needs {wanted}"
        numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        return f"{name} cannot be read ({first_line(error)})"
    return ""


def _onnx_checker(path: Path, leaving: list[str]) -> Check:
    import onnx

    if leaving:
        return Check(name="file/onnx checker", verdict="not_run", note="external data is not opened")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and shape inference raise several types
        return Check(name="file/onnx checker", verdict="fail", note=first_line(error))
    return Check(name="file/onnx checker", verdict="pass", note="onnx.checker accepts the file, shapes included")


def _onnxruntime_loads(path: Path, leaving: list[str]) -> Check:
    import onnxruntime

    if leaving:
        return Check(name="file/onnxruntime", verdict="not_run", note="external data is not opened")
    try:
        Runner(path)
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        return Check(name="file/onnxruntime", verdict="fail", note=first_line(error))
    return Check(name="file/onnxruntime", verdict="pass", note=f"ONNX Runtime {onnxruntime.__version__} loads the file")


def _about_noise(model: ModelProto, checks: list[Check]) -> list[str]:
    """What `fold_onnx` would do about the noise that was found; nothing for a file without, or a broken one."""
    verdicts = {check.name.removeprefix("file/"): check.verdict for check in checks}
    noisy = "fail" in {verdicts[name] for name in ("random nodes", "training dropout", "training batchnorm")}
    whole = {verdicts["onnx checker"], verdicts["tensors"]} == {"pass"}
    if not noisy or not whole or importlib.util.find_spec("onnx_ir") is None:
        return []
    try:
        refused = read_noise(model).noise.refused
    except NotVerifiableError as error:
        refused = [str(error)]
    return ["the noise cannot be taken out", *refused] if refused else ["`jumpout-export fold` can take the noise out"]


def _about_purpose(model: ModelProto) -> list[str]:
    """What the metadata says about noise that is wanted; it excuses nothing."""
    text = entries(model).get(RANDOM)
    if text is None:
        return []
    if random_nodes(model):
        return [f"the file's metadata says that it is {text}"]
    return [f"the file's metadata says that it is {text}; but nothing in it is random"]


def _ship(path: Path, model: ModelProto) -> str:
    sizes = data_sizes(path, model)
    return f"weights lie in {describe_data(sizes)}: ship all of these files" if sizes else "none"


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


def _where(every: Iterable[Site], bad: Callable[[Site], bool]) -> list[str]:
    return [site.where for site in every if bad(site)]
