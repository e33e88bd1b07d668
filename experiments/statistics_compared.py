"""Ways to make BatchNorm statistics anew, compared on trained networks: what is left of W, what it brings, how long.

    python -m experiments.statistics_compared --data DIR      writes results/statistics.json and prints the table

fvcore has to be installed for its row. The networks are those of `fig2-dropout-0.2` in configs/cpu, three seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from experiments.config import read_config
from experiments.datasets import read_images, shrink, take
from experiments.results import digits
from experiments.tables import spread, table
from experiments.training import evaluate, normalise, train
from jumpout_export import ServingStatistics, check_batchnorm, recalibrate_batchnorm

HERE = Path(__file__).parent
CONFIG = HERE / "configs" / "cpu" / "fig2-dropout-0.2.toml"
RESULT = HERE / "results" / "statistics.json"
SEEDS = (0, 1, 2)
KEEP = 8
Batches = list[Tensor]


class Row(BaseModel):
    """One way, one value per seed.

    Attributes:
        w: the largest W over layers that is left on the test images.
        accuracy: on the test images, in [0, 1].
        nll: on the test images, in nats.
        seconds: of making the statistics, on one thread.
    """

    w: list[float] = []
    accuracy: list[float] = []
    nll: list[float] = []
    seconds: list[float] = []


def fvcore(model: nn.Module, batches: Batches) -> None:
    """As its trainers call it: in training mode, with dropout on."""
    from fvcore.nn.precise_bn import update_bn_stats

    update_bn_stats(model.train(), batches, len(batches))


WAYS: dict[str, Callable[[nn.Module, Batches], object]] = {
    "as trained": lambda model, batches: None,
    "`torch.optim.swa_utils.update_bn`": lambda model, batches: update_bn(batches, model.train()),
    "fvcore `update_bn_stats`": fvcore,
    "`recalibrate_batchnorm`, batch": lambda model, batches: recalibrate_batchnorm(model, batches, "batch"),
    "`recalibrate_batchnorm`, exact": recalibrate_batchnorm,
    f"`ServingStatistics`, {KEEP} batches": lambda model, batches: ServingStatistics(model, keep=0).write(
        batches[-KEEP:]
    ),
}


def compare(data: Path) -> dict[str, Row]:
    """Trains the networks and returns one row per way."""
    config = read_config(CONFIG)
    images = shrink(take(read_images(data), config.data.train, config.data.test), config.data.image_size)
    device = torch.device("cpu")
    rows = {way: Row() for way in WAYS}
    for seed in SEEDS:
        network, _ = train(config, images, seed, device, say=print)
        order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(seed))
        batches = list(normalise(images.train[order]).split(config.training.batch_size))
        test = list(normalise(images.test).split(config.training.batch_size))
        for way, make in WAYS.items():
            model = copy.deepcopy(network)
            start = time.perf_counter()
            make(model, batches)
            seconds = time.perf_counter() - start
            report = check_batchnorm(model.eval(), test, outputs=False, attribution=False, stop_early=False)
            nll, accuracy = evaluate(model, images.test, images.test_labels, device)
            row = rows[way]
            for values, value in (
                (row.w, max(layer.w for layer in report.layers)),
                (row.accuracy, accuracy),
                (row.nll, nll),
                (row.seconds, seconds),
            ):
                values.append(digits(value))
    return rows


def markdown(rows: dict[str, Row]) -> str:
    """Returns the table of docs/settings.md: means over seeds, accuracies and likelihoods with their spread."""
    lines = [
        [way, f"{statistics.fmean(row.w):.3f}", spread(row.accuracy), spread(row.nll, 1, 3), _seconds(row.seconds)]
        for way, row in rows.items()
    ]
    return table(["statistics", "largest W left", "accuracy", "NLL", "seconds"], lines)


def _seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.1f}" if max(values) > 0.05 else "-"


def read(path: Path = RESULT) -> dict[str, Row]:
    """Returns what a comparison wrote."""
    return {way: Row(**row) for way, row in json.loads(path.read_text()).items()}


def main() -> None:
    """Compares, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the images, see experiments/datasets.py")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = compare(arguments.data)
    arguments.out.write_text(json.dumps({way: row.model_dump() for way, row in rows.items()}, indent=1) + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
