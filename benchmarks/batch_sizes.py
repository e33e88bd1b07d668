"""What recalibrating in one pass leaves in serving, by the size of its batches and the depth of the network.

    python benchmarks/batch_sizes.py [--out benchmarks/results/batch-sizes.json]

Two networks are trained on scikit-learn's digits with dropout; then `method="batch"` with batches of several sizes and
`method="exact"` recalibrate a copy each on the training images. W is the largest of any layer that serving sees on the
same images, accuracy that of the test images, seconds are CPU seconds of one thread. A minute.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from recalibrate import network, quality, remaining_w, train
from timing import machine
from torch import Tensor, nn

from jumpout_export import recalibrate_batchnorm
from jumpout_export.demo import load_digits

SIZES = (4, 16, 64, 256)
EPOCHS = 6


class Block(nn.Module):
    """Two convolutions with BatchNorm beside an identity, dropout between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def residual(channels: int, width: int = 16, blocks: int = 26) -> nn.Sequential:
    """Returns a residual network of 2 x `blocks` + 1 BatchNorms."""
    stem = (nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(
        *stem, *(Block(width) for _ in range(blocks)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


def measure(trained: nn.Module, digits: Any) -> list[dict[str, Any]]:
    """Returns a row for the network as trained, one per batch size, and one for the exact method."""
    batches = list(zip(digits.train.split(128), digits.train_labels.split(128), strict=True))
    test = list(zip(digits.test.split(128), digits.test_labels.split(128), strict=True))
    rows = []
    for method, size in (("as trained", 0), *(("batch", size) for size in SIZES), ("exact", 128)):
        model, passes = copy.deepcopy(trained), 0
        start = time.process_time()
        if size:
            passes = recalibrate_batchnorm(model, list(digits.train.split(size)), method).passes
        seconds = time.process_time() - start
        accuracy, nll = quality(model, test)
        rows.append({"method": method, "batch_size": size, "max_w": max(remaining_w(model, batches)), "nll": nll})
        rows[-1] |= {"accuracy": accuracy, "passes": passes, "cpu_seconds": seconds}
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "batch-sizes.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits(0)
    found = {}
    for name, make in (
        ("five convolutions", lambda: network(1, lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.2)))),
        ("53 BatchNorms, residual", lambda: residual(1)),
    ):
        torch.manual_seed(0)
        model = make()
        train(model, digits.train, digits.train_labels, EPOCHS)
        found[name] = measure(model, digits)
    result = {"machine": machine("cpu") | {"threads": "1"}, "images": len(digits.train), "networks": found}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
