"""A network to wrap, its data, and its row computed by hand."""

import torch
from torch import nn

from jumpout_export import check_batchnorm
from jumpout_export.report import BatchNormReport


class Net(nn.Module):
    """Two BatchNorms behind convolutions, the first optionally of another kind."""

    def __init__(self, norm: nn.Module | None = None, between: nn.Module | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.bn1, self.between, self.bn2 = norm or nn.BatchNorm2d(4), between or nn.ReLU(), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn2(self.conv2(self.between(self.bn1(self.conv1(x)))))


def samples(count=128):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def check(model, batches=None, **options) -> BatchNormReport:
    return check_batchnorm(model, list(samples().split(32)) if batches is None else batches, outputs=False, **options)


def inputs_of(model, module, batches=None) -> torch.Tensor:
    """What `module` gets while `model` is served, by a hook of our own."""
    seen = []
    flags = [(part, part.training) for part in model.modules()]
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    model.eval()
    with torch.no_grad():
        for batch in list(samples().split(32)) if batches is None else batches:
            model(batch)
    handle.remove()
    for part, training in flags:
        part.training = training
    return torch.cat(seen)


def by_hand(model, module, batches=None) -> tuple[torch.Tensor, torch.Tensor]:
    """delta and log_ratio as the definition has them, with the unbiased variance."""
    x = inputs_of(model, module, batches).double().transpose(0, 1).flatten(1)
    tau2 = module.running_var.double() + module.eps
    return (x.mean(1) - module.running_mean.double()) / tau2.sqrt(), ((x.var(1) + module.eps) / tau2).log()


def assert_row(row, model, module, batches=None, **tolerance):
    delta, log_ratio = by_hand(model, module, batches)
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.tensor(row.delta, dtype=torch.float64), delta, **tolerance)
    torch.testing.assert_close(torch.tensor(row.log_ratio, dtype=torch.float64), log_ratio, **tolerance)
