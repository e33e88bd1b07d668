"""Reads the protobuf of an ONNX file, or says why it is none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpout_export.disk import open_plain
from jumpout_export.errors import LoadError
from jumpout_export.onnxfile.functions import unbounded
from jumpout_export.onnxfile.walk import called, called_as, messages, nodes_of
from jumpout_export.text import first_line

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

# torch's converter is written in opset 18; any other opset is a version conversion behind it.
DEFAULT_OPSET = 18
# ONNX Runtime 1.18 and later read it; newer ones are refused by runtimes that know the opset.
IR_VERSION = 10

# A protobuf message ends there, and with it an ONNX file without external data.
MAX_BYTES = 2**31 - 1


def inlined(model: ModelProto, only: Iterable[tuple[str, str]] | None = None) -> ModelProto:
    """Returns the model with the bodies of its local functions in their places; the model itself is not changed.

    Args:
        model: with or without functions.
        only: domain and name of those to write out; all of them by default.
    """
    if not model.functions:
        return model
    from onnx import inliner

    left = {called_as(function) for function in model.functions} if only is None else set(only)
    if not any(function.attribute_proto for function in model.functions):
        return inliner.inline_selected_functions(model, sorted(left))
    while left:  # from the outside in: what a function hands on to the next is known once it is written out
        inner = {called(node) for body in model.functions if called_as(body) in left for node in nodes_of(body.node)}
        outer = left - inner or left
        model = inliner.inline_selected_functions(_with_defaults(model), sorted(outer))
        left -= outer
    return model


def _with_defaults(model: ModelProto) -> ModelProto:
    """The model whose calls say what a function's attributes are by default, which onnx's inliner (1.23) forgets."""
    defaults = {called_as(function): function.attribute_proto for function in model.functions}
    copy = type(model)()
    copy.CopyFrom(model)
    for node in (node for body in (copy.graph, *copy.functions) for node in nodes_of(body.node)):
        given = {attribute.name for attribute in node.attribute}
        node.attribute.extend(default for default in defaults.get(called(node), ()) if default.name not in given)
    return copy


def load_onnx(path: Path) -> ModelProto:
    """Returns the file's protobuf without external data.

    Raises:
        LoadError: if there is no such file, it is not a readable ONNX model, or nobody could write its functions out.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise LoadError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    if path.stat().st_size > MAX_BYTES:
        raise LoadError(f"{path}: not a readable ONNX model (it is larger than 2 GiB, the most that protobuf reads)")
    try:
        with open_plain(path) as file:
            model = onnx.load_model(file, format="protobuf", load_external_data=False)
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
    if reason := unbounded(model):
        raise LoadError(f"{path}: not a usable ONNX model ({reason})")
    return model


def _is_text(message: Any) -> bool:
    """Whether all text in the message is UTF-8; protobuf reads other bytes too, and hands them on as bytes."""
    if message.DESCRIPTOR.name == "TensorProto":  # to list its fields would copy its data
        return isinstance(message.name, str) and isinstance(message.doc_string, str)
    texts = [value for field, value in message.ListFields() if field.type == field.TYPE_STRING]
    return all(isinstance(part, str) for text in texts for part in ([text] if isinstance(text, str | bytes) else text))


def broken(tensor: TensorProto) -> str:
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
