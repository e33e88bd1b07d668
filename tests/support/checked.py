"""A small network whose BatchNorm agrees with its data, and the check of it."""

import torch
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.report import BatchNormReport


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
    )


def samples(count: int = 256, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def healthy() -> nn.Sequential:
    model = network()
    recalibrate_batchnorm(model, [samples()])
    return model


def check(model: nn.Module, x: torch.Tensor | None = None, **options: object) -> BatchNormReport:
    batches = list((samples() if x is None else x).split(64))
    return check_batchnorm(model, batches, outputs=False, **options)


def row(report: BatchNormReport, name: str):
    return next(layer for layer in report.layers if layer.name == name)


class Partial(nn.Module):
    """The second layer is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def special(**changes: object) -> nn.Sequential:
    """One healthy layer with attributes changed."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    recalibrate_batchnorm(model, [samples()])
    model[0].num_batches_tracked.fill_(9)
    for name, value in changes.items():
        setattr(model[0], name, value)
    return model
