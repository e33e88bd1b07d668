"""The BatchNorms that a model calls, as the constants that a right file may hold for each, in float64.

In eval mode a BatchNorm is y = scale * x + shift per channel, with scale = gamma / sqrt(var + eps) and shift =
beta - mean * scale. In a file that is a BatchNormalization, a Mul and an Add, or part of the layer before it: weights *
scale and bias * scale + shift.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from jumpout_export.model.operations import Operation, Recording
from jumpout_export.onnxfile.constants import Array, Holder, transposed_rows
from jumpout_export.tolerances import ROUNDINGS

# Of single precision, in which ONNX keeps the epsilon of a BatchNormalization.
_EPSILON = 2.0**-23


class Call:
    """A call of a BatchNorm that uses its running statistics.

    Attributes:
        name: module path.
        operation: index of the call in the recording.
        constants: gamma, beta, mean and variance, (channels,) each.
        layer: whose result it reads, `where` its module path; None if that is no layer with its channels.
        layer_operation: index of that layer in the recording.
        shapes: of the largest part that a node of the file must have to hold the constants, by its kind.
    """

    def __init__(
        self,
        name: str,
        operation: int,
        constants: tuple[Array, ...],
        epsilon: float,
        layer: Holder | None = None,
        layer_operation: int | None = None,
    ) -> None:
        gamma, beta, mean, variance = constants
        self.name, self.operation, self.constants = name, operation, constants
        self.layer, self.layer_operation = layer, layer_operation
        self._scale = scale = gamma / np.sqrt(variance + epsilon)
        shift, size = beta - mean * scale, np.abs(mean * scale) + np.abs(beta)
        self.shapes: dict[str, tuple[int, ...]] = {"BatchNormalization": scale.shape}
        self._wanted = {"scale": (scale, np.abs(scale)), "shift": (shift, size)}
        if layer is not None:
            self.shapes[layer.kind] = layer.parts["weights"].shape
            bias = layer.parts["bias"] * scale
            self._wanted["bias"] = bias + shift, np.abs(bias) + size
        self._epsilon_share = epsilon / (variance + epsilon)

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
    calls = (_call(recording, index) for index in range(len(recording.operations)))
    return [call for call in calls if call is not None]


def _call(recording: Recording, index: int) -> Call | None:
    operation = recording.operations[index]
    # (input, weight, bias, running_mean, running_var, ..., eps); further results of a call are operations too
    if "batch_norm" not in operation.name or len(operation.arguments) < 6:
        return None
    if index and recording.operations[index - 1].arguments is operation.arguments:
        return None
    _, gamma, beta, mean, variance = operation.arguments[:5]
    epsilon, name = operation.arguments[-1], recording.names.get(id(mean))
    if name is None or not isinstance(variance, Tensor) or not isinstance(epsilon, float):
        return None
    mean, variance = _double(mean), _double(variance)
    gamma = np.ones_like(mean) if gamma is None else _double(gamma)
    beta = np.zeros_like(mean) if beta is None else _double(beta)
    before = [one for one in operation.inputs if recording.operations[one].from_data]
    layer = _layer(recording.operations[before[0]], len(mean)) if len(before) == 1 else None
    return Call(
        name.rpartition(".")[0], index, (gamma, beta, mean, variance), epsilon, layer, before[0] if layer else None
    )


def _layer(operation: Operation, channels: int) -> Holder | None:
    arguments, kind, bias = operation.arguments, "Linear", None
    if operation.name.startswith("aten.convolution."):
        weight, bias, kind = _double(arguments[1]), arguments[2], "ConvTranspose" if arguments[6] else "Conv"
        rows = transposed_rows(weight, arguments[8]) if arguments[6] else weight.reshape(len(weight), -1)
    elif operation.name.startswith("aten.addmm."):
        rows, bias = _double(arguments[2]).T, arguments[0]
    elif operation.name.startswith("aten.mm."):
        rows = _double(arguments[1]).T
    else:
        return None
    if len(rows) != channels:
        return None
    parts = {"weights": rows, "bias": np.zeros(channels) if bias is None else _double(bias).reshape(-1)}
    return Holder(operation.module, kind, parts, float(np.finfo(np.float64).eps))


def _double(tensor: Tensor) -> Array:
    array: Array = tensor.detach().double().numpy(force=True)
    return array
