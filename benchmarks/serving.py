"""Times one session that several clients share, from C++ and from Python: the same file, the same requests.

    python benchmarks/serving.py [--requests 20000] [--rounds 10]

Every answer is compared bit for bit with the one that the same batch gave alone. The two take turns. Writes
results/serving-cpu.json and the table in docs/cpp.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from readme import replace

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "serving-cpu.json"
PAGE = ROOT / "docs" / "cpp.md"
BATCHES = (1, 2, 7, 16)


def export(folder: Path) -> Path:
    """Exports the demo's network, untrained: its speed does not depend on its weights."""
    import torch

    from jumpout_export import demo, export_onnx

    torch.manual_seed(0)
    model = demo.network()
    images = torch.rand(64, 1, 8, 8)
    model(images)
    if not export_onnx(model, folder / "model.onnx", images, golden=folder):
        raise SystemExit("the export failed")
    return folder / "model.onnx"


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def python_load(model: Path, clients: int, requests: int) -> dict[str, Any]:
    """Does what jumpout-load does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options)
    images = np.random.default_rng(0).random((max(BATCHES), 1, 8, 8), np.float32)
    inputs = [{"input": images[:size]} for size in BATCHES]
    answers = [session.run(None, values)[0].tobytes() for values in inputs]

    def send(count: int) -> tuple[float, list[float], int]:
        numbers, times, wrong = itertools.count(), [0.0] * count, [0] * clients

        def client(index: int) -> None:
            while (number := next(numbers)) < count:
                start = time.perf_counter()
                (answer,) = session.run(None, inputs[number % len(inputs)])
                times[number] = time.perf_counter() - start
                wrong[index] += answer.tobytes() != answers[number % len(inputs)]

        threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start, sorted(times), sum(wrong)

    send(requests // 10)
    before = resident_mib()
    seconds, times, wrong = send(requests)
    return {
        "passed": wrong == 0,
        "requests_per_second": requests / seconds,
        "samples_per_second": requests / len(BATCHES) * sum(BATCHES) / seconds,
        "median_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[len(times) - 1 - len(times) // 100] * 1e3,
        "memory_before_mib": before,
        "memory_after_mib": resident_mib(),
    }


def load_in_process(command: list[Any]) -> dict[str, Any]:
    """Runs a load in a process of its own, which holds nothing else, and returns what it prints."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    result = json.loads(done.stdout)
    return in_numbers(result) if "checks" in result else result


def in_numbers(report: dict[str, Any]) -> dict[str, Any]:
    """What `jumpout-load --json` measured, under the names that `python_load` has for it."""
    measured = {check["name"].removeprefix("cpu/load/"): check["measured"] for check in report["checks"]}
    (memory,) = [check["note"] for check in report["checks"] if check["name"].endswith("/memory")]
    before, after = re.findall(r"([\d.]+) (?:after|at)", memory)
    return {
        "passed": report["passed"],
        "requests_per_second": measured["requests per second"],
        "samples_per_second": measured["samples per second"],
        "median_ms": measured["latency p50"],
        "p99_ms": measured["latency p99"],
        "memory_before_mib": float(before),
        "memory_after_mib": float(after),
    }


def measure(clients: int, requests: int, rounds: int) -> dict[str, Any]:
    """Returns each language's fastest round: what else runs on the machine only slows down."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = [export(Path(folder)), "--clients", clients, "--requests", requests]
        commands = {
            "C++": [ROOT / "build" / "replay" / "jumpout-load", *wanted, "--batches", _joined(BATCHES, ","), "--json"],
            "Python": [sys.executable, __file__, "--python-client", *wanted],
        }
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
        for number in range(rounds):
            for name, command in commands.items():
                found[name].append(load_in_process(command))
                rate = found[name][-1]["requests_per_second"]
                print(f"round {number + 1}, {name}: {rate:.0f} requests per second", flush=True)
    if not all(row["passed"] for rows in found.values() for row in rows):
        raise SystemExit("an answer was wrong")
    return {name: max(rows, key=lambda row: row["requests_per_second"]) for name, rows in found.items()}


def table(result: dict[str, Any]) -> str:
    machine, settings = result["machine"], result["settings"]
    heading = (
        f"{settings['clients']} clients, {settings['requests']:,} requests in batches of "
        f"{_joined(BATCHES, ', ')}, the fastest of {settings['rounds']} rounds in turns, {machine['device']}, "
        f"{machine['cores']} cores, ONNX Runtime {machine['onnxruntime']}:"
    )
    lines = [
        heading,
        "",
        "| client | requests per second | samples per second | median ms | 99th percentile ms | resident MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["loads"].items():
        lines.append(
            f"| {name} | {row['requests_per_second']:,.0f} | {row['samples_per_second']:,.0f} | {row['median_ms']:.3f} "
            f"| {row['p99_ms']:.2f} | {row['memory_before_mib']:.1f}, at the end {row['memory_after_mib']:.1f} |"
        )
    return "\n".join(lines)


def _joined(numbers: tuple[int, ...], separator: str) -> str:
    return separator.join(map(str, numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--python-client", type=Path, metavar="MODEL", help="only load this model from Python")
    options = parser.parse_args()
    if options.python_client:
        print(json.dumps(python_load(options.python_client, options.clients, options.requests)))
        return
    from timing import machine  # imports torch, which has no place in the process of a client

    settings = {"clients": options.clients, "requests": options.requests, "rounds": options.rounds}
    result = {
        "machine": {**machine("cpu"), "onnxruntime": onnxruntime.__version__},
        "settings": settings,
        "loads": measure(**settings),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    replace(PAGE, "serving", table(result))
    print(f"written to {RESULT}")


if __name__ == "__main__":
    main()
