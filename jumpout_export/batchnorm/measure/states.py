"""The states a model is measured in, and a context that leaves it exactly as it was."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.batchnorm.measure.layers import Layer, label
from jumpout_export.model.norms import is_batchnorm, is_torch_norm, use_batch
from jumpout_export.model.randomness import get_generator_state, is_generator, same_bits, set_generator_state
from jumpout_export.model.tracing import is_users_file
from jumpout_export.model.wrappers import plain_names

# How torch's own error begins.
_TORCHS = "Expected more than 1 value per channel"


@dataclass(frozen=True)
class State:
    """What is on while statistics are collected."""

    name: str
    stochastic: bool  # modules are in training mode, so that dropout and jumpout draw
    batch_statistics: bool  # BatchNorm normalises by the statistics of the batch instead of the running ones


SERVING = State("serving", stochastic=False, batch_statistics=False)
RENORMALISED = State("renormalised", stochastic=False, batch_statistics=True)
TRAINING = State("training", stochastic=True, batch_statistics=True)


@contextlib.contextmanager
def in_state(model: nn.Module, layers: Sequence[Layer], state: State) -> Iterator[None]:
    """Puts `model` into `state`, in which no forward changes a BatchNorm buffer, and restores it on the way out.

    Only `layers` normalise by batch statistics where the state asks for it; other BatchNorms keep the running ones.
    """
    with preserved(model) as found:
        put_into(found, layers, state)
        yield


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[Found]:
    """Restores, bitwise, every module's flags, buffers, tensors and generators on the way out.

    `Feed` does it for the global generators.
    """
    found = Found(model)
    try:
        yield found
    finally:
        found.restore()


class Found:
    """A model as it was found; nothing of it is changed before `put_into` or `restore`."""

    def __init__(self, model: nn.Module) -> None:
        self.training = model.training
        modules = list(model.modules())
        self.modules = [(module, module.training) for module in modules]
        self.tracking = [(module, module.track_running_stats) for module in modules if is_torch_norm(module)]
        self._buffers = [
            (module, name, buffer, buffer.clone())
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        # What a layer keeps of its last call, as `Jumpout.statistics`, and generators of its own.
        attributes = [(module, name, value) for module in modules for name, value in vars(module).items()]
        self._tensors = [
            (module, name, value, value.detach().clone())
            for module, name, value in attributes
            if isinstance(value, Tensor) and value.layout == torch.strided
        ]
        self._generators = [(value, get_generator_state(value)) for _, _, value in attributes if is_generator(value)]

    def restore(self) -> None:
        """Puts everything back."""
        for module, training in self.modules:
            module.training = training
        for norm, track in self.tracking:
            norm.track_running_stats = track
        with torch.no_grad():
            for module, name, buffer, saved in self._buffers:
                module._buffers[name] = buffer
                _write(buffer, saved)
            for module, name, value, saved in self._tensors:
                if vars(module).get(name) is not value:
                    setattr(module, name, value)
                _write(value.detach(), saved)
        for generator, state in self._generators:
            set_generator_state(generator, state)

    def restore_buffers(self) -> None:
        """Puts the buffers back without waiting for the device."""
        with torch.no_grad():
            for module, name, buffer, saved in self._buffers:
                module._buffers[name] = buffer
                if 0 in buffer.stride():  # an expanded buffer cannot be written to, so nobody did
                    continue
                _resize_like(buffer, saved)
                buffer.copy_(saved)


def put_into(found: Found, layers: Sequence[Layer], state: State) -> None:
    """Puts a model as it was found into `state`: sets flags only, one by one.

    `model.eval()` may be overridden, and some overrides change weights. Of a model found in training mode the modules
    that were in eval mode (a frozen part) stay so in every state.
    """
    for module, training in found.modules:
        on = state.stochastic and (training or not found.training)
        module.training = on and not is_batchnorm(module)
    for norm, track in found.tracking:
        norm.track_running_stats = track
    if state.batch_statistics:
        for layer in layers:
            use_batch(layer.module)


@contextlib.contextmanager
def untracked_named(model: nn.Module) -> Iterator[None]:
    """Names a BatchNorm without running statistics that gets one value per channel, where torch names none.

    Of a call of `F.batch_norm` it names the line.

    Raises:
        ValueError: in a forward in which one does.
    """

    def hook(name: str) -> Any:
        def refuse(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if x is not None and x.numel() == module.num_features:
                raise ValueError(
                    f"BatchNorm {label(name)} has no running statistics (track_running_stats=False), so it normalises "
                    "by the batch even when it is served, and this one holds one value per channel; pass larger "
                    "batches, or train it with track_running_stats=True"
                )

        return refuse

    names = plain_names(model)
    with contextlib.ExitStack() as hooks:
        for path, module in model.named_modules():
            if is_batchnorm(module) and module.running_mean is None:
                hooks.enter_context(module.register_forward_pre_hook(hook(names[path]), with_kwargs=True))
        try:
            yield
        except ValueError as error:
            lines = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users_file(frame.filename)]
            if not (str(error).startswith(_TORCHS) and lines):
                raise
            raise ValueError(
                f"batch_norm at {lines[-1].filename}:{lines[-1].lineno} normalises by the batch, also in eval mode, "
                "and this one holds one value per channel; pass larger batches, or give it running statistics and "
                "training=False"
            ) from error


def _write(tensor: Tensor, saved: Tensor) -> None:
    if not same_bits(tensor, saved):
        _resize_like(tensor, saved)
        tensor.copy_(saved)


def _resize_like(tensor: Tensor, saved: Tensor) -> None:
    if tensor.shape != saved.shape:  # the observers of quantisation-aware training grow on their first forward
        tensor.resize_(saved.shape)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Keeps weights that a forward in this context makes, cast or gathered, from a training step after it.

    By then they may be older than the weights, and torch 2.9 casts them without gradients (pytorch#158232).
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
        _give_back_shards(model)


def _give_back_shards(model: nn.Module) -> None:
    """Frees the whole weights that `fully_shard` keeps after a forward without backward: they too would grow old."""
    module: Any
    for module in model.modules():
        # By name, because the import takes seconds.
        if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
            module.reshard()
