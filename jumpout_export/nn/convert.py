"""Turns the dropout layers of an existing network into jumpout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from jumpout_export.nn.modules import Jumpout

_LEFT_ALONE: dict[type[nn.Module], str] = {
    nn.Dropout1d: "drops whole channels; jumpout drops single units",
    nn.Dropout2d: "drops whole channels; jumpout drops single units",
    nn.Dropout3d: "drops whole channels; jumpout drops single units",
    nn.AlphaDropout: "belongs to SELU networks and sets units to a negative value; jumpout is for ReLU networks",
    nn.FeatureAlphaDropout: "belongs to SELU networks and sets units to a negative value; jumpout is for ReLU networks",
}


@dataclass(frozen=True)
class Swap:
    """What `convert_dropout` did with one dropout layer.

    Attributes:
        path: module path.
        kind: class name of the layer that was there.
        swapped: whether a Jumpout is there now.
        reason: why it was left alone; empty if it was swapped.
    """

    path: str
    kind: str
    swapped: bool
    reason: str = ""


def convert_dropout(model: nn.Module, sigma: float | None = None, **settings: Any) -> list[Swap]:
    """Replaces each nn.Dropout in `model` by a Jumpout in place, and returns what was done with every dropout layer.

    A layer used in several places becomes one Jumpout in all of them; training flag and `inplace` are kept.
    Channel-wise and SELU dropout are left alone, as are dropout rates inside nn.MultiheadAttention, nn.LSTM and the
    like; the returned list says why. Parameters and buffers do not change, so checkpoints keep loading.

    Args:
        model: the network; modified in place.
        sigma: standard deviation of the sampled rate, see `Jumpout`. Without `sigma` and `p` each layer keeps its own
            dropout rate as the constant rate.
        **settings: further arguments of `Jumpout`, for example `p_max=0.4`.

    Returns:
        One `Swap` for each place that holds a dropout layer, in registration order.

    Raises:
        ValueError: if a setting is out of range, `model` is itself a dropout layer, or a layer of rate 1 would keep it.

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
    places = [
        (f"{path}.{name}" if path else name, parent, name, child)
        for path, parent in model.named_modules(remove_duplicate=False)
        for name, child in parent._modules.items()
        if child is not None
    ]
    new: dict[nn.Module, Jumpout] = {}
    for path, _, _, child in places:
        if type(child) is nn.Dropout and child not in new:
            new[child] = _jumpout_like(child, settings, path)
    swaps = []
    for path, parent, name, child in places:
        if child in new:
            parent._modules[name] = new[child]
            swaps.append(Swap(path, "Dropout", True))
        elif reason := _why_left_alone(child):
            swaps.append(Swap(path, type(child).__name__, False, reason))
    return swaps


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
