"""Converts a folded model to an ONNX file: as asked, or an error; without a trace of the machine it was made on."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from jumpout_export.errors import ConversionError
from jumpout_export.export.converter_log import converter_log
from jumpout_export.export.explain import AXES_OPTION, STATIC_HINT, explain
from jumpout_export.export.library import library_read_once
from jumpout_export.export.size_guards import check_sizes, traced_programs
from jumpout_export.model.axes import BATCH, Axes, choose_axes
from jumpout_export.model.batches import Batch
from jumpout_export.model.operations import no_fast_path
from jumpout_export.model.probes import rows
from jumpout_export.model.randomness import rng_restored
from jumpout_export.model.signature import fresh, input_names, only_tensors, outputs
from jumpout_export.onnxfile.data import tie_data
from jumpout_export.onnxfile.load import DEFAULT_OPSET, IR_VERSION, MAX_BYTES, load_onnx
from jumpout_export.onnxfile.walk import default_opset, messages, without_folders
from jumpout_export.verify.reasons import about_complex

if TYPE_CHECKING:
    from onnx import ModelProto

# A protobuf message ends at 2 GiB; weights beyond it lie in a second file. The rest is for the graph.
_MOST_WEIGHTS = MAX_BYTES - 2**26


@dataclass(frozen=True)
class Converted:
    """What the converter wrote."""

    opset: int  # version of the default domain
    said: tuple[str, ...]  # warnings of the converter beyond what it says at every export
    restrictions: tuple[str, ...] = ()  # sentences on sizes that the model refuses
    data: Path | None = None  # the file that the weights lie in, or None
    recorded: bool = False  # whether the program that was recorded sets no condition on an open batch size


def convert(
    folded: nn.Module,
    batch: Batch,
    path: Path,
    *,
    opset: int | None = None,
    axes: Axes | None = None,
    external_data: bool | None = None,
    keep_debug_info: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Converted:
    """Writes the folded model, in eval mode and like its example on the CPU, to `path` as ONNX.

    The options are those of `export_onnx`. Without `axes` the batch size alone is left open; `metadata` is all that the
    file's metadata_props hold; paths in it are cut to file names in any case.

    Raises:
        ConversionError: if the model cannot be converted, or only with another opset or a fixed size of an axis.
        OSError: if the file cannot be written.
    """
    axes = choose_axes(folded, batch, True) if axes is None else axes
    external = _bytes_of(folded) > _MOST_WEIGHTS if external_data is None else external_data
    wanted = DEFAULT_OPSET if opset is None else opset
    # One sample alone would let the tracer take an axis of length 1 for one that broadcasts.
    traced = rows(batch, range(2), axes.batched) if axes.size is None and batch.size == 1 else batch
    names = input_names(folded, batch)
    _check_not_scripted(folded)
    # Without a gradient torch's transformer layers are one operation, which the converter does not know.
    with (
        converter_log() as said,
        library_read_once(),
        rng_restored(),
        torch.no_grad(),
        no_fast_path(),
        traced_programs() as programs,
    ):
        try:
            result = fresh(traced)(folded)
            results = [output.name for output in outputs(result, names)]
            if problem := about_complex(results, only_tensors(result)):
                raise ConversionError(problem)
            exported = folded if only_tensors(result) is result else _OnlyTensors(folded)
            call = _by_name(exported, fresh(traced))
            program = torch.onnx.export(
                exported,
                call.args,
                kwargs=call.kwargs or None,
                dynamic_shapes=_dynamic_shapes(exported, call, axes) if any(axes.opened()) else None,
                input_names=names,
                output_names=results,
                opset_version=wanted,
                dynamo=True,
                verbose=False,
            )
            program = cast("torch.onnx.ONNXProgram", program)  # with dynamo=True it always returns one
            restrictions = _check_sizes(programs, folded, traced, axes)
            model = None if external else program.model_proto
        except ConversionError:
            raise
        except Exception as error:  # the converter, and the user's forward in it, may raise anything
            raise ConversionError(explain(error, folded, traced, axes, said)) from error
    data = path.with_name(f"{path.name}.data")
    if model is None:
        program.save(path, external_data=True)
        model = load_onnx(path)
    _check_as_asked(model, names, results, wanted, axes)
    _clean(model, keep_debug_info, metadata or {})
    tied = tie_data(model, data, path.name) if data.exists() else None
    path.write_bytes(model.SerializeToString(deterministic=True))
    recorded = axes.size is None and bool(programs) and not restrictions
    return Converted(wanted, tuple(said), tuple(restrictions), tied, recorded)


class _OnlyTensors(nn.Module):
    """A model whose result torch.export does not know, such as a data class, with its tensors as a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return only_tensors(self.model(*args, **kwargs))


