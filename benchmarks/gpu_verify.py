"""Exports two networks, proves the files in ONNX Runtime on the device, then times it against PyTorch there.

    python benchmarks/gpu_verify.py [--device cuda|cpu] [--seconds 10] [--budget SECONDS]

The networks are the demo's and a ResNet-18, untrained: neither their speed nor the proof depends on it. Each is
exported in float32 and float16 and verified on the CPU and, with `--device cuda`, on CUDA, where every node has to run.
A latency is from an input on the device to an output on the device, nothing else under way; TensorFloat-32 is off
everywhere, as in the proof. Writes results/gpu-verify.json; a dry run on the CPU, build/gpu-verify-cpu.json.

Exit codes: 0 all proven, 1 a check failed, 3 the device cannot be used here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import alternate, machine
from torch import Tensor, nn

from jumpout_export import Jumpout, demo, export_onnx
from jumpout_export.report import ExportReport
from jumpout_export.runtime.providers import PROVIDERS

ROOT = Path(__file__).parents[1]
RESULTS = {"cuda": ROOT / "benchmarks/results/gpu-verify.json", "cpu": ROOT / "build/gpu-verify-cpu.json"}
BATCHES = (1, 8, 64)
DTYPES = {"float32": torch.float32, "float16": torch.float16}
# Of the largest output; the proof is the export's, this only sees that the timed functions do the same.
SAME = {torch.float32: 1e-3, torch.float16: 5e-2}


class Block(nn.Module):
    """Two convolutions around a shortcut, with dropout where a wide ResNet has it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.noise = Jumpout(sigma=0.1, relu=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.noise(self.bn1(self.conv1(x)))))
        return (y + self.shortcut(x)).relu()


def resnet18(width: int = 64, classes: int = 1000) -> nn.Sequential:
    """Returns a ResNet-18 for images of (N, 3, H, W)."""
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, channels = [], width
    for stage in range(4):
        outputs = width << stage
        blocks += [Block(channels, outputs, 1 + (stage > 0)), Block(outputs, outputs, 1)]
        channels = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes)]
    return nn.Sequential(*stem, *blocks, *head)


def prove(network: nn.Module, images: Tensor, file: Path, dtype: torch.dtype, device: str) -> ExportReport:
    """Exports a network to `file` and verifies it on the CPU and the device."""
    half = torch.float16 if dtype == torch.float16 else None
    return export_onnx(network, file, images, providers=dict.fromkeys(("cpu", device)), dtype=half)


