"""The model's weights looked for in a saved file, bit for bit: also those that no image reached.

A wrong row of an embedding changes no output as long as no image asks for it. So every floating-point parameter and
buffer is looked for among the file's constants, as it is or with its last two axes swapped. One that is there in most
of its values and not in all is wrong. One that is not there at all may be part of another constant, and is named: only
the outputs say something about it. The weights that a BatchNorm is folded into are the subject of `constants.py`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from jumpout_export.export.checks import counted, first_line, joined
from jumpout_export.export.graph import load_onnx
from jumpout_export.export.protos import tensors
from jumpout_export.report import Check

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

Array = np.ndarray[Any, Any]
# Of each weight so many values are looked at before all are.
_LOOKED_AT = 4096
# Fewer different values than this are no evidence: two masks of 0 and 1 have most of their values in common.
_LEAST_VALUES = 3
# So much of a weight makes a constant of the file that weight, if not a right one.
_MOST = 0.5


@dataclass(frozen=True)
class _Wrong:
    """A constant of the file that is a weight of the model in most values: how many differ, and where the first is."""

    constant: str
    differing: int
    index: tuple[int, ...]
    there: float
    wanted: float


def weights_check(path: Path, model: nn.Module, elsewhere: set[str]) -> Check | None:
    """Returns whether the file holds every weight of the model as it is; None for a model without one.

    Args:
        path: the file; external data is read from its folder.
        model: the model.
        elsewhere: module paths whose own weights another check looks at.
    """
    try:
        return _compared(_Constants(path, load_onnx(path)), model, elsewhere)
    except Exception as error:  # a file may hold anything
        return counted("weights", [f"the weights could not be looked for in the file: {first_line(error)}"])


def _compared(constants: _Constants, model: nn.Module, elsewhere: set[str]) -> Check | None:
    wrong, unseen, found = [], [], 0
    for name, weight in _weights(model, elsewhere):
        verdict = constants.look_for(weight)
        if verdict is None:
            unseen.append(f"`{name}`")
        elif isinstance(verdict, _Wrong):
            at = f"[{', '.join(map(str, verdict.index))}]"
            there = "" if verdict.constant == name else f", there `{verdict.constant}`"
            wrong.append(
                f"`{name}` has {verdict.differing} of {weight.size} values wrong in the file{there}, the first at "
                f"{at}: {verdict.there:.9g} instead of {verdict.wanted:.9g}"
            )
        else:
            found += 1
    total = found + len(wrong) + len(unseen)
    if not total:
        return None
    note = f"{found} of {total} weights are in the file bit for bit"
    note = "; ".join([*([joined(wrong)] if wrong else []), note])
    note += f"; known by the outputs alone: {joined(unseen)}" if unseen else ""
    return Check(name="weights", measured=len(wrong), limit=0, verdict="fail" if wrong else "pass", note=note)


def _weights(model: nn.Module, elsewhere: set[str]) -> Iterator[tuple[str, Array]]:
    every: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in every:
        if name.rpartition(".")[0] not in elsewhere and tensor.is_floating_point() and tensor.numel():
            kept = tensor.detach()
            yield name, (kept if kept.element_size() > 2 else kept.float()).numpy(force=True)


class _Constants:
    """The floating-point constants of a file, in all graphs and functions, by number of elements."""

    def __init__(self, path: Path, proto: ModelProto) -> None:
        self._folder = str(path.parent)
        self._by_size: dict[int, list[TensorProto]] = defaultdict(list)
        for tensor in tensors(proto):
            if _readable(tensor):
                self._by_size[math.prod(tensor.dims)].append(tensor)

    def look_for(self, weight: Array) -> bool | _Wrong | None:
        """Returns True for a weight that is there, what is wrong with it, or None for one that is not there."""
        from onnx import numpy_helper

        nearest: _Wrong | None = None
        swapped = [weight.swapaxes(-1, -2)] if weight.ndim > 1 else []
        for tensor in self._by_size[weight.size]:
            constant = numpy_helper.to_array(tensor, self._folder).reshape(-1)
            for layout in (weight, *swapped):
                wanted = layout.astype(constant.dtype).reshape(-1)
                if not _alike(constant, wanted):
                    continue
                differing = np.flatnonzero(~_same(constant, wanted))
                if not differing.size:
                    return True
                if nearest is None or differing.size < nearest.differing:
                    first = int(differing[0])
                    index = tuple(int(one) for one in np.unravel_index(first, layout.shape))
                    there, here = float(constant[first]), float(wanted[first])
                    nearest = _Wrong(tensor.name or "a constant", differing.size, index, there, here)
        return nearest


def _readable(tensor: TensorProto) -> bool:
    from onnx import TensorProto

    return tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def _alike(constant: Array, wanted: Array) -> bool:
    """Whether a constant is the weight, or has most of those values that are not the weight's most common one."""
    if constant.size > _LOOKED_AT:  # in a large network most constants of this size are other layers
        chosen = np.random.default_rng(0).integers(constant.size, size=_LOOKED_AT)
        constant, wanted = constant[chosen], wanted[chosen]
    same = _same(constant, wanted)
    if same.all():
        return True
    values, counts = np.unique(wanted, return_counts=True)
    telling = wanted != values[counts.argmax()] if counts.max() > 1 else np.ones_like(same)
    agreeing = np.unique(wanted[telling & same])
    return len(agreeing) >= _LEAST_VALUES and bool(same[telling].mean() >= _MOST)


def _same(constant: Array, wanted: Array) -> Array:
    equal: Array = (constant == wanted) | (np.isnan(constant) & np.isnan(wanted))
    return equal