def _by_name(model: nn.Module, batch: Batch) -> Batch:
    """The call with a dict that comes last given by name: torch.onnx takes it for the keyword inputs."""
    if batch.kwargs or not batch.args or not isinstance(batch.args[-1], dict):
        return batch
    bound = inspect.signature(model.forward).bind(*batch.args).arguments
    name = list(bound)[-1]
    return Batch(batch.args[:-1], {name: batch.args[-1]})


def _dynamic_shapes(model: nn.Module, batch: Batch, axes: Axes) -> Any:
    """The open axes by parameter of `forward`. A name instead of a Dim is an order: torch raises if it cannot obey."""
    orders = [opened or None for opened in axes.opened()]
    args, kwargs = pytree.tree_unflatten(orders, pytree.tree_structure((batch.args, batch.kwargs)))
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _check_not_scripted(model: nn.Module) -> None:
    scripted = [
        path or "the model" for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)
    ]
    if scripted:
        raise ConversionError(
            f"`{scripted[0]}` is scripted (torch.jit), which the converter does not take: use the module that it was "
            "scripted from"
        )


def _check_sizes(programs: Sequence[ExportedProgram], folded: nn.Module, batch: Batch, axes: Axes) -> list[str]:
    if not any(axes.opened()):
        return []
    if not programs:
        return ["torch.onnx traced without torch.export.export: conditions on sizes were not read"]
    hints = {name: f"leave `{name}` out of {AXES_OPTION}" for name in axes.names} | {BATCH: STATIC_HINT}
    return check_sizes(programs[-1], folded, batch, axes, hints)


def _bytes_of(model: nn.Module) -> int:
    tensors = itertools.chain(model.parameters(), model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _check_as_asked(model: ModelProto, inputs: list[str], results: list[str], opset: int, axes: Axes) -> None:
    got = default_opset(model)
    if got != opset:
        raise ConversionError(
            f"opset {opset} was asked for, the converter wrote {got}; it has {DEFAULT_OPSET} and later"
        )
    found = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
    if found != (inputs, results):
        raise ConversionError(f"the converter wrote inputs and outputs {found}, the model has {(inputs, results)}")
    for value, opened in zip(model.graph.input, axes.opened(), strict=True):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param == opened.get(axis, ""):
                continue
            what = f"axis {axis} of input `{value.name}`"
            if not dim.dim_param:
                hint = STATIC_HINT if opened[axis] == BATCH else f"leave `{opened[axis]}` out of {AXES_OPTION}"
                raise ConversionError(f"{what}, `{opened[axis]}`, is fixed at {dim.dim_value}; {hint}")
            raise ConversionError(f"{what} is open under the name {dim.dim_param}, asked for was {opened.get(axis)}")


def _clean(model: ModelProto, keep_debug_info: bool, metadata: Mapping[str, str]) -> None:
    """Removes (or shortens to file names) what the converter notes about the source; the graph stays as it is."""
    for message in messages(model):
        fields = message.DESCRIPTOR.fields_by_name
        for name in {"metadata_props", "doc_string"} & set(fields):
            if not keep_debug_info:
                message.ClearField(name)
        if "doc_string" in fields and message.doc_string:
            message.doc_string = without_folders(message.doc_string)
        if "metadata_props" in fields:
            for entry in message.metadata_props:
                entry.value = without_folders(entry.value)
    model.ClearField("metadata_props")
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    model.ir_version = IR_VERSION
