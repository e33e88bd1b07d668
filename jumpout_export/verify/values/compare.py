"""Compares ONNX Runtime's outputs with PyTorch's, and keeps the worst of what it saw."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jumpout_export.report import Check, counted, limited
from jumpout_export.text import count
from jumpout_export.verify.values.reference import Expected
from jumpout_export.verify.values.scale import Scale, Scales, in_samples, relative, representable, source


@dataclass(frozen=True)
class Place:
    """One error, the size it is measured against, both in the output's unit, and where it is."""

    error: float
    size: float
    sample: int
    index: tuple[int, ...]


@dataclass(frozen=True)
class Largest:
    """The largest errors in units of the size, one per index of an axis behind the samples, or one in all.

    What is beyond its limit at a place is beyond it at one of these: along the axis whose limit is the smallest there,
    the largest error of that index has no larger limit.
    """

    # (5, indices) in float64: errors in units of the size, largest first seen kept; these and the sizes in the
    # output's unit; numbers of the samples; positions within a sample, counted through.
    values: Tensor
    shape: torch.Size  # of a sample

    @classmethod
    def of(cls, error: Tensor, size: Tensor, start: int, axis: int | None) -> Largest:
        """Returns those of one batch: errors and sizes as samples x the rest, `axis` is one of both."""
        shares, places = relative(error, size), torch.arange(error.numel()).view(error.shape)
        rows = [values if axis is None else values.movedim(axis, 0) for values in (shares, places)]
        count = 1 if axis is None else error.shape[axis]
        found, at = rows[0].reshape(count, -1).max(1)
        flat = rows[1].reshape(count, -1).gather(1, at[:, None])[:, 0]
        length = math.prod(error.shape[1:])
        values = (found, error.flatten()[flat], size.flatten()[flat], start + flat // length, flat % length)
        return cls(torch.stack([value.double() for value in values]), error.shape[1:])

    @property
    def shares(self) -> Tensor:
        """In units of the size."""
        return self.values[0]

    @property
    def samples(self) -> Tensor:
        """Numbers of the samples."""
        return self.values[3].long()

    def merged(self, other: Largest) -> Largest:
        """Returns the larger ones."""
        if other.shape != self.shape:  # an axis is open: its indices mean something else now
            return other if float(other.shares.max()) > float(self.shares.max()) else self
        return Largest(torch.where(other.shares > self.shares, other.values, self.values), self.shape)

    def against(self, limit: Callable[[Sequence[Tensor], Sequence[int]], Tensor]) -> tuple[float, Place, float]:
        """Returns the largest share of its limit, where that is, and the limit there in the output's unit.

        `limit` gives the limits in units of the size, as `Budget.limit` does.
        """
        index = torch.unravel_index(self.values[4].long(), self.shape)
        limits = limit(index, self.shape).double()
        shares = relative(self.shares, limits)
        worst = int(shares.argmax())
        _, error, size, sample, _ = self.values[:, worst].tolist()
        place = Place(error, size, int(sample), tuple(int(at[worst]) for at in index))
        return float(shares[worst]), place, float(limits[worst]) * place.size


@dataclass
class Worst:
    """The largest errors of one output within one group, and how its largest classes differ."""

    # in units of the size, per axis behind the samples; nothing where there were no values
    largest: list[Largest] = field(default_factory=list)
    coarse: Largest | None = None  # in units of the coarse size
    # for every sample with another top-1, the reference's margin in units of the size
    margins: list[float] = field(default_factory=list)
    samples: int = 0  # compared
    has_top1: bool = False  # whether the output is samples x two classes or more


@dataclass
class Comparison:
    """What one session (provider and level) did on everything it was compared on."""

    label: str
    must_repeat: bool
    scales: Scales
    problems: list[str] = field(default_factory=list)
    non_finite: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    as_in_torch: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    differing_runs: list[str] = field(default_factory=list)
    runs: int = 0
    values: int = 0
    worst: dict[tuple[str, str], Worst] = field(default_factory=dict)

    def add(self, group: str, start: int, expected: list[Expected], got: list[Tensor]) -> None:
        """Takes in the outputs for one batch, which `scales` took in last; `start` numbers its first sample."""
        for want, have in zip(expected, got, strict=True):
            if have.dtype != want.own.dtype or have.shape != want.own.shape:
                self.problems.append(
                    f"{group}: output `{want.name}` is {_kind(have)}, in PyTorch it is {_kind(want.own)}"
                )
                continue
            self.values += have.numel()
            self.non_finite[want.name] += int((~(torch.isfinite(have) & torch.isfinite(want.own))).sum())
            self.as_in_torch[want.name] += int(_non_finite_as_in_torch(want, have).sum())
            worst = self.worst.setdefault((group, want.name), Worst())
            worst.samples += have.shape[0] if have.ndim else 1
            if have.numel():
                _measure(worst, self.scales[source(group), want.name], start, want, have)

    def agrees(self, group: str, expected: list[Expected], got: list[Tensor]) -> bool:
        """Whether the outputs for one batch, which `scales` took in last, are within their limits; keeps nothing."""
        alone = Comparison(self.label, self.must_repeat, self.scales)
        alone.add(group, 0, expected, got)
        return not any(check.blocks for check in alone.checks(has_reference=True))

    def beyond(self, has_reference: bool) -> set[str]:
        """Returns the kinds of inputs (`verify/values/scale.py`) on which a value is beyond its limit."""
        groups = dict.fromkeys(group for group, _ in self.worst)
        return {source(group) for group in groups if self._error_check(group, has_reference).verdict == "fail"}

    def checks(self, has_reference: bool) -> list[Check]:
        """Returns the verdicts on everything that was taken in."""
        checks = [counted(f"{self.label}/outputs", self.problems, f"shapes and dtypes agree in {self.runs} runs")]
        broken = [
            f"output `{name}` has {number} NaN or infinite values" + _whose(number, self.as_in_torch[name])
            for name, number in self.non_finite.items()
            if number
        ]
        checks.append(counted(f"{self.label}/finite", broken, f"{self.values} values are finite"))
        if self.must_repeat:
            good = f"{self.runs} pairs of runs agree bitwise"
            checks.append(counted(f"{self.label}/repeatable", self.differing_runs, good))
        else:  # a GPU may add in another order each time; what a second run gave was compared with PyTorch too
            differ = len(self.differing_runs)
            note = f"{differ} of {self.runs} pairs of runs differ in a bit" + (
                "; each run is within its limits by itself, or a check says so" if differ else ""
            )
            checks.append(Check(name=f"{self.label}/repeatable", measured=differ, verdict="pass", note=note))
        for group in dict.fromkeys(group for group, _ in self.worst):
            checks.append(self._error_check(group, has_reference))
            checks += self._top1_checks(group, has_reference)
        return checks

    def _error_check(self, group: str, has_reference: bool) -> Check:
        """The value that is closest to its limit, or furthest beyond."""
        rows = []
        for (its_group, name), worst in self.worst.items():
            if its_group == group:
                budget = self.scales[source(group), name].budget(has_reference)
                found = [largest.against(budget.limit) for largest in worst.largest]  # none: no values
                found += [worst.coarse.against(budget.ceilings)] if worst.coarse else []
                rows += [(share, name, place, limit) for share, place, limit in found]
        check = f"{self.label}/{group}/worst error"
        if not rows:
            return limited(check, 0, 0, "no values")
        _, name, place, limit = max(rows, key=lambda row: row[0])
        samples = count(self.worst[group, name].samples, "sample")
        note = f"output `{name}`, sample {place.sample}, index {place.index}; {samples}"
        if self.worst[group, name].has_top1:
            same = self.worst[group, name].samples - len(self.worst[group, name].margins)
            note += f", top-1 agrees on {same}"
        return limited(check, place.error, limit, note)

    def _top1_checks(self, group: str, has_reference: bool) -> list[Check]:
        """Another class than the reference's is an error unless the two are closer than the limit of either."""
        wrong, samples = [], 0
        for (its_group, name), worst in self.worst.items():
            if its_group == group and worst.has_top1:
                tie = self.scales[source(group), name].budget(has_reference).tie()
                beyond = sum(margin > tie for margin in worst.margins)
                its_samples = count(worst.samples, "sample")
                wrong += [f"output `{name}`: another class on {beyond} of {its_samples}"] * bool(beyond)
                samples += worst.samples
        good = f"{count(samples, 'sample')}, ties aside"
        return [counted(f"{self.label}/{group}/top-1", wrong, good)] if samples else []


def _measure(worst: Worst, scale: Scale, start: int, want: Expected, have: Tensor) -> None:
    got, exact = (in_samples(one, want.axis) for one in (have, representable(want.exact, want.own.dtype)))
    if not have.is_floating_point():  # exact; where float64 and float32 decide differently, either decision is right
        error = ((got != exact) & (got != in_samples(want.own, want.axis))).double()
        _keep(worst, error, (torch.ones_like(error),) * 2, start)
        return
    error = (got.double() - exact).abs().nan_to_num(nan=math.inf)
    # Fails a check of its own, and no layer is to blame.
    error[in_samples(_non_finite_as_in_torch(want, have), want.axis)] = 0.0
    _keep(worst, error, scale.units, start)
    if have.ndim == 2 and have.shape[1] > 1 and want.axis == 0:
        worst.has_top1 = True
        rows, picked, top = torch.arange(len(have)), have.argmax(1), want.exact.argmax(1)
        margin = want.exact[rows, top] - want.exact[rows, picked]
        size = torch.maximum(scale.size[rows, top], scale.size[rows, picked])
        worst.margins += relative(margin, size)[picked != top].tolist()


def _non_finite_as_in_torch(want: Expected, have: Tensor) -> Tensor:
    """Where the file has the NaN or the infinity that PyTorch has too, in its own precision and in float64."""
    if not have.is_floating_point():
        return torch.zeros_like(have, dtype=torch.bool)
    infinite = torch.isinf(have) & (have == want.own) & (have == want.exact)
    return infinite | (torch.isnan(have) & torch.isnan(want.own) & torch.isnan(want.exact))


def _whose(number: int, as_in_torch: int) -> str:
    """Says how many of the values that are not finite are PyTorch's as well."""
    if not as_in_torch:
        return ""
    return f"; PyTorch itself gives {'them' if as_in_torch == number else f'{as_in_torch} of them'}"


def _keep(worst: Worst, error: Tensor, units: tuple[Tensor, Tensor], start: int) -> None:
    size, coarse = units
    found = [Largest.of(error, size, start, axis) for axis in range(1, error.ndim)]
    same = len(worst.largest) == len(found)
    worst.largest = [one.merged(two) for one, two in zip(worst.largest, found, strict=True)] if same else found
    whole = Largest.of(error, coarse, start, None)
    worst.coarse = worst.coarse.merged(whole) if worst.coarse else whole


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
