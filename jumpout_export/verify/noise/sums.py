"""Whether a file's noise has the model's distribution: mean and spread of every output value over independent runs.

If both sides draw from one distribution, the differences d of paired runs are symmetric about 0, whatever the
distribution is. Then P(sum d / sqrt(sum d^2) >= t) <= exp(-t^2 / 2) for any number of runs (Hoeffding 1963 for random
signs, Efron 1969), so the limit holds without an approximation, for rare and heavy noise too.
"""

from __future__ import annotations

import contextlib
import copy
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from jumpout_export.model.batches import Batch
from jumpout_export.model.probes import rows
from jumpout_export.model.randomness import rng_restored, same_bits
from jumpout_export.model.signature import Output, fresh, outputs, tensors
from jumpout_export.report import Check, counted, limited
from jumpout_export.runtime.session import Session
from jumpout_export.tolerances import rounding_share

# Runs before the counted ones; they say where a value's middle is.
_PILOTS = 16
# Of all values together, that a right file fails.
_FALSE_ALARM = 1e-6


def limit_of(values: int) -> float:
    """Returns what a right file's largest statistic exceeds with a probability of at most 1e-6.

    Each of the output values has two statistics, of its mean and its spread, with two signs.
    """
    return math.sqrt(2 * math.log(4 * max(values, 1) / _FALSE_ALARM))


class NoiseComparison:
    """One session against the model, on a few samples, with the noise of both on.

    Attributes:
        size: number of samples.
    """

    def __init__(
        self, session: Session, original: nn.Module, first: Batch, names: list[str], seed: int, samples: int = 2
    ) -> None:
        """Takes the model in eval mode on the CPU and as many samples of `first` as the session fixes, or `samples`."""
        self._session, self._names, self._seed = session, names, seed
        self._seeds = torch.Generator().manual_seed(seed)
        self._model = copy.deepcopy(original)
        open_batch = all(not isinstance(shape[0], int) for shape in session.shapes if shape)
        self._batch = rows(first, range(samples)) if open_batch else first
        self.size = self._batch.size

    def is_random(self) -> bool:
        """Returns whether one of a few runs differs from the first."""
        first = self._file()
        return any(not same_bits(first, self._file()) for _ in range(8))

    def checks(self, runs: int) -> list[Check]:
        """Returns the verdicts on names, shapes, types, finite values, randomness and distribution of `runs` pairs."""
        with rng_restored(), _seed_drawn_anew(), torch.no_grad():
            torch.manual_seed(self._seed)
            expected = self._torch()
            wrong = self._wrong(expected)
            if wrong:
                return [counted("outputs", wrong)]
            good = f"inputs {', '.join(self._names)}; outputs {', '.join(output.name for output in expected)}"
            random = Check(name="random", verdict="pass", note="random on purpose: runs differ")
            if not self.is_random():
                random = Check(name="random", verdict="fail", note="runs do not differ: the noise is gone")
            return [counted("outputs", [], good), random, *self._distribution(expected, runs)]

    def _distribution(self, expected: list[Output], runs: int) -> list[Check]:
        pilots = [[output.tensor for output in self._torch()] for _ in range(_PILOTS)]
        pilots += [self._independent() for _ in range(_PILOTS)]
        sums = [_started(output, [pilot[index] for pilot in pilots]) for index, output in enumerate(expected)]
        broken: dict[str, int] = {}
        for _ in range(runs):
            for total, ours, theirs in zip(sums, self._independent(), self._torch(), strict=True):
                count = int((~(torch.isfinite(ours) & torch.isfinite(theirs.tensor))).sum())
                if count:
                    broken[total.name] = broken.get(total.name, 0) + count
                total.add(ours, theirs.tensor)
        values = sum(total.middle.numel() for total in sums)
        finite = [f"output `{name}` has {count} NaN or infinite values" for name, count in broken.items()]
        checks = [counted("finite", finite, f"{values * runs} values are finite")]
        if finite:
            return checks
        share, place = max(total.worst() for total in sums)
        note = f"{place}; {runs} runs of either side, {values} values"
        return [*checks, limited("distribution", share, limit_of(values), note)]

    def _wrong(self, expected: list[Output]) -> list[str]:
        if self._session.inputs != self._names:
            return [f"the file's inputs are {', '.join(self._session.inputs)}, the model's {', '.join(self._names)}"]
        wanted = [output.name for output in expected]
        if self._session.outputs != wanted:
            return [f"the file's outputs are {', '.join(self._session.outputs)}, the model's {', '.join(wanted)}"]
        return [
            f"output `{want.name}` is {have.dtype}{list(have.shape)}, in PyTorch {want.tensor.dtype}"
            f"{list(want.tensor.shape)}"
            for want, have in zip(expected, self._file(), strict=True)
            if have.dtype != want.tensor.dtype or have.shape != want.tensor.shape
        ]

    def _torch(self) -> list[Output]:
        return outputs(fresh(self._batch)(self._model), self._names)

    def _independent(self) -> list[Tensor]:
        """A run whose noise has nothing to do with that of other runs."""
        import onnxruntime

        # On the CPU a Dropout starts each run from the next seed, and its first value then stays for thousands of runs.
        onnxruntime.set_seed(int(torch.randint(1 << 31, (), generator=self._seeds)))
        return self._file()

    def _file(self) -> list[Tensor]:
        return self._session.run(tensors(self._batch))


@contextlib.contextmanager
def _seed_drawn_anew() -> Iterator[None]:
    """ONNX Runtime's seed is one of the process and cannot be read: it is left as it starts, drawn by chance."""
    import onnxruntime

    try:
        yield
    finally:
        onnxruntime.set_seed(secrets.randbelow(1 << 31))


@dataclass
class _Sums:
    """Of one output, per value: the sums over pairs of runs that the two statistics need."""

    name: str
    middle: Tensor
    rounding: float
    reach: Tensor
    pairs: int = 0
    sums: list[Tensor] = field(default_factory=list)

    def add(self, one: Tensor, other: Tensor) -> None:
        a, b = one.double() - self.middle, other.double() - self.middle
        mean, spread = a - b, a.square() - b.square()
        new = [mean, mean.square(), spread, spread.square()]
        self.sums = new if not self.sums else [old + now for old, now in zip(self.sums, new, strict=True)]
        self.pairs += 1

    def worst(self) -> tuple[float, str]:
        """The largest statistic and where it is."""
        spread_rounding = self.rounding * (2 * self.reach + self.rounding)
        found = []
        for what, total, squares, rounding in (
            ("mean", self.sums[0], self.sums[1], torch.full_like(self.middle, self.rounding)),
            ("spread", self.sums[2], self.sums[3], spread_rounding),
        ):
            beyond = (total.abs() - self.pairs * rounding).clamp(min=0)
            share = torch.where(beyond > 0, beyond / squares.sqrt().clamp(min=1e-300), 0.0)
            if share.numel():
                index = int(share.argmax())
                place = tuple(int(axis) for axis in torch.unravel_index(torch.tensor(index), share.shape))
                found.append((float(share.max()), f"{what} of output `{self.name}`, index {place}"))
        return max(found, default=(0.0, f"output `{self.name}` is empty"))


def _started(output: Output, pilots: list[Tensor]) -> _Sums:
    values = torch.stack([pilot.double() for pilot in pilots])
    middle = values.mean(0)
    size = float(values.square().mean().sqrt()) if values.numel() else 0.0
    return _Sums(output.name, middle, rounding_share(output.tensor.dtype) * size, (values - middle).abs().amax(0))
