"""Networks that several rooms' tests export."""

import torch
from torch import nn

from jumpout_export import Jumpout


def trained(model, shape=(16, 1, 9, 9)):
    """The model in eval mode, its BatchNorm having seen three batches."""
    for _ in range(3):
        model(torch.randn(shape) * 2 + 1)
    return model.eval()


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), Jumpout(relu=True), nn.Conv2d(4, 3, 3))

    def forward(self, x):
        return self.body(x)


class Table(nn.Module):
    """`table` happens to be as long as the batch, and has nothing to do with it."""

    def forward(self, x, table):
        return x @ table.T


class PerSample(nn.Module):
    def forward(self, x, scale, shift):
        return x * scale + shift


class Baked(nn.Module):
    def forward(self, x, table):
        return x.view(4, -1) + table


class Sixteens(nn.Module):
    def forward(self, x):
        return x.tanh() if x.shape[0] % 16 else x.tanh() * 2


class Pyramid(nn.Module):
    """Takes heights and widths that 4 divides."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        low = self.second(nn.functional.max_pool2d(x, 4))
        return torch.cat([x, nn.functional.interpolate(low, scale_factor=4)], 1)


class HalfResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pre, self.drop, self.linear = nn.BatchNorm2d(8), Jumpout(relu=True), nn.Linear(8, 5)

    def forward(self, x):
        x = self.drop(self.bn1(self.first(x)))
        y = self.bn2(self.second(x))
        return self.linear((self.pre(x) + y).mean((2, 3)))
