"""What a data loader yields, split into the model's inputs and the labels."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from jumpout_export.model.labels import LABELS, Parameters, Split, by_name, by_position
from jumpout_export.model.wrappers import unwrap

# Called as progress(what, done, total) during long work; total is None where it is not known.
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Batch:
    """One batch, ready to be called with: `model(*args, **kwargs)`."""

    args: tuple[Any, ...]  # positional inputs
    kwargs: dict[str, Any]  # keyword inputs
    labels: Tensor | None = None  # (N,) integer class labels, or None

    def __call__(self, model: nn.Module) -> Any:
        """Runs `model` on the inputs."""
        return model(*self.args, **self.kwargs)

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch on `device`; whatever else can be moved, nested or not, is moved along."""
        return Batch(_move(self.args, device), _move(self.kwargs, device), _move(self.labels, device))

    @property
    def size(self) -> int:
        """Number of samples: the first dimension of the first tensor."""
        for value in tensors_in((self.args, self.kwargs)):
            if value.ndim:
                return value.shape[0]
        raise ValueError("a batch must hold at least one tensor with a batch dimension, got none")


def split_batch(batch: Any, model: nn.Module, device: torch.device | str | None = None) -> Batch:
    """Returns the batch as inputs and labels, moved to `device`.

    The signature of `model.forward` decides. A required parameter is always an input, whatever its name.

    * A tensor is the input.
    * Of a tuple or list, the entries go to the parameters in order. An optional one takes an entry only where its name
      says so: `lengths` and the like one number per sample, masks, states and embeddings more than one. What is left
      over is no input: of that, integers (N,) or one-hot rows are the labels. A first entry that is itself a tuple or
      list, as in ((a, b), labels), is unpacked if `forward` requires as many.
    * Of a dict (any mapping), entries named like parameters of `forward` are keyword inputs; if none is, a single
      entry, or one with a usual name such as `image`, is passed by position, and a `forward` of a dict gets it whole.
      `label(s)`, `target(s)`, or else `y` are labels.
    * A named tuple or data class is taken by name if its names say something, else as a tuple.

    `label(s)` and `target(s)` that `forward` does not require are never inputs. An entry that may be an input or none
    is an error.

    Wrappers such as DistributedDataParallel or torch.compile are looked through.

    Raises:
        TypeError: if the batch is none of these, holds no tensor, or does not say which entries are inputs.
    """
    if isinstance(batch, Batch):
        return batch if device is None else batch.to(device)
    forward = parameters_of(model)
    split: Split
    if isinstance(batch, Tensor):
        split = (batch,), {}, None
    elif isinstance(batch, Mapping):
        split = by_name(dict(batch), forward)
    elif (fields := fields_of(batch)) is not None:
        named = fields.keys() & {*forward, *LABELS, "y"}
        split = by_name(fields, forward) if named else by_position(tuple(fields.values()), forward)
    elif isinstance(batch, tuple | list):
        split = by_position(tuple(batch), forward)
    else:
        raise TypeError(
            "a batch must be a tensor, a tuple or list (inputs, labels), a dict, a named tuple or a data class, got "
            f"{type(batch).__name__}"
        )
    found = Batch(*split)
    if next(tensors_in((found.args, found.kwargs)), None) is None:
        raise TypeError(f"a batch must hold at least one tensor as input, got {type(batch).__name__} without one")
    return found if device is None else found.to(device)


def parameters_of(model: nn.Module) -> Parameters:
    """Returns the parameters of `forward`, of the network inside wrappers."""
    return inspect.signature(unwrap(model).forward).parameters


def device_of(module: nn.Module) -> torch.device:
    """Returns where a module's first parameter is, or else its first buffer; the CPU if it has neither."""
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def fields_of(batch: Any) -> dict[str, Any] | None:
    """Returns the fields of a named tuple or data class, None for anything else."""
    if isinstance(batch, tuple) and hasattr(batch, "_asdict"):
        return dict(batch._asdict())
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from tensors_in(entry)
    elif (fields := fields_of(value)) is not None:
        yield from tensors_in(fields)


def _move(value: Any, device: torch.device | str) -> Any:
    def can_move(leaf: Any) -> bool:
        return callable(getattr(leaf, "to", None))  # packed sequences and batches of other libraries, too

    return tree_map(lambda leaf: leaf.to(device) if can_move(leaf) else leaf, value, is_leaf=can_move)
