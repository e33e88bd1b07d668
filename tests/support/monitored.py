"""A network that is trained under the monitor, its data and a made-up history."""

import math
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from jumpout_export import Jumpout
from jumpout_export.report import MonitorHistory


def samples(count: int = 192, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def labels(x: torch.Tensor) -> torch.Tensor:
    return (x.mean(dim=(1, 2, 3)) > 0).long()


class Network(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """With a forward of its own, because torch compiles none of nn.Sequential where that is compiled in place."""
        for layer in self:
            x = layer(x)
        return x


def network() -> Network:
    torch.manual_seed(0)
    return Network(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        Jumpout(sigma=0.1, relu=True),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


def held_out(count: int = 64) -> list[torch.Tensor]:
    return list(samples(count, seed=2).split(32))


class Augmented(Dataset):
    """Draws from every global generator for each sample."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return samples(64, seed=3)[index] + np.random.rand() + random.random() + torch.rand(())


def random_loader() -> DataLoader:
    return DataLoader(Augmented(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(5))


class Training:
    """Thirty steps, and afterwards everything that a monitor could have changed."""

    def __init__(self, wrap=lambda model: model, watch=lambda model: None, steps: int = 30, broken: bool = False):
        self.model = network()
        self.called = model = wrap(self.model)
        # The shuffling loader and the augmentation below draw from the generators that the looks draw from too.
        data = TensorDataset(samples(), labels(samples()))
        loader = DataLoader(data, batch_size=16, shuffle=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        self.monitor = watch(model)
        self.losses, self.sampled, self.errors = [], [], []
        while len(self.losses) < steps:
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x * np.random.uniform(0.9, 1.1) + random.gauss(0, 0.1)), y)
                loss.backward()
                optimizer.step()
                self.losses.append(loss.detach())
                self.sampled.append(torch.stack(self.model[2].statistics))
                if self.monitor is not None:
                    try:
                        self.monitor.step()
                    except Exception as error:
                        if not broken:
                            raise
                        self.errors.append(error)
                if len(self.losses) == steps:
                    break
        self.traces = (
            self.losses,
            {name: value.clone() for name, value in self.model.state_dict().items()},
            [parameter.grad for parameter in model.parameters()],
            [(module.training, getattr(module, "track_running_stats", None)) for module in self.model.modules()],
            [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in self.model.modules()],
            optimizer.state_dict()["state"],
            self.sampled,
            (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),
        )


def by_look(training: Training, every: int) -> list[list[torch.Tensor]]:
    """What the layer's `statistics` were after each step, one list per look."""
    looks = len(training.sampled) // every
    return [training.sampled[i * every : (i + 1) * every] for i in range(looks)]


class Recorder:
    """What torch.utils.tensorboard.SummaryWriter is called with."""

    def __init__(self) -> None:
        self.scalars = []

    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, new_style=False, double_precision=False):
        self.scalars.append((tag, scalar_value, global_step))


def history(layers: int = 2, looks: int = 5) -> MonitorHistory:
    steps = [200 * (i + 1) for i in range(looks)]

    def w(layer: int, factor: float) -> list[float]:
        return [factor * (0.02 + 0.05 * layer) / math.sqrt(i + 1) for i in range(looks)]

    names = [f"layer{i}.bn" for i in range(layers)]
    return MonitorHistory(
        steps=steps,
        w={name: w(i, 1) for i, name in enumerate(names)},
        w_low={name: w(i, 0.8) for i, name in enumerate(names)},
        w_high={name: w(i, 1.2) for i, name in enumerate(names)},
        active_fraction={"jump": [0.5] * looks},
        rate={"jump": [0.2] * looks, "drop": [0.1] * looks},
        capped={"jump": [0.0] * looks},
    )