def runner(file: Path, x: Tensor, classes: int) -> Callable[[], Tensor]:
    """Returns a function that runs the file on `x` where it lies, which the caller holds, into one output tensor."""
    import numpy as np
    import onnxruntime

    provider = PROVIDERS[x.device.type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take the cores from PyTorch
    session = onnxruntime.InferenceSession(
        str(file), options, providers=[(provider.onnxruntime_name, dict(provider.settings))], enable_fallback=0
    )
    y = torch.empty(len(x), classes, dtype=x.dtype, device=x.device)
    kind = np.float16 if x.dtype == torch.float16 else np.float32
    binding = session.io_binding()
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    where = (x.device.type, x.device.index or 0, kind)
    binding.bind_input(source.name, *where, tuple(x.shape), x.data_ptr())
    binding.bind_output(target.name, *where, tuple(y.shape), y.data_ptr())

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return y

    return run


def latencies(
    network: nn.Module, file: Path, images: Tensor, device: str, seconds: float, *, compiled: bool = True
) -> dict[str, Any]:
    """Returns milliseconds per call of ONNX Runtime, PyTorch and torch.compile on `images`, checked to agree.

    Args:
        network: in eval mode; a copy of its weights is what is in the file.
        file: as exported.
        images: of the file's dtype, on the CPU.
        device: `cpu` or `cuda`.
        seconds: to spend on the times.
        compiled: time torch.compile too.
    """
    x = images.to(device)
    network = network.to(x.device, x.dtype)
    functions: dict[str, Callable[[], Tensor]] = {"PyTorch eager": lambda: network(x)}
    if compiled:
        fast = torch.compile(network)
        functions["torch.compile"] = lambda: fast(x)
    with torch.no_grad():
        want = network(x).float()
        functions["ONNX Runtime"] = runner(file, x, want.shape[1])
        for name, function in functions.items():
            error = float((function().float() - want).abs().max() / want.abs().max())
            if not error <= SAME[x.dtype]:
                raise SystemExit(f"{name} is off by {error:.2g} of the largest output on {tuple(x.shape)} {x.dtype}")
        # Wall time up to the finished output: an event of torch would not see ONNX Runtime's stream.
        times = alternate({name: _finished(function, device) for name, function in functions.items()}, "cpu", seconds)
    return {name: {key: value * 1e3 for key, value in row.items()} for name, row in times.items()}


def _finished(function: Callable[[], Tensor], device: str) -> Callable[[], None]:
    def call() -> None:
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def summary(report: ExportReport) -> dict[str, Any]:
    """Returns what a report says about where the file ran and how exact it was."""
    errors = [check for check in report.checks if check.name.endswith("worst error") and check.limit]
    return {
        "passed": report.passed,
        "providers": {name: provider.model_dump() for name, provider in report.providers.items()},
        "nodes": {check.name: check.note for check in report.checks if check.name.endswith("/nodes")},
        "repeatable": {check.name: check.note for check in report.checks if check.name.endswith("/repeatable")},
        "largest_share_of_limit": max((check.measured / check.limit for check in errors), default=None),
        "failed": [check.model_dump() for check in report.checks if check.blocks],
    }


def measure(
    networks: dict[str, tuple[nn.Module, Tensor]],
    device: str,
    seconds: float,
    *,
    compiled: bool = True,
    until: float = math.inf,
) -> dict[str, Any]:
    """Returns the proof and the latencies of each network in each dtype; without a proof nothing is timed.

    Everything is proven first. What would be timed after `until`, a time of `time.monotonic`, is not.
    """
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (network, images) in networks.items():
            network(images)  # in train mode: the running statistics become those of the images
            network.eval()
            result[name] = {}
            for kind, dtype in DTYPES.items():
                file = Path(folder) / f"{name}-{kind}.onnx"
                report = prove(network.cpu().float(), images, file, dtype, device)
                row = result[name][kind] = {"proof": summary(report), "milliseconds": {}}
                print(
                    f"{name} {kind}: {'proven' if report else 'not proven, ' + str(row['proof']['failed'][0])}",
                    flush=True,
                )
        for name, (network, images) in networks.items():
            for kind, dtype in DTYPES.items():
                row, file = result[name][kind], Path(folder) / f"{name}-{kind}.onnx"
                for batch in BATCHES if row["proof"]["passed"] else ():
                    if time.monotonic() > until:
                        print(f"{name} {kind}, batch {batch}: not timed, the budget is spent", flush=True)
                        continue
                    x = images[torch.arange(batch) % len(images)].to(dtype)
                    row["milliseconds"][batch] = latencies(network, file, x, device, seconds, compiled=compiled)
                    medians = {who: f"{times['median']:.3f}" for who, times in row["milliseconds"][batch].items()}
                    print(f"{name} {kind}, batch {batch}, median milliseconds: {medians}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--seconds", type=float, default=10, help="to spend on the times of one network, dtype and size"
    )
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which nothing more is timed")
    options = parser.parse_args()
    until = time.monotonic() + options.budget
    reason = PROVIDERS[options.device].explain_unusable()
    if reason is None and options.device == "cuda" and not torch.cuda.is_available():
        reason = f"torch {torch.__version__} sees no CUDA device"
    if reason is not None:
        print(f"not verified, {options.device} cannot be used here: {reason}", file=sys.stderr)
        raise SystemExit(3)

    import onnxruntime

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    networks = {"demo": (demo.network(), torch.rand(64, 1, 8, 8)), "resnet18": (resnet18(), torch.rand(8, 3, 224, 224))}
    result = {
        "machine": {**machine(options.device), "onnxruntime": onnxruntime.__version__},
        "settings": {"device": options.device, "seconds": options.seconds, **PROVIDERS[options.device].settings},
        "networks": measure(networks, options.device, options.seconds, until=until),
    }
    file = RESULTS[options.device]
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {file}")
    proven = all(row["proof"]["passed"] for rows in result["networks"].values() for row in rows.values())
    raise SystemExit(0 if proven else 1)


if __name__ == "__main__":
    main()
