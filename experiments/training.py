"""The one training loop: every method runs through it, and a killed run goes on where its last epoch ended."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.augment import augment
from experiments.config import Config
from experiments.datasets import Images
from experiments.ratios import measure_ratios
from experiments.regularizers import penalties
from experiments.results import Epoch, Spread, digits
from experiments.watch import ActiveFractions, active_fractions, noise_layers, rate
from jumpout_export import ServingStatistics, recalibrate_batchnorm

# Training batches of an epoch in which the active fractions are measured.
_WATCHED = 32
_TEST_BATCH = 500
Say = Callable[[str], None]


@dataclass(frozen=True)
class Process:
    """This process among those of torchrun; alone without it."""

    rank: int = 0
    size: int = 1


def normalise(images: Tensor) -> Tensor:
    """Returns uint8 images as float32 in about [-2, 2]: (x / 255 - 0.5) / 0.25."""
    return images.float().div_(63.75).sub_(2.0)


def train(
    config: Config,
    images: Images,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    say: Say = lambda _: None,
    process: Process | None = None,
) -> tuple[nn.Module, list[Epoch]]:
    """Returns the trained network and what each epoch was like.

    On a CPU the same configuration, seed and number of threads give the same bits, resumed or not: torch's generator
    is seeded anew for every epoch, and everything else that an epoch leaves is in the checkpoint.

    Args:
        config: what to train.
        images: the data, already of the right size and number.
        seed: of initialisation, order and noise.
        device: where.
        checkpoint: file for the state after each epoch; where it exists, training goes on from there.
        say: gets one line per epoch.
        process: this process, under torchrun; each takes its share of every batch.

    Raises:
        ValueError: if the checkpoint belongs to another configuration or the loss is no number any more.
    """
    process = process or Process()
    if config.training.batch_size % process.size:
        raise ValueError(f"batch_size {config.training.batch_size} must be a multiple of the {process.size} processes")
    torch.manual_seed(seed)
    network = config.build(images.classes, tuple(images.train.shape[1:])).to(device)  # type: ignore[arg-type]
    state = _State(config, network, device)
    epochs = state.load(checkpoint, seed) if checkpoint is not None and checkpoint.exists() else []
    stepped = _stepped(network, config, device, process)
    while len(epochs) < config.training.epochs:
        number = len(epochs)
        torch.manual_seed((seed * 10_000 + number) * 10_000 + process.rank)
        epoch = _one_epoch(config, images, seed, number, state, stepped, device, process)
        epochs.append(epoch)
        if checkpoint is not None and process.rank == 0:
            state.save(checkpoint, seed, epochs)
        say(
            f"epoch {number + 1}/{config.training.epochs}: train {epoch.train_loss:.3f} {epoch.train_accuracy:.1%}, "
            f"test {epoch.test_loss:.3f} {epoch.test_accuracy:.1%}, {epoch.seconds:.0f} s"
        )
    return network, epochs


def evaluate(network: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> tuple[float, float]:
    """Returns mean loss in nats and accuracy in eval mode."""
    was = network.training
    network.eval()
    loss, right = 0.0, 0
    try:
        with torch.no_grad():
            for x, y in zip(images.split(_TEST_BATCH), labels.split(_TEST_BATCH), strict=True):
                logits = network(normalise(x.to(device))).float()
                loss += float(F.cross_entropy(logits, y.to(device), reduction="sum"))
                right += int((logits.argmax(1) == y.to(device)).sum())
    finally:
        network.train(was)
    return loss / len(labels), right / len(labels)


class _State:
    """What an epoch changes besides the epochs' records: network, optimizer, scale of the loss."""

    def __init__(self, config: Config, network: nn.Module, device: torch.device) -> None:
        training = config.training
        self.config, self.network = config, network
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.momentum > 0,
        )
        if training.precision == "float16" and device.type != "cuda":
            raise ValueError("precision float16 needs a CUDA device; bfloat16 runs on a CPU too")
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "float16")

    def save(self, path: Path, seed: int, epochs: list[Epoch]) -> None:
        content = {
            "config": self.config.model_dump_json(),
            "seed": seed,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epochs": [epoch.model_dump() for epoch in epochs],
        }
        part = path.with_suffix(".part")
        torch.save(content, part)
        os.replace(part, path)

    def load(self, path: Path, seed: int) -> list[Epoch]:
        content = torch.load(path, weights_only=True)
        if (content["config"], content["seed"]) != (self.config.model_dump_json(), seed):
            raise ValueError(f"{path} belongs to another configuration or seed; remove it to start anew")
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        return [Epoch.model_validate(epoch) for epoch in content["epochs"]]


