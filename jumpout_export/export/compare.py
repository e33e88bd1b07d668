"""Compares ONNX Runtime's outputs with PyTorch's, and keeps the worst of what it saw."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jumpout_export.export.budget import error_limit
from jumpout_export.export.checks import counted
from jumpout_export.export.reference import Expected
from jumpout_export.report import Check


@dataclass
class Scale:
    """Of one output: the largest reference value and torch's own largest error, over everything compared."""

    size: float = 0.0
    own_error: float = 0.0
    dtype: torch.dtype = torch.float32

    def add(self, expected: Expected) -> None:
        """Takes in one batch."""
        self.dtype = expected.own.dtype
        if expected.own.numel() and self.dtype.is_floating_point:
            # What is not finite fails a check of its own; it must not make the limit infinite.
            self.size = max(self.size, _largest(expected.exact))
            self.own_error = max(self.own_error, _largest(expected.own.double() - expected.exact))


# By (source, output name): random images may be of another size than real ones, so each source has its own.
Scales = dict[tuple[str, str], Scale]


def source(group: str) -> str:
    """Returns `random` or `data`, the kind of images a group of samples holds."""
    return "random" if group.startswith("random") else "data"


@dataclass
class Worst:
    """The largest error of one output within one group, and where it is."""

    error: float = -1.0
    sample: int = 0
    index: tuple[int, ...] = ()
    images: int = 0
    top1_same: int = 0
    has_top1: bool = False


@dataclass
class Comparison:
    """What one session (provider and level) did on everything it was compared on."""

    label: str
    must_repeat: bool
    problems: list[str] = field(default_factory=list)
    non_finite: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    differing_runs: list[str] = field(default_factory=list)
    runs: int = 0
    values: int = 0
    worst: dict[tuple[str, str], Worst] = field(default_factory=dict)

    def add(self, group: str, start: int, expected: list[Expected], got: list[Tensor]) -> None:
        """Takes in the outputs for one batch; `start` is the number of its first image."""
        for want, have in zip(expected, got, strict=True):
            if have.dtype != want.own.dtype or have.shape != want.own.shape:
                self.problems.append(
                    f"{group}: output `{want.name}` is {_kind(have)}, in PyTorch it is {_kind(want.own)}"
                )
                continue
            self.values += have.numel()
            self.non_finite[want.name] += int((~(torch.isfinite(have) & torch.isfinite(want.own))).sum())
            self._measure(self.worst.setdefault((group, want.name), Worst()), start, want, have)

    @staticmethod
    def _measure(worst: Worst, start: int, want: Expected, have: Tensor) -> None:
        worst.images += have.shape[0] if have.ndim else 1
        if not have.numel():
            return
        if have.is_floating_point():
            error = (have.double() - want.exact).abs().nan_to_num(nan=math.inf)
            if have.ndim == 2 and have.shape[1] > 1:
                worst.has_top1 = True
                worst.top1_same += int((have.argmax(1) == want.exact.argmax(1)).sum())
        else:  # exact; where float64 and float32 decide differently, either decision is right
            error = ((have != want.exact) & (have != want.own)).double()
        flat = int(error.argmax())
        if float(error.reshape(-1)[flat]) > worst.error:
            place = [int(axis) for axis in torch.unravel_index(torch.tensor(flat), error.shape)]
            worst.error = float(error.reshape(-1)[flat])
            worst.sample, worst.index = (start + place[0], tuple(place[1:])) if place else (start, ())

    def checks(self, scales: Scales, has_reference: bool) -> list[Check]:
        """Returns the verdicts on everything that was taken in."""
        checks = [counted(f"{self.label}/outputs", self.problems, f"shapes and dtypes agree in {self.runs} runs")]
        broken = [
            f"output `{name}` has {count} NaN or infinite values" for name, count in self.non_finite.items() if count
        ]
        checks.append(counted(f"{self.label}/finite", broken, f"{self.values} values are finite"))
        if self.must_repeat:
            good = f"{self.runs} pairs of runs agree bitwise"
            checks.append(counted(f"{self.label}/repeatable", self.differing_runs, good))
        groups = dict.fromkeys(group for group, _ in self.worst)
        return [*checks, *(self._error_check(group, scales, has_reference) for group in groups)]

    def _error_check(self, group: str, scales: Scales, has_reference: bool) -> Check:
        """The output that is closest to its limit, or furthest beyond."""
        rows = []
        for (its_group, name), worst in self.worst.items():
            if its_group == group:
                scale = scales[source(group), name]
                limit = error_limit(scale.own_error, scale.size, scale.dtype, has_reference)
                share = worst.error / limit if limit > 0 else math.inf if worst.error > 0 else 0.0
                rows.append((share, name, worst, limit))
        _, name, worst, limit = max(rows, key=lambda row: row[0])
        note = f"output `{name}`, image {worst.sample}, index {worst.index}; {worst.images} images"
        if worst.has_top1:
            note += f", top-1 agrees on {worst.top1_same}"
        return Check(
            name=f"{self.label}/{group}/worst error",
            measured=max(worst.error, 0.0),
            limit=limit,
            verdict="pass" if worst.error <= limit else "fail",
            note=note,
        )


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().nan_to_num(nan=0.0, posinf=0.0).max())


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
