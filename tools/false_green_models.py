"""The networks of docs/false-greens.md and what they are run on."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rows() -> Tensor:
    """Returns four inputs, (4, 16)."""
    return torch.randn(4, 16)


class Classifier(nn.Module):
    """256 hidden units under noise and a softmax over 100 classes: the noise moves no probability by a tenth."""

    def __init__(self, noise: nn.Module) -> None:
        super().__init__()
        self.first, self.noise, self.last = nn.Linear(16, 256), noise, nn.Linear(256, 100)
        nn.init.normal_(self.last.weight, std=0.01)  # as torchvision starts the last layer of VGG and MobileNet

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.last(self.noise(torch.relu(self.first(x)))).softmax(1)


class Erf(nn.Module):
    """A layer whose operator the cases translate wrongly."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.erf(x)


class Logarithm(nn.Module):
    """Is NaN where x is negative."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.log(x)


class Mask(nn.Module):
    """A hand-written dropout that never looks at `self.training`."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x * (torch.rand_like(x) > 0.02) / 0.98


class Baked(nn.Module):
    """Has the example's batch size in a shape."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.view(4, 16).tanh()


class Branch(nn.Module):
    """Takes another path for small batches."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.tanh() if len(x) < 4 else x.sigmoid()


class Place(nn.Module):
    """Treats the fifth sample unlike the others."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.last(x) * (1 + (torch.arange(x.shape[0]) == 4)[:, None])


class LogSigmoid(nn.Module):
    """Logarithms of probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return nn.functional.logsigmoid(self.last(x))


def dead() -> nn.Module:
    """Returns a network whose units are off for every input."""
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU()).eval()
    nn.init.constant_(model[0].bias, -100.0)
    return model


def nan_weight() -> nn.Module:
    """Returns a network with one weight that is NaN, as a diverged training leaves."""
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))
    return model


def dropout_in_train_mode() -> nn.Module:
    """Returns a network under `eval()` whose dropout was set to train() again."""
    model = Classifier(nn.Dropout(0.05)).eval()
    model.noise.train()
    return model


def batchnorm_in_train_mode() -> nn.Module:
    """Returns a network under `eval()` whose BatchNorm was set to train(), with the example's own statistics."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=1.0))
    model(samples())
    model.eval()
    model[1].train()
    model[1].momentum = 0.1
    return model


def samples() -> Tensor:
    """Returns 16 samples, the same each time."""
    return torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def words() -> nn.Module:
    """Returns a network of 300 words."""
    return nn.Sequential(nn.Embedding(300, 4), nn.Linear(4, 2)).eval()


class DropPath(nn.Module):
    """Bears the name of a layer that does nothing in eval mode, and does something."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x * 1.005


class Gated(nn.Module):
    """Two layers of one shape behind a gain that is still zero, as residual branches start."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.gain = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.last(x + self.gain * self.second(torch.relu(self.first(x))))


class Table(nn.Module):
    """Reads a small table of integers at places that the input names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("classes", torch.tensor([3, 0, 2, 1, 4, 7, 5, 6]))
        self.last = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.last(self.classes[x].float().unsqueeze(-1))
