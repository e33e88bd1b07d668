"""Networks that are trained with serving statistics beside them."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jumpout_export import ServingStatistics
from support.monitored import labels, network, samples


def noisy_linear(p: float = 0.5) -> nn.Sequential:
    """Dropout, one linear layer, BatchNorm: what serving sees of the BatchNorm is known in closed form."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(p), nn.Linear(6, 4), nn.BatchNorm1d(4))


def serving_moments(linear: nn.Linear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance of W x + b from those of x: W m + b, and the diagonal of W cov W'."""
    x, weight = x.double(), linear.weight.detach().double()
    mean = weight @ x.mean(0) + linear.bias.detach().double()
    return mean, (weight @ torch.cov(x.T) @ weight.T).diagonal()


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for name, value in model.state_dict().items() if "running" in name or "tracked" in name]


def train(model: nn.Module, seen, *, epochs: int = 3, after_epoch=lambda model: None) -> tuple:
    """Trains, calls `seen(x)` after each step, and returns everything that could have been changed by that."""
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    x, y = samples(), labels(samples())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(epochs):
        model.train()
        for chosen in torch.randperm(len(x)).split(16):
            batch = x[chosen] * np.random.uniform(0.9, 1.1) + random.gauss(0, 0.1)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch), y[chosen])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            seen(batch)
        after_epoch(model)
    return (
        losses,
        {name: value.clone() for name, value in model.state_dict().items()},
        [parameter.grad for parameter in model.parameters()],
        [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        optimizer.state_dict()["state"],
        (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),
    )


def fed(keep: int = 2, batches: int = 3, **options) -> tuple[nn.Module, ServingStatistics, list[torch.Tensor]]:
    """A network in training mode, its serving statistics, and the batches that it was trained on."""
    model = network()
    serving = ServingStatistics(model, keep=keep, **options)
    trained = list(samples(16 * batches).split(16))
    for x in trained:
        model(x)
        serving.step(x)
    return model, serving, trained
