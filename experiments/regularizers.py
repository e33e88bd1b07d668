"""What stands after a ReLU: nothing, dropout, jumpout and each of its three modifications alone, Concrete Dropout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from experiments.networks import Regularizer
from jumpout_export import Jumpout

KINDS = ("none", "dropout", "jumpout", "concrete")


def make_regularizer(kind: str, **settings: Any) -> Regularizer:
    """Returns a factory of layers.

    Args:
        kind: `none`, `dropout` (nn.Dropout), `jumpout` or `concrete`.
        settings: of the layer. A constant rate (`p`), `normalize="none"` and `alpha=1` switch the modifications of
            `jumpout` off one by one; with all three off it is plain dropout.

    Raises:
        ValueError: if the kind is unknown or a setting out of its range.
        TypeError: if the layer has no such setting.
    """
    layers: Mapping[str, type[nn.Module]] = {
        "none": nn.Identity,
        "dropout": nn.Dropout,
        "jumpout": Jumpout,
        "concrete": ConcreteDropout,
    }
    if kind not in layers:
        raise ValueError(f"regularizer kind must be one of {', '.join(KINDS)}, got {kind!r}")
    layer = layers[kind]
    layer(**settings)  # a wrong setting is found here, not in the middle of a network
    return lambda: layer(**settings)


class ConcreteDropout(nn.Module):
    """Dropout with a learned rate: Gal, Hron, Kendall, "Concrete Dropout", NIPS 2017, eq. 5; one rate a layer.

    The mask is a relaxed Bernoulli variable while training; in eval mode the input is returned. `penalty` is the
    entropy term of eq. 3, for one image; the training loop adds the sum over layers divided by the number of training
    images to the loss. The other term of eq. 3, on the weights, is the optimizer's weight decay.

    Args:
        p: rate at the start, in (0, 1).
        temperature: of the relaxation, > 0; the paper takes 0.1.
    """

    def __init__(self, p: float = 0.1, temperature: float = 0.1) -> None:
        super().__init__()
        if not 0 < p < 1 or not temperature > 0:
            raise ValueError(f"p must be in (0, 1) and temperature > 0, got {p} and {temperature}")
        self.temperature = temperature
        self.logit = nn.Parameter(torch.logit(torch.tensor(float(p))))
        self.channels = 0

    @property
    def p(self) -> Tensor:
        """The rate, a () tensor."""
        return torch.sigmoid(self.logit)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x times a relaxed mask divided by the keep rate in train mode, x in eval mode."""
        if not self.training:
            return x
        self.channels = x.shape[1]
        u = torch.rand_like(x).clamp(1e-6, 1 - 1e-6)
        dropped = torch.sigmoid((self.logit + torch.logit(u)) / self.temperature)
        return x * (1 - dropped) / (1 - self.p)

    def penalty(self) -> Tensor:
        """Returns channels times the negative entropy of the rate, a () tensor."""
        p = self.p
        return self.channels * (p * torch.log(p) + (1 - p) * torch.log(1 - p))

    def extra_repr(self) -> str:
        """Returns the rate."""
        return f"p={self.p.item():.3f}"


def penalties(network: nn.Module) -> Iterator[Tensor]:
    """Yields the penalty of each layer that has one."""
    for layer in network.modules():
        if isinstance(layer, ConcreteDropout):
            yield layer.penalty()
