"""Times an export with its full verification beside torch's own, on a ResNet-50-like network; and the file it makes.

python benchmarks/export.py [--size 64] [--rounds 3]

In one run and in turns: torch.onnx.export alone, with verify=True, followed by what optimum's exporter does to validate
(an ONNX Runtime session on the file, all outputs compared with an absolute tolerance of 1e-3), and `export_onnx`. Then
the latency in ONNX Runtime of our file beside the same network built without any dropout and exported by torch alone:
first that both give the same outputs, then the times. Writes benchmarks/results/export-cpu.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from timing import alternate, machine
from torch import Tensor, nn

from jumpout_export import Jumpout, export_onnx

RESULT = Path(__file__).parent / "results" / "export-cpu.json"
DEPTHS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
ATOL = 1e-3  # what optimum takes for ResNet


class Bottleneck(nn.Module):
    """ResNet's 1x1, 3x3, 1x1 block, with noise before the last convolution."""

    def __init__(self, inputs: int, width: int, stride: int, noise: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(noise(), nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
        )
        same = stride == 1 and inputs == 4 * width
        short = [] if same else [nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)]
        self.shortcut = nn.Sequential(*short)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50(noise: Callable[[], nn.Module]) -> nn.Module:
    """Returns 53 convolutions with a BatchNorm each and 23.5 million weights, the same for any noise."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for depth, width in zip(DEPTHS, WIDTHS, strict=True):
        for number in range(depth):
            layers.append(Bottleneck(inputs, width, 2 if number == 0 and width > 64 else 1, noise))
            inputs = 4 * width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), noise(), nn.Linear(inputs, 1000))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    # The statistics of random images: with the initial ones, every image would end with the same outputs.
    model.eval()
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def torch_export(model: nn.Module, x: Tensor, path: Path, verify: bool = False) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), path, dynamo=True, verify=verify, verbose=False, opset_version=18, input_names=["input"],
            output_names=["output"], dynamic_shapes=({0: "batch"},), external_data=False,
        )  # fmt: skip


def export_and_validate(model: nn.Module, x: Tensor, path: Path) -> None:
    torch_export(model, x, path)
    with torch.no_grad():
        expected = model(x).numpy()
    (got,) = session(path).run(None, {"input": x.numpy()})
    if got.shape != expected.shape or not np.allclose(got, expected, rtol=0, atol=ATOL):
        raise SystemExit("the validation that is timed fails")


def export_and_prove(model: nn.Module, x: Tensor, path: Path) -> None:
    report = export_onnx(model, path, x)
    if not report:
        raise SystemExit(f"export failed: {[check for check in report.checks if check.verdict == 'fail'][:3]}")


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def time_exports(x: Tensor, folder: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Returns seconds of each way to export, in turns; the first round warms up and does not count."""
    model = resnet50(lambda: Jumpout(sigma=0.1))
    ways: dict[str, Callable[[nn.Module, Tensor, Path], None]] = {
        "torch": torch_export,
        "torch verify": lambda *arguments: torch_export(*arguments, verify=True),
        "optimum style": export_and_validate,
        "ours": export_and_prove,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way(model, x, folder / f"{name.replace(' ', '-')}.onnx")
            seconds = time.perf_counter() - start
            print(f"round {number}, {name}: {seconds:.2f} s", flush=True)
            if number:
                times[name].append(seconds)
    return {name: {"median": statistics.median(own), "min": min(own), "all": own} for name, own in times.items()}


def time_files(x: Tensor, folder: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Returns seconds per run of our file and of the network built without dropout, which must agree bitwise."""
    torch_export(resnet50(nn.Identity), x, folder / "plain.onnx")
    ours, plain, feeds = session(folder / "ours.onnx"), session(folder / "plain.onnx"), {"input": x[:1].numpy()}
    if not np.array_equal(ours.run(None, feeds)[0], plain.run(None, feeds)[0]):
        raise SystemExit("our file and the network without dropout differ")
    runs = {"ours": lambda: ours.run(None, feeds), "without dropout": lambda: plain.run(None, feeds)}
    return alternate(runs, "cpu", seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=2, help="images in the example")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of exports, after one to warm up")
    parser.add_argument("--seconds", type=float, default=20, help="how long to time the two files")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # what torch's converter says of itself at every export
    x = torch.randn(options.batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(2))
    with tempfile.TemporaryDirectory() as folder:
        exports = time_exports(x, Path(folder), options.rounds)
        latency = time_files(x, Path(folder), options.seconds)
    result = {
        "machine": {**machine("cpu"), "onnxruntime": onnxruntime.__version__, "threads": torch.get_num_threads()},
        "settings": {"size": options.size, "batch": options.batch, "rounds": options.rounds},
        "exports": exports,
        "latency": latency,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    ratio = exports["ours"]["median"] / exports["torch verify"]["median"]
    same = latency["ours"]["median"] / latency["without dropout"]["median"]
    print(f"ours / torch verify=True: {ratio:.2f}; latency against no dropout: {same:.3f}; written to {options.out}")


if __name__ == "__main__":
    main()
