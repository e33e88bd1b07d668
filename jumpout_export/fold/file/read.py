"""Reads a protobuf as a graph of values in which noise can be looked for, functions written out where it may hide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpout_export.errors import NotVerifiableError
from jumpout_export.fold.file.noise import Noise, find_noise
from jumpout_export.onnxfile.load import inlined
from jumpout_export.onnxfile.training import may_be_noise
from jumpout_export.onnxfile.walk import called, called_as, function_sites, nodes_of
from jumpout_export.text import first_line

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import ModelProto


@dataclass(frozen=True)
class Reading:
    """A model and the noise in it."""

    model: ModelProto  # the model, functions with noise written out
    inlined: list[str]  # names of those functions
    typed: ModelProto  # the same with types and shapes of all values, as far as they can be inferred
    graph: ir.Model  # the same as values and nodes
    noise: Noise  # what was found

    @property
    def changes(self) -> bool:
        """Whether the file has to be changed, if only by writing functions out."""
        return self.noise.found or bool(self.inlined)


def read_noise(model: ModelProto) -> Reading:
    """Returns the noise of a model that `onnx.checker` accepts; the model itself is not changed.

    Raises:
        NotVerifiableError: if the graph holds something that onnx or onnx_ir does not know.
    """
    import onnx
    import onnx_ir

    try:
        written, names = _without_noisy_functions(model)
        typed = onnx.shape_inference.infer_shapes(written, data_prop=True)
        graph = onnx_ir.serde.deserialize_model(typed)
    except Exception as error:  # onnx and onnx_ir raise several types on what they do not know, the reason innermost
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise NotVerifiableError(f"the graph cannot be read: {first_line(cause)}") from error
    return Reading(written, names, typed, graph, find_noise(graph, typed, written_out=bool(names)))


def _without_noisy_functions(model: ModelProto) -> tuple[ModelProto, list[str]]:
    """The model with those functions written out in which, or below which, there may be noise.

    Inside a function a flag is a parameter; where it is called it has a value.
    """
    calls = {called_as(function): {called(node) for node in nodes_of(function.node)} for function in model.functions}
    noisy = {
        called_as(function) for function in model.functions if any(map(may_be_noise, function_sites(model, function)))
    }
    while more := {name for name, inner in calls.items() if inner & noisy} - noisy:
        noisy |= more
    if not noisy:
        return model, []
    return inlined(model, noisy), sorted(name for _, name in noisy)
