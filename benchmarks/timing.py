"""Alternating measurements of several functions in one run, so that ratios survive a noisy machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from jumpout_export import ops

_LEAST_ROUNDS = 3
_TURN = 5e-4  # seconds


def alternate(functions: dict[str, Callable[[], Any]], device: str, seconds: float) -> dict[str, dict[str, float]]:
    """Returns median and minimum seconds per call of each function, called in turn for about `seconds` in all.

    A turn starts with a call that is not timed: each function finds the caches as it left them itself, not as its
    neighbour in the list did. Otherwise the fast ones, called once or twice a turn, would pay for the slow ones.
    """
    measure = _cuda_seconds if device == "cuda" else _cpu_seconds
    for function in functions.values():
        measure(function, 2)  # compiles, fills caches
    times: dict[str, list[float]] = {name: [] for name in functions}
    repeats = {name: max(1, int(_TURN / max(measure(function, 1), 1e-7))) for name, function in functions.items()}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(next(iter(times.values()))) < _LEAST_ROUNDS:
        for name, function in functions.items():
            function()
            times[name].append(measure(function, repeats[name]))
    return {name: {"median": statistics.median(values), "min": min(values)} for name, values in times.items()}


@contextlib.contextmanager
def competing_loader() -> Iterator[None]:
    """While it lasts, another process does without pause what the worker of a data loader does: crop, flip, collate."""
    worker = multiprocessing.get_context("spawn").Process(target=_load_batches, daemon=True)
    worker.start()
    time.sleep(3)  # seconds: it imports torch first
    try:
        yield
        if not worker.is_alive():
            raise RuntimeError("the competing worker has ended: nothing competed with what was measured")
    finally:
        worker.kill()
        worker.join()


def _load_batches() -> None:
    torch.set_num_threads(1)  # as torch's own workers do
    images = torch.randint(256, (512, 3, 40, 40), dtype=torch.uint8)
    while True:
        chosen = []
        for index in torch.randint(len(images), (128,)).tolist():
            top, left = torch.randint(9, (2,)).tolist()
            image = images[index, :, top : top + 32, left : left + 32].float().div_(255)
            chosen.append((image.flip(-1) if top % 2 else image).sub_(0.5).div_(0.25))
        torch.stack(chosen)


def _cpu_seconds(function: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def _cuda_seconds(function: Callable[[], Any], repeats: int) -> float:
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")  # larger than any L2
    total = 0.0
    for _ in range(repeats):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        total += start.elapsed_time(end) / 1e3
    return total / repeats


def machine(device: str) -> dict[str, str]:
    """Returns what the numbers depend on: machine, versions, commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": ops.build_info()["cuda" if device == "cuda" else "cpu_kernels"],
        "commit": commit.stdout.strip() or "unknown",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
