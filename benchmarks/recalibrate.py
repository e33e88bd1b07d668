"""Recalibrates one trained network in every known way, side by side: what is left of W, accuracy, NLL, time.

    python benchmarks/recalibrate.py [--data DIR] [--epochs 8] [--images 10000] [--out FILE]

DIR holds `train/<class>/` and `test/<class>/` with images, such as CIFAR-10; without it, scikit-learn's digits. The
row of fvcore needs it: `pip install --no-deps fvcore iopath yacs portalocker tabulate termcolor tqdm pyyaml` (it is
needed for nothing else). Every method starts from the same trained network and gets the same training images; accuracy
and NLL are of the test images, times are CPU seconds: run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import machine
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from jumpout_export import Jumpout, check_batchnorm, recalibrate_batchnorm
from jumpout_export.demo import load_digits
from jumpout_export.loading import ImageFolder, read_image

Batches = list[tuple[Tensor, Tensor]]
Fix = Callable[[nn.Module, Batches], Any]

WIDTHS = (32, 32, 64, 64, 128)
BATCH_SIZE = 128
NOISE: dict[str, Callable[[], nn.Module]] = {
    "dropout 0.2": lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.2)),
    "jumpout, sigma 0.1": lambda: Jumpout(sigma=0.1, relu=True),
    "jumpout, sigma 0.2": lambda: Jumpout(sigma=0.2, relu=True),
}


def network(channels: int, noise: Callable[[], nn.Module]) -> nn.Sequential:
    """Returns five times convolution, BatchNorm, ReLU and noise, and a linear layer."""
    layers: list[nn.Module] = []
    for index, width in enumerate(WIDTHS):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), noise()]
        layers += [nn.MaxPool2d(2)] if index in {0, 2} else []
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Trains `model` in place with Adam and a cosine schedule, without augmentation."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-4)
    steps = epochs * -(-len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for epoch in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"  epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)


def torch_update_bn(model: nn.Module, batches: Batches) -> None:
    """torch.optim.swa_utils: dropout stays on, and every batch counts the same."""
    update_bn(batches, model)


def fvcore_update_bn_stats(model: nn.Module, batches: Batches) -> None:
    """fvcore as it says: in training mode, so dropout stays on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it scripts its losses, which torch deprecates
        from fvcore.nn.precise_bn import update_bn_stats

    model.train()
    update_bn_stats(model, [x for x, _ in batches], len(batches))


@torch.no_grad()
def aimet_recipe(model: nn.Module, batches: Batches) -> None:
    """What AIMET's reestimate_bn_stats does: dropout off, plain averages of the batches' means and variances."""
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = [(torch.zeros_like(norm.running_mean), torch.zeros_like(norm.running_var)) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    for x, _ in batches:
        model(x)
        for norm, (mean, var) in zip(norms, sums, strict=True):
            mean.add_(norm.running_mean / len(batches))
            var.add_(norm.running_var / len(batches))
    for norm, (mean, var), momentum in zip(norms, sums, momenta, strict=True):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        norm.momentum = momentum


METHODS: dict[str, Fix] = {
    "as trained": lambda model, batches: None,
    "torch update_bn": torch_update_bn,
    "fvcore update_bn_stats": fvcore_update_bn_stats,
    "AIMET recipe": aimet_recipe,
    "batch": lambda model, batches: recalibrate_batchnorm(model, batches, "batch"),
    "exact": lambda model, batches: recalibrate_batchnorm(model, batches, "exact"),
}


def remaining_w(model: nn.Module, batches: Batches) -> list[float]:
    """Returns W per layer, the root mean square over channels without debiasing: statistics and images are the same."""
    samples = sum(len(x) for x, _ in batches)
    report = check_batchnorm(model, batches, samples=samples, attribution=False, stop_early=False, outputs=False)
    return [
        math.sqrt(
            sum(d * d + math.expm1(r / 2) ** 2 for d, r in zip(layer.delta, layer.log_ratio, strict=True))
            / layer.channels
        )
        for layer in report.layers
    ]


@torch.no_grad()
def quality(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Returns top-1 accuracy and mean NLL."""
    model.eval()
    outputs = torch.cat([model(x) for x, _ in batches])
    labels = torch.cat([y for _, y in batches])
    return float((outputs.argmax(1) == labels).double().mean()), float(F.cross_entropy(outputs, labels))


def measure(trained: nn.Module, fix_on: Batches, test: Batches) -> list[dict[str, Any]]:
    """Returns a row per method."""
    rows = []
    for name, fix in METHODS.items():
        model = copy.deepcopy(trained)
        torch.manual_seed(1)
        start = time.process_time()  # other work on the machine does not count
        try:
            done = fix(model, fix_on)
        except ImportError as error:
            print(f"  {name} is left out: {error}", flush=True)
            continue
        seconds = time.process_time() - start
        w = remaining_w(model, fix_on)
        accuracy, nll = quality(model, test)
        row = {"method": name, "w": w, "max_w": max(w), "accuracy": accuracy, "nll": nll, "cpu_seconds": seconds}
        rows.append(row | {"passes": getattr(done, "passes", int(name != "as trained"))})
        print(f"  {name}: max W {max(w):.2g}, accuracy {accuracy:.4f}, NLL {nll:.4f}, {seconds:.1f} s", flush=True)
    check(rows)
    return rows


def check(rows: list[dict[str, Any]]) -> None:
    """Raises if the exact fix is not exact, or not the closest of all."""
    exact = next(row["max_w"] for row in rows if row["method"] == "exact")
    if exact > 1e-6 or any(row["max_w"] < exact for row in rows):
        raise SystemExit(f"the exact fix left W = {exact}: {rows}")


def load(data: Path | None, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    """Returns training images and labels, test images and labels, and where they come from."""
    if data is None:
        digits = load_digits(0)
        return digits.train, digits.train_labels, digits.test, digits.test_labels, "scikit-learn's digits"
    tensors: list[Tensor] = []
    for part in ("train", "test"):
        files = ImageFolder(data / part, 1, 0).files[:most]
        tensors += [torch.stack([read_image(file) for file, _ in files]), torch.tensor([label for _, label in files])]
    return tensors[0], tensors[1], tensors[2], tensors[3], "images of a folder"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--name", help="what the images are, for the table")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=10_000, help="at most so many for training, and for testing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "recalibrate.json")
    options = parser.parse_args()
    images, labels, test_images, test_labels, source = load(options.data, options.images)
    networks = {}
    for name, noise in NOISE.items():
        print(name, flush=True)
        torch.manual_seed(options.seed)
        model = network(images.shape[1], noise)
        train(model, images, labels, options.epochs)
        fix_on = list(zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))
        test = list(zip(test_images.split(BATCH_SIZE), test_labels.split(BATCH_SIZE), strict=True))
        networks[name] = measure(model, fix_on, test)
    result = {
        "machine": machine("cpu") | {"threads": str(torch.get_num_threads())},
        "data": {"source": options.name or source, "train": len(images), "test": len(test_images)},
        "training": {"epochs": options.epochs, "batch": BATCH_SIZE, "seed": options.seed},
        "networks": networks,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
