"""Runs committed runs again and says whether the new numbers are the committed ones.

    python -m experiments.repeat jumpout none --data DIR [--seed 0] [--protocol cpu]

On the same kind of CPU and with the same torch every number is the same. Elsewhere sums are rounded otherwise and the
training takes another path: then a new accuracy must be one that another seed could have given.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path

import torch

from experiments.datasets import read_images
from experiments.paper import HERE, PROTOCOLS
from experiments.results import Result, read_result
from experiments.run import run
from experiments.tables import accuracy, recalibrated

# Standard errors of the difference that another seed is granted.
_MOST = 3.0


def compare(new: Result, committed: list[Result]) -> tuple[bool, str]:
    """Returns whether a run repeats the committed ones, and a line that says how.

    Args:
        new: the run.
        committed: all seeds of its configuration, its own among them.
    """
    own = next(result for result in committed if result.seed == new.seed)
    if numbers(own) == numbers(new):
        return True, f"{new.name} seed {new.seed}: every number is the same"
    good, parts = True, []
    images = new.config.data.test or 10_000
    for what, value in (("accuracy", accuracy), ("recalibrated", recalibrated)):
        values = [value(result) for result in committed]
        sd = max(statistics.stdev(values) if len(values) > 1 else 0.0, math.sqrt(0.25 / images))  # one seed has no sd
        error = sd * math.sqrt(1 + 1 / len(values))
        off = abs(value(new) - statistics.fmean(values)) / error
        good = good and off <= _MOST
        parts.append(f"{what} {value(new):.1%}, committed {statistics.fmean(values):.1%}, {off:.1f} standard errors")
    return good, f"{new.name} seed {new.seed}: {'; '.join(parts)}{'' if good else ': NOT REPEATED'}"


def numbers(result: Result) -> dict[str, object]:
    """Returns what a repeated run must give again: everything but times and the machine."""
    content = result.model_dump(exclude={"machine": True, "served": {"export_seconds"}, "data": True})
    for epoch in content["epochs"]:
        del epoch["seconds"]
    return content


def main() -> None:
    """Repeats runs; exit code 1 if one is not what was committed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="configurations, such as jumpout")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--no-checksums", action="store_true", help="take files that are not the published ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="cpu")
    parser.add_argument("--results", type=Path, help="folder of results; default experiments/results/PROTOCOL")
    arguments = parser.parse_args()
    results = arguments.results or HERE / "results" / arguments.protocol
    device = torch.device("cuda" if arguments.protocol == "gpu" else "cpu")
    good = True
    try:
        images = read_images(arguments.data, checksums=not arguments.no_checksums)
        for name in arguments.names:
            committed = [read_result(path) for path in sorted(results.glob(f"{name}-[0-9]*.json"))]
            committed = [result for result in committed if result.name == name]
            if all(result.seed != arguments.seed for result in committed):
                raise ValueError(f"{results} has no result {name} with seed {arguments.seed}")
            torch.set_num_threads(int(committed[0].machine["threads"]))  # sums are split alike
            with tempfile.TemporaryDirectory() as folder:
                new = run(committed[0].config, name, images, arguments.seed, Path(folder), device, say=lambda _: None)
            if new is None:
                raise RuntimeError("a run alone has a result")
            same, line = compare(new, committed)
            good = good and same
            print(line, flush=True)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
