"""A network around a layer under test, and the checks that an export of it fails."""

import torch
from torch import nn


class Net(nn.Module):
    """A linear layer and whatever a test does after it."""

    def __init__(self, after=None):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)
        self.after = after

    def forward(self, x):
        return self.linear(x) if self.after is None else self.after(self, x, self.linear(x))
