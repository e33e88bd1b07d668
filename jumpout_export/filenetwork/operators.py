"""Operators of ONNX in PyTorch: those that weights go through, and those that would be slow without it.

A function takes the attributes of a node and its inputs, None for one that is left out. It raises `NotHereError` where
a node needs something that PyTorch's operator has not; the reference implementation of the onnx package runs it then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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


def _ends(pads: Sequence[int]) -> list[int]:
    """ONNX's padding, the beginnings of all axes before their ends, as PyTorch has it: the last axis first."""
    dims = len(pads) // 2
    return [side for axis in reversed(range(dims)) for side in (pads[axis], pads[dims + axis])]


def conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv: (n, channels, *) with (out, channels / group, *)."""
    dims = x.ndim - 2
    pads = list(attributes.get("pads", [0] * 2 * dims))
    if attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and pads[:dims] != pads[dims:]:
        x, attributes = F.pad(x, _ends(pads)), {**attributes, "pads": [0] * 2 * dims}
    padding, stride = _spatial(attributes, x)
    dilation = list(attributes.get("dilations", [1] * dims))
    group = attributes.get("group", 1)
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * dims, group)


def conv_transpose(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ConvTranspose: (n, channels, *) with (channels, out / group, *)."""
    dims = x.ndim - 2
    stride = list(attributes.get("strides", [1] * dims))
    dilation = list(attributes.get("dilations", [1] * dims))
    more = list(attributes.get("output_padding", [0] * dims))
    pads = list(attributes.get("pads", [0] * 2 * dims))
    auto = attributes.get("auto_pad", "NOTSET")
    sizes = attributes.get("output_shape")
    if sizes is None and auto.startswith("SAME"):
        sizes = [size * step for size, step in zip(x.shape[2:], stride, strict=True)]
    group = attributes.get("group", 1)
    if sizes is None and pads[:dims] == pads[dims:]:
        return torch.convolution(x, weight, bias, stride, pads[:dims], dilation, True, more, group)
    whole = torch.convolution(x, weight, None, stride, [0] * dims, dilation, True, more, group)
    if sizes is not None:
        over = [have - want for have, want in zip(whole.shape[2:], sizes, strict=True)]
        less, rest = [one // 2 for one in over], [one - one // 2 for one in over]
        pads = [*less, *rest] if auto == "SAME_UPPER" else [*rest, *less]
    cut = F.pad(whole, [-one for one in _ends(pads)])
    return cut if bias is None else cut + bias.reshape(-1, *[1] * dims)


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
    pads = list(attributes.get("pads", []))
    dims = x.ndim - 2
    if pads[:dims] != pads[dims:] and not attributes.get("ceil_mode"):
        x, attributes = F.pad(x, _ends(pads), value=-math.inf), {**attributes, "pads": [0] * 2 * dims}
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


def pad(
    attributes: Attributes, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Pad with one value; what is negative is cut off."""
    if attributes.get("mode", "constant") != "constant":
        raise NotHereError("another mode")
    given = list(attributes["pads"]) if pads is None else pads.tolist()
    where = [*range(x.ndim)] if axes is None else [axis % x.ndim for axis in axes.reshape(-1).tolist()]
    every = [0] * 2 * x.ndim
    for number, axis in enumerate(where):
        every[axis], every[x.ndim + axis] = given[number], given[len(where) + number]
    fill = attributes.get("value", 0.0) if value is None else value.reshape(-1)[0].item()
    return F.pad(x, _ends(every), value=fill)


def grid_sample(attributes: Attributes, x: Tensor, grid: Tensor) -> Tensor:
    """GridSample; the modes have other names before opset 20."""
    names = {"linear": "bilinear", "cubic": "bicubic"}
    given = str(attributes.get("mode", "bilinear"))
    mode = names.get(given, given)
    if mode == "bicubic" and x.ndim != 4:
        raise NotHereError("cubic in other dimensions")
    corners = bool(attributes.get("align_corners", 0))
    return F.grid_sample(x, grid, mode, attributes.get("padding_mode", "zeros"), corners)


def local_response(attributes: Attributes, x: Tensor) -> Tensor:
    """LRN."""
    size = attributes["size"]
    if size % 2 == 0:
        raise NotHereError("a window without a middle")
    alpha, beta, bias = (attributes.get(*one) for one in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    return F.local_response_norm(x, size, alpha, beta, bias)


def _flat(function: Callable[[Tensor], Tensor]) -> Operator:
    """An operator that took all axes from `axis` on as one, before opset 13."""

    def run(attributes: Attributes, x: Tensor) -> Tensor:
        return function(flatten(attributes, x)).reshape(x.shape)

    return run


def _first_largest(x: Tensor) -> Tensor:
    return F.one_hot(x.argmax(1), x.shape[1]).to(x.dtype)


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
    "GridSample": grid_sample,
    "LRN": local_response,
    "Pad": pad,
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

# What an operator was before an opset, where the reference implementation knows it as it is since.
FORMER: dict[str, tuple[int, Operator]] = {
    "Softmax": (13, _flat(lambda x: x.softmax(1))),
    "LogSoftmax": (13, _flat(lambda x: x.log_softmax(1))),
    "Hardmax": (13, _flat(_first_largest)),
}
