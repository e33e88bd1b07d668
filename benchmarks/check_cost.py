"""Times the BatchNorm check against bare forward passes of the same model on the same images, in turn, in one run.

    python benchmarks/check_cost.py [--device cpu|cuda] [--seconds 60] [--out benchmarks/results/check-cost.json]

`states` is the one pass in which every batch runs in the serving state, with batch statistics and as in training, and
the moments of every BatchNorm are collected. It is compared with three bare forward passes in eval mode, and with three
of the same kinds (eval, and twice train mode): batch statistics alone make a forward pass dearer on a CPU. `check` is
all of check_batchnorm without the effect on the outputs: it also looks closely at the first batch and makes the report,
which takes the same time for few images, as here, as for many.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import alternate, machine
from torch import Tensor, nn

from jumpout_export import Jumpout, check_batchnorm, recalibrate_batchnorm
from jumpout_export.batchnorm.measure.collect import collect_states
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.batchnorm.measure.states import RENORMALISED, SERVING, TRAINING, State

BATCH, BATCHES = 128, 4
LIMIT = 1.3


class Block(nn.Module):
    """A residual block with two convolutions, and jumpout behind it."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.noise = Jumpout(sigma=0.1, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.noise(y + self.shortcut(x))


def resnet(widths: tuple[int, ...], blocks: int) -> nn.Module:
    """Returns a ResNet for 32x32 images."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    inputs = widths[0]
    for depth, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Block(inputs, width, 2 if depth > 0 and block == 0 else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-20 (16, 32, 64)": lambda: resnet((16, 32, 64), 3),
    "ResNet-18 of half width (32, 64, 128, 256)": lambda: resnet((32, 64, 128, 256), 2),
}


def passes(model: nn.Module, batches: list[Tensor], *modes: bool) -> Callable[[], None]:
    """Returns a function that makes a bare forward pass over the batches in each of the modes (True: train)."""

    def run() -> None:
        with torch.no_grad():
            for training in modes:
                model.train(training)
                for batch in batches:
                    model(batch)

    return run


def measure(name: str, device: str, seconds: float, *, channels_last: bool) -> dict[str, Any]:
    """Returns seconds per function, and the check's time over that of the bare passes."""
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = MODELS[name]().to(device, memory_format=memory_format)
    batches = [torch.randn(BATCH, 3, 32, 32, device=device).to(memory_format=memory_format) for _ in range(BATCHES)]
    # A drifting layer would make the check look closer, in further passes.
    recalibrate_batchnorm(model, batches, method="batch")

    layers = batchnorm_layers(model)

    def states(*wanted: State) -> Callable[[], Any]:
        def run() -> None:
            seen = collect_states(Feed(model, batches), layers, wanted, "timing")
            if any(one.samples != BATCH * BATCHES or len(one.moments) != len(layers) for one in seen):
                raise SystemExit("the pass did not measure what it is timed for")

        return run

    bare = copy.deepcopy(model)  # train mode moves its statistics
    functions = {
        "states: serving, renormalised, training": states(SERVING, RENORMALISED, TRAINING),
        "states: serving": states(SERVING),
        "bare: eval, eval, eval": passes(bare, batches, False, False, False),
        "bare: eval, train, train": passes(bare, batches, False, True, True),
        "bare: eval": passes(bare, batches, False),
        "check": lambda: check_batchnorm(model, batches, stop_early=False, outputs=False),
    }
    times = alternate(functions, device, seconds)
    ratios = {
        f"{ours} / {theirs}": {
            statistic: round(times[ours][statistic] / times[theirs][statistic], 3) for statistic in ("median", "min")
        }
        for ours, theirs in (
            ("states: serving, renormalised, training", "bare: eval, eval, eval"),
            ("states: serving, renormalised, training", "bare: eval, train, train"),
            ("states: serving", "bare: eval"),
        )
    }
    return {"model": name, "channels_last": channels_last, "seconds": times, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=60.0, help="per model and memory format")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name = "check-cost.json" if options.device == "cpu" else f"check-cost-{options.device}.json"
    out = options.out or Path(__file__).parent / "results" / name
    rows = []
    for model in MODELS:
        for channels_last in (False, True):
            rows.append(measure(model, options.device, options.seconds, channels_last=channels_last))
            print(model, "channels_last" if channels_last else "contiguous", rows[-1]["ratios"], flush=True)
    result = {
        "machine": machine(options.device) | {"threads": str(torch.get_num_threads())},
        "batch": [BATCH, 3, 32, 32],
        "batches": BATCHES,
        "limit": LIMIT,
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