def _stepped(network: nn.Module, config: Config, device: torch.device, process: Process) -> Callable[[Tensor], Tensor]:
    """The network as the training step calls it: in several processes, compiled."""
    stepped: Any = network
    if process.size > 1:
        stepped = nn.parallel.DistributedDataParallel(stepped, [device] if device.type == "cuda" else None)
    return torch.compile(stepped) if config.training.compile else stepped


def _one_epoch(
    config: Config,
    images: Images,
    seed: int,
    number: int,
    state: _State,
    stepped: Callable[[Tensor], Tensor],
    device: torch.device,
    process: Process,
) -> Epoch:
    network, training = state.network, config.training
    order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(seed * 100_003 + number))
    batches = [part for part in order.split(training.batch_size) if len(part) == training.batch_size]
    if not batches:
        raise ValueError(f"batch_size is {training.batch_size}, there are only {len(images.train)} training images")
    every = max(1, len(batches) // _WATCHED)
    pixels, labels = images.train.to(device), images.train_labels.to(device)  # 150 MB: a copy each epoch is nothing
    totals = torch.zeros(2, device=device)
    rates: dict[str, list[float]] = {name: [] for name in noise_layers(network)}
    network.train()
    # New in every epoch, whose last batches are the ones that count; all processes enter it together.
    group = "world" if process.size > 1 else None
    serving = ServingStatistics(network, keep=training.serving, process_group=group) if training.serving else None
    start = time.monotonic()
    with active_fractions(network) as watch:
        for index, batch in enumerate(batches):
            share = batch[process.rank :: process.size].to(device)
            x = normalise(pixels[share])
            if config.data.augment:
                x = augment(x)
            watch.on = index % every == 0
            _set_rate(state, training, number + index / len(batches))
            totals += _step(state, stepped, x, labels[share], len(images.train))
            if serving is not None:
                serving.step(x)
            if watch.on:
                for name, layer in noise_layers(network).items():
                    rates[name].append(rate(layer))
        seconds = time.monotonic() - start
        active = {name: Spread.of(values) for name, values in watch.values().items()}
        if process.size > 1:
            dist.all_reduce(totals)
        count = len(batches) * training.batch_size
        loss, accuracy = (totals / count).tolist()
        if not math.isfinite(loss):
            raise ValueError(f"the training loss is {loss} in epoch {number + 1}; lower learning_rate")
        in_eval = _active_in_eval(watch, network, images, device)
    test_loss, test_accuracy = evaluate(network, images.test, images.test_labels, device)
    epoch = Epoch(
        train_loss=digits(loss),
        train_accuracy=digits(accuracy),
        test_loss=digits(test_loss),
        test_accuracy=digits(test_accuracy),
        seconds=round(seconds, 1),
        active=active,
        active_in_eval=in_eval,
        rate={name: digits(sum(values) / len(values)) for name, values in rates.items()},
    )
    if serving is not None:
        with serving():
            served = evaluate(network, images.test, images.test_labels, device)
        epoch.serving_loss, epoch.serving_accuracy = map(digits, served)
    if config.ratios and process.rank == 0:
        last = number + 1 == training.epochs  # the curves need no error bars
        x = normalise(images.train[:512].to(device))
        epoch.ratios = measure_ratios(network, x, alone=last, draws=16 if last else 2)
    if number + 1 in training.reestimate:
        recalibrate_batchnorm(network, [normalise(part.to(device)) for part in images.train.split(500)], "variance")
        epoch.reestimated_accuracy = digits(evaluate(network, images.test, images.test_labels, device)[1])
    return epoch


def _step(state: _State, stepped: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, images: int) -> Tensor:
    """One step of the optimizer; returns the summed loss and the number of right answers."""
    training = state.config.training
    dtype = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[training.precision]
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        logits = stepped(x)
    loss = F.cross_entropy(logits.float(), labels)
    total = loss + sum(penalties(state.network)) / images
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(total).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    with torch.no_grad():
        return torch.stack([loss * len(labels), (logits.argmax(1) == labels).sum()])


def _set_rate(state: _State, training: Any, at: float) -> None:
    """One epoch of linear warm-up, then half a cosine down to zero."""
    progress = max(0.0, at - 1) / max(training.epochs - 1, 1)
    factor = min(at + 0.01, 1.0) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    for group in state.optimizer.param_groups:
        group["lr"] = training.learning_rate * factor


def _active_in_eval(
    watch: ActiveFractions, network: nn.Module, images: Images, device: torch.device
) -> dict[str, Spread]:
    network.eval()
    watch.on = True
    try:
        with torch.no_grad():
            for x in images.test.split(_TEST_BATCH)[:8]:
                network(normalise(x.to(device)))
    finally:
        watch.on = False
        network.train()
    return {name: Spread.of(values) for name, values in watch.values().items()}
