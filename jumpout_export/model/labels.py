"""Tells the inputs in a batch from the labels, by the names and kinds of the parameters of `forward`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

LABEL_KEYS = ("labels", "label")
# Labels too, unless the model has an input of that name.
MAYBE_LABEL_KEYS = ("targets", "target", "y")
# What loaders call the input of a model that calls it something else.
INPUT_KEYS = ("inputs", "input", "images", "image", "img", "pixel_values", "data", "x")

Parameters = Mapping[str, inspect.Parameter]
# Positional inputs, keyword inputs, and (N,) class labels or None.
Split = tuple[tuple[Any, ...], dict[str, Any], Tensor | None]

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def by_name(entries: dict[str, Any], forward: Parameters) -> Split:
    """Splits a batch whose entries have names.

    Raises:
        TypeError: if the names do not say which entries are inputs.
    """
    keys = (*LABEL_KEYS, *(key for key in MAYBE_LABEL_KEYS if key not in forward))
    label_key = next((key for key in keys if key in entries), None)
    labels = _class_labels(entries.pop(label_key)) if label_key else None
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in forward.values())
    taken = {key: value for key, value in entries.items() if key in forward}
    only = _only_input(entries) if not taken and _positional(forward)[1] != 0 else None
    if anything and (taken or only is None or len(entries) > 1):
        return (), entries, labels
    if not taken and only is None and entries:
        raise TypeError(_unnamed(list(entries), forward))
    rest = {key: value for key, value in entries.items() if key not in taken and key != only}
    free = [parameter for parameter in list(forward.values())[0 if taken else 1 :] if parameter.name not in taken]
    # What no parameter is left for is not missed: masks to learn, names, indices.
    if any(_takes_a_tensor(parameter) for parameter in free):
        large = [key for key, value in rest.items() if any(tensor.ndim > 1 for tensor in tensors_in(value))]
        if large:
            raise TypeError(_unnamed(large, forward))
    return (() if only is None else (entries[only],)), taken, labels


def by_position(entries: tuple[Any, ...], forward: Parameters) -> Split:
    """Splits a batch whose entries have an order.

    Raises:
        TypeError: if an entry may be an input or a target.
    """
    required, most = _positional(forward)
    if len(entries) == 2 and _is_group(entries[0], required) and _is_target_like(entries[1], entries[0]):
        return tuple(entries[0]), {}, _class_labels(entries[1])
    inputs, rest = entries[:most], entries[len(entries[:most]) :]
    labels = _class_labels(rest[0]) if rest else None
    # A forward that needs every entry, such as (x, index), gets every entry.
    if len(inputs) > max(1, required) and _is_target(inputs, forward):
        labels, inputs = _class_labels(inputs[-1]), inputs[:-1]
        if len(inputs) > max(1, required) and _is_per_image(inputs[-1], inputs[0]):
            raise TypeError(_ambiguous(inputs[-1], forward))
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        args, kwargs, inner_labels = by_name(dict(inputs[0]), forward)
        return args, kwargs, labels if labels is not None else inner_labels
    if len(inputs) == 1 and isinstance(inputs[0], tuple | list) and (most is None or len(inputs[0]) == required):
        inputs = tuple(inputs[0])
    return inputs, {}, labels


def fields_of(batch: Any) -> dict[str, Any] | None:
    """Returns the fields of a named tuple or data class, None for anything else."""
    if isinstance(batch, tuple) and hasattr(batch, "_asdict"):
        return dict(batch._asdict())
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from tensors_in(entry)
    elif (fields := fields_of(value)) is not None:
        yield from tensors_in(fields)


def _only_input(entries: dict[str, Any]) -> str | None:
    """The entry that is the input where none is named like a parameter; None where that is not clear."""
    known = [key for key in INPUT_KEYS if key in entries]
    tensors = [key for key, value in entries.items() if isinstance(value, Tensor)]
    return next((keys[0] for keys in (list(entries), known, tensors) if len(keys) == 1), None)


def _takes_a_tensor(parameter: inspect.Parameter) -> bool:
    """Whether a parameter that `forward` does not require may get an entry of a batch."""
    return not (
        parameter.name in (*LABEL_KEYS, *MAYBE_LABEL_KEYS)
        or isinstance(parameter.default, bool | str)
        or parameter.kind is inspect.Parameter.VAR_POSITIONAL
    )


def _unnamed(names: list[str], forward: Parameters) -> str:
    return (
        f"a batch must name the model's inputs, got {', '.join(map(repr, names))} where forward takes "
        f"{', '.join(map(repr, forward)) or 'nothing'}; rename the entries, or call the model yourself: "
        "forward_fn=lambda model, batch: model(...)"
    )


def _is_target(inputs: tuple[Any, ...], forward: Parameters) -> bool:
    """Whether the last of the entries that `forward` accepts, but does not require, is no input."""
    first, last, parameter = inputs[0], inputs[-1], _receiver(len(inputs) - 1, forward)
    if _is_classes(last) and _is_per_image(last, first):
        return True
    if parameter.kind is not inspect.Parameter.VAR_POSITIONAL and not _takes_a_tensor(parameter):
        return True
    if _is_target_like(last, first):
        raise TypeError(_ambiguous(last, forward))
    return False


def _ambiguous(entry: Tensor, forward: Parameters) -> str:
    return (
        f"a batch must say which entries are inputs: the one of shape {tuple(entry.shape)} may be a target, or one of "
        f"the inputs {', '.join(map(repr, forward))} of forward; yield a dict with the inputs by name, or leave the "
        "target out"
    )


def _is_group(entry: Any, required: int) -> bool:
    """Whether an entry is all of several inputs together, as in ((a, b), labels) for a forward of a and b."""
    return isinstance(entry, tuple | list) and len(entry) == required > 1


def _is_target_like(value: Any, first: Any) -> bool:
    return _is_per_image(value, first) or _is_one_hot_like(value, first)


def _is_per_image(value: Any, first: Any) -> bool:
    """One number per image: class labels, an index, or what a regression learns."""
    return (
        isinstance(value, Tensor)
        and (value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1))
        and _batch_size(value) == _batch_size(first)
    )


def _is_one_hot_like(value: Any, first: Any) -> bool:
    """One number per class and image: one-hot, several of them hot, or probabilities."""
    if not isinstance(value, Tensor) or value.ndim != 2 or value.is_complex():
        return False
    if _batch_size(value) != _batch_size(first):
        return False
    # Zeros and ones in the shape of the input are a mask.
    mask = isinstance(first, Tensor) and value.shape == first.shape
    if not mask and bool(((value == 0) | (value == 1)).all()):
        return True
    return value.is_floating_point() and bool((value >= 0).all() and ((value.sum(dim=1) - 1).abs() < 1e-3).all())


def _class_labels(value: Any) -> Tensor | None:
    """(N,) class labels where `value` is class labels or one-hot rows; None for any other target."""
    if _is_classes(value):
        return value
    if not isinstance(value, Tensor) or value.ndim != 2 or value.shape[1] < 2 or value.is_complex():
        return None
    one_hot = bool(((value == 0) | (value == 1)).all() and (value.sum(dim=1) == 1).all())
    return value.to(torch.uint8).argmax(dim=1) if one_hot else None


def _is_classes(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.ndim == 1
        and not value.is_floating_point()
        and not value.is_complex()
        and value.dtype != torch.bool
    )


def _batch_size(value: Any) -> int | None:
    tensor = next(tensors_in(value), None)
    return tensor.shape[0] if tensor is not None and tensor.ndim else None


def _positional(forward: Parameters) -> tuple[int, int | None]:
    """How many positional inputs `forward` requires, and accepts (None: any number)."""
    parameters = [parameter for parameter in forward.values() if parameter.kind in POSITIONAL]
    required = sum(parameter.default is parameter.empty for parameter in parameters)
    unbounded = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in forward.values())
    return required, None if unbounded else len(parameters)


def _receiver(index: int, forward: Parameters) -> inspect.Parameter:
    """The parameter that gets the positional input `index`."""
    kinds = (*POSITIONAL, inspect.Parameter.VAR_POSITIONAL)  # a signature has them in this order
    parameters = [parameter for parameter in forward.values() if parameter.kind in kinds]
    return parameters[min(index, len(parameters) - 1)]
