"""BatchNorm recomputed: the constants in a saved file against those that follow from the model's buffers.

What `calls.py` makes of the model's buffers is compared with what `onnxfile/constants.py` finds in the file, per
channel, in units of

    weights: the largest of the channel's recomputed weights       shift: |bias * scale| + |mean * scale| + |beta|

with the limit ROUNDINGS eps of the stored precision. On right files of 12 architectures (VGG-like, residual,
pre-activation, depthwise, DenseNet-like, attention, transposed, 1-d and 3-d convolutions), 3 seeds, the largest error
is 0.10 of its limit, and every BatchNorm is located. A layer is found by its weights: equal, or, where the constants
are wrong, parallel to the model's in most channels. What is not found is named and no failure, because the outputs
are compared anyway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from jumpout_export.model.norms import statistics_owners
from jumpout_export.model.operations import Recording
from jumpout_export.onnxfile.constants import Array, FileConstants, Holder
from jumpout_export.report import Check
from jumpout_export.text import joined
from jumpout_export.tolerances import PARALLEL_ROUNDINGS, ROUNDINGS
from jumpout_export.verify.constants.calls import Call, batchnorm_calls, relative

if TYPE_CHECKING:
    from onnx import ModelProto

# What the model's own forward computes, outside of every submodule.
ROOT = "."


@dataclass(frozen=True)
class Located:
    """One call of a BatchNorm, and what the file has for it."""

    name: str  # module path of the BatchNorm
    operation: int  # index of the call in the recording
    path: str  # module path of the layer whose constants it is part of, its own where it is not folded
    where: str = ""  # the node that holds its constants, for a person; empty if it was not found
    layer: int | None = None  # index of the operation that it is folded into, None where it is not
    error: float = 0.0  # largest error, in units of the channel's size
    limit: float = 0.0  # largest allowed error at that channel
    channel: int = 0  # where the largest error is
    what: str = ""  # what is wrong there, `weights`, `bias`, `scale` or `shift`
    constants: tuple[str, ...] = ()  # names of the constants of the file that it is in

    @property
    def wrong(self) -> bool:
        """Whether the file's constants are not those of the buffers."""
        return not self.error <= self.limit


def locate_batchnorms(recording: Recording, path: Path, model: ModelProto) -> list[Located]:
    """Returns what a file has for every call of a BatchNorm that uses its running statistics, in call order.

    Args:
        recording: of the eval model; it tells which layer's result each BatchNorm reads.
        path: the file.
        model: its protobuf, without external data.
    """
    file = FileConstants(path, model)
    calls = batchnorm_calls(recording)
    found = {call.operation: _right(call, file) for call in calls}
    _share(calls, found)
    used = {located.where for located in found.values() if located is not None}
    for call in reversed(calls):  # of several BatchNorms behind one layer, the last one first: all may be part of it
        if found[call.operation] is None:
            located = _wrong(call, file, used)
            found[call.operation] = located
            used |= {located.where} if located is not None else set()
            _share(calls, found)
    _pair_the_rest(calls, found, file, used)
    return [
        found[call.operation] or Located(call.name, call.operation, call.module)
        for call in calls
        if call.certain or found[call.operation] is not None
    ]


def _share(calls: list[Call], found: dict[int, Located | None]) -> None:
    """BatchNorms before one that is folded into a layer are folded into it too, if they are nowhere else."""
    for call in reversed(calls):
        last, before = found[call.operation], call.before
        if before is not None and last is not None and last.layer is not None and found[before.operation] is None:
            found[before.operation] = replace(last, name=before.name, operation=before.operation)


def constants_check(model: nn.Module, located: list[Located]) -> Check | None:
    """Returns the verdict on all BatchNorms, None for a model without one."""
    names = statistics_owners(model)
    if not names and not located:
        return None
    calls = {name: [one for one in located if one.name == name] for name in [*names, *(one.name for one in located)]}
    missing = [f"`{name or ROOT}`" for name, its in calls.items() if not its or not all(one.where for one in its)]
    there = [one for one in located if one.where]
    wrong = [one for one in there if one.wrong]
    worst = max(there, key=lambda one: one.error / one.limit if one.limit else math.inf, default=None)
    parts = [_sentence(one) for one in wrong] or ([f"worst: {_sentence(worst)}"] if worst else [])
    note = f"{len(calls) - len(missing)} of {len(calls)} located"
    note = "; ".join([*([joined(parts)] if wrong else []), note, *([] if wrong else parts)])
    note += f"; not located: {joined(missing)}" if missing else ""
    return Check(
        name="batchnorm constants",
        measured=worst.error if worst else None,
        limit=worst.limit if worst else None,
        verdict="fail" if wrong else "pass",
        note=note,
    )


