"""The rounded weights of a file against the model's: each must be within half a step of its own scale.

A constant is looked for among the weights, what the model makes of weights alone, and layers with the BatchNorm behind
them folded in. The nearest is the one that it should be; where none is within half a step, the one it points along: of
a wrong scale the direction is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from jumpout_export.model.operations import Operation
from jumpout_export.onnxfile.constants import Array, Holder
from jumpout_export.quantized.read import QuantizedFile, RoundedWeight
from jumpout_export.report import Check, limited
from jumpout_export.text import joined
from jumpout_export.tolerances import ROUNDINGS
from jumpout_export.verify.constants.batchnorms import ROOT
from jumpout_export.verify.constants.calls import batchnorm_calls
from jumpout_export.verify.constants.faults import owner_of
from jumpout_export.verify.constants.known import Recorded, known_values
from jumpout_export.verify.constants.matches import Known

_HALF = 0.5
# A constant points along a weight if the cosine between both is no less: some channels of it may have a wrong scale.
_ALONG, _ALONG_FEW, _FEW = 0.7, 0.95, 32


@dataclass(frozen=True)
class RoundedFrom:
    """A rounded constant of a file, and what it was rounded from."""

    weight: RoundedWeight
    wanted: Array | None  # in the constant's own shape, float64; None where nobody knows
    name: str = ""  # of the model's weight, for a person
    layer: str = ""  # module path of the layer that it belongs to
    error: float = 0.0  # largest, in steps, of what is not clipped
    place: int = 0  # of it, counted through
    clipped: float = 0.0  # share of the values that lie beyond the smallest and the largest integer

    @property
    def wrong(self) -> bool:
        """Whether it is off by more than rounding to its own scale makes it."""
        return self.wanted is not None and not self.error <= _HALF

    def text(self) -> str:
        """Returns what is wrong with it, for a person."""
        assert self.wanted is not None
        place = np.unravel_index(self.place, self.wanted.shape)
        where = ", ".join(str(int(axis)) for axis in place)
        there, own = self.weight.value()[place], self.wanted[place]
        return (
            f"`{self.layer or ROOT}`: {self.name} is off by {self.error:.3g} steps of its own scale in the file, there "
            f"`{self.weight.name}`, most at [{where}]: {there:.6g} instead of {own:.6g}"
        )


def rounded_from(file: QuantizedFile, recorded: Recorded, model: nn.Module) -> list[RoundedFrom]:
    """Returns what each rounded constant of a file was rounded from.

    Args:
        file: the file.
        recorded: what the model did on a batch.
        model: in eval mode, on the CPU.
    """
    by_size: dict[int, list[tuple[Known, str, str]]] = {}
    for known, name, layer in _candidates(recorded, model):
        by_size.setdefault(known.array.size, []).append((known, name, layer))
    return [_found(weight, by_size.get(weight.integers.size, [])) for weight in file.weights]


def weights_check(found: list[RoundedFrom]) -> Check:
    """Returns the verdict on all of them; which weight one is that nobody knows is left to the outputs."""
    known = [one for one in found if one.wanted is not None]
    wrong = [one for one in known if one.wrong]
    unknown = [f"`{one.weight.name}`" for one in found if one.wanted is None]
    worst = max(known, key=lambda one: one.error if one.error == one.error else np.inf, default=None)
    good = f"{len(known)} of {len(found)} are weights of the model, each within half a step of its scale"
    note = joined([one.text() for one in wrong]) if wrong else good
    note += f"; known by the outputs alone: {joined(unknown)}" if unknown else ""
    return limited("quantized weights", worst.error if worst else 0.0, _HALF, note)


def _candidates(recorded: Recorded, model: nn.Module) -> Iterator[tuple[Known, str, str]]:
    for known in known_values(model, recorded, []):
        if known.array.dtype.kind == "f":
            name = joined([f"`{one}`" for one in known.weights], 3) or "a number of the model"
            yield known, name, owner_of(known.weights) or ROOT
    if recorded.recording is None:
        return
    for call in batchnorm_calls(recorded.recording):
        folded = call.folded()
        if folded is None or call.layer_operation is None:
            continue
        operation = recorded.recording.operations[call.layer_operation]
        layer = operation.module or ROOT
        behind = f"with `{call.name}` folded in"
        for array, what in ((_as_weight(folded, operation), "weight"), (folded.parts["bias"], "bias")):
            yield Known("", array), f"the {what} {behind}", layer


def _as_weight(folded: Holder, operation: Operation) -> Array:
    """The rows of a layer in the shape of its weight."""
    rows = folded.parts["weights"]
    if not operation.name.startswith("aten.convolution."):
        return rows
    shape = tuple(operation.arguments[1].shape)
    if folded.kind != "ConvTranspose":
        return rows.reshape(shape)
    groups = int(operation.arguments[8])
    return rows.reshape(groups, shape[1], shape[0] // groups, -1).transpose(0, 2, 1, 3).reshape(shape)


def _found(weight: RoundedWeight, candidates: list[tuple[Known, str, str]]) -> RoundedFrom:
    if weight.own is not None and not candidates:
        return RoundedFrom(weight, None)
    rounded = weight.value()
    near: RoundedFrom | None = None
    along: tuple[float, RoundedFrom] | None = None
    direction = np.nan_to_num(rounded if np.isfinite(rounded).all() else weight.integers.astype(np.float64)).reshape(-1)
    for known, name, layer in candidates:
        for layout in known.layouts():
            wanted = layout.astype(np.float64).reshape(weight.integers.shape)
            found = _against(weight, rounded, wanted, name, layer)
            if not found.wrong and (near is None or found.error < near.error):
                near = found
            alike = _cosine(direction, wanted.reshape(-1))
            if along is None or alike > along[0]:
                along = (alike, found)
    if near is not None:
        return near
    least = _ALONG_FEW if rounded.size < _FEW else _ALONG
    return along[1] if along is not None and along[0] >= least and rounded.size > 1 else RoundedFrom(weight, None)


def _against(weight: RoundedWeight, rounded: Array, wanted: Array, name: str, layer: str) -> RoundedFrom:
    """What is clipped lies beyond an end of the integers, on the far side of what stands for that end."""
    grid, largest = weight.grid, float(np.abs(wanted).max(initial=0.0))
    slack = ROUNDINGS * float(np.finfo(np.float32).eps) * largest
    with np.errstate(all="ignore"):
        steps = (np.abs(rounded - wanted) - slack) / grid.along(grid.scale, wanted)
        clipped = ((weight.integers == grid.high) & (wanted > rounded)) | (
            (weight.integers == grid.low) & (wanted < rounded)
        )
        clipped &= steps > _HALF
    errors = np.nan_to_num(np.where(clipped, 0.0, np.maximum(steps, 0.0)), nan=np.inf)
    place = int(errors.argmax())
    return RoundedFrom(weight, wanted, name, layer, float(errors.flat[place]), place, float(clipped.mean()))


def _cosine(one: Array, two: Array) -> float:
    length = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / length if length > 0 else 0.0
