"""What a right file may hold: the model's weights, and what it makes of them before any data come in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from jumpout_export.model.norms import statistics_owners
from jumpout_export.model.operations import Recording
from jumpout_export.onnxfile.constants import Array
from jumpout_export.verify.constants.batchnorms import Located
from jumpout_export.verify.constants.matches import Known
from jumpout_export.verify.constants.recurrent import recurrent_forms


@dataclass(frozen=True)
class Recorded:
    """What the forward did on one batch, or why that cannot be told."""

    recording: Recording | None = None
    made: dict[int, Tensor] = field(default_factory=dict)  # of weights and numbers alone, by operation
    run: nn.Module | None = None  # the copy of the model that ran
    problem: str = ""  # why there is no recording


def known_values(model: nn.Module, recorded: Recorded, located: list[Located]) -> list[Known]:
    """Returns the weights of a model and what it makes of them.

    Args:
        model: in eval mode, on the CPU.
        recorded: what it did.
        located: what the file has for its BatchNorms.
    """
    elsewhere = read_by_batchnorms(model, recorded.recording, located)
    # A BatchNorm that was not found may be part of any layer, whose constants may have kept their names.
    names_tell = all(one.where for one in located) and recorded.recording is not None
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    known = [
        Known(name, as_array(tensor), name not in elsewhere, names_tell)
        for name, tensor in weights.items()
        if counts(tensor)
    ]
    known += [Known("", array, made_of=names, rearranged=True) for array, names in recurrent_forms(model)]
    own = (*recorded.run.parameters(), *recorded.run.buffers()) if recorded.run is not None else ()
    whole = {(_storage(tensor), tensor.numel()) for tensor in own}
    held = recorded.recording.held if recorded.recording is not None else []
    known += [Known("", as_array(tensor), rearranged=True) for tensor in held if counts(tensor)]
    for index, tensor in recorded.made.items():
        if (_storage(tensor), tensor.numel()) in whole and tensor.ndim <= 2:
            continue  # a weight, or its transposition, which is looked for with it
        if counts(tensor) and recorded.recording is not None:
            names = recorded.recording.operations[index].weights
            known.append(Known("", as_array(tensor), made_of=names, operation=index))
    return known


def read_by_batchnorms(model: nn.Module, recording: Recording | None, located: Iterable[Located]) -> set[str]:
    """Returns the weights of BatchNorms and of the layers that one is folded into; another check judges those."""
    if recording is None:
        prefixes = tuple(f"{name}." for name in statistics_owners(model))
        names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        return {name for name in names if name.startswith(prefixes or ("\0",))}
    calls = [index for one in located for index in (one.operation, one.layer) if index is not None]
    return {name for index in calls for name in recording.operations[index].weights}


def counts(tensor: Tensor) -> bool:
    """Whether a tensor is looked for: a single integer is a size or a place, and stands everywhere."""
    return tensor.numel() >= (1 if tensor.is_floating_point() else 2) and not tensor.is_complex()


def as_array(tensor: Tensor) -> Array:
    """Returns a tensor's values, of half precision in float32."""
    tensor = tensor.detach()
    array: Array = (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy(
        force=True
    )
    return array


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
