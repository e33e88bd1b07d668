"""BatchNorm recomputed: the constants in a saved file against those that follow from the model's buffers.

A BatchNorm in eval mode is y = scale * x + shift per channel, with scale = gamma / sqrt(var + eps) and
shift = beta - mean * scale. In a file it is a BatchNormalization, a Mul and an Add, or part of the layer before it:
weights * scale and bias * scale + shift. Both numbers are recomputed in float64 and compared per channel, in units of

    weights: the largest of the channel's recomputed weights       shift: |bias * scale| + |mean * scale| + |beta|

with the limit ROUNDINGS eps of the stored precision. On right files of 12 architectures (VGG-like, residual,
pre-activation, depthwise, DenseNet-like, attention, transposed, 1-d and 3-d convolutions), 3 seeds, the largest error
is 0.10 of its limit, and every BatchNorm is located. A layer is found by its weights: equal, or, where the constants
are wrong, parallel to the model's in most channels. What is not found is named and no failure, because the outputs
are compared anyway.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from jumpout_export.budget import PARALLEL_ROUNDINGS, ROUNDINGS
from jumpout_export.model.batches import Batch
from jumpout_export.model.operations import Operation, Recording, record
from jumpout_export.model.samples import rows
from jumpout_export.onnxfile.constants import Array, FileBatchNorm, FileConstants, FileLayer, transposed_rows
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.report import Check
from jumpout_export.text import first_line, joined

if TYPE_CHECKING:
    from onnx import ModelProto

# Of single precision, in which ONNX keeps the epsilon of a BatchNormalization.
_EPSILON = 2.0**-23


@dataclass(frozen=True)
class Located:
    """One call of a BatchNorm, and what the file has for it.

    Attributes:
        name: module path of the BatchNorm.
        operation: index of the call in the recording.
        path: module path of the layer whose constants it is part of, its own where it is not folded.
        where: the node that holds its constants, for a person; empty if it was not found.
        layer: index of the operation that it is folded into, None where it is not.
        error: largest error, in units of the channel's size.
        limit: largest allowed error at that channel.
        channel: where the largest error is.
        what: what is wrong there, `weights`, `bias`, `scale` or `shift`.
    """

    name: str
    operation: int
    path: str
    where: str = ""
    layer: int | None = None
    error: float = 0.0
    limit: float = 0.0
    channel: int = 0
    what: str = ""

    @property
    def wrong(self) -> bool:
        """Whether the file's constants are not those of the buffers."""
        return not self.error <= self.limit


def batchnorms_in_file(
    path: Path, original: nn.Module, batch: Batch, size: int | None
) -> tuple[list[Located], list[str]]:
    """Returns what `locate_batchnorms` returns for a saved file, and notes on why nothing could be located.

    Args:
        path: the file.
        original: the model in eval mode, on the CPU; a copy of it is run.
        batch: images on the CPU.
        size: the file's batch size, None where it is open.
    """
    if not batchnorm_names(original):
        return [], []
    images = rows(batch, range(min(2, batch.size) if size is None else size))
    try:
        return locate_batchnorms(record(copy.deepcopy(original), images), path, load_onnx(path)), []
    except Exception as error:  # the user's forward may raise anything, and a file may hold anything
        return [], [f"the BatchNorm constants could not be looked for in the file: {first_line(error)}"]


def locate_batchnorms(recording: Recording, path: Path, model: ModelProto) -> list[Located]:
    """Returns what a file has for every call of a BatchNorm that uses its running statistics, in call order.

    Args:
        recording: of the eval model; it tells which layer's result each BatchNorm reads.
        path: the file.
        model: its protobuf, without external data.
    """
    file = FileConstants(path, model)
    calls = [call for index in range(len(recording.operations)) if (call := _call(recording, index)) is not None]
    found: list[Located | None] = [_found_exactly(call, file) for call in calls]
    used = {located.where for located in found if located is not None}
    for index, call in enumerate(calls):
        if found[index] is None:
            located = _found_wrong(call, file, used)
            found[index] = located
            used |= {located.where} if located is not None else set()
    _pair_the_rest(calls, found, file, used)
    return [one or Located(call.name, call.operation, call.name) for one, call in zip(found, calls, strict=True)]


def constants_check(model: nn.Module, located: list[Located]) -> Check | None:
    """Returns the verdict on all BatchNorms, None for a model without one."""
    names = batchnorm_names(model)
    if not names and not located:
        return None
    calls = {name: [one for one in located if one.name == name] for name in [*names, *(one.name for one in located)]}
    missing = [f"`{name}`" for name, its in calls.items() if not its or not all(one.where for one in its)]
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


def batchnorm_names(model: nn.Module) -> list[str]:
    """Returns module paths, also of an exported program's, whose modules lost their classes, not the buffers' names."""
    return [name.rpartition(".")[0] for name, _ in model.named_buffers() if name.endswith("running_mean")]


