"""Which numbers of a file nothing in the PyTorch program accounts for: bounds, thresholds, epsilons, narrow integers.

A bound that no value reached shows in no output. One that PyTorch's program has too is the right one; any other is
tried where that is possible, and listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jumpout_export.model.operations import Operation
from jumpout_export.onnxfile.numbers import Number
from jumpout_export.verify.constants.known import Recorded

# Of the number itself, in float16, in which a file may hold it.
_ROUNDED = 2.0**-10
# Numbers of an operator's definition, which no call names.
_DEFINED = {
    "hardswish": (3.0, 6.0, 1 / 6, 0.5),
    "hardsigmoid": (3.0, 6.0, 1 / 6, 0.5),
    "relu6": (6.0,),
    "embedding_renorm": (1e-7,),
    "bucketize": (2.0,),  # halves what it searches
    "searchsorted": (2.0,),
    "selu": (1.6732632423543772, 1.0507009873554805),
}
_ENDS = tuple(float(torch.finfo(dtype).max) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64))
_ENDS += tuple(float(torch.iinfo(dtype).max) for dtype in (torch.int32, torch.int64))
_NARROW = {torch.uint8: 256, torch.int8: 128, torch.uint16: 1 << 16, torch.int16: 1 << 15}
_NARROW |= {torch.float16: 1 << 11, torch.bfloat16: 1 << 8}


def unexplained(numbers: Iterable[Number], recorded: Recorded) -> list[Number]:
    """Returns the numbers of a file that the recorded program has not; nothing where it could not be recorded.

    Numbers that say nothing, 0 and those that no value is beyond, are left out, and a sign tells nothing apart.
    """
    if recorded.recording is None:
        return []
    operations = recorded.recording.operations
    known = {abs(number) for operation in operations for number in _numbers_of(operation)}
    tensors = [*recorded.made.values(), *recorded.recording.held]
    tensors += [tensor for operation in operations for tensor in _leaves(operation) if isinstance(tensor, Tensor)]
    known |= {abs(float(one.detach())) for one in tensors if one.numel() == 1 and not one.is_complex()}
    narrow = {_NARROW[operation.dtype] for operation in operations if operation.dtype in _NARROW}
    return [one for one in numbers if not _says_nothing(one) and not _is_known(one, narrow if one.is_cast else known)]


def differing(numbers: Iterable[Number], others: Iterable[Number]) -> list[Number]:
    """Returns the numbers of one file that another has not, as `unexplained` does."""
    known: dict[bool, list[float]] = {True: [], False: []}
    for one in others:
        known[one.is_cast].append(abs(one.value))
    return [one for one in numbers if not _says_nothing(one) and not _is_known(one, known[one.is_cast])]


def _says_nothing(one: Number) -> bool:
    return one.value == 0 or not math.isfinite(one.value) or (not one.is_cast and _is_known(one, _ENDS))


def _is_known(one: Number, known: Iterable[float]) -> bool:
    return any(math.isclose(abs(one.value), number, rel_tol=_ROUNDED) for number in known)


def _numbers_of(operation: Operation) -> Iterator[float]:
    """The numbers that an operation is called with, those that it has by default, and those of its definition.

    Numbers that are sizes, axes and places are none of these, as far as the operator says which are.
    """
    arguments = _schema_of(operation.name)
    given: list[Any] = [] if arguments else _leaves(operation)
    for place, argument in enumerate(arguments):
        if str(argument.type).removeprefix("Optional[").rstrip("]") in ("number", "float", "Tensor"):
            value = operation.arguments[place] if place < len(operation.arguments) else argument.default_value
            given.append(operation.options.get(argument.name, value))
    yield from (float(one) for one in given if isinstance(one, int | float) and not isinstance(one, bool))
    yield from _DEFINED.get(operation.short_name.rstrip("_"), ())


def _leaves(operation: Operation) -> list[Any]:
    return pytree.tree_leaves((operation.arguments, dict(operation.options)))


def _schema_of(name: str) -> Sequence[Any]:
    operator: Any = torch.ops
    for part in name.split("."):
        operator = getattr(operator, part, None)
    return getattr(getattr(operator, "_schema", None), "arguments", ())
