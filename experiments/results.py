"""What one run leaves behind, as JSON."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, Field

from experiments.config import Config
from jumpout_export import ops


class Spread(BaseModel):
    """How a number scatters over the batches of one epoch."""

    mean: float
    sd: float
    p05: float
    p95: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Returns mean, standard deviation, 5% and 95% quantile, to four digits."""
        array = np.asarray(values)
        low, high = np.quantile(array, [0.05, 0.95])
        return cls(mean=digits(array.mean()), sd=digits(array.std()), p05=digits(low), p95=digits(high))


class Ratio(BaseModel):
    """A layer's input statistics with noise, relative to those without (Figs 3 and 5).

    Attributes:
        layer: the convolution or linear layer behind the noise, whose output BatchNorm sees.
        mode: whether the BatchNorm layers normalise by the `batch`'s statistics or the `stored` ones while all noise
            is on; `alone`: stored ones, and only the noise at this layer's input is on.
        keep: k = 1 - p', averaged over the layer's calls.
        mean: slope of the channels' means with noise on those without.
        mean_error: standard error of its difference from `mean_expected`, over repeated draws of the noise; where the
            rate is drawn too, both are of the same rates.
        variance: average over channels of the variance with noise over that without.
        variance_error: likewise.
        rho: average over channels of sum w^2 E[x^2] / Var(sum w x), at the layer's input without noise.
        mean_expected: k^(1 - alpha).
        variance_expected: k^(2 - 2 alpha) (1 + rho (1 - k) / k): independent masks, no noise in the layers before.
    """

    layer: str
    mode: str
    keep: float
    mean: float
    mean_error: float
    variance: float
    variance_error: float
    rho: float
    mean_expected: float
    variance_expected: float


class Epoch(BaseModel):
    """One epoch.

    Attributes:
        train_loss: mean training loss with the noise on, in nats.
        train_accuracy: likewise, in [0, 1].
        test_loss: in eval mode.
        test_accuracy: in eval mode.
        seconds: of the training alone.
        active: per ReLU, the fraction of active units over the epoch's training batches.
        active_in_eval: the same over test batches in eval mode.
        rate: per noise layer, the mean p' (jumpout) or p.
        ratios: where the configuration asks for them.
        reestimated_accuracy: test accuracy right after the variances were estimated anew, where they were.
        serving_loss: test loss with serving statistics in the BatchNorms, where the configuration asks for it.
        serving_accuracy: likewise.
    """

    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    active: dict[str, Spread] = Field(default_factory=dict)
    active_in_eval: dict[str, Spread] = Field(default_factory=dict)
    rate: dict[str, float] = Field(default_factory=dict)
    ratios: list[Ratio] = Field(default_factory=list)
    reestimated_accuracy: float | None = None
    serving_loss: float | None = None
    serving_accuracy: float | None = None


class Served(BaseModel):
    """What the product says of the trained network.

    Attributes:
        verdict: of the BatchNorm check, `none` for a network without BatchNorm.
        origin: the first drifting layer.
        cause: of its drift.
        w: per BatchNorm layer in call order, how far it is off.
        w_low: lower ends of the 95% intervals.
        w_high: upper ends.
        verdict_after: after the exact recalibration.
        w_after: the largest W then.
        accuracy: on the test images before.
        accuracy_after: and after.
        nll: negative log likelihood per test image before, in nats.
        nll_after: and after.
        exported: whether the export passed every check.
        export_problem: its first failed check.
        export_seconds: what audit, fold, conversion and verification took.
    """

    verdict: str = "none"
    origin: str | None = None
    cause: str | None = None
    w: dict[str, float] = Field(default_factory=dict)
    w_low: dict[str, float] = Field(default_factory=dict)
    w_high: dict[str, float] = Field(default_factory=dict)
    verdict_after: str = "none"
    w_after: float = 0.0
    accuracy: float
    accuracy_after: float
    nll: float
    nll_after: float
    exported: bool
    export_problem: str = ""
    export_seconds: float = 0.0


class Result(BaseModel):
    """One run: what was asked for, what came out, and where."""

    config: Config
    name: str
    seed: int
    data: str
    parameters: int
    epochs: list[Epoch]
    served: Served
    machine: dict[str, str]


def machine(device: torch.device) -> dict[str, str]:
    """Returns what the numbers depend on: device, versions, commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": ops.build_info()["cuda" if device.type == "cuda" else "cpu_kernels"],
        "commit": commit.stdout.strip() or "unknown",
    }


def write_result(result: Result, path: Path) -> None:
    """Writes the JSON; it is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(result.model_dump_json(exclude_defaults=True) + "\n")
    os.replace(part, path)


def read_result(path: Path) -> Result:
    """Returns a result that `write_result` wrote.

    Raises:
        ValueError: naming the file, if it is none.
    """
    try:
        return Result.model_validate_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no result of a run ({type(error).__name__}); remove it to run it again") from error


def digits(value: float, count: int = 4) -> float:
    """Returns a number rounded to so many significant digits; more would be noise, and a megabyte of it."""
    return float(f"{float(value):.{count}g}")
