"""Layers that draw random numbers while training, known by name.

Names, not classes, because timm and torchvision are optional. Whether a model draws random numbers *in eval mode* is
not a matter of names; `randomness.py` measures it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

Action = Literal["identity", "relu", "keep"]

# The eval forward of these should return its input, so that a deterministic network is the same network without them;
# whether it does is shown before one is taken out.
IDENTITY_IN_EVAL = frozenset(
    {
        "Dropout",
        "Dropout1d",
        "Dropout2d",
        "Dropout3d",
        "AlphaDropout",
        "FeatureAlphaDropout",
        "Jumpout",
        "StochasticDepth",  # torchvision
    }
)
# timm's and MONAI's DropPath and its copies (SwinDropPath in transformers), DropBlock of timm and torchvision
# (DropBlock2d) and of dropblock (DropBlock2D), timm's and vit-pytorch's PatchDropout.
_IDENTITY_IN_EVAL = re.compile(r"\w*DropPath|DropBlock(?:[123][dD])?|PatchDropout")
# Random while training, deterministic and not the identity in eval: they stay, in eval mode.
DETERMINISTIC_IN_EVAL = frozenset({"RReLU", "MultiheadAttention", "LSTM", "GRU", "RNN", "ConcreteDropout"})


@dataclass(frozen=True)
class StochasticLayer:
    """One stochastic layer of a model."""

    path: str  # module path; the same module used twice is listed once, under its first path
    module: nn.Module  # the layer
    # what a fold makes of it: `identity`, `relu` (a fused ReLU remains) or `keep` (deterministic in eval)
    action: Action
    settings: str  # its settings, as its `extra_repr` prints them

    @property
    def kind(self) -> str:
        """Class name."""
        return type(self.module).__name__


def stochastic_layers(model: nn.Module) -> Iterator[StochasticLayer]:
    """Yields the layers of `model` that are random while training, in registration order."""
    for path, module in model.named_modules():
        names = {cls.__name__ for cls in type(module).__mro__}
        if names & IDENTITY_IN_EVAL or any(map(_IDENTITY_IN_EVAL.fullmatch, names)):
            action: Action = "relu" if getattr(module, "relu", False) is True else "identity"
        elif names & DETERMINISTIC_IN_EVAL and _rate(module) != 0:
            action = "keep"
        else:
            continue
        yield StochasticLayer(path, module, action, module.extra_repr())


def _rate(module: nn.Module) -> float | None:
    """The dropout rate of a container layer such as nn.LSTM; None where it is not a number (RReLU has bounds)."""
    rate = getattr(module, "dropout", None)
    return float(rate) if isinstance(rate, int | float) else None