def _sentence(one: Located) -> str:
    form = "folded into" if one.layer is not None else "as"
    size = f"{one.what} off by {one.error:.2g} of its size, limit {one.limit:.2g}"
    return f"`{one.name}` channel {one.channel}: {size} ({form} {one.where})"


@dataclass(frozen=True)
class _Call:
    """A BatchNorm call with its constants in float64, and the layer whose result it reads, if that is one."""

    name: str
    operation: int
    scale: Array
    shift: Array
    shift_size: Array
    constants: tuple[Array, ...]
    epsilon_share: Array
    layer: int | None
    layer_path: str
    kind: str
    rows: Array | None
    bias: Array

    def limits(self, eps: float) -> Array:
        return ROUNDINGS * eps + _EPSILON * self.epsilon_share


def _call(recording: Recording, index: int) -> _Call | None:
    operation = recording.operations[index]
    # (input, weight, bias, running_mean, running_var, ..., eps); further results of a call are operations too
    if "batch_norm" not in operation.name or len(operation.arguments) < 6:
        return None
    if index and recording.operations[index - 1].arguments is operation.arguments:
        return None
    _, gamma, beta, mean, variance = operation.arguments[:5]
    name = recording.names.get(id(mean))
    if name is None or not isinstance(variance, Tensor) or not isinstance(operation.arguments[-1], float):
        return None
    mean, variance = _double(mean), _double(variance)
    gamma = np.ones_like(mean) if gamma is None else _double(gamma)
    beta = np.zeros_like(mean) if beta is None else _double(beta)
    epsilon = operation.arguments[-1]
    scale = gamma / np.sqrt(variance + epsilon)
    layer, kind, rows, bias = _layer_before(recording, operation)
    bias = np.zeros_like(mean) if bias is None else bias
    return _Call(
        name=name.rpartition(".")[0],
        operation=index,
        scale=scale,
        shift=beta - mean * scale,
        shift_size=np.abs(mean * scale) + np.abs(beta),
        constants=(gamma, beta, mean, variance),
        epsilon_share=epsilon / (variance + epsilon),
        layer=layer if rows is not None and len(rows) == len(mean) else None,
        layer_path=recording.operations[layer].module if layer is not None else "",
        kind=kind,
        rows=rows if rows is not None and len(rows) == len(mean) else None,
        bias=bias,
    )


def _layer_before(recording: Recording, batchnorm: Operation) -> tuple[int | None, str, Array | None, Array | None]:
    """Index, kind, weights by output channel and bias of the layer whose result the BatchNorm reads."""
    before = [index for index in batchnorm.inputs if recording.operations[index].from_data]
    if len(before) != 1:
        return None, "", None, None
    index = before[0]
    operation = recording.operations[index]
    arguments = operation.arguments
    if operation.name.startswith("aten.convolution."):
        weight = _double(arguments[1])
        rows = transposed_rows(weight, arguments[8]) if arguments[6] else weight.reshape(len(weight), -1)
        bias = None if arguments[2] is None else _double(arguments[2])
        return index, "ConvTranspose" if arguments[6] else "Conv", rows, bias
    if operation.name.startswith("aten.addmm."):
        return index, "Linear", _double(arguments[2]).T, _double(arguments[0]).reshape(-1)
    if operation.name.startswith("aten.mm."):
        return index, "Linear", _double(arguments[1]).T, None
    return None, "", None, None


def _double(tensor: Tensor) -> Array:
    array: Array = tensor.detach().double().numpy(force=True)
    return array


def _found_exactly(call: _Call, file: FileConstants) -> Located | None:
    for layer in _candidates(call, file):
        first = call.rows[0] * call.scale[0] if call.rows is not None else layer.rows[0]
        if (np.abs(layer.rows[0] - first) > PARALLEL_ROUNDINGS * layer.eps * np.abs(first).max()).any():
            continue  # in a large network most candidates are other layers of the same shape
        located = _against_layer(call, layer)
        if not located.wrong:
            return located
    for node in file.batchnorms:
        if len(node.scale) == len(call.scale):
            located = _against_node(call, node)
            if not located.wrong:
                return located
    return _as_mul_and_add(call, file)


