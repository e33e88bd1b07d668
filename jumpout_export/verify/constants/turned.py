"""Whether a square weight is read along its own axes: the transposed one fits everywhere, too.

Behind a gain of zero no output tells one from the other. A product sums over one axis of a weight, whatever side it
stands on and however it is stored; anything else reads it as it is. Both have to be so in PyTorch and in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jumpout_export.model.operations import Operation, Recording
from jumpout_export.onnxfile.constants import Array
from jumpout_export.onnxfile.steps import Step
from jumpout_export.verify.constants.matches import Known
from jumpout_export.verify.constants.nodes import Misplaced

# How a weight is read: in a product that sums over this one of its last two axes, or as it is, or with them swapped.
Way = tuple[Literal["sums over", "is"], int]

# Of PyTorch's products the numbers of the factors' arguments.
_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "mv": (0, 1), "dot": (0, 1)}
# Of ONNX's operators those that read a weight as it is.
_AS_IT_IS = frozenset({"Conv", "ConvTranspose", "Mul", "Add", "Sub", "Div", "Where", "Gather"})


def turned(
    recording: Recording,
    run: nn.Module,
    held: Mapping[str, tuple[Known, ...]],
    arrays: Mapping[str, Array],
    steps: Sequence[Step],
) -> list[Misplaced]:
    """Returns the weights that the file reads with their last two axes swapped.

    Args:
        recording: of the model.
        run: the copy of it that ran.
        held: what each constant of the file is, by name.
        arrays: the values of constants, flat, by name; of those that are square weights.
        steps: of the file.
    """
    weights = {**dict(run.named_parameters()), **dict(run.named_buffers())}
    read = _read_by_operations(recording) if arrays else {}
    wrong = []
    for name, array in arrays.items():
        names = [one.name for one in held.get(name, ()) if one.name]
        known = next((one.array for one in held.get(name, ()) if one.name), None)
        if len(names) != 1 or known is None:
            continue
        is_swapped = _is_swapped(array.reshape(known.shape), known)
        if is_swapped is None:
            continue
        theirs = set(_ways_in_file(name, is_swapped, steps))
        weight = weights[names[0]]
        ours = set(_ways(read.get(_storage(weight), []), weight))
        # What a file computes in other operators than PyTorch cannot be told apart like this.
        if theirs and ours and {kind for kind, _ in theirs} == {kind for kind, _ in ours} and theirs != ours:
            wrong.append(Misplaced((names[0],), f"the file reads `{names[0]}` with its last two axes swapped"))
    return wrong


def _is_swapped(array: Array, known: Array) -> bool | None:
    """Whether an array is a weight with its last two axes swapped; None if that cannot be told.

    It is the weight in some order of its axes, bit for bit, so the first row that is no column tells.
    """
    for row in range(known.shape[-1]):
        one, two = known[..., row, :], known[..., :, row]
        if not np.array_equal(one, two, equal_nan=True):
            found = [np.array_equal(array[..., row, :], wanted, equal_nan=True) for wanted in (one, two)]
            return found[1] if any(found) else None
    return None


def squares(held: Mapping[str, tuple[Known, ...]]) -> list[str]:
    """Returns the names of the constants of a file that are square weights."""
    return [
        name
        for name, equal in held.items()
        if any(one.name and one.array.ndim > 1 and 1 < one.array.shape[-1] == one.array.shape[-2] for one in equal)
    ]


def _ways_in_file(name: str, is_swapped: bool, steps: Iterable[Step]) -> Iterator[Way]:
    for step in steps:
        node = step.node
        flags = {attribute.name: bool(attribute.i) for attribute in node.attribute}
        for place, source in step.reads:
            if source.name != name:
                continue
            if node.op_type in ("MatMul", "Gemm") and place in (0, 1):
                turned = flags.get(("transA", "transB")[place], False)
                yield "sums over", (1 - place) ^ turned ^ is_swapped
            elif node.op_type in _AS_IT_IS and node.input[place] == name:
                yield "is", int(is_swapped)


def _read_by_operations(recording: Recording) -> dict[int, list[tuple[Operation, int, Tensor]]]:
    """What operations on data read, by its storage: the operation, the number of its argument, and the tensor."""
    found: dict[int, list[tuple[Operation, int, Tensor]]] = {}
    for index in recording.live():
        operation = recording.operations[index]
        for place, argument in enumerate(operation.arguments) if operation.from_data else ():
            for leaf in pytree.tree_leaves(argument):
                if isinstance(leaf, Tensor):
                    found.setdefault(_storage(leaf), []).append((operation, place, leaf))
    return found


def _ways(reads: Iterable[tuple[Operation, int, Tensor]], weight: Tensor) -> Iterator[Way]:
    for operation, place, leaf in reads:
        # The last two axes of the weight, in either order, and perhaps more in front.
        if leaf.shape[-2:] != weight.shape[-2:] or sorted(leaf.stride()[-2:]) != sorted(weight.stride()[-2:]):
            continue
        is_swapped = leaf.stride()[-2:] != weight.stride()[-2:]
        factors = _PRODUCTS.get(operation.short_name, ())
        if place in factors:
            yield "sums over", (1 - factors.index(place)) ^ is_swapped
        else:
            yield "is", int(is_swapped)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
