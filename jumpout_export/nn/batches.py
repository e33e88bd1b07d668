"""What a data loader yields, split into the model's inputs and the labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Called as progress(what, done, total) during long work; total is None where it is not known.
Progress = Callable[[str, int, int | None], None]

LABEL_KEYS = ("labels", "label")
# Labels too, unless the model has an input of that name.
MAYBE_LABEL_KEYS = ("targets", "target", "y")


@dataclass(frozen=True)
class Batch:
    """One batch, ready to be called with: `model(*args, **kwargs)`.

    Attributes:
        args: positional inputs.
        kwargs: keyword inputs.
        labels: (N,) int64 class labels, or None.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None = None

    def __call__(self, model: nn.Module) -> Any:
        """Runs `model` on the inputs."""
        return model(*self.args, **self.kwargs)

    @property
    def size(self) -> int:
        """Number of images: the first dimension of the first tensor."""
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Tensor) and value.ndim:
                return value.shape[0]
        raise ValueError("a batch must hold at least one tensor with a batch dimension, got none")


def split_batch(batch: Any, model: nn.Module, device: torch.device | str | None = None) -> Batch:
    """Returns the batch as inputs and labels, moved to `device`.

    A tensor is the input. Of a tuple or list, a last (N,) integer tensor is the labels and the rest are positional
    inputs, as many as `model.forward` accepts. Of a dict, `labels` or `label` is the labels, or else `targets`,
    `target` or `y` unless `forward` has a parameter of that name; the rest are keyword inputs. A single entry that
    `forward` has no parameter for, such as `inputs` or `image`, is passed by position.

    Raises:
        TypeError: if the batch is none of these or holds no tensor.
    """
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}
    labels: Tensor | None = None
    if isinstance(batch, Tensor):
        args = (batch,)
    elif isinstance(batch, Mapping):
        kwargs = dict(batch)
        inputs = _parameters(model)
        keys = (*LABEL_KEYS, *(key for key in MAYBE_LABEL_KEYS if key not in inputs))
        label_key = next((key for key in keys if key in kwargs), None)
        labels = kwargs.pop(label_key) if label_key else None
        args = ()
        if len(kwargs) == 1 and next(iter(kwargs)) not in inputs:
            args, kwargs = tuple(kwargs.values()), {}
    elif isinstance(batch, tuple | list):
        args = tuple(batch)
        # A forward that needs every entry, such as (x, index), gets every entry.
        if len(args) > max(1, _required_positional(model)) and _is_labels(args[-1], args[0]):
            args, labels = args[:-1], args[-1]
        args = args[: _max_positional(model)]
    else:
        raise TypeError(
            f"a batch must be a tensor, a tuple or list (inputs, labels) or a dict, got {type(batch).__name__}"
        )
    if not any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        raise TypeError(f"a batch must hold at least one tensor as input, got {type(batch).__name__} without one")
    if device is not None:
        args = tuple(_move(value, device) for value in args)
        kwargs = {key: _move(value, device) for key, value in kwargs.items()}
        labels = _move(labels, device)
    return Batch(args, kwargs, labels)


def first_tensor(output: Any) -> Tensor:
    """Returns the first tensor in a model's output (tensor, tuple, list, dict or dataclass-like mapping).

    Raises:
        TypeError: if there is none.
    """
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor | tuple | list | Mapping):
            return first_tensor(value)
    raise TypeError(f"the model's output must hold a tensor, got {type(output).__name__}")


def _is_labels(value: Any, first: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.ndim == 1
        and not value.is_floating_point()
        and value.dtype != torch.bool
        and isinstance(first, Tensor)
        and first.shape[:1] == value.shape
    )


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def _max_positional(model: nn.Module) -> int | None:
    kinds = [parameter.kind for parameter in _parameters(model).values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    return sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)


def _required_positional(model: nn.Module) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(
        parameter.kind in kinds and parameter.default is parameter.empty for parameter in _parameters(model).values()
    )


def _move(value: Any, device: torch.device | str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