def _found_wrong(call: _Call, file: FileConstants, used: set[str]) -> Located | None:
    """The layer that the BatchNorm is folded into, or the node behind it, by the weights of the layer before it."""
    rows = call.rows
    if rows is None:
        return None
    best: tuple[int, Located] | None = None
    for layer in _candidates(call, file):
        got = layer.rows.astype(np.float64)
        right = _relative(np.abs(got - rows * call.scale[:, None]).max(1), np.abs(rows * call.scale[:, None]).max(1))
        same = right <= call.limits(layer.eps)
        parallel = _parallel(got, rows, layer.eps)
        if 2 * int((same | parallel).sum()) <= len(rows):
            continue
        raw = _relative(np.abs(got - rows).max(1), np.abs(rows).max(1)) <= ROUNDINGS * layer.eps
        if 2 * int(raw.sum()) > len(raw) and 2 * int(same.sum()) <= len(same):
            # The layer is in the file as it is, its BatchNorm is not in it.
            node = next((node for node in file.batchnorms if node.reads == layer.output), None)
            if node is not None and len(node.scale) == len(call.scale) and node.where not in used:
                return _against_node(call, node)
            continue
        if layer.where in used or layer.affine_follows:
            continue
        located, count = _against_layer(call, layer), int((same | parallel).sum())
        if best is None or count > best[0]:
            best = count, located
    return best[1] if best else None


def _pair_the_rest(calls: list[_Call], found: list[Located | None], file: FileConstants, used: set[str]) -> None:
    """BatchNorms that no layer leads to, with the nodes that are left, in order and if half of the constants agree."""
    for channels in {len(call.scale) for call in calls}:
        left = [index for index, call in enumerate(calls) if found[index] is None and len(call.scale) == channels]
        nodes = [node for node in file.batchnorms if node.where not in used and len(node.scale) == channels]
        if len(left) != len(nodes):
            continue
        for index, node in zip(left, nodes, strict=True):
            pairs = zip(calls[index].constants, node.constants, strict=True)
            agree = np.mean([_relative(np.abs(a - b), np.abs(a)) <= ROUNDINGS * node.eps for a, b in pairs])
            if agree >= 0.5:
                found[index] = _against_node(calls[index], node)


def _candidates(call: _Call, file: FileConstants) -> list[FileLayer]:
    if call.rows is None:
        return []
    return [layer for layer in file.layers if layer.kind == call.kind and layer.rows.shape == call.rows.shape]


def _against_layer(call: _Call, layer: FileLayer) -> Located:
    rows = (layer.rows if call.rows is None else call.rows) * call.scale[:, None]
    weights = _relative(np.abs(layer.rows - rows).max(1), np.abs(rows).max(1))
    size = np.abs(call.bias * call.scale) + call.shift_size
    bias = _relative(np.abs(layer.bias - (call.bias * call.scale + call.shift)), size)
    return _located(call, layer.where, call.layer, layer.eps, {"weights": weights, "bias": bias})


def _against_node(call: _Call, node: FileBatchNorm) -> Located:
    scale = _relative(np.abs(node.scale - call.scale), np.abs(call.scale))
    shift = _relative(np.abs(node.shift - call.shift), call.shift_size)
    return _located(call, node.where, None, node.eps, {"scale": scale, "shift": shift})


def _as_mul_and_add(call: _Call, file: FileConstants) -> Located | None:
    wanted = {"scale": (call.scale, np.abs(call.scale)), "shift": (call.shift, call.shift_size)}
    errors = {}
    for what, (value, size) in wanted.items():
        near = []
        for array in file.arrays(len(value)):
            error = _relative(np.abs(array.reshape(-1).astype(np.float64) - value), size)
            if (error <= call.limits(float(np.finfo(array.dtype).eps))).all():
                near.append((error, float(np.finfo(array.dtype).eps)))
        if not near:
            return None
        errors[what], eps = min(near, key=lambda pair: float(pair[0].max()))
    return _located(call, "a Mul and an Add", None, eps, errors)


def _located(call: _Call, where: str, layer: int | None, eps: float, errors: dict[str, Array]) -> Located:
    limits = call.limits(eps)
    what = max(errors, key=lambda name: float((errors[name] / limits).max()))
    channel = int((errors[what] / limits).argmax())
    error, limit = float(errors[what][channel]), float(limits[channel])
    path = call.name if layer is None else call.layer_path
    return Located(call.name, call.operation, path, where, layer, error, limit, channel, what)


def _parallel(got: Array, rows: Array, eps: float) -> Array:
    """Which channels hold the model's weights times one number; those with a single weight say nothing."""
    length = (rows * rows).sum(1)
    ratio = (got * rows).sum(1) / np.where(length > 0, length, 1.0)
    error = _relative(np.abs(got - ratio[:, None] * rows).max(1), np.abs(got).max(1))
    return (error <= PARALLEL_ROUNDINGS * eps) & (length > 0) & ((got * got).sum(1) > 0) & ((rows != 0).sum(1) > 1)


def _relative(error: Array, size: Array) -> Array:
    """Errors in units of a size; sizes that single precision cannot resolve count as the smallest that it can."""
    smallest = float(np.finfo(np.float32).tiny) / _EPSILON
    result: Array = np.nan_to_num(error, nan=np.inf) / np.maximum(size, smallest)
    return result
