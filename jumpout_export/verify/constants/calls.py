"""The BatchNorms that a model calls, as the constants that a right file may hold for each, in float64.

In eval mode a BatchNorm is y = scale * x + shift per channel, with scale = gamma / sqrt(var + eps) and shift =
beta - mean * scale. In a file that is a BatchNormalization, a Mul and an Add, or part of the layer before it: weights *
scale and bias * scale + shift.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from jumpout_export.model.norms import STATISTICS
from jumpout_export.model.operations import Operation, Recording
from jumpout_export.onnxfile.constants import Array, Holder, transposed_rows
from jumpout_export.tolerances import ROUNDINGS

# Of single precision, in which ONNX keeps the epsilon of a BatchNormalization.
_EPSILON = 2.0**-23


class Call:
    """A call of a BatchNorm that uses its running statistics.

    Attributes:
        name: module path; that of its mean, if its buffers have names of their own.
        module: path of the module that has its buffers.
        operation: index of the call in the recording.
        certain: whether its statistics are buffers as they are, which a file has to hold in one form or another.
        constants: gamma, beta, mean and variance, (channels,) each.
        layer: whose result it reads, `where` its module path; None if that is no layer with its channels.
        layer_operation: index of that layer in the recording.
        before: the BatchNorm between that layer and this one; the layer is the one with that folded into it, then.
    """

    def __init__(
        self,
        name: str,
        operation: int,
        constants: tuple[Array, ...],
        epsilon: float,
        layer: Holder | None = None,
        layer_operation: int | None = None,
        before: Call | None = None,
    ) -> None:
        gamma, beta, mean, variance = constants
        self.name, self.operation, self.constants = name, operation, constants
        self.module, self.certain = name, True
        self.layer, self.layer_operation, self.before = layer, layer_operation, before
        self._scale = scale = gamma / np.sqrt(variance + epsilon)
        shift, size = beta - mean * scale, np.abs(mean * scale) + np.abs(beta)
        self._wanted = {"scale": (scale, np.abs(scale)), "shift": (shift, size)}
        if layer is not None:
            own = layer.parts["bias"]
            own_size = np.abs(own) if before is None else before._wanted["bias"][1]
            self._wanted["bias"] = own * scale + shift, own_size * np.abs(scale) + size
        self._epsilon_share = epsilon / (variance + epsilon)
        if before is not None:
            self._epsilon_share = self._epsilon_share + before._epsilon_share

    def folded(self) -> Holder | None:
        """Returns the layer that it reads with itself folded into it, None without a layer."""
        if self.layer is None:
            return None
        parts = {"weights": self.layer.parts["weights"] * self._scale[:, None], "bias": self._wanted["bias"][0]}
        return replace(self.layer, parts=parts)

    def errors(self, part: str, got: Array, first: int | None = None) -> Array:
        """Returns by how much one of a holder's parts is off, per channel in units of its size.

        Args:
            part: its name.
            got: it.
            first: so many channels, instead of all.
        """
        if part == "weights" and self.layer is not None:
            wanted = self.layer.parts["weights"][:first] * self._scale[:first, None]
            return relative(got[:first] - wanted, np.abs(wanted).max(1))
        wanted, size = self._wanted[part]
        return relative(got[:first] - wanted[:first], size[:first])

    def limits(self, eps: float) -> Array:
        """Returns the largest errors of a right file that stores numbers in a precision of this eps."""
        return ROUNDINGS * eps + _EPSILON * self._epsilon_share


def relative(error: Array, size: Array) -> Array:
    """Returns the largest error per channel in units of a size; what single precision cannot resolve is no size."""
    smallest = float(np.finfo(np.float32).tiny) / _EPSILON
    error = np.nan_to_num(np.abs(error), nan=np.inf)
    result: Array = (error if error.ndim == 1 else error.max(1)) / np.maximum(size, smallest)
    return result


def batchnorm_calls(recording: Recording) -> list[Call]:
    """Returns the calls of BatchNorms that use their running statistics, in their order."""
    calls: dict[int, Call] = {}
    for index in range(len(recording.operations)):
        call = _call(recording, index, calls)
        if call is not None:
            calls[index] = call
    return list(calls.values())


def _call(recording: Recording, index: int, calls: dict[int, Call]) -> Call | None:
    operation = recording.operations[index]
    # (input, weight, bias, running_mean, running_var, ..., eps); further results of a call are operations too
    if "batch_norm" not in operation.name or len(operation.arguments) < 6 or operation.arguments[5] is True:
        return None
    if index and recording.operations[index - 1].arguments is operation.arguments:
        return None
    _, gamma, beta, mean, variance = operation.arguments[:5]
    epsilon = operation.arguments[-1]
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or not isinstance(epsilon, float):
        return None
    from_data = [one for one in operation.inputs if recording.operations[one].from_data]
    if any(len(recording.operations[one].shape) == 1 for one in from_data):
        return None  # statistics of the data
    name = recording.names.get(id(mean))
    mean, variance = _double(mean), _double(variance)
    gamma = np.ones_like(mean) if gamma is None else _double(gamma)
    beta = np.zeros_like(mean) if beta is None else _double(beta)
    before = calls.get(from_data[0]) if len(from_data) == 1 else None
    if before is not None and len(before.constants[0]) == len(mean):
        layer, layer_operation = before.folded(), before.layer_operation
    else:
        before = None
        layer = _layer(recording.operations[from_data[0]], len(mean)) if len(from_data) == 1 else None
        layer_operation = from_data[0] if layer is not None else None
    path, _, last = (name or "").rpartition(".")
    call = Call(
        path if last == STATISTICS[0] or name is None else name,
        index,
        (gamma, beta, mean, variance),
        epsilon,
        layer,
        layer_operation,
        before if layer is not None else None,
    )
    call.module = operation.module if name is None else path
    if name is None:  # statistics that are made of others, as a tracking InstanceNorm repeats its own
        call.name, call.certain = operation.module, False
    return call


def _layer(operation: Operation, channels: int) -> Holder | None:
    arguments, kind, bias = operation.arguments, "Linear", None
    if operation.name.startswith("aten.convolution."):
        weight, bias, kind = _double(arguments[1]), arguments[2], "ConvTranspose" if arguments[6] else "Conv"
        rows = transposed_rows(weight, arguments[8]) if arguments[6] else weight.reshape(len(weight), -1)
    elif operation.name.startswith("aten.addmm."):
        alpha, beta = (float(operation.options.get(name, 1.0)) for name in ("alpha", "beta"))
        rows, bias = alpha * _double(arguments[2]).T, beta * arguments[0] if beta else None
    elif operation.name.startswith("aten.mm."):
        rows = _double(arguments[1]).T
    else:
        return None
    if len(rows) != channels or (bias is not None and bias.numel() not in (1, channels)):
        return None
    parts = {"weights": rows, "bias": np.zeros(channels) + (0.0 if bias is None else _double(bias).reshape(-1))}
    return Holder(operation.module, kind, parts, float(np.finfo(np.float64).eps))


def _double(tensor: Tensor) -> Array:
    array: Array = tensor.detach().double().numpy(force=True)
    return array
