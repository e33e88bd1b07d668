"""What becomes of each stochastic layer, and the copy in which it did."""

from __future__ import annotations

import copy

from torch import nn

from jumpout_export.fold.network.audit import allowed
from jumpout_export.model.stochastic import StochasticLayer, stochastic_layers
from jumpout_export.nn.modules import Jumpout
from jumpout_export.report import FoldedLayer

# Their eval forward is known to return its input (RReLU's: to be a LeakyReLU).
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_KNOWN = frozenset(layer.forward for layer in (*_DROPOUTS, nn.RReLU, Jumpout))


def layers_of(model: nn.Module, allow: tuple[str, ...]) -> list[StochasticLayer]:
    """Returns the stochastic layers outside of `allow`."""
    return [layer for layer in stochastic_layers(model) if not allowed(layer.path, allow)]


def action_of(layer: StochasticLayer) -> str:
    """What the layer is to become; an RReLU, which the converter does not know, is a LeakyReLU in eval mode."""
    known = isinstance(layer.module, nn.RReLU) and is_known(layer.module)
    return "leaky_relu" if known else layer.action


def is_known(layer: nn.Module) -> bool:
    """Whether the eval forward is one of torch's or ours that is known, and nothing is hooked around it."""
    own = "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks
    return not own and type(layer).forward in _KNOWN and type(layer).__call__ is nn.Module.__call__


def replaced(original: nn.Module, actions: dict[str, str], allow: tuple[str, ...]) -> nn.Module:
    """Returns a copy with the replacement of each layer everywhere the layer is held, however often it is shared."""
    model = copy.deepcopy(original).eval()  # a module that pickles itself in its own way may come back in train mode
    new: dict[nn.Module, nn.Module] = {}
    for layer in layers_of(model, allow):
        if actions[layer.path] == "identity":
            new[layer.module] = nn.Identity().eval()
        elif actions[layer.path] == "relu":
            new[layer.module] = nn.ReLU(inplace=bool(getattr(layer.module, "inplace", False))).eval()
        elif actions[layer.path] == "leaky_relu" and isinstance(layer.module, nn.RReLU):
            slope = (layer.module.lower + layer.module.upper) / 2
            new[layer.module] = nn.LeakyReLU(slope, layer.module.inplace).eval()
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)


def reported(layers: list[StochasticLayer], actions: dict[str, str]) -> tuple[FoldedLayer, ...]:
    """Returns what became of each layer, for the report."""
    return tuple(
        FoldedLayer(path=layer.path, kind=layer.kind, action=actions[layer.path], settings=layer.settings)
        for layer in layers
    )
