"""The whole protocol: every configuration of a folder with each of its seeds, then the tables and figures.

    python -m experiments.paper --data DIR [--protocol cpu|gpu] [--workers 2]

A run whose JSON is there is not repeated, and a killed one goes on after its last epoch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.config import Config, read_config
from experiments.datasets import Images, read_images
from experiments.results import read_result
from experiments.run import run
from experiments.summary import write_summary

HERE = Path(__file__).parent
PROTOCOLS = ("cpu", "gpu")


@dataclass(frozen=True)
class Job:
    """One configuration with one seed."""

    name: str
    config: Config
    seed: int

    def result(self, out: Path) -> Path:
        """Where its JSON lies."""
        return out / f"{self.name}-{self.seed}.json"


def jobs(folder: Path) -> list[Job]:
    """Returns every run of a folder of TOML files; all first seeds before all second ones.

    Raises:
        ValueError: if the folder has none, or a file is wrong.
    """
    configs = {path.stem: read_config(path) for path in sorted(folder.glob("*.toml"))}
    if not configs:
        raise ValueError(f"there are no .toml files in {folder}")
    found = [Job(name, config, seed) for name, config in configs.items() for seed in config.seeds]
    return sorted(found, key=lambda job: job.config.seeds.index(job.seed))


def done(job: Job, out: Path) -> bool:
    """Whether the result of this very configuration is there."""
    path = job.result(out)
    return path.exists() and read_result(path).config == job.config


def run_all(data: Path, todo: list[Job], out: Path, device: str, workers: int, *, checksums: bool) -> None:
    """Runs the jobs, several at a time; each process reads the data once.

    Raises:
        RuntimeError: naming every job that failed; the others are done by then.
    """
    if not todo:
        return
    start, failed = time.monotonic(), []
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _prepare, (data, checksums, device, threads))
    try:
        futures: dict[Future[str], Job] = {pool.submit(_one, job, out): job for job in todo}
        for count, future in enumerate(as_completed(futures), 1):
            job = futures[future]
            try:
                line = future.result()
            except Exception as error:  # one failed run must not cost the others
                failed.append(f"{job.name} seed {job.seed}: {type(error).__name__}: {error}")
                line = f"FAILED {failed[-1]}"
            left = (time.monotonic() - start) / count * (len(todo) - count)
            print(f"[{count}/{len(todo)}] {line}, about {left / 60:.0f} minutes left", file=sys.stderr, flush=True)
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        raise RuntimeError("; ".join(failed))


_images: Images
_device: torch.device


def _prepare(data: Path, checksums: bool, device: str, threads: int) -> None:
    global _images, _device
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    torch.set_num_threads(threads)
    _images, _device = read_images(data, checksums=checksums), torch.device(device)


def _one(job: Job, out: Path) -> str:
    result = run(job.config, job.name, _images, job.seed, out, _device, say=lambda _: None)
    if result is None:
        raise RuntimeError("a run alone has a result")
    served = result.served
    return (
        f"{job.name} seed {job.seed}: {served.accuracy:.1%}, BatchNorm {served.verdict}, recalibrated "
        f"{served.accuracy_after:.1%}, export {'passed' if served.exported else 'FAILED: ' + served.export_problem}"
    )


def main() -> None:
    """Runs a protocol and writes its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the images; without it the tables are written anew only")
    parser.add_argument("--no-checksums", action="store_true", help="take files that are not the published ones")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="cpu")
    parser.add_argument("--configs", type=Path, help="folder of TOML files; default experiments/configs/PROTOCOL")
    parser.add_argument("--out", type=Path, help="folder of results; default experiments/results/PROTOCOL")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, got {arguments.workers}")
    configs = arguments.configs or HERE / "configs" / arguments.protocol
    out = arguments.out or HERE / "results" / arguments.protocol
    device = "cuda" if arguments.protocol == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: the gpu protocol needs a CUDA device, torch sees none")
    try:
        found = jobs(configs)
        todo = [job for job in found if not done(job, out)]
        if arguments.data is not None:
            print(f"{len(found) - len(todo)} of {len(found)} runs are there", file=sys.stderr)
            checksums = not arguments.no_checksums
            if todo:
                read_images(arguments.data, checksums=checksums)  # one clear line, and not one from each worker
            else:
                print(
                    "nothing is run: the tables are made of these results. To run all of them again give another "
                    "folder, --out DIR; to run some again and compare, python -m experiments.repeat NAME --data DIR",
                    file=sys.stderr,
                )
            run_all(arguments.data, todo, out, device, arguments.workers, checksums=checksums)
        page = "README.md" if arguments.out is not None or arguments.protocol == "cpu" else "README-gpu.md"
        write_summary(out, (arguments.out or HERE) / page, arguments.protocol)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on from here") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
