"""What goes into the exported graph and what comes out: the tensors, their names, and which axes are the batch."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.nn.batches import Batch, split_batch

# What numpy, ONNX and ONNX Runtime's CPU provider all have. bfloat16: ONNX Runtime has no bfloat16 convolution on CPU.
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


@dataclass(frozen=True)
class Output:
    """One output tensor of a model and its name in the ONNX graph."""

    name: str
    tensor: Tensor


def example_batch(example: Any, model: nn.Module) -> Batch:
    """Returns the inputs in `example` (tensor, tuple, list, dict, or batch with labels), labels dropped.

    Raises:
        TypeError: if it holds no tensor, or something that is not a tensor.
        ValueError: if no input has a batch dimension or it is empty.
    """
    if isinstance(example, Batch):
        return example
    try:
        batch = dataclasses.replace(split_batch(example, model), labels=None)
    except TypeError as error:
        raise TypeError(f"example: {error}") from error
    for name, value in zip(input_names(model, batch), tensors(batch), strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"example: input `{name}` must be a tensor, got {type(value).__name__}; "
                "wrap the model in a module that fixes every other argument"
            )
    if not any(value.ndim for value in tensors(batch)):
        raise ValueError("example: at least one input must have a batch dimension, got only scalars")
    if batch.size == 0:
        raise ValueError(f"example: the batch must not be empty, got shape {tuple(tensors(batch)[0].shape)}")
    return batch


def onnx_batch(example: Any, model: nn.Module) -> Batch:
    """Returns what `example_batch` returns, on the CPU and in dtypes that ONNX Runtime's CPU provider has.

    Raises:
        TypeError: also if an input has another dtype.
        ValueError: as `example_batch`.
    """
    batch = example_batch(example, model)
    for name, value in zip(input_names(model, batch), tensors(batch), strict=True):
        if value.dtype not in DTYPES:
            raise TypeError(
                f"example: input `{name}` has dtype {str(value.dtype).removeprefix('torch.')}, "
                f"allowed are {', '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES)}"
            )
    return on_device(batch, "cpu")


def on_device(batch: Batch, device: torch.device | str) -> Batch:
    """Returns the batch with its inputs on `device`."""
    return with_tensors(batch, [value.to(device) for value in tensors(batch)])


def tensors(batch: Batch) -> list[Any]:
    """Returns the inputs in the order of the ONNX graph: positional, then by keyword."""
    return [*batch.args, *batch.kwargs.values()]


def with_tensors(batch: Batch, values: list[Any]) -> Batch:
    """Returns the same call with other inputs, given in the order of `tensors`."""
    count = len(batch.args)
    kwargs = dict(zip(batch.kwargs, values[count:], strict=True))
    return dataclasses.replace(batch, args=tuple(values[:count]), kwargs=kwargs, labels=None)


def fresh(batch: Batch) -> Batch:
    """Returns the batch with copied inputs, so that a model that works in place cannot change the caller's."""
    return with_tensors(batch, [value.clone() if isinstance(value, Tensor) else value for value in tensors(batch)])


def input_names(model: nn.Module, batch: Batch) -> list[str]:
    """Returns a name per input: the parameter names of `forward`; `input` or `input_0`, ... for a `*args`."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    count = len(batch.args)
    if len(names) < count:
        rest = count - len(names)
        names += ["input"] if rest == count == 1 else [f"input_{index}" for index in range(rest)]
    return [*names[:count], *batch.kwargs]


def batch_axis(batch: Batch, value: Tensor) -> bool:
    """Whether the first axis of this input is the batch: it is as long as the first input's."""
    return bool(value.ndim) and value.shape[0] == batch.size


def outputs(result: Any, inputs: list[str]) -> list[Output]:
    """Returns the tensors in a model's result with their names in the graph.

    A single tensor is `output`, the entries of a flat dict keep their keys, all else is `output_0`, `output_1`, ...
    None is left out, as the converter does. A name that an input has too is numbered instead.
    """
    found = [leaf for leaf in torch.utils._pytree.tree_leaves(result) if leaf is not None]
    for leaf in found:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"every output of the model must be a tensor, got {type(leaf).__name__}")
    names = [f"output_{index}" for index in range(len(found))]
    if isinstance(result, Tensor) and "output" not in inputs:
        names = ["output"]
    elif isinstance(result, Mapping):
        keys = [key for key, value in result.items() if value is not None]
        if len(keys) == len(found) and all(isinstance(key, str) and key and key not in inputs for key in keys):
            names = keys
    return [Output(name, tensor) for name, tensor in zip(names, found, strict=True)]
