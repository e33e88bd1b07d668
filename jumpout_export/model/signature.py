"""What goes into the exported graph and what comes out: the tensors, their names, and which axes are the batch."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jumpout_export.model.batches import Batch, fields_of, parameters_of, split_batch
from jumpout_export.model.labels import POSITIONAL

# What ONNX and ONNX Runtime have.
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
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
    """Returns the inputs in `example` (tensor, tuple, list, dict), and the labels where it has some.

    Keyword inputs come in the order of `forward`'s parameters. An input may itself be a dict, list or tuple of tensors;
    a dict goes as a whole to a `forward` whose only parameter is annotated as one, or that takes none of its entries.

    Raises:
        TypeError: if it holds no tensor, or something that is not a tensor.
        ValueError: if no input has a batch dimension or it is empty.
    """
    if isinstance(example, Batch):
        return example
    try:
        batch = _split(example, model)
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
    """Returns what `example_batch` returns, on the CPU and in dtypes that ONNX Runtime has.

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
    return batch.to("cpu")


def tensors(batch: Batch) -> list[Any]:
    """Returns the inputs in the order of the ONNX graph: positional, then by keyword, the entries of nested ones."""
    return pytree.tree_leaves((batch.args, batch.kwargs))


def with_tensors(batch: Batch, values: list[Any]) -> Batch:
    """Returns the same call with other inputs, given in the order of `tensors`."""
    args, kwargs = pytree.tree_unflatten(values, pytree.tree_structure((batch.args, batch.kwargs)))
    return dataclasses.replace(batch, args=args, kwargs=kwargs, labels=None)


def fresh(batch: Batch) -> Batch:
    """Returns the batch with copied inputs, so that a model that works in place cannot change the caller's."""
    return with_tensors(batch, [value.clone() if isinstance(value, Tensor) else value for value in tensors(batch)])


def input_names(model: nn.Module, batch: Batch) -> list[str]:
    """Returns a name per input: the parameter names of `forward`; `input` or `input_0`, ... for a `*args`.

    The entries of a dict are named by their keys, those of a tuple or list `name_0`, `name_1`, ...; where two inputs
    would have one name, the parameter's name comes before the key.
    """
    names = [parameter.name for parameter in parameters_of(model).values() if parameter.kind in POSITIONAL]
    count = len(batch.args)
    if len(names) < count:
        rest = count - len(names)
        names += ["input"] if rest == count == 1 else [f"input_{index}" for index in range(rest)]
    short, full = [], []
    for name, value in zip([*names[:count], *batch.kwargs], [*batch.args, *batch.kwargs.values()], strict=True):
        for path, _ in pytree.tree_leaves_with_path(value):
            keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
            full.append("_".join([name, *keys]))
            by_key = bool(path) and all(isinstance(key, pytree.MappingKey) for key in path)
            short.append("_".join(keys) if by_key else full[-1])
    return short if max(Counter(short).values(), default=1) == 1 and all(short) else full


def batch_axis(batch: Batch, value: Tensor) -> bool:
    """Whether the first axis of this input is the batch: it is as long as the first input's."""
    return bool(value.ndim) and value.shape[0] == batch.size


def outputs(result: Any, inputs: list[str]) -> list[Output]:
    """Returns the tensors in a model's result with their names in the graph.

    A single tensor is `output`, the entries of a flat dict (or data class) keep their keys, all else is `output_0`,
    `output_1`, ... None is left out, as the converter does. A name that an input has too is numbered instead.

    Raises:
        TypeError: if something in the result is neither a tensor nor None, nor a container of these.
        ValueError: if there is no tensor in it.
    """
    found = [leaf for leaf in _leaves(result) if leaf is not None]
    for leaf in found:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"every output of the model must be a tensor, got {type(leaf).__name__}; "
                "wrap the model in a module that returns its tensors only"
            )
    if not found:
        raise ValueError("the model returns no tensor, so there is nothing to export")
    names = [f"output_{index}" for index in range(len(found))]
    entries = _entries(result)
    if isinstance(result, Tensor) and "output" not in inputs:
        names = ["output"]
    elif entries is not None:
        keys = [key for key, value in entries.items() if value is not None]
        if len(keys) == len(found) and all(isinstance(key, str) and key and key not in inputs for key in keys):
            names = keys
    return [Output(name, tensor) for name, tensor in zip(names, found, strict=True)]


def only_tensors(result: Any) -> Any:
    """Returns a result that torch.export takes: data classes and dict-like classes become the tuple of their tensors.

    `ModelOutput` of Hugging Face is one. Tuples, lists and dicts stay as they are.
    """
    known = pytree.tree_leaves(result)
    if any(_entries(leaf) is not None for leaf in known):
        return tuple(leaf for leaf in _leaves(result) if leaf is not None)
    return result


def _split(example: Any, model: nn.Module) -> Batch:
    batch, order = split_batch(example, model), list(parameters_of(model))
    kwargs = sorted(batch.kwargs.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
    return Batch(batch.args, dict(kwargs), batch.labels)


def _entries(result: Any) -> Mapping[Any, Any] | None:
    """The entries of a result that names them."""
    if isinstance(result, Mapping):
        return result
    return None if isinstance(result, tuple) else fields_of(result)


def _leaves(result: Any) -> list[Any]:
    entries = _entries(result)
    if entries is None and not isinstance(result, tuple | list):
        return pytree.tree_leaves(result)
    return [leaf for value in (result if entries is None else entries.values()) for leaf in _leaves(value)]


def first_and_all(inputs: Any, model: nn.Module, name: str) -> tuple[Batch, Iterator[Batch]]:
    """Returns the first batch, and an iterator over all batches; `inputs` is one batch or an iterable of batches.

    Raises:
        ValueError: if there is none.
        TypeError: if it is neither, or a batch holds something else than tensors.
    """
    if isinstance(inputs, Tensor | tuple | Mapping) or fields_of(inputs) is not None:
        inputs = [inputs]
    if not isinstance(inputs, Iterable):
        raise TypeError(f"{name} must be a batch or an iterable of batches, got {type(inputs).__name__}")
    iterator = iter(inputs)
    for value in iterator:
        first = onnx_batch(value, model)
        return first, itertools.chain([first], (onnx_batch(other, model) for other in iterator))
    raise ValueError(f"nothing to compare: {name} is empty")
