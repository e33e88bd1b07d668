"""Adds up over processes what each of them collected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jumpout_export.batchnorm.distributed import Ranks
from jumpout_export.batchnorm.layers import Layer
from jumpout_export.batchnorm.moments import Moments


def merge_moments(ranks: Ranks, moments: dict[str, Moments], layers: Sequence[Layer]) -> None:
    """Replaces the moments of every layer by those of all processes together, in place.

    Layers come in the call order of the first process that reached them. All processes hold bitwise the same sums
    afterwards, and must hold the same stored statistics, which are the unit of the sums.
    """
    own = {name: (one.count, one.images, one.calls, len(one.call_sums)) for name, one in moments.items()}
    everyone = ranks.gather(own)
    by_name = {layer.name: layer for layer in layers}
    sums: list[Tensor] = []
    for name in dict.fromkeys(name for other in everyone for name in other):
        counts = [other[name] for other in everyone if name in other]
        one = moments.pop(name, None) or Moments(by_name[name])
        moments[name] = one
        one.count, one.images = sum(count for count, *_ in counts), sum(images for _, images, *_ in counts)
        one.calls = max(calls for *_, calls, _ in counts)
        one.call_sums += [torch.zeros_like(one.sums[0]) for _ in range(max(n for *_, n in counts) - len(one.call_sums))]
        sums += [one.sums, *one.call_sums]
    ranks.add(sums)


def merge_fields(ranks: Ranks, own: Any) -> None:
    """Replaces every attribute of an object that only counts and sums by what all processes have together, in place.

    Numbers and tensors are added, flags hold if they hold everywhere, other attributes are objects of the same kind.
    """
    if ranks.size == 1:
        return
    everyone = ranks.gather(own)
    for other in everyone[1:]:
        _add_fields(everyone[0], other)
    vars(own).update(vars(everyone[0]))


def _add_fields(to: Any, other: Any) -> None:
    for name, value in vars(other).items():
        mine = getattr(to, name)
        if isinstance(value, bool):
            setattr(to, name, mine and value)
        elif isinstance(value, int | float | Tensor):
            setattr(to, name, mine + value)
        else:
            _add_fields(mine, value)
