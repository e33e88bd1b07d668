"""Serving statistics for a trainer that does not show its batches: they are taken where the network is called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from jumpout_export.batchnorm.serving import ServingStatistics
from jumpout_export.model.batches import Batch


class Following:
    """Keeps what a network is called with in training, and puts its serving statistics in and back again.

    A forward pre-hook does it, which sees the autocast of the trainer and is not traced by `torch.compile`. Where
    several processes train, all of them count.

    Args:
        network: the module that training calls.
        options: of `ServingStatistics`.
        is_call: says of a call whether it is one of training with what `forward` takes; the trainer may have others.

    Attributes:
        new_batch: set it once an optimiser step is done; the calls until then are micro-batches of one batch.
        kept: whether a batch was kept.
    """

    def __init__(
        self, network: nn.Module, options: dict[str, Any], is_call: Callable[[nn.Module], bool] = lambda _: True
    ) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            options = {"process_group": "world", **options}
        self.new_batch, self._is_call = True, is_call
        self._serving = ServingStatistics(network, **options)
        self._swap = contextlib.ExitStack()
        self._hook = network.register_forward_pre_hook(torch.compiler.disable(self._keep), with_kwargs=True)
        self.kept = self._swapped = False

    def enter(self) -> bool:
        """Puts the serving statistics in, if a batch was kept and they are not in already; returns whether it did."""
        if self._swapped or not self.kept:
            return False
        self._swap.enter_context(self._serving())
        self._swapped = True
        return True

    def leave(self) -> None:
        """Puts the buffers back, bitwise, if the serving statistics are in."""
        self._swapped = False
        self._swap.close()

    def write(self) -> None:
        """Leaves, and writes the serving statistics for good, if a batch was kept."""
        self.leave()
        if self.kept:
            self._serving.write()

    def close(self) -> None:
        """Leaves, and lets go of the network and the batches."""
        self._hook.remove()
        self.leave()
        self.kept = False

    def _keep(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if network.training and torch.is_grad_enabled() and self._is_call(network):
            self._serving.step(Batch(args, kwargs), new_batch=self.new_batch)
            self.new_batch, self.kept = False, True
