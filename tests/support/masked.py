"""Networks with a stochastic layer before a BatchNorm, and the advice on them."""

import math

import torch
from torch import nn

from jumpout_export import Jumpout
from jumpout_export.batchnorm.advice.alpha import (
    advise,
    sampled_rates,
    variance_ratio,
)
from jumpout_export.batchnorm.advice.noise_path import NoisePath
from jumpout_export.batchnorm.advice.scale_paths import noise_paths
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.report import AlphaAdvice

SIX = 6.0


def paths_of(model: nn.Module, *batches: torch.Tensor, samples: int = 512) -> dict[str, NoisePath]:
    return noise_paths(Feed(model, list(batches)), batchnorm_layers(model), samples)


def advice_of(model: nn.Module, *batches: torch.Tensor, samples: int = 512) -> dict[str, AlphaAdvice]:
    return advise(Feed(model, list(batches)), batchnorm_layers(model), samples)


def alpha_of(module: nn.Module) -> float:
    return module.alpha if isinstance(module, Jumpout) else 1.0


def law(path: NoisePath) -> torch.Tensor:
    rates = sampled_rates(path.module, torch.cat(path.active))
    return variance_ratio(rates, alpha_of(path.module), path.rho, path.squared_mean)


def activations(*shape: int, seed: int = 1) -> torch.Tensor:
    """Units after a ReLU: correlated pixels, a mean, and as many active ones in every sample."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if len(shape) > 2:
        x = x + x.roll(1, -1) + 0.3
    threshold = x.flatten(1).median(dim=1).values.reshape(-1, *[1] * (len(shape) - 1))
    return torch.relu(x - threshold)


def per_channel(y: torch.Tensor) -> torch.Tensor:
    return y.transpose(0, 1).flatten(1)


class Net(nn.Module):
    """A model whose forward is a function of its modules."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def net(forward, noise: nn.Module | None = None, **modules: nn.Module) -> Net:
    modules.setdefault("linear", nn.Conv2d(4, 4, 3, padding=1))
    return Net(forward, noise=noise or Jumpout(p=0.2), norm=nn.BatchNorm2d(4), **modules)


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def advice(**changes: float | str) -> AlphaAdvice:
    known = {"path": "drop2", "alpha": 0.75, "rho": 0.4, "alpha_star": 0.88, "predicted": -math.log(1.13)}
    return AlphaAdvice(**{**known, **changes})
