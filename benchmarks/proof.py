"""Times what the proof of an export costs, beside torch's own export, on four networks; and how it grows.

python benchmarks/proof.py [--rounds 3]

In one run and in turns: `torch.onnx.export(verify=True)` and `export_onnx` for a ResNet-50-like network with images of
64 and 224 pixels and for a transformer of 42 million weights (wall time); `torch.onnx.export` alone and `export_onnx`
for VGG-11 with BatchNorm, whose 128 million weights are what takes long (CPU time). Then `export_onnx` of the first
network for images of several sizes, against the time of one forward. Writes benchmarks/results/proof-cpu.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from export import resnet50, torch_export
from timing import machine
from torch import Tensor, nn

from jumpout_export import Jumpout, export_onnx

RESULT = Path(__file__).parent / "results" / "proof-cpu.json"
VGG = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
WORDS, WIDTH, LAYERS, TOKENS = 8000, 512, 12, 64
CURVE = (32, 64, 128, 224, 320)
RUNS = re.compile(r"PyTorch was run on (\d+) samples? in the model's own precision(?: and (\d+) in float64)?")


class Transformer(nn.Module):
    """Twelve encoder layers of width 512: 42 million weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)
        for weight in self.encoder.parameters():  # the layers are copies of one; no two shall be the same
            if weight.ndim > 1:
                nn.init.xavier_uniform_(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


def vgg11() -> nn.Module:
    """Returns VGG-11 with BatchNorm: 129 million weights, whatever the size of the images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    inputs = 3
    for width in VGG:
        if isinstance(width, int):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        else:
            layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(512 * 49, 4096), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, 4096)]
    head += [nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, 1000)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head)
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
    return model.eval()


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def prove(model: nn.Module, x: Tensor, path: Path, runs: list[dict[str, int]]) -> None:
    """Exports, and takes down on how many samples PyTorch was run to compare with."""
    report = export_onnx(model, path, x)
    if not report:
        raise SystemExit(f"export failed: {[check for check in report.checks if check.blocks][:3]}")
    found = next(match for note in report.notes if (match := RUNS.search(note)))
    runs.append({"samples": int(found[1]), "samples_float64": int(found[2] or 0)})


def compare(
    model: nn.Module, x: Tensor, folder: Path, rounds: int, clock: Callable[[], float], *, verify: bool
) -> dict[str, Any]:
    """Returns seconds of both exports in turns; the first round warms up and does not count."""
    runs: list[dict[str, int]] = []
    peer = "torch verify" if verify else "torch"
    ways = {
        peer: functools.partial(torch_export, verify=verify),
        "ours": functools.partial(prove, runs=runs),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            way(model, x, folder / "model.onnx")
            seconds = clock() - start
            print(f"  round {number}, {name}: {seconds:.2f} s", flush=True)
            if number:
                times[name].append(seconds)
    medians = {name: statistics.median(own) for name, own in times.items()}
    return {"ratio": medians["ours"] / medians[peer], "peer": peer, "medians": medians, "all": times, **runs[0]}


def forward_seconds(model: nn.Module, x: Tensor) -> float:
    """Returns the median of five runs of one image, after one to warm up."""
    times = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            model(x[:1])
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def curve(model: nn.Module, folder: Path) -> list[dict[str, float]]:
    """Returns seconds of one export and of one forward, for images of several sizes."""
    rows = []
    for size in CURVE:
        x, start = images(size), time.perf_counter()
        prove(model, x, folder / "model.onnx", [])
        seconds, forward = time.perf_counter() - start, forward_seconds(model, x)
        rows.append({"size": size, "export": seconds, "forward": forward})
        print(f"  {size} pixels: {seconds:.1f} s, one forward {forward * 1e3:.1f} ms", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of exports, after one to warm up")
    parser.add_argument("--only", nargs="*", help="names of networks; nothing is written then")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # what torch's converter says of itself at every export
    tokens = torch.randint(WORDS, (2, TOKENS), generator=torch.Generator().manual_seed(2))
    wall, cpu = time.perf_counter, time.process_time
    resnet = functools.partial(resnet50, lambda: Jumpout(sigma=0.1))
    networks: dict[str, tuple[Callable[[], nn.Module], Tensor, Callable[[], float], bool]] = {
        "resnet50, 64 pixels": (resnet, images(64), wall, True),
        "resnet50, 224 pixels": (resnet, images(224), wall, True),
        "transformer, 42M": (lambda: Transformer().eval(), tokens, wall, True),
        "vgg11_bn, 64 pixels": (vgg11, images(64), cpu, False),
    }
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, (make, x, clock, verify) in networks.items():
            if not options.only or any(wanted in title for wanted in options.only):
                print(title, flush=True)
                found[title] = compare(make(), x, folder, options.rounds, clock, verify=verify)
                found[title]["clock"] = "CPU seconds" if clock is cpu else "seconds"
                print(f"  {found[title]['ratio']:.2f} times", flush=True)
        if options.only:
            return
        print("curve", flush=True)
        rows = curve(resnet(), folder)
    result = {
        "machine": {**machine("cpu"), "onnxruntime": onnxruntime.__version__, "threads": torch.get_num_threads()},
        "rounds": options.rounds,
        "networks": found,
        "curve": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
