"""Folds a model: an eval-mode copy in which the stochastic layers are gone, with the proof that it is the same."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jumpout_export.errors import NotFoldableError
from jumpout_export.export.audit import allowed, refuse_randomness
from jumpout_export.export.checks import first_line
from jumpout_export.export.signature import example_batch, fresh, on_device
from jumpout_export.nn.batches import Batch
from jumpout_export.nn.randomness import rng_restored, same_bits
from jumpout_export.nn.stochastic import StochasticLayer, stochastic_layers
from jumpout_export.report import FoldedLayer

# Their eval forward is known; a subclass that overrides it is only replaced if a run shows that it is the identity.
_KNOWN_PACKAGES = frozenset({"torch", "jumpout_export", "timm", "torchvision"})


@dataclass(frozen=True)
class Folded:
    """A folded copy and what became of each stochastic layer."""

    model: nn.Module
    layers: tuple[FoldedLayer, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Replaced:
    """The edited model and what undoes the edit."""

    root: nn.Module
    original: nn.Module
    places: list[tuple[nn.Module, str, nn.Module]]

    def undo(self) -> nn.Module:
        for parent, name, child in self.places:
            parent._modules[name] = child
        return self.original


def fold_model(model: nn.Module, example: Any = None, *, allow: Iterable[str] = ()) -> nn.Module:
    """Returns a copy of the model in eval mode in which every stochastic layer is the identity (or its fused ReLU).

    The model itself is not touched: flags, parameters, buffers and generator states stay as they are. A layer whose
    eval forward is not the identity, such as a dropout that scales by 1 - p in eval mode, stays in the copy.

    Args:
        model: any nn.Module that `copy.deepcopy` can copy.
        example: a batch (tensor, tuple, dict, or with labels). With it the proof runs on the spot: the folded copy is
            bitwise equal to the eval model, two runs agree bitwise and no random number is drawn. Without it only
            layers whose eval forward is known are replaced.
        allow: module paths in which, and below which, random numbers may be drawn; these stay as they are.

    Returns:
        The folded copy, on the model's device.

    Raises:
        NotFoldableError: if the model draws random numbers in eval mode outside of `allow`.
        TypeError: if `model` is no nn.Module or cannot be copied, or `example` holds something else than tensors.
        ValueError: if `allow` names no module of the model, or the model cannot run `example`.

    Example:
        >>> folded = fold_model(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)), torch.randn(3, 4))
        >>> folded[1]
        Identity()
    """
    return fold(model, example, allow=allow).model


def fold(model: nn.Module, example: Any = None, *, allow: Iterable[str] = ()) -> Folded:
    """Returns what `fold_model` returns, and what became of each stochastic layer."""
    allow = (allow,) if isinstance(allow, str) else tuple(allow)
    copied = _eval_copy(model)
    unknown = [path for path in allow if path not in dict(copied.named_modules())]
    if unknown:
        raise ValueError(f"allow names no module of the model: {', '.join(map(repr, unknown))}")
    _refuse_layers_that_stay_random(copied, allow)
    layers = [layer for layer in stochastic_layers(copied) if not allowed(layer.path, allow)]
    if example is None:
        actions = {layer.path: _action(layer) if _known(layer.module) else "keep" for layer in layers}
        return Folded(_replace(copied, layers, actions).root, _report(layers, actions))
    batch = on_device(example_batch(example, copied), _device(copied))
    with rng_restored(), torch.no_grad():
        return _fold_with_proof(copied, batch, layers, allow)


def _fold_with_proof(model: nn.Module, batch: Batch, layers: list[StochasticLayer], allow: tuple[str, ...]) -> Folded:
    seen: dict[str, bool] = {}
    handles = [_watch(layer, seen) for layer in layers if layer.action != "keep"]

    def run() -> Any:
        try:
            return fresh(batch)(model)
        except Exception as error:
            raise ValueError(
                f"the model cannot run the example: {type(error).__name__}: {first_line(error)}"
            ) from error

    try:
        expected = refuse_randomness(model, run, allow)
    finally:
        for handle in handles:
            handle.remove()
    actions = {layer.path: _action(layer) if seen.get(layer.path, _known(layer.module)) else "keep" for layer in layers}
    notes = [
        f"`{layer.path}` ({layer.kind}) does more in eval mode than return its input; it stays, in eval mode"
        for layer in layers
        if _action(layer) != actions[layer.path]
    ]
    replaced = _replace(model, layers, actions)
    problem = _difference(replaced.root, batch, expected, allow)
    if not problem:
        return Folded(replaced.root, _report(layers, actions), tuple(notes))
    # For example a forward that reads `self.drop.p`. The eval model itself was proven deterministic above.
    note = f"the stochastic layers stay, in eval mode, because without them {problem}"
    return Folded(replaced.undo(), _report(layers, dict.fromkeys(actions, "keep")), (note,))


def _difference(folded: nn.Module, batch: Batch, expected: Any, allow: tuple[str, ...]) -> str:
    """What differs between the folded copy and the eval model's result; empty if nothing does."""
    try:
        result = refuse_randomness(folded, lambda: fresh(batch)(folded), allow)
    except Exception as error:  # a user's forward may raise anything; the reason is reported
        return f"the model fails with {type(error).__name__}: {first_line(error)}"
    return "" if same_bits(expected, result) else "the result differs"


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the module inside a `torch.compile` wrapper, which would compile anew for every copy."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _eval_copy(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        held = [
            f"`{f'{path}.' if path else ''}{name}`"
            for path, module in model.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor) and not value.is_leaf
        ]
        hint = f"; set {', '.join(held)} to None first, it holds a result with its gradient graph" if held else ""
        raise TypeError(
            f"the model cannot be copied, and the export never changes yours: copy.deepcopy raised "
            f"{type(error).__name__}: {first_line(error)}{hint}"
        ) from error


