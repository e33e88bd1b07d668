"""The states a model is measured in, and a context that leaves it exactly as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jumpout_export.batchnorm.layers import Layer
from jumpout_export.nn.randomness import same_bits


@dataclass(frozen=True)
class State:
    """What is on while statistics are collected.

    Attributes:
        name: for people.
        stochastic: modules are in training mode, so that dropout and jumpout draw.
        batch_statistics: BatchNorm normalises by the statistics of the batch instead of the running ones.
    """

    name: str
    stochastic: bool
    batch_statistics: bool


SERVING = State("serving", stochastic=False, batch_statistics=False)
RENORMALISED = State("renormalised", stochastic=False, batch_statistics=True)
TRAINING = State("training", stochastic=True, batch_statistics=True)


@contextlib.contextmanager
def in_state(model: nn.Module, layers: Sequence[Layer], state: State) -> Iterator[None]:
    """Puts `model` into `state`, in which no forward changes a BatchNorm buffer, and restores it on the way out.

    Only `layers` normalise by batch statistics where the state asks for it; other BatchNorms keep the running ones.
    Flags are set one by one: `model.eval()` may be overridden, and some overrides change weights.
    """
    with preserved(model):
        for module in model.modules():
            module.training = state.stochastic and not isinstance(module, _BatchNorm)
        if state.batch_statistics:
            for layer in layers:
                layer.module.training = True
                # F.batch_norm then gets no buffers to update, and num_batches_tracked is not counted up.
                layer.module.track_running_stats = False
        yield


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restores every module's flags and buffers (bitwise) on the way out; `Feed` does it for the generators."""
    modules = list(model.modules())
    flags = [(module, module.training) for module in modules]
    tracking = [(module, module.track_running_stats) for module in modules if isinstance(module, _BatchNorm)]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        for norm, track in tracking:
            norm.track_running_stats = track
        with torch.no_grad():
            for module, name, buffer, saved in buffers:
                _restore(module, name, buffer, saved)


def _restore(module: nn.Module, name: str, buffer: Tensor, saved: Tensor) -> None:
    module._buffers[name] = buffer
    if not same_bits(buffer, saved):
        buffer.copy_(saved)
