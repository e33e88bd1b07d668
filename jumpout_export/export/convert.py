"""Converts a folded model to an ONNX file: as asked, or an error; without a trace of the machine it was made on."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from jumpout_export.errors import ConversionError
from jumpout_export.export.checks import first_line
from jumpout_export.export.graph import default_opset
from jumpout_export.export.protos import ABSOLUTE_PATH, messages
from jumpout_export.export.quiet import converter_log
from jumpout_export.export.samples import rows
from jumpout_export.export.signature import batch_axis, fresh, input_names, outputs, tensors
from jumpout_export.nn.batches import Batch
from jumpout_export.nn.randomness import rng_restored

if TYPE_CHECKING:
    from onnx import ModelProto

# torch's converter is written in opset 18; any other opset is a version conversion behind it.
DEFAULT_OPSET = 18
# ONNX Runtime 1.18 and later read it; newer ones are refused by runtimes that know the opset.
IR_VERSION = 10
# A protobuf message ends there; weights beyond it would have to lie in a second file.
_MAX_BYTES = 2**31 - 1
_STATIC_HINT = "pass dynamic_batch=False (--static) to export the example's batch size only"
_BAKED = ("inferred a static shape", "Constraints violated", "marked as dynamic but")


@dataclass(frozen=True)
class Converted:
    """What the converter wrote.

    Attributes:
        opset: version of the default domain.
        said: warnings of the converter beyond what it says at every export.
    """

    opset: int
    said: tuple[str, ...]


def convert(
    folded: nn.Module,
    batch: Batch,
    path: Path,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    keep_debug_info: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Converted:
    """Writes the folded model to `path` as ONNX.

    Args:
        folded: in eval mode, on the CPU.
        batch: example inputs on the CPU.
        path: the file to write.
        opset: version to write, default 18, the converter's own.
        dynamic_batch: leave the first axis of every input that has the batch size open, under the name `batch`.
        keep_debug_info: keep doc strings and source lines in the file; paths are cut to file names in any case.
        metadata: for the file's metadata_props.

    Raises:
        ConversionError: if the model cannot be converted, or only with another opset or a fixed batch size.
    """
    _refuse_large(folded)
    wanted = DEFAULT_OPSET if opset is None else opset
    # One image alone would let the tracer take an axis of length 1 for one that broadcasts.
    traced = rows(batch, range(2)) if dynamic_batch and batch.size == 1 else batch
    names = input_names(folded, batch)
    open_axes = {name for name, value in zip(names, tensors(batch), strict=True) if batch_axis(batch, value)}
    with converter_log() as said, rng_restored(), torch.no_grad():
        try:
            results = [output.name for output in outputs(fresh(traced)(folded), names)]
            program = torch.onnx.export(
                folded,
                fresh(traced).args,
                kwargs=fresh(traced).kwargs or None,
                dynamic_shapes=_dynamic_shapes(folded, traced) if dynamic_batch else None,
                input_names=names,
                output_names=results,
                opset_version=wanted,
                dynamo=True,
                verbose=False,
            )
            model = cast("torch.onnx.ONNXProgram", program).model_proto  # with dynamo=True it always returns one
        except Exception as error:  # the converter, and the user's forward in it, may raise anything
            raise ConversionError(_explain(error, dynamic_batch, said)) from error
    _check_as_asked(model, names, results, wanted, open_axes if dynamic_batch else set(), said)
    _clean(model, keep_debug_info, metadata or {})
    path.write_bytes(model.SerializeToString(deterministic=True))
    _check_valid(path)
    return Converted(wanted, tuple(said))


def _dynamic_shapes(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The open axes by parameter of `forward`. A name instead of a Dim is an order: torch raises if it cannot obey."""
    bound = inspect.signature(model.forward).bind(*batch.args, **batch.kwargs).arguments

    def axes(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(axes(item) for item in value)
        if isinstance(value, dict):
            return {key: axes(item) for key, item in value.items()}
        return {0: "batch"} if batch_axis(batch, value) else None

    return {name: axes(value) for name, value in bound.items()}


def _refuse_large(model: nn.Module) -> None:
    size = sum(
        tensor.numel() * tensor.element_size() for tensor in itertools.chain(model.parameters(), model.buffers())
    )
    if size > _MAX_BYTES:
        raise ConversionError(
            f"the model's weights take {size / 2**30:.1f} GiB; an ONNX file holds 2 GiB, "
            "and weights in a second file are not supported yet"
        )


def _check_as_asked(
    model: ModelProto, inputs: list[str], results: list[str], opset: int, open_axes: set[str], said: list[str]
) -> None:
    got = default_opset(model)
    if got != opset:
        raise ConversionError(
            f"opset {opset} was asked for, the converter wrote {got}; it has {DEFAULT_OPSET} and later{_log(said)}"
        )
    found = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
    if found != (inputs, results):
        raise ConversionError(f"the converter wrote inputs and outputs {found}, the model has {(inputs, results)}")
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if value.name in open_axes and not axes[0].dim_param:
            raise ConversionError(
                f"the batch size of input `{value.name}` is fixed at {axes[0].dim_value}; {_STATIC_HINT}"
            )


def _clean(model: ModelProto, keep_debug_info: bool, metadata: Mapping[str, str]) -> None:
    """Removes (or shortens to file names) what the converter notes about the source; the graph stays as it is."""
    for message in messages(model):
        fields = message.DESCRIPTOR.fields_by_name
        for name in {"metadata_props", "doc_string"} & set(fields):
            if not keep_debug_info:
                message.ClearField(name)
        if "doc_string" in fields and message.doc_string:
            message.doc_string = _file_names_only(message.doc_string)
        if "metadata_props" in fields:
            for entry in message.metadata_props:
                entry.value = _file_names_only(entry.value)
    model.ClearField("metadata_props")
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    model.ir_version = IR_VERSION


def _file_names_only(text: str) -> str:
    return ABSOLUTE_PATH.sub(lambda match: re.split(r"[\\/]", match[0])[-1], text)


def _check_valid(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and shape inference raise several types
        raise ConversionError(f"the converter wrote a graph that onnx.checker rejects: {first_line(error)}") from error


def _explain(error: Exception, dynamic_batch: bool, said: list[str]) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    if dynamic_batch and any(sign in text for sign in _BAKED):
        return f"the model fixes its batch size ({text[:300]}); {_STATIC_HINT}"
    capturing = type(error).__name__ == "TorchExportError"  # an operator without translation is no matter of shapes
    hint = f"; if the model fixes its batch size, {_STATIC_HINT}" if dynamic_batch and capturing else ""
    return f"torch.onnx.export failed with {type(cause).__name__}: {text[:600]}{_log(said)}{hint}"


def _log(said: list[str]) -> str:
    return f" (the converter says: {'; '.join(said[:4])})" if said else ""
