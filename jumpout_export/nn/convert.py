"""Turns the dropout layers of an existing network into jumpout."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn

from jumpout_export.model.stochastic import stochastic_layers
from jumpout_export.nn.code import uses_in_code
from jumpout_export.nn.modules import Jumpout
from jumpout_export.nn.usage import Use, uses_on
from jumpout_export.text import joined

_SINGLE = "jumpout drops single units"
_LEFT_ALONE: dict[type[nn.Module], str] = {
    nn.Dropout1d: f"drops whole channels; {_SINGLE}",
    nn.Dropout2d: f"drops whole channels; {_SINGLE}",
    nn.Dropout3d: f"drops whole channels; {_SINGLE}",
    nn.AlphaDropout: "belongs to SELU networks and sets units to a negative value; jumpout is for ReLU networks",
    nn.FeatureAlphaDropout: "belongs to SELU networks and sets units to a negative value; jumpout is for ReLU networks",
}
_NO_LAYER = "it is no layer, so that no module can replace it: use jumpout_export.jumpout there"
_READ = "its `p` is read"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Swap:
    """What `convert_dropout` did with one dropout layer, or with noise that is no layer.

    Attributes:
        path: module path; of noise that is no layer, that of the module that draws it.
        kind: class name of the layer that was there; of noise that is no layer, the operator that draws it.
        swapped: whether a Jumpout is there now.
        reason: why it was left alone; empty if it was swapped.
        warning: why jumpout may not be what is wanted there, where it was swapped; empty if nothing speaks against it.
    """

    path: str
    kind: str
    swapped: bool
    reason: str = ""
    warning: str = ""


def convert_dropout(
    model: nn.Module, sigma: float | None = None, *, example: Any = None, **settings: Any
) -> list[Swap]:
    """Replaces each nn.Dropout in `model` by a Jumpout in place, and returns what was done with every dropout layer.

    A layer used in several places becomes one Jumpout in all of them; training flag and `inplace` are kept.
    Left alone, with the reason in the returned list: layers that are off (rate 0), that have hooks, or whose `p`
    something reads (attention does); channel-wise and SELU dropout, DropPath and other noise, and rates inside
    nn.MultiheadAttention, nn.LSTM and the like. Parameters and buffers do not change, so checkpoints keep loading.

    Args:
        model: the network; modified in place.
        sigma: standard deviation of the sampled rate, see `Jumpout`. Without `sigma` and `p` each layer keeps its own
            dropout rate as the constant rate.
        example: one batch, on which a copy of the model is run in train mode. Layers that it does not call are left
            alone too, noise that is no layer (`F.dropout`) is listed at the end, and a warning names layers with signed
            inputs: jumpout takes what is not above 0 for inactive, which doubles the rate where that is a half.
        **settings: further arguments of `Jumpout`, for example `p_max=0.4`.

    Returns:
        One `Swap` for each place that holds a dropout layer, in registration order.

    Raises:
        ValueError: if a setting is out of range, `model` is itself a dropout layer, a layer of rate 1 would keep it, or
            the model cannot be run on `example`.
        TypeError: if `example` is no batch of the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5))
        >>> [swap.path for swap in convert_dropout(model, sigma=0.1)]
        ['2']
    """
    if isinstance(model, (nn.Dropout, *_LEFT_ALONE)):
        raise ValueError(
            f"the model itself is a {type(model).__name__} and cannot be replaced in place; use Jumpout(...) instead"
        )
    if sigma is not None:
        settings["sigma"] = sigma
    Jumpout(**settings)  # a wrong setting is an error before anything is touched
    uses, (read, noise) = None, uses_in_code(model)
    if example is not None:  # which shows it better
        uses, noise = uses_on(example, model)
        read = {layer: f"at {use.readers[0]}" for layer, use in uses.items() if use.readers}
        noise = [one for one in noise if one.place not in read.values()]  # that of attention is said there
    reasons = _reasons(model, uses, read)
    places = [
        (f"{path}.{name}" if path else name, parent, name, child)
        for path, parent in model.named_modules(remove_duplicate=False)
        for name, child in parent._modules.items()
        if child is not None
    ]
    new: dict[nn.Module, Jumpout] = {}
    for path, _, _, child in places:
        if type(child) is nn.Dropout and child not in new and child not in reasons:
            new[child] = _jumpout_like(child, settings, path)
    swaps = []
    for path, parent, name, child in places:
        kind = type(child).__name__
        if child in new:
            parent._modules[name] = new[child]
            swaps.append(Swap(path, kind, True, warning=_warning(new[child], (uses or {}).get(child))))
        elif child in reasons:
            swaps.append(Swap(path, kind, False, reasons[child]))
    doubtful = [f"`{swap.path}` ({swap.warning})" for swap in swaps if swap.warning]
    if doubtful:
        warnings.warn(f"jumpout is made for inputs that a ReLU made: {joined(doubtful, 3)}", stacklevel=2)
    listed = tuple(f"{swap.path}." for swap in swaps)
    elsewhere = [one for one in noise if not f"{one.path}.".startswith(listed)]
    return [*swaps, *(Swap(one.path, one.name, False, f"is called {one.place}; {_NO_LAYER}") for one in elsewhere)]


def _reasons(model: nn.Module, uses: dict[nn.Module, Use] | None, read: dict[nn.Module, str]) -> dict[nn.Module, str]:
    """Why each noise layer that is left alone is."""
    found = {}
    for module in model.modules():
        if type(module) is nn.Dropout:
            reason = _why_not(module)
            if not reason and module in read:
                reason = (
                    f"{_READ} {read[module]}, as for scaled_dot_product_attention; that of jumpout is not one number"
                )
            elif not reason and uses is not None and not uses[module].calls:
                reason = "it was not called on the example"
        else:
            reason = _why_left_alone(module)
        if reason:
            found[module] = reason
    for layer in stochastic_layers(model):
        if type(layer.module) is not nn.Dropout and not isinstance(layer.module, Jumpout):
            found.setdefault(layer.module, f"its noise is of another kind; {_SINGLE}")
    return found


def _why_not(layer: nn.Dropout) -> str:
    if layer.p == 0:
        return "its rate is 0, so it is off"
    if any(getattr(layer, hooks, None) for hooks in _HOOKS):
        return "it has hooks, which would be lost; remove them first and register them anew"
    return "its forward was replaced on the object, which would be lost" if "forward" in vars(layer) else ""


def _warning(layer: Jumpout, use: Use | None) -> str:
    if use is None or not use.negative or layer.normalize == "none":
        return ""
    negative, positive = use.negative / use.values, use.positive / use.values
    return (
        f"{negative:.0%} of its input is below 0 and {positive:.0%} above, so its rate is multiplied by "
        f"{1 / max(positive, 0.01):.1f}; keep nn.Dropout there, or give normalize='none'"
    )


def _jumpout_like(layer: nn.Dropout, settings: dict[str, Any], path: str) -> Jumpout:
    settings = {"inplace": layer.inplace, **settings}
    if settings.get("sigma") is None and settings.get("p") is None:
        if layer.p >= 1:
            raise ValueError(
                f"Dropout `{path}` has rate {layer.p}, which drops everything; give sigma= or p= to choose another rate"
            )
        settings["p"] = layer.p
    return Jumpout(**settings).train(layer.training)


def _why_left_alone(module: nn.Module) -> str:
    if type(module) in _LEFT_ALONE:
        return _LEFT_ALONE[type(module)]
    if isinstance(module, nn.Dropout):
        return "a subclass of nn.Dropout, whose forward may do something else"
    rate = getattr(module, "dropout", None)
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase) and isinstance(rate, int | float) and rate > 0:
        return f"its dropout of {rate} is applied inside the layer, where no module can replace it"
    return ""