def _sentence(one: Located) -> str:
    form = "folded into" if one.layer is not None else "as"
    size = f"{one.what} off by {one.error:.2g} of its size, limit {one.limit:.2g}"
    return f"`{one.name or ROOT}` channel {one.channel}: {size} ({form} {one.where})"


def _right(call: Call, file: FileConstants) -> Located | None:
    """The first place in the file that holds the constants."""
    for holder in _holders(call, file):
        first = [call.errors(part, got, 1) <= call.limits(holder.eps)[:1] for part, got in holder.parts.items()]
        if all(first):  # in a large network most are other layers of the same shape
            located = _against(call, holder)
            if not located.wrong:
                return located
    return _as_mul_and_add(call, file)


def _as_mul_and_add(call: Call, file: FileConstants) -> Located | None:
    arrays = [(name, array.reshape(-1)) for name, array in file.arrays(len(call.constants[0]))]
    if not arrays:
        return None
    errors = {part: [float(call.errors(part, one).max()) for _, one in arrays] for part in ("scale", "shift")}
    best = {part: arrays[int(np.argmin(errors[part]))] for part in errors}
    parts = {part: array for part, (_, array) in best.items()}
    eps = float(np.finfo(parts["shift"].dtype).eps)
    names = tuple(name for name, _ in best.values())
    located = _against(call, Holder("a Mul and an Add", "BatchNormalization", parts, eps, names=names))
    return None if located.wrong else located


def _wrong(call: Call, file: FileConstants, used: set[str]) -> Located | None:
    """The layer that the BatchNorm is folded into, or the node behind it, by the weights of the layer before it."""
    best, most = None, 0
    for layer in _holders(call, file):
        if call.layer is None or layer.kind != call.layer.kind:
            continue
        rows, got = call.layer.parts["weights"], layer.parts["weights"]
        same = call.errors("weights", got) <= call.limits(layer.eps)
        alike = int((same | _parallel(got.astype(np.float64), rows, layer.eps)).sum())
        if 2 * alike <= len(rows):
            continue
        raw = relative(got - rows, np.abs(rows).max(1)) <= ROUNDINGS * layer.eps
        if 2 * int(raw.sum()) > len(rows) >= 2 * int(same.sum()):
            # The layer is in the file as it is, its BatchNorm is not in it.
            nodes = [one for one in file.batchnorms if one.value == layer.value and one.where not in used]
            if nodes and len(nodes[0].constants[0]) == len(rows):
                return _against(call, nodes[0])
        elif layer.where not in used and not layer.affine_follows and alike > most:
            best, most = layer, alike
    return _against(call, best) if best is not None else None


def _pair_the_rest(calls: list[Call], found: dict[int, Located | None], file: FileConstants, used: set[str]) -> None:
    """BatchNorms that no layer leads to, with the nodes that are left, in order and if half of the constants agree."""
    for channels in {call.constants[0].shape for call in calls}:
        left = [call for call in calls if found[call.operation] is None and call.constants[0].shape == channels]
        nodes = [node for node in file.batchnorms if node.where not in used and node.constants[0].shape == channels]
        for call, node in zip(left, nodes, strict=True) if len(left) == len(nodes) else ():
            pairs = zip(call.constants, node.constants, strict=True)
            if np.mean([relative(a - b, np.abs(a)) <= ROUNDINGS * node.eps for a, b in pairs]) >= 0.5:
                found[call.operation] = _against(call, node)


def _holders(call: Call, file: FileConstants) -> list[Holder]:
    """Every layer like the one that the BatchNorm reads, then every node with its channels."""
    layers = file.layers(call.layer.kind, call.layer.parts["weights"].shape) if call.layer is not None else []
    return [*layers, *(one for one in file.batchnorms if one.parts["scale"].shape == call.constants[0].shape)]


def _against(call: Call, holder: Holder) -> Located:
    layer = call.layer if "weights" in holder.parts else None
    limits = call.limits(holder.eps)
    errors = {part: call.errors(part, got) for part, got in holder.parts.items()}
    what = max(errors, key=lambda part: float((errors[part] / limits).max()))
    channel = int((errors[what] / limits).argmax())
    return Located(
        name=call.name,
        operation=call.operation,
        path=call.module if layer is None else layer.where,
        where=holder.where,
        layer=None if layer is None else call.layer_operation,
        error=float(errors[what][channel]),
        limit=float(limits[channel]),
        channel=channel,
        what=what,
        constants=holder.names,
    )


def _parallel(got: Array, rows: Array, eps: float) -> Array:
    """Which channels hold the model's weights times one number; those with a single weight say nothing."""
    length = (rows * rows).sum(1)
    ratio = (got * rows).sum(1) / np.where(length > 0, length, 1.0)
    error = relative(got - ratio[:, None] * rows, np.abs(got).max(1))
    return (error <= PARALLEL_ROUNDINGS * eps) & (length > 0) & ((got * got).sum(1) > 0) & ((rows != 0).sum(1) > 1)
