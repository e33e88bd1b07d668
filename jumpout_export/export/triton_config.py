"""What a file is to Triton Inference Server: its model configuration, `config.pbtxt`, in protobuf's text format.

Fields and their meaning are those of Triton's model_config.proto and of its ONNX Runtime backend. The tests read the
text with tritonclient's message types; Triton itself has not been run with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jumpout_export.errors import ArgumentError
from jumpout_export.model.axes import why_not_batched
from jumpout_export.runtime.providers import PROVIDERS

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

# Every file with an open batch was compared at 17 samples (model/probes.py): none is served with more than was shown.
MAX_BATCH_SIZE = 16
# Where Triton runs a model that was verified on a provider.
KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
_HEAD = "# Written by jumpout-export, which replaces this folder as long as nothing in it was changed."
# The other types of ONNX have the same name there. Triton has a BF16, and its ONNX Runtime backend has not.
_TYPES = {"FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16"}
_SAME = ("BOOL", "STRING", *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)))
_TYPES |= {name: name for name in _SAME}
# How the backend numbers what it calls cudnn_conv_algo_search; it overrules the provider's own setting of that name.
_SEARCH = {"EXHAUSTIVE": "0", "HEURISTIC": "1", "DEFAULT": "2"}


class _Word(str):
    """A value that is written without quotes: the name of an enumeration's entry."""

    __slots__ = ()


@dataclass(frozen=True)
class Configuration:
    """A model configuration.

    Attributes:
        text: content of the `config.pbtxt`.
        unbatched: why Triton may not put samples of several requests into one batch; empty if it may.
    """

    text: str
    unbatched: str


def configuration(model: ModelProto, name: str, digest: str, verified: Collection[str]) -> Configuration:
    """Returns the configuration under which Triton serves a file as it was proven.

    Args:
        model: the file, with or without the values of its weights.
        name: of the model, which is the name of its folder.
        digest: sha256 of the file; the server shows it among the parameters.
        verified: the providers on which the file passed; it is served there and nowhere else.

    Raises:
        ValueError: if Triton takes no tensor of a type or shape that the file has.
    """
    tensors = {"input": model.graph.input, "output": model.graph.output}
    shapes = {f"{kind} `{value.name}`": _shape(value) for kind, values in tensors.items() for value in values}
    unbatched = why_not_batched(shapes)
    fields: dict[str, Any] = {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 0 if unbatched else MAX_BATCH_SIZE,
    }
    for kind, values in tensors.items():
        fields[kind] = [_tensor(kind, value, batched=not unbatched) for value in values]
    if not unbatched:
        fields["dynamic_batching"] = {}
    fields |= _placement(verified)
    parameters = {"jumpout_export.sha256": digest, **_backend_parameters(verified)}
    fields["parameters"] = [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()]
    return Configuration("\n".join([_HEAD, *_lines(fields), ""]), unbatched)


def _shape(value: ValueInfoProto) -> list[int | str]:
    """The sizes of a tensor's axes; of an open one its name, which may be empty."""
    axes = value.type.tensor_type.shape.dim
    return [axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in axes]


def _tensor(kind: str, value: ValueInfoProto, *, batched: bool) -> dict[str, Any]:
    from onnx import TensorProto

    type_name = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    if type_name not in _TYPES:
        raise ArgumentError("triton", f"Triton's ONNX Runtime takes no {type_name}, as {kind} `{value.name}` is")
    dims = [axis if isinstance(axis, int) else -1 for axis in _shape(value)[1 if batched else 0 :]]
    if 0 in dims:
        raise ArgumentError("triton", f"Triton takes no axis of size 0, as {kind} `{value.name}` has")
    fields = {"name": value.name, "data_type": _Word(f"TYPE_{_TYPES[type_name]}"), "dims": dims or [1]}
    # Without batches the backend itself takes [1] for a scalar, and Triton allows no empty reshape.
    return fields | {"reshape": {"shape": []}} if batched and not dims else fields


def _placement(verified: Collection[str]) -> dict[str, Any]:
    """Where Triton may run the file, and with which settings; its own choice where it was verified on all of them."""
    kinds = [KINDS[name] for name in KINDS if name in verified]
    fields: dict[str, Any] = {}
    if len(kinds) < len(KINDS):
        fields["instance_group"] = [{"kind": _Word(kind)} for kind in kinds]
    if "cuda" in verified:
        parameters = [{"key": key, "value": value} for key, value in PROVIDERS["cuda"].settings.items()]
        accelerator = {"name": "cuda", "parameters": parameters}
        fields["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}
    return fields


def _backend_parameters(verified: Collection[str]) -> dict[str, str]:
    if "cuda" not in verified:
        return {}
    name = "cudnn_conv_algo_search"
    return {name: _SEARCH[PROVIDERS["cuda"].settings[name]]}


def _lines(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The text format of a message; a list of messages is a repeated field."""
    for name, value in fields.items():
        messages = [value] if isinstance(value, Mapping) else value
        if isinstance(messages, list) and all(isinstance(one, Mapping) for one in messages) and messages:
            for message in messages:
                yield f"{indent}{name} {{"
                yield from _lines(message, f"{indent}  ")
                yield f"{indent}}}"
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    return _quoted(value) if isinstance(value, str) and not isinstance(value, _Word) else str(value)


def _quoted(text: str) -> str:
    """A string literal: what is not printable ASCII is escaped byte by byte, so that every parser reads the same."""
    plain = {byte: chr(byte) for byte in range(32, 127)} | {ord('"'): '\\"', ord("\\"): "\\\\"}
    return '"' + "".join(plain.get(byte, f"\\{byte:03o}") for byte in text.encode()) + '"'
