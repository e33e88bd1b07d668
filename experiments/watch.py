"""The fraction of active units behind every ReLU, and the rate of every noise layer, sampled while a network runs."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from experiments.regularizers import ConcreteDropout
from jumpout_export import Jumpout


class ActiveFractions:
    """Hooks on all ReLUs of a network; they measure only while `on` is set, and nothing waits for the device."""

    def __init__(self) -> None:
        self.on = False
        self._seen: dict[str, list[Tensor]] = defaultdict(list)

    def values(self) -> dict[str, list[float]]:
        """Returns what was measured since the last call, by module path in call order."""
        found = {name: torch.stack(values).tolist() for name, values in self._seen.items()}
        self._seen.clear()
        return found

    def hook(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        """Returns a forward hook that notes the fraction of positive outputs under `name`."""

        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if self.on:
                self._seen[name].append((output.detach() > 0).float().mean())

        return note


@contextlib.contextmanager
def active_fractions(network: nn.Module) -> Iterator[ActiveFractions]:
    """Watches all ReLUs of a network; the hooks are gone afterwards."""
    watch = ActiveFractions()
    handles = [
        module.register_forward_hook(watch.hook(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def noise_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers that draw random numbers in train mode, by module path."""
    kinds = (nn.Dropout, Jumpout, ConcreteDropout)
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


def rate(layer: nn.Module) -> float:
    """Returns the rate of a noise layer's last call: p' of jumpout, p of the others; NaN before the first."""
    value = layer.statistics.p_prime if isinstance(layer, Jumpout) else layer.p
    return math.nan if value is None else float(value.detach() if isinstance(value, Tensor) else value)
