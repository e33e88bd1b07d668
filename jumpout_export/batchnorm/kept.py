"""References to the last input batches of training, put together and looked at again before they are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from jumpout_export.errors import ArgumentError, ArgumentTypeError
from jumpout_export.model.batches import Batch

# What cannot change behind a reference to it.
_CONSTANT = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class Kept:
    """One batch, or micro-batch, as a reference: its tensors are those of the caller, its containers are not.

    Raises:
        ArgumentTypeError: if something in it could change without a trace: only tensors count their changes.
    """

    def __init__(self, batch: Any) -> None:
        # Labels are no input and are not kept.
        self._is_call = isinstance(batch, Batch)
        self.leaves, self.spec = tree_flatten((batch.args, batch.kwargs) if isinstance(batch, Batch) else batch)
        for leaf in self.leaves:
            if isinstance(leaf, Tensor):
                if leaf.is_inference():
                    raise ArgumentTypeError(
                        "batch",
                        "an input made in torch.inference_mode() does not count its changes, so a reference to it "
                        "cannot be trusted later; pass x.clone() made outside of it, or batches at the read: "
                        "ServingStatistics(model, keep=0), `with serving(batches)`",
                    )
            elif not isinstance(leaf, _CONSTANT):
                raise ArgumentTypeError(
                    "batch",
                    f"inputs must be tensors, numbers, strings or tuples, lists and dicts of them, got "
                    f"{type(leaf).__name__}, which can change without a trace; pass tensors, or batches at the read: "
                    "ServingStatistics(model, keep=0), `with serving(batches)`",
                )
        self._states = [_state(leaf) for leaf in self.leaves]

    def require_unchanged(self) -> None:
        """Raises a RuntimeError if a tensor was written to, resized or pointed elsewhere since."""
        for leaf, state in zip(self.leaves, self._states, strict=True):
            if _state(leaf) != state:
                raise RuntimeError(
                    f"an input of shape {tuple(leaf.shape)} was changed in place after ServingStatistics.step() kept a "
                    "reference to it (the training step, augmentation in place, or a buffer that is filled again), so "
                    "its batch is no longer what was trained on; pass step(x.clone()), or batches at the read"
                )

    def batch(self, leaves: list[Any]) -> Any:
        """Returns the batch with other leaves."""
        value = tree_unflatten(leaves, self.spec)
        return Batch(*value) if self._is_call else value

    @property
    def size(self) -> int | None:
        """Number of samples: the first dimension of the first tensor that has one."""
        return next((len(leaf) for leaf in self.leaves if isinstance(leaf, Tensor) and leaf.ndim), None)


class KeptBatches:
    """The last `most` optimiser batches, each of one or more micro-batches; iterable as often as wanted.

    Args:
        most: how many; older ones are let go.
    """

    def __init__(self, most: int) -> None:
        self._batches: deque[list[Kept]] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return (_together(parts) for parts in self._batches)

    def add(self, batch: Any, *, new_batch: bool) -> None:
        """Keeps a batch as one of its own, or as a further micro-batch of the last one."""
        kept = Kept(batch)
        if new_batch or not self._batches:
            self._batches.append([kept])
        else:
            self._batches[-1].append(kept)

    def clear(self) -> None:
        """Lets go of all of them."""
        self._batches.clear()

    def require_unchanged(self) -> None:
        """Raises a RuntimeError if a tensor of any of them was changed since it was kept."""
        for parts in self._batches:
            for part in parts:
                part.require_unchanged()


def _together(parts: list[Kept]) -> Any:
    """Returns one batch of the samples of all parts; what is not per sample is that of the first."""
    first, *others = parts
    if not others:
        return first.batch(first.leaves)
    if any(part.spec != first.spec for part in others):
        raise ArgumentError(
            "new_batch", "micro-batches with other entries cannot be put together; pass step(batch, new_batch=True)"
        )
    columns = zip(*(part.leaves for part in parts), strict=True)
    return first.batch([_joined(column, [part.size for part in parts]) for column in columns])


def _joined(values: tuple[Any, ...], sizes: list[int | None]) -> Any:
    per_sample = all(
        isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
        for value, size in zip(values, sizes, strict=True)
    )
    if not per_sample:
        return values[0]
    if len({(value.shape[1:], value.dtype, value.device) for value in values}) > 1:
        shapes = ", ".join(dict.fromkeys(str(tuple(value.shape)) for value in values))
        raise ArgumentError(
            "new_batch",
            f"micro-batches of other shapes or types cannot be put together, got {shapes}; pass "
            "step(batch, new_batch=True) for each, if each is large enough to normalise by",
        )
    return torch.cat(values)


def _state(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return None
    place = leaf.data_ptr() if leaf.layout == torch.strided and not leaf.is_nested else None
    return leaf._version, place, None if leaf.is_nested else leaf.shape
