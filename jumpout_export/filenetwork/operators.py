"""Operators of ONNX in PyTorch: those that weights go through, and those that would be slow without it.

A function takes the attributes of a node and its inputs, None for one that is left out. It raises `NotHereError` where
a node needs something that PyTorch's operator has not; the reference implementation of the onnx package runs it then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attributes = Mapping[str, Any]
Operator = Callable[..., "Tensor | tuple[Tensor, ...]"]


class NotHereError(Exception):
    """A node that PyTorch has no operator for."""


def _spatial(attributes: Attributes, x: Tensor) -> tuple[list[int], list[int]]:
    """The padding and the stride of each axis."""
    dims = x.ndim - 2
    pads = list(attributes.get("pads", [0] * 2 * dims))
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or pads[:dims] != pads[dims:]:
        raise NotHereError("pads that PyTorch has not")
    return pads[:dims], list(attributes.get("strides", [1] * dims))


def conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv: (n, channels, *) with (out, channels / group, *)."""
    dims = x.ndim - 2
    pads = list(attributes.get("pads", [0] * 2 * dims))
    if attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and pads[:dims] != pads[dims:]:
        ends = [side for axis in reversed(range(dims)) for side in (pads[axis], pads[dims + axis])]
        x, attributes = F.pad(x, ends), {**attributes, "pads": [0] * 2 * dims}
    padding, stride = _spatial(attributes, x)
    dilation = list(attributes.get("dilations", [1] * dims))
    group = attributes.get("group", 1)
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * dims, group)


def conv_transpose(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ConvTranspose: (n, channels, *) with (channels, out / group, *)."""
    if "output_shape" in attributes:
        raise NotHereError("output_shape")
    padding, stride = _spatial(attributes, x)
    dims = x.ndim - 2
    dilation = list(attributes.get("dilations", [1] * dims))
    more = list(attributes.get("output_padding", [0] * dims))
    return torch.convolution(x, weight, bias, stride, padding, dilation, True, more, attributes.get("group", 1))


def gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm: alpha * A B + beta * C, either of A and B transposed where that is asked for."""
    a = a.T if attributes.get("transA") else a
    b = b.T if attributes.get("transB") else b
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if c is None:
        return a @ b if alpha == 1 else alpha * (a @ b)
    return torch.addmm(c, a, b, alpha=alpha, beta=beta)


def batch_normalization(
    attributes: Attributes, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """BatchNormalization as it serves."""
    if attributes.get("training_mode"):
        raise NotHereError("training_mode")
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, attributes.get("epsilon", 1e-5))


def layer_normalization(attributes: Attributes, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """LayerNormalization, of which the first result is used."""
    axis = attributes.get("axis", -1) % x.ndim
    if scale.shape != x.shape[axis:]:
        raise NotHereError("a scale of another shape")
    return F.layer_norm(x, list(x.shape[axis:]), scale, shift, attributes.get("epsilon", 1e-5))


def instance_normalization(attributes: Attributes, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """InstanceNormalization."""
    return F.instance_norm(x, None, None, scale, shift, True, 0.0, attributes.get("epsilon", 1e-5))


def _pooled(attributes: Attributes, x: Tensor) -> tuple[list[int], list[int]]:
    padding, stride = _spatial(attributes, x)
    too_far = any(2 * pad > size for pad, size in zip(padding, attributes["kernel_shape"], strict=True))
    if too_far or x.ndim not in (3, 4, 5) or attributes.get("ceil_mode") or attributes.get("storage_order"):
        raise NotHereError("a pool of another kind")
    return padding, stride


def group_normalization(attributes: Attributes, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """GroupNormalization since opset 21: a scale for each channel."""
    if scale.shape != x.shape[1:2]:
        raise NotHereError("a scale for each group")
    return F.group_norm(x, attributes["num_groups"], scale, shift, attributes.get("epsilon", 1e-5))


def max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """MaxPool, of which the first result is used."""
    padding, stride = _pooled(attributes, x)
    size = attributes["kernel_shape"]
    dilation = list(attributes.get("dilations", [1] * (x.ndim - 2)))
    return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3](x, size, stride, padding, dilation)


def average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """AveragePool."""
    padding, stride = _pooled(attributes, x)
    if max(attributes.get("dilations", [1])) > 1:
        raise NotHereError("dilations")
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    counted = bool(attributes.get("count_include_pad", 0))
    return pool(x, attributes["kernel_shape"], stride, padding, count_include_pad=counted)


def gather(attributes: Attributes, data: Tensor, index: Tensor) -> Tensor:
    """Gather: a look-up along an axis; a negative index counts from the end."""
    axis = attributes.get("axis", 0) % data.ndim
    flat = index.reshape(-1).long()
    if bool((flat < 0).any()):
        flat = torch.where(flat < 0, flat + data.shape[axis], flat)
    found = data.index_select(axis, flat)
    return found.reshape(*data.shape[:axis], *index.shape, *data.shape[axis + 1 :])


def flatten(attributes: Attributes, x: Tensor) -> Tensor:
    """Flatten: into a matrix, the axes before `axis` along its rows; that many may be none, or all."""
    axis = attributes.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def gelu(attributes: Attributes, x: Tensor) -> Tensor:
    """Gelu."""
    return F.gelu(x, approximate=attributes.get("approximate", "none"))


def _plain(function: Callable[..., Tensor]) -> Operator:
    """An operator without attributes."""

    def run(attributes: Attributes, *inputs: Tensor) -> Tensor:
        if attributes:
            raise NotHereError(", ".join(attributes))
        return function(*inputs)

    return run


OPERATORS: dict[str, Operator] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "BatchNormalization": batch_normalization,
    "LayerNormalization": layer_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "Gather": gather,
    "Gelu": gelu,
    "Einsum": lambda attributes, *inputs: torch.einsum(attributes["equation"], *inputs),
    "Flatten": flatten,
    "GlobalAveragePool": _plain(lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True)),
    "LeakyRelu": lambda attributes, x: F.leaky_relu(x, attributes.get("alpha", 0.01)),
    "Transpose": lambda attributes, x: x.permute(attributes.get("perm", [*reversed(range(x.ndim))])),
    "MatMul": _plain(torch.matmul),
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Relu": _plain(torch.relu),
    "Sigmoid": _plain(torch.sigmoid),
    "Tanh": _plain(torch.tanh),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Sqrt": _plain(torch.sqrt),
    "Identity": _plain(torch.clone),
}