def _refuse_layers_that_stay_random(model: nn.Module, allow: tuple[str, ...]) -> None:
    """A model whose own `eval()` leaves a dropout or BatchNorm training, as Monte-Carlo dropout does."""
    stochastic = {layer.path for layer in stochastic_layers(model)}
    paths = tuple(
        path
        for path, module in model.named_modules()
        if module.training and (path in stochastic or isinstance(module, _BatchNorm)) and not allowed(path, allow)
    )
    if paths:
        raise NotFoldableError(
            f"{', '.join(f'`{path}`' for path in paths)} in train mode even after the model's eval(), "
            "so no deterministic graph equals it",
            paths,
        )


def _watch(layer: StochasticLayer, seen: dict[str, bool]) -> torch.utils.hooks.RemovableHandle:
    """Records whether each call of the layer returned its input bit for bit (or the relu of it)."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        expected = torch.relu(args[0]) if args and layer.action == "relu" else args[0] if args else None
        same = isinstance(output, Tensor) and same_bits(expected, output)
        seen[layer.path] = seen.get(layer.path, True) and same

    return layer.module.register_forward_hook(hook)


def _action(layer: StochasticLayer) -> str:
    """What the layer is to become; an RReLU, which the converter does not know, is a LeakyReLU in eval mode."""
    return "leaky_relu" if isinstance(layer.module, nn.RReLU) else layer.action


def _known(layer: nn.Module) -> bool:
    own = "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks
    return not own and type(layer).forward.__module__.partition(".")[0] in _KNOWN_PACKAGES


def _replace(model: nn.Module, layers: list[StochasticLayer], actions: dict[str, str]) -> _Replaced:
    """Puts the replacement of each layer in place everywhere the layer is held, however often it is shared."""
    new: dict[nn.Module, nn.Module] = {}
    for layer in layers:
        if actions[layer.path] == "identity":
            new[layer.module] = nn.Identity().eval()
        elif actions[layer.path] == "relu":
            new[layer.module] = nn.ReLU(inplace=bool(getattr(layer.module, "inplace", False))).eval()
        elif actions[layer.path] == "leaky_relu" and isinstance(layer.module, nn.RReLU):
            slope = (layer.module.lower + layer.module.upper) / 2
            new[layer.module] = nn.LeakyReLU(slope, layer.module.inplace).eval()
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and child in new
    ]
    for parent, name, child in places:
        parent._modules[name] = new[child]
    return _Replaced(new.get(model, model), model, places)


def _report(layers: list[StochasticLayer], actions: dict[str, str]) -> tuple[FoldedLayer, ...]:
    return tuple(
        FoldedLayer(path=layer.path, kind=layer.kind, action=actions[layer.path], settings=layer.settings)
        for layer in layers
    )


def _device(model: nn.Module) -> torch.device:
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
