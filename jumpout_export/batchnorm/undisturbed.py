"""What a forward in the middle of training must leave alone beyond the model, its buffers and the generators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def inside(model: nn.Module) -> nn.Module:
    """Returns the model inside DistributedDataParallel, whose own forward may wait for the other processes.

    FullyShardedDataParallel stays, because nothing else has the whole weights.
    """
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):  # in what torch.compile returned
            model = compiled
        else:
            return model


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Keeps weights that a forward in this context makes, cast or gathered, from a training step after it."""
    with _without_autocast_cache():
        try:
            yield
        finally:
            _give_back_shards(model)


@contextlib.contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Leaves no cast weights for a training step in the same autocast region.

    By then they may be older than the weights, and torch 2.9 casts them without gradients (pytorch#158232).
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def _give_back_shards(model: nn.Module) -> None:
    """Frees the whole weights that `fully_shard` keeps after a forward without backward: they too would grow old."""
    module: Any
    for module in model.modules():
        # By name, because the import takes seconds.
        if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
            module.reshard()
