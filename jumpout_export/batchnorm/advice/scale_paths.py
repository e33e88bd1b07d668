"""Finds the noise that reaches a BatchNorm through at most one linear layer.

In the pass that looks for it every stochastic layer hands on a copy, so that what reads the layer and what reads past
it hold different memory. A tensor is then known by its memory, and by its version, which operations in place count up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.batchnorm.advice.noise_path import LINEAR, NoisePath, mask_power
from jumpout_export.batchnorm.measure.feed import Feed, Step
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.states import RENORMALISED, in_state
from jumpout_export.model.norms import is_batchnorm
from jumpout_export.model.stochastic import StochasticLayer, stochastic_layers
from jumpout_export.model.wrappers import plain_names
from jumpout_export.nn.modules import Jumpout

# Numbers of dimensions with which torch drops whole channels of single samples; with others it drops something else.
_CHANNELWISE: dict[type[nn.Module], int] = {nn.Dropout1d: 3, nn.Dropout2d: 4, nn.Dropout3d: 5}
_SOURCES = (Jumpout, nn.Dropout, *_CHANNELWISE)
# f(s z x) = s z f(x) for a scale s > 0 and a mask z of zeros and ones; Flatten moves no element.
_KEEPS_MASKS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Flatten)


def noise_paths(feed: Feed, layers: Sequence[Layer], samples: int) -> dict[str, NoisePath]:
    """Returns, by BatchNorm name, the noise of a single layer that reaches it through at most one linear layer.

    Sources are Jumpout and nn.Dropout, 1d, 2d and 3d; linear layers are nn.Linear on (N, F) and nn.Conv1d to 3d with
    zero padding. Between source and linear layer only what keeps masks may stand (identity, Flatten, ReLU, LeakyReLU,
    PReLU), between linear layer and BatchNorm nothing but an identity. Anything else, functional calls among it, ends
    the path; so does a BatchNorm whose calls read different layers. Memory does not depend on the number of samples.

    Measured in the state P, noise off and BatchNorm on batch statistics: what the law relates the state T to. The
    model is left exactly as it was found, also after an exception. The pass ends with the batch that reaches `samples`;
    layers that are frozen or no BatchNorm are passed over.

    Raises:
        ValueError: if `samples` is not positive.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    # Layers that are no identity in eval mode hand on new memory anyway.
    names = plain_names(feed.model)
    sources = [
        replace(layer, path=names[layer.path])
        for layer in stochastic_layers(feed.model)
        if layer.action != "keep" and not _is_off(layer.module, feed.model)
    ]
    if not any(_is_stock(source.module, _SOURCES) for source in sources):
        return {}
    trace = _Trace()
    # A frozen layer normalises by what it stores in training, too; noise does not change that.
    moving = [layer for layer in layers if not layer.frozen]
    norms = [layer for layer in moving if is_batchnorm(layer.module)]
    hooked = trace.attached(feed.model, norms, sources)
    with torch.no_grad(), in_state(feed.model, moving, RENORMALISED), hooked:
        feed.alone(samples).replay("looking for what feeds BatchNorm", trace.forward)
    return {name: path for name, path in trace.paths.items() if path is not None}


class _OneValueError(BaseException):
    """Ends a forward: a batch holds one value per channel, which has no variance to normalise by."""


@dataclass(frozen=True)
class _Signal:
    """What the trace knows of a tensor that the noise of one layer reaches; `NoisePath` and `mask_power` say more."""

    source: StochasticLayer
    active: Tensor
    channels: int | None  # of the map whose whole channels are dropped; None where elements are
    linear: nn.Module | None = None  # the layer behind it, whose output this is
    power: Tensor | None = None
    bias: Tensor | None = None  # read while the linear layer runs: FSDP may take it away afterwards


