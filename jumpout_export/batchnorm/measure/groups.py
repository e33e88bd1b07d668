"""Samples that belong together: frames of one clip, crops of one scene. Groups are independent, samples are not.

A group counts as one sample, with the mean a and the mean b of its samples, that weighs as many as it has. A group may
come in several batches, and in any order; it is put together before anything is squared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.moments import Moments
from jumpout_export.errors import ArgumentError
from jumpout_export.model.batches import fields_of

# Says to which group each sample of a batch belongs: an entry of the batch by its name or place, or a function of it.
Groups = str | int | Callable[[Any], Sequence[Any] | Tensor]


class GroupNumbers:
    """Numbers groups in the order in which they come, the same on every pass.

    Args:
        groups: an entry of every batch, by its name or its place in a tuple, or a function of the batch; either gives
            what tells its groups apart, one value for each sample.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._numbers: dict[Any, int] = {}

    def split(self, batch: Any) -> tuple[Tensor, Any]:
        """Returns (N,) numbers of the groups, and the batch without the entry that names them.

        Raises:
            ArgumentError: if a batch has no such entry, or it is not one value for each sample.
        """
        if callable(self._groups):
            keys, rest = self._groups(batch), batch
        else:
            keys, rest = _taken(batch, self._groups)
        if isinstance(keys, Tensor) or hasattr(keys, "tolist"):
            keys = keys.tolist()
        if not isinstance(keys, Sequence) or isinstance(keys, str):
            raise ArgumentError("groups", f"groups must be one value for each sample, got {type(keys).__name__}")
        named = [tuple(key) if isinstance(key, list) else key for key in keys]
        odd = next((key for key in named if not _tells_apart(key)), None)
        if odd is not None:
            raise ArgumentError(
                "groups",
                f"groups must be one value for each sample, numbers or strings, got {str(odd)[:40]!r} for one of them; "
                "name the entry that says which samples belong together",
            )
        return torch.tensor([self._numbers.setdefault(key, len(self._numbers)) for key in named]), rest


class GroupedMoments(Moments):
    """The moments of one layer's input with groups of samples as the unit.

    Attributes:
        alone: the moments of the same samples one by one, by which the noise of the stored average is reckoned.
    """

    def __init__(self, layer: Layer, *, by_batch: bool = False) -> None:
        self._settled: Tensor | None = None
        super().__init__(layer, by_pixels=True)
        self._own = torch.zeros(0, 3, len(self.shift), dtype=torch.float64, device=self.shift.device)
        self.alone = Moments(layer, by_batch=by_batch)

    @property
    def units(self) -> int:
        """How many groups there are."""
        return int((self._own[:, 0].amax(dim=1) > 0).sum())

    @property
    def sums(self) -> Tensor:
        """(folds, 7, C) float64, weighted sums per fold of groups."""
        if self._settled is None or not len(self._own):
            return self._empty
        return self._settled

    @sums.setter
    def sums(self, empty: Tensor) -> None:
        self._empty = empty

    def add(self, a: Tensor, b: Tensor, groups: Tensor) -> None:
        """Adds N samples, (N, C) a and b, that belong to (N,) groups."""
        count = int(groups.max()) + 1
        if count > len(self._own):
            more = self._own.new_zeros(count - len(self._own), *self._own.shape[1:])
            self._own = torch.cat([self._own, more])
        self._own.index_add_(0, groups.to(a.device), torch.stack([torch.ones_like(a), a, b], dim=1))
        self.samples += len(a)

    def settle(self) -> None:
        """Works out the sums of what was added."""
        folds = len(self._empty)
        own = self._own[self._own[:, 0].amax(dim=1) > 0]
        weight, a, b = own.unbind(dim=1)
        a, b = a / weight, b / weight
        rows = torch.stack([torch.ones_like(a), a, b, a * a, b * b, a * b, weight], dim=1) * weight[:, None]
        fold = torch.arange(len(own), device=own.device) % folds
        self._settled = torch.zeros_like(self._empty).index_add_(0, fold, rows)

    def merge(self, other: Moments) -> None:
        """Adds what `other` saw of the same groups."""
        if not isinstance(other, GroupedMoments):
            raise TypeError(f"grouped moments merge with grouped ones, got {type(other).__name__}")
        count = max(len(self._own), len(other._own))
        own = self._own.new_zeros(count, *self._own.shape[1:])
        for part in (self._own, other._own):
            own[: len(part)] += part
        self._own = own
        self.count += other.count
        self.samples += other.samples
        self.calls = max(self.calls, other.calls)
        self.outside |= other.outside
        self.alone.merge(other.alone)
        self.settle()


def _tells_apart(key: Any) -> bool:
    """Whether a key can be looked up and is the same as itself, which NaN is not."""
    try:
        hash(key)
    except TypeError:
        return False
    return not (isinstance(key, float) and math.isnan(key))


def _taken(batch: Any, entry: str | int) -> tuple[Any, Any]:
    """The entry of a batch, and the batch without it."""
    fields = dict(batch) if isinstance(batch, Mapping) else fields_of(batch)
    if isinstance(entry, str) and fields is not None and entry in fields:
        return fields.pop(entry), fields
    if isinstance(entry, int) and isinstance(batch, tuple | list) and -len(batch) <= entry < len(batch):
        rest = list(batch)
        return rest.pop(entry), tuple(rest)
    there = f"{', '.join(map(repr, fields))}" if fields is not None else f"a {type(batch).__name__}"
    raise ArgumentError(
        "groups",
        f"groups={entry!r} must be an entry of every batch, got {there}; name one, or give a function of the batch "
        "that returns one value for each sample",
    )
