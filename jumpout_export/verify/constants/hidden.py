"""Weights that are zero throughout and multiply data: no value shows what comes before them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from jumpout_export.model.operations import Operation, Recording

# The arguments of operators that are factors of the data; of all others none is.
_FACTORS = {
    "mul": (0, 1),
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "convolution": (1,),
    "native_layer_norm": (2,),
    "native_group_norm": (1,),
    "native_batch_norm": (1,),
    "_native_batch_norm_legit_no_training": (1,),
}


def hidden_behind_zeros(recording: Recording, run_weights: dict[str, Tensor]) -> list[str]:
    """Returns the names of the weights that are zero and multiply what is no input of the model itself.

    Args:
        recording: of the model.
        run_weights: parameters and buffers of the copy that ran, by name.
    """
    names: dict[str, None] = {}
    storages = {weight.untyped_storage()._cdata: name for name, weight in run_weights.items()}
    for index in sorted(recording.live()):
        operation = recording.operations[index]
        if operation.from_data and any(recording.operations[one].from_data for one in operation.inputs):
            for factor in _factors(operation):
                name = storages.get(factor.untyped_storage()._cdata)
                if name is not None and not bool(run_weights[name].any()):
                    names[name] = None
    return list(names)


def _factors(operation: Operation) -> Iterator[Tensor]:
    for place in _FACTORS.get(operation.short_name, ()):
        argument = operation.arguments[place] if place < len(operation.arguments) else None
        if isinstance(argument, Tensor):
            yield argument
