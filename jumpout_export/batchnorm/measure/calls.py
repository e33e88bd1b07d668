"""Where the input of a layer is taken: at its module if that hands it on as it is, else at the call that normalises."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.model.batch_statistics import NormCall, norm_call
from jumpout_export.model.norms import STATISTICS, hands_on_its_input

# Takes what a layer normalises, (N, C, *), or only some of its channels, (K,) indices. Returns whether the call that
# was watched shall do so by the batch, or what it shall give instead; no module that hands its input on is told.
Take = Callable[[Layer, Tensor, Tensor | None], bool | Tensor]

# Relative and absolute, of a normalised activation that another order of operations makes.
_CLOSE = (1e-3, 1e-4)


class Calls:
    """Watches the calls that normalise, and hands `take` what each of `layers` gets there.

    torch's own BatchNorms get what their module gets, which costs one hook. A subclass may move, pad or split it before
    `super().forward`, and the buffers of any layer may be used by `F.batch_norm` outside of it. So the calls of
    `batch_norm` and `instance_norm` themselves are watched while there is a layer of another class, or one that was not
    reached yet; of a network of torch's own BatchNorms that is its first forward. A call is that of the layer whose
    buffers or weight it is given, also of a part of them, or else of the innermost layer that is running.

    A layer whose module runs and makes no such call normalises by code of its own. It then gets what its module does if
    the channels cannot be mistaken: no other axis is as long, or its output is what normalising along them gives.

    Attributes:
        own_code: names of layers whose module ran, but what they normalised could not be told.
        outside: names of layers whose buffers or weight a call was given outside of their module.
    """

    def __init__(self, layers: Sequence[Layer], take: Take) -> None:
        self.own_code: set[str] = set()
        self.outside: set[str] = set()
        self._layers, self._take = layers, take
        self._direct = {layer.name for layer in layers if hands_on_its_input(layer.module)}
        self._direct_seen: set[str] = set()
        self._running: list[_Running] = []
        # By name, the calls that modules are about to make and that need no look.
        self._due: dict[str, int] = {}
        self._places = [_Place(layer, tensor) for layer in layers for tensor in _tensors(layer)]

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Attaches to the modules, and detaches on the way out."""
        with contextlib.ExitStack() as hooks:
            for layer in self._layers:
                module, direct = layer.module, layer.name in self._direct
                enter = self._direct_hook(layer) if direct else self._enter_hook(layer)
                hooks.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))
                if not direct:
                    leave = self._leave_hook(layer)
                    hooks.enter_context(module.register_forward_hook(leave, always_call=True))
            yield

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Stands around one forward."""
        self._running, self._due = [], {}
        all_direct = len(self._direct_seen) == len(self._layers)
        with contextlib.nullcontext() if all_direct else _Watching(self._call):
            yield

    def _direct_hook(self, layer: Layer) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._due[layer.name] = self._due.get(layer.name, 0) + 1
            x = args[0] if args else kwargs["input"]
            if x.ndim >= 2 and x.shape[1] == layer.channels:  # else the layer's own error says what is wrong
                self._direct_seen.add(layer.name)
                self._take(layer, x, None)

        return hook

    def _enter_hook(self, layer: Layer) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            self._running.append(_Running(layer, given))

        return hook

    def _leave_hook(self, layer: Layer) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            while self._running:
                one = self._running.pop()
                if one.layer is layer:
                    break
            else:
                return
            if one.calls or output is None:  # None: another hook, or the layer itself, failed
                return
            if one.given is None or not one.is_clear(one.given, output):
                self.own_code.add(layer.name)
                return
            self._take(layer, one.given, None)

        return hook

    def _call(self, call: NormCall) -> bool | Tensor:
        """Takes one call; returns whether it shall normalise by the batch, or what it shall give."""
        layer, channels = self._owner(call)
        if layer is None:
            return False
        if self._due.get(layer.name, 0):
            self._due[layer.name] -= 1
            return False
        inside = [one for one in self._running if one.layer is layer]
        for one in inside:
            one.calls += 1
        if not inside:
            self.outside.add(layer.name)
        width = layer.channels if channels is None else len(channels)
        if call.input.ndim < 2 or call.input.shape[1] != width:
            self.own_code.add(layer.name)  # for example two groups of a batch side by side, as channels
            return False
        return self._take(layer, call.input, channels)

    def _owner(self, call: NormCall) -> tuple[Layer | None, Tensor | None]:
        """Returns the layer that a call is of, and the channels if it is about some of them only."""
        inside = self._running[-1].layer if self._running else None
        for name in (*STATISTICS, "weight"):
            given = call.given.get(name)
            if not isinstance(given, Tensor):
                continue
            parts = [(place.layer, place.channels_of(given)) for place in self._places]
            found = [(layer, channels) for layer, channels in parts if len(channels)]
            # Layers may share buffers.
            found.sort(key=lambda one: one[0] is not inside and not self._due.get(one[0].name, 0))
            for layer, channels in found[:1]:
                return layer, channels if len(channels) < layer.channels else None
        return inside, None


@dataclass
class _Running:
    """A layer of another class than torch's while its module runs."""

    layer: Layer
    given: Tensor | None  # the first tensor that it got
    calls: int = 0  # calls that normalised
    version: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.version = None if self.given is None or self.given.is_inference() else self.given._version

    def is_clear(self, x: Tensor, output: Any) -> bool:
        """Whether what it got, `x`, was normalised along axis 1, as far as one can tell from outside."""
        layer = self.layer
        if x.ndim < 2 or x.shape[1] != layer.channels:
            return False
        if self.version is not None and x._version != self.version:
            return False
        if x.shape.count(layer.channels) == 1 + (x.shape[0] == layer.channels):
            return True
        if not isinstance(output, Tensor) or output.shape != x.shape or not layer.tracked:
            return False
        axes = [axis for axis in range(1, x.ndim) if x.shape[axis] == layer.channels]
        return [axis for axis in axes if self._normalises(x, output, axis)] == [1]

    def _normalises(self, x: Tensor, output: Tensor, axis: int) -> bool:
        """Whether its output is what normalising along this axis gives, by what is stored or by the batch."""
        # In torch's own words it would be a call that is watched.
        x, output = x.movedim(axis, -1), output.movedim(axis, -1)
        rest = list(range(x.ndim - 1))
        weight, bias = self.layer.module.weight, self.layer.module.bias
        for mean, var in (self.layer.statistics(), (x.mean(rest), x.var(rest, correction=0))):
            made = (x - mean) / (var + self.layer.eps).sqrt()
            if torch.allclose(output, made if weight is None else made * weight + bias, *_CLOSE):
                return True
        return False


