"""Times a training step of a real conv-BN-ReLU network: forward, backward and optimizer, with each kind of noise.

python benchmarks/training.py [--device cpu|cuda] [--seconds 10]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from op import composed
from timing import alternate, machine
from torch import Tensor, nn

from jumpout_export import Jumpout


class Composed(nn.Module):
    """Jumpout composed from PyTorch calls."""

    def forward(self, x: Tensor) -> Tensor:
        return composed(x) if self.training else x


def network(noise: Callable[[], list[nn.Module]]) -> nn.Module:
    """Six convolutions with BatchNorm on 32x32 images; `noise` makes what follows each BatchNorm."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 128, 128, 256, 256):
        layers += [nn.Conv2d(channels, width, 3, padding=1, stride=1 + (width > channels > 3), bias=False)]
        layers += [nn.BatchNorm2d(width), *noise()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "no noise": lambda: network(lambda: [nn.ReLU()]),
    "dropout": lambda: network(lambda: [nn.ReLU(), nn.Dropout(0.2)]),
    "jumpout composed": lambda: network(lambda: [nn.ReLU(), Composed()]),
    "jumpout compiled": lambda: network(lambda: [nn.ReLU(), torch.compile(Composed())]),
    "ours": lambda: network(lambda: [Jumpout(sigma=0.1, relu=True)]),
}


def step(kind: str, device: str) -> Callable[[], Any]:
    """Returns a function that makes one training step."""
    torch.manual_seed(0)
    model = KINDS[kind]().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = torch.randn(64, 3, 32, 32, device=device), torch.randint(10, (64,), device=device)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    out = Path(__file__).parent / "results" / f"training-{options.device}.json"
    times = alternate({kind: step(kind, options.device) for kind in KINDS}, options.device, options.seconds)
    out.write_text(
        json.dumps({"machine": machine(options.device), "batch": [64, 3, 32, 32], "steps": times}, indent=1) + "\n"
    )
    print(f"written to {out}")


if __name__ == "__main__":
    main()
