"""Of how many samples stored statistics are known to be the average, where this package put them there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.model.randomness import same_bits


@dataclass(frozen=True)
class _Held:
    statistics: list[Tensor]
    samples: int


# By module, for as long as it lives. Values are compared: every pass writes into the buffers and puts them back.
_held: WeakKeyDictionary[Any, _Held] = WeakKeyDictionary()


def hold(layer: Layer, samples: int) -> None:
    """Notes that what `layer` stores now is the average of so many samples."""
    _held[layer.module] = _Held([buffer.clone() for buffer in layer.statistics()], samples)


def samples_held(module: Any) -> int | None:
    """Returns how many samples' average a module stores, None where it stores anything else than was noted."""
    held = _held.get(module)
    stored = [module._buffers.get(name) for name in ("running_mean", "running_var")]
    return held.samples if held is not None and same_bits(stored, held.statistics) else None
