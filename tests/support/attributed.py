"""A small network that drifts for a known reason, and the check of it."""

import math

import torch
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.report import BatchNormLayer, BatchNormReport

PARTS = ("stale", "stochastic", "propagated")


def samples(count: int = 512, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def network(noise: nn.Module | None = None) -> nn.Sequential:
    """Four BatchNorms at 1, 4, 7, 10; `noise` is behind the second one's ReLU."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, width in ((3, 16), (16, 16), (16, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    layers[5] = nn.Sequential(layers[5], noise or nn.Identity())
    return nn.Sequential(*layers)


def healthy(noise: nn.Module | None = None) -> nn.Sequential:
    model = network(noise)
    recalibrate_batchnorm(model, samples().split(64))
    return model


def trained(noise: nn.Module, steps: int = 60) -> nn.Sequential:
    """A network whose statistics training with `noise` has stored; its weights are not trained."""
    model = network(noise).train()
    x = samples(1024, seed=2)
    with torch.no_grad():
        for step in range(steps):
            model(x[torch.randperm(1024, generator=torch.Generator().manual_seed(step))[:64]])
    return model


def check(model: nn.Module, x: torch.Tensor | None = None, size: int = 64, **options: object) -> BatchNormReport:
    options = {"outputs": False, "stop_early": False} | options
    return check_batchnorm(model, list((samples() if x is None else x).split(size)), **options)


def row_of(report: BatchNormReport, name: str) -> BatchNormLayer:
    return next(layer for layer in report.layers if layer.name == name)


def edit(norm: nn.BatchNorm2d, d: float, c: float) -> None:
    tau = (norm.running_var + norm.eps).sqrt()
    norm.running_mean += d * tau
    norm.running_var.copy_(tau.square() * math.exp(c) - norm.eps)


def assert_adds_up(layer: BatchNormLayer, quantity: str) -> None:
    parts = [getattr(layer.attribution, f"{quantity}_{part}") for part in PARTS]
    whole = torch.tensor(getattr(layer, quantity), dtype=torch.double)
    torch.testing.assert_close(torch.tensor(parts, dtype=torch.double).sum(0), whole, rtol=0, atol=1e-14)


def flat() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 8), nn.BatchNorm1d(8))


def made_row(name: str, verdict: str) -> BatchNormLayer:
    return BatchNormLayer(name=name, verdict=verdict, w=0, w_low=0, w_high=0)
