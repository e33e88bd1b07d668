"""What a data loader yields, split into the model's inputs and the labels."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from jumpout_export.model.labels import LABEL_KEYS, MAYBE_LABEL_KEYS, Split, by_name, by_position, fields_of, tensors_in
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
        """Number of images: the first dimension of the first tensor."""
        for value in tensors_in((self.args, self.kwargs)):
            if value.ndim:
                return value.shape[0]
        raise ValueError("a batch must hold at least one tensor with a batch dimension, got none")


def split_batch(batch: Any, model: nn.Module, device: torch.device | str | None = None) -> Batch:
    """Returns the batch as inputs and labels, moved to `device`.

    * A tensor is the input.
    * Of a tuple or list, the entries are positional inputs, as many as `model.forward` accepts. A last entry that
      `forward` does not require and that looks like labels, or goes to a parameter named like labels, is no input:
      an integer (N,) tensor is the labels, one-hot rows are turned into labels, and other targets are left out. A
      first entry that is itself a tuple or list, as in ((a, b), labels), is unpacked if `forward` requires as many.
    * Of a dict (any mapping), `labels` or `label` is the labels, or else `targets`, `target` or `y` unless `forward`
      has a parameter of that name. Entries named like parameters of `forward` are keyword inputs, others are left
      out; if none is, a single entry, or one with a usual name such as `image`, is passed by position.
    * A named tuple or data class is taken by name if its names say something, else as a tuple.

    Wrappers such as DistributedDataParallel or torch.compile are looked through.

    Raises:
        TypeError: if the batch is none of these, holds no tensor, or does not say which entries are inputs.
    """
    forward = inspect.signature(unwrap(model).forward).parameters
    split: Split
    if isinstance(batch, Tensor):
        split = (batch,), {}, None
    elif isinstance(batch, Mapping):
        split = by_name(dict(batch), forward)
    elif (fields := fields_of(batch)) is not None:
        named = fields.keys() & {*forward, *LABEL_KEYS, *MAYBE_LABEL_KEYS}
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


def device_of(module: nn.Module) -> torch.device:
    """Returns where a module's first parameter is, or else its first buffer; the CPU if it has neither."""
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def first_tensor(output: Any) -> Tensor:
    """Returns the first tensor in a model's output (tensor, tuple, list, dict or data class, nested or not).

    Raises:
        TypeError: if there is none.
    """
    for tensor in tensors_in(output):
        return tensor
    raise TypeError(f"the model's output must hold a tensor, got {type(output).__name__}")


def _move(value: Any, device: torch.device | str) -> Any:
    def can_move(leaf: Any) -> bool:
        return callable(getattr(leaf, "to", None))  # packed sequences and batches of other libraries, too

    return tree_map(lambda leaf: leaf.to(device) if can_move(leaf) else leaf, value, is_leaf=can_move)