class _Trace:
    """Follows the noise through one forward after the other; `paths` has None where there is no advice to give."""

    def __init__(self) -> None:
        self.paths: dict[str, NoisePath | None] = {}
        # By address. Holding the tensor keeps its memory from being given to another one.
        self._signals: dict[int, tuple[Tensor, int, _Signal]] = {}
        self._running: list[_Signal | None] = []
        self._samples = 0

    def forward(self, step: Step) -> int:
        """Runs the step and returns the number of samples that reached the first BatchNorm."""
        self._samples = 0
        try:
            step.run()
        except _OneValueError:
            pass  # a batch that cannot be normalised by itself is left out, as it is from the state T
        finally:
            self._signals.clear()
            self._running.clear()
        return self._samples

    @contextlib.contextmanager
    def attached(self, model: nn.Module, layers: Sequence[Layer], sources: Sequence[StochasticLayer]) -> Iterator[None]:
        """Hooks the model's modules; the hooks are gone on the way out."""
        with contextlib.ExitStack() as hooks:

            def attach(module: nn.Module, after: Callable[..., Any]) -> None:
                hooks.enter_context(module.register_forward_pre_hook(self._before, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(after, with_kwargs=True))

            for source in sources:
                attach(source.module, self._after_source(source))
            for module in model.modules():
                if _is_stock(module, _KEEPS_MASKS):
                    attach(module, self._after_mask_keeping)
                elif _is_stock(module, LINEAR):
                    attach(module, self._after_linear)
            for layer in layers:
                hook = self._before_batchnorm(layer)
                hooks.enter_context(layer.module.register_forward_pre_hook(hook, with_kwargs=True))
            yield

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Looked up before the module runs: one that works in place changes the version.
        self._running.append(self._find(_input(args, kwargs)))

    def _after_source(self, source: StochasticLayer) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            before = self._running.pop()
            if not isinstance(output, Tensor):
                return None
            copy = output.clone()
            # Noise upon noise has another law, and a layer that is not one of ours its own.
            if before is None and _is_stock(module, _SOURCES):
                ndim = next((ndim for kind, ndim in _CHANNELWISE.items() if isinstance(module, kind)), None)
                if ndim in (None, copy.ndim):
                    channels = None if ndim is None else copy.shape[1]
                    self._mark(copy, _Signal(source, _active_fraction(module, _input(args, kwargs)), channels))
            return copy

        return hook

    def _after_mask_keeping(self, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        before = self._running.pop()
        if before is not None and before.linear is None:
            self._mark(output, before)

    def _after_linear(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        before = self._running.pop()
        if before is not None and before.linear is None:
            power = mask_power(module, _input(args, kwargs), before.channels)
            if power is not None:
                bias = None if module.bias is None else module.bias.detach().double()
                self._mark(output, replace(before, linear=module, power=power, bias=bias))

    def _before_batchnorm(self, layer: Layer) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = _input(args, kwargs)
            if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[1] != layer.channels:
                return  # the layer's own error says what is wrong
            self._samples = self._samples or x.shape[0]
            if x.numel() == x.shape[1]:
                raise _OneValueError
            signal = self._find(x)
            if signal is None:
                self.paths[layer.name] = None
                return
            start = NoisePath(signal.source.path, signal.source.module, signal.linear, signal.channels is not None)
            path = self.paths.setdefault(layer.name, start)
            if path is None or (path.module, path.linear) != (start.module, start.linear):
                self.paths[layer.name] = None
            else:
                path.add(x, signal.active, signal.power, signal.bias)

        return hook

    def _mark(self, tensor: Any, signal: _Signal) -> None:
        # A tensor of inference mode has no version that would tell of a change in place.
        if isinstance(tensor, Tensor) and tensor.numel() and not tensor.is_inference():
            self._signals[tensor.untyped_storage().data_ptr()] = tensor, tensor._version, signal

    def _find(self, x: Any) -> _Signal | None:
        """What is known of x: a marked tensor, unchanged, or all of it under another shape."""
        if not isinstance(x, Tensor) or x.is_inference():
            return None
        marked, version, signal = self._signals.get(x.untyped_storage().data_ptr(), (x, -1, None))
        if signal is None or x._version != version or x.numel() != marked.numel():
            return None
        if x.shape == marked.shape:
            return signal if x.stride() == marked.stride() else None
        # Of what a linear layer returned only the pixels may be folded; channels that are dropped stay their sample's.
        if signal.linear is not None and x.shape[:2] != marked.shape[:2]:
            return None
        if signal.channels is not None and len(x) != len(marked):
            return None
        return signal if x.is_contiguous() and marked.is_contiguous() else None


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _is_stock(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module computes what one of torch's (or this package's) own does; a subclass may do something else."""
    return "forward" not in module.__dict__ and any(
        isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds
    )


def _is_off(module: nn.Module, model: nn.Module) -> bool:
    """Whether a layer drops nothing while the model trains: its rate is zero, or it is in eval mode (frozen)."""
    return (isinstance(module, _SOURCES) and bool(module.p == 0)) or (model.training and not module.training)


def _active_fraction(module: nn.Module, x: Tensor) -> Tensor:
    """(1,) the fraction of entries > 0 that normalises the rate, (N,) one per sample, 1 where nothing does."""
    if not isinstance(module, Jumpout) or module.normalize == "none":
        return torch.ones(1, dtype=torch.float64)
    rows = (x > 0).reshape(x.shape[0] if module.normalize == "sample" else 1, -1)
    return (rows.sum(dim=1).double() / rows.shape[1]).cpu()