@dataclass(frozen=True)
class _Place:
    """A buffer or weight of a layer."""

    layer: Layer
    tensor: Tensor

    def channels_of(self, given: Tensor) -> Tensor:
        """Returns (K,) the channels of this tensor that another one is or is a view of; none if it is none."""
        own, none = self.tensor, torch.arange(0)
        alike = given.ndim == 1 and len(given) and given.layout == own.layout and given.dtype == own.dtype
        if not alike or _storage(given) != _storage(own):
            return none
        step = own.stride(0) or 1
        start, rest = divmod(int(given.storage_offset()) - int(own.storage_offset()), step)
        channels = start + torch.arange(len(given)) * (given.stride(0) // step)
        return channels if rest == 0 <= int(channels.min()) and int(channels.max()) < len(own) else none


class _Watching(TorchFunctionMode):
    def __init__(self, visit: Callable[[NormCall], bool | Tensor]) -> None:
        super().__init__()
        self._visit = visit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = norm_call(func, args, kwargs)
        told = False if call is None else self._visit(call)
        if isinstance(told, Tensor):
            return told
        return call.by_batch() if call is not None and told else func(*args, **(kwargs or {}))


def _tensors(layer: Layer) -> Iterator[Tensor]:
    module = layer.module
    for tensor in (module.running_mean, module.running_var, getattr(module, "weight", None)):
        if isinstance(tensor, Tensor) and tensor.ndim == 1 and type(tensor) in (Tensor, nn.Parameter):
            yield tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
