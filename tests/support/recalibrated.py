"""A network with drifted BatchNorms, its data, and the statistics computed by hand."""

import copy

import torch
from torch import nn

from jumpout_export.nn.modules import Jumpout


def network(depth: int = 5, width: int = 8) -> nn.Sequential:
    """A network with dropout before BatchNorms whose stored statistics are far off."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    for index in range(depth):
        blocks += [nn.Conv2d(3 if index == 0 else width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        blocks += [Jumpout(sigma=0.2) if index % 2 else nn.Dropout(0.5)]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.3, 2)
            module.num_batches_tracked.fill_(7)
    return model


def norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def samples(count: int = 96) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 + 1


def worst_difference(model: nn.Module, other: nn.Module) -> float:
    """The largest W of any channel between the statistics of two models."""
    worst = 0.0
    for one, two in zip(norms(model), norms(other), strict=True):
        scale = one.running_var.double() + one.eps
        delta = (one.running_mean.double() - two.running_mean.double()).square() / scale
        ratio = ((two.running_var.double() + two.eps) / scale).sqrt() - 1
        worst = max(worst, float((delta + ratio.square()).max().sqrt()))
    return worst


def by_hand(model: nn.Sequential, x: torch.Tensor) -> nn.Sequential:
    """Layer after layer on all samples at once: no pass over batches, no hooks, float64."""
    model = copy.deepcopy(model).double().eval()
    x = x.double()
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.BatchNorm2d):
                values = x.transpose(0, 1).flatten(1)
                module.running_mean.copy_(values.mean(1))
                module.running_var.copy_(values.var(1))  # unbiased
            x = module(x)
    return model
