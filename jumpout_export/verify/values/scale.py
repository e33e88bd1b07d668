"""How large each value of an output is: what an error in it is measured against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jumpout_export.tolerances import Budget
from jumpout_export.verify.values.reference import Expected

# Of the median index of an axis, for one whose values never move. Less is rounding of what the layers before hold, as
# in a channel that is always zero.
_SMALLEST = 1e-3
# Of the median size: what moves by less does not move, it is the rounding of float64 through many layers.
_STILL = 1e-9
# Samples that the medians are taken over; later ones would change them little.
_MOST_SAMPLES = 512
# Samples and values that a value's own history is kept of, and samples from which it says more than its neighbours.
_HISTORY, _MOST_VALUES, _ENOUGH = 32, 2**24, 5
# A value's own median may be this much smaller than its neighbours' by luck.
_LUCK = 30.0
# An axis tells sizes apart better than the first one if they differ by this factor more along it.
_TELLING = 4.0
# What rounding grows to in most values if it is amplified, and not if it decides between two: of the largest error.
_FEW = 1e-3
_AMPLIFIES = "the model amplifies rounding"
_TIES = (
    "PyTorch itself orders near ties differently in float32 and float64 (most values agree and few are others, as "
    "after topk, sort, argmax or a comparison)"
)


class Scale:
    """Sizes of one output's values, and torch's own errors in units of them.

    The size of a value is the largest of its own magnitude and what its place says: for every axis behind the samples,
    the median over samples and over the other axes, zeros and masked values left out, multiplied as factors (boxes of a
    thousand pixels beside scores below one, along whatever axis); where enough samples were seen, no less than the
    median of this very value over samples and not much more; times how much larger this sample is than the median one.
    Medians, because one sample, one channel or one masked class that is a million times larger must not loosen the
    limit of all others.

    Attributes:
        dtype: what the limit depends on: the output's type, or the model's where that is less precise.
        size: of every value of the batch last added, as samples x the rest (`in_samples`).
        coarse: like `size`, but not below the size of the median index of the main axis: the ceiling's unit. A channel
            of nothing but rounding errors, such as a dead one after BatchNorm, is 100% wrong and harmless.
        own_errors: largest error of torch per index of every axis behind the samples, in units of `size`.
        own_coarse: largest error of torch, in units of `coarse`.
        why: what makes that error large where it is: few values that are others altogether, or all of them.
        main: the axis behind the samples along which sizes differ most; the first, if they differ little.
        channels: sizes along the main axis, in the median sample.
        median: size of the median index of the main axis.
    """

    def __init__(self) -> None:
        self.dtype = torch.float32
        self.size = self.coarse = torch.empty(0)
        self.own_errors: list[Tensor] = []
        self.own_coarse = 0.0
        self.why = ""
        self.main, self.channels, self.median = 0, torch.empty(0), 0.0
        self._sizes: list[Tensor] = []  # per axis, in the median sample
        self._typical: list[list[Tensor]] = []  # per axis, (samples, length) for every batch
        self._range: list[tuple[Tensor, Tensor]] = []  # per axis, the smallest and largest value of every index
        self._whole: list[Tensor] = []  # (samples,) for every batch: the median of all values
        self._history: list[Tensor] = []  # magnitudes, samples x the rest; nan where they say nothing

    def prime(self, expected: Expected) -> None:
        """Takes in the magnitudes of a batch, before anything is compared with them."""
        if expected.own.numel() and expected.own.dtype.is_floating_point:
            exact = _exact(expected)
            self._keep(exact, _telling(exact.abs(), in_samples(expected.own, expected.axis).abs()))

    def add(self, expected: Expected, new: bool = True) -> None:
        """Takes in one batch; `new` says whether its samples were not there before."""
        self.dtype = expected.precision or expected.own.dtype
        if not expected.own.numel() or not self.dtype.is_floating_point:
            return
        shares = self.measure(expected, new)
        in_size = relative(self._own, self.size)
        errors = [_amax_but(in_size, axis) for axis in range(1, shares.ndim)]
        if len(self.own_errors) != len(errors):
            self.own_errors = errors
        self.own_errors = [_larger(one, two) for one, two in zip(errors, self.own_errors, strict=True)]
        largest = float(shares.max())
        if largest >= self.own_coarse:
            self.why = _TIES if float(shares.median()) < _FEW * largest else _AMPLIFIES
        self.own_coarse = max(self.own_coarse, largest)

    def measure(self, expected: Expected, new: bool = False) -> Tensor:
        """Sets the sizes of a batch, and returns torch's own errors in it in units of `coarse`."""
        exact = _exact(expected)
        magnitude, own = exact.abs(), in_samples(expected.own, expected.axis)
        telling = _telling(magnitude, own.abs())
        typical = _typical(telling)
        if new or not self._fits(typical):
            self._keep(exact, telling)
        self._own = (own.double() - exact).abs().nan_to_num(nan=0.0, posinf=0.0)
        self._measure(magnitude, typical)
        return relative(self._own, self.coarse)

    @property
    def is_primed(self) -> bool:
        """Whether there is anything to measure with."""
        return bool(self._whole)

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """What the limits and the ceiling of a `Budget` are measured in, of every value of the batch last added."""
        return self.size, self.coarse

    def budget(self, has_reference: bool) -> Budget:
        """Returns how far the output may be off; `has_reference` says whether the exact values are float64."""
        known = self._sizes if len(self._sizes) == len(self.own_errors) else [torch.empty(0)] * len(self.own_errors)
        pairs = zip(known, self.own_errors, strict=True)
        sizes = [its if len(its) == len(errors) else None for its, errors in pairs]  # not where the axis is open
        return Budget.of(self.own_errors, self.dtype, has_reference, sizes)

    def _fits(self, typical: list[Tensor]) -> bool:
        return len(self._typical) == len(typical) and all(
            kept and kept[0].shape[1] == new.shape[1] for kept, new in zip(self._typical, typical, strict=True)
        )

    def _keep(self, exact: Tensor, telling: Tensor) -> None:
        """Takes in an output's sizes; along an axis that is open, its indices mean something else every time."""
        typical, whole = _typical(telling), telling.reshape(len(telling), -1).nanmedian(1).values
        ranges = [(-_amax_but(-exact, axis), _amax_but(exact, axis)) for axis in range(1, exact.ndim)]
        if len(self._typical) != len(typical):
            self._typical, self._range, self._whole = [[] for _ in typical], ranges, []
        for axis, new in enumerate(typical):
            if self._typical[axis] and self._typical[axis][0].shape[1] != new.shape[1]:
                self._typical[axis], self._range[axis] = [], ranges[axis]
            (low, high), (its_low, its_high) = self._range[axis], ranges[axis]
            self._range[axis] = torch.minimum(low, its_low), torch.maximum(high, its_high)
            if sum(map(len, self._typical[axis])) < _MOST_SAMPLES:
                self._typical[axis].append(new)
        if sum(map(len, self._whole)) < _MOST_SAMPLES:
            self._whole.append(whole)
        if self._history and self._history[0].shape[1:] != exact.shape[1:]:
            self._history.clear()
        samples = _HISTORY - sum(map(len, self._history))
        if samples > 0 and _HISTORY * math.prod(exact.shape[1:]) <= _MOST_VALUES:
            self._history.append(telling[:samples].float())

    def _measure(self, magnitude: Tensor, typical: list[Tensor]) -> None:
        whole = _nanmedian(torch.cat(self._whole), 0)
        axes = [self._axis(axis) for axis in range(len(typical))]
        spreads = [_spread(sizes) for sizes in axes]
        self._sizes = axes
        widest = max(range(len(axes)), key=lambda axis: spreads[axis])
        self.main = main = widest if spreads[widest] > _TELLING * spreads[0] else 0
        self.channels = axes[main]
        self.median = float(_nanmedian(self.channels.where(self.channels > 0, torch.nan), 0))
        place = self.channels.reshape(-1, *[1] * (magnitude.ndim - 2 - main))
        for axis, sizes in enumerate(axes):
            if axis != main:
                factors = torch.where(sizes > 0, sizes / whole, 1.0) if whole > 0 else torch.ones_like(sizes)
                place = place * factors.reshape(-1, *[1] * (magnitude.ndim - 2 - axis))
        if sum(map(len, self._history)) >= _ENOUGH and self._history[0].shape[1:] == magnitude.shape[1:]:
            history = torch.cat(self._history)  # of sizes seven digits are more than enough
            # nan where it is always zero, or rounding of what would be
            own = history.where(history > _STILL * self.median, torch.nan).nanmedian(0).values
            low, high = own.nan_to_num(nan=0.0), (_LUCK * own).nan_to_num(nan=math.inf)
            place = place.maximum(low).minimum(high)
        # The upper median along the main axis says how much larger this sample is; nan where it is all zero.
        ratios = (typical[main] / self.channels).where(self.channels > 0, torch.nan)
        larger = -_nanmedian(-ratios, 1, missing=-1.0)
        larger = larger.clamp(min=1.0).reshape(-1, *[1] * (magnitude.ndim - 1))
        self.size = torch.maximum(place * larger, magnitude)
        self.coarse = torch.maximum(self.size, self.median * larger)

    def _axis(self, axis: int) -> Tensor:
        """The sizes along an axis; what never moves is no smaller than a thousandth of the median."""
        sizes = _nanmedian(torch.cat(self._typical[axis]), 0)
        median = _nanmedian(sizes.where(sizes > 0, torch.nan), 0)
        low, high = self._range[axis]
        return sizes.where(high - low > _STILL * median, sizes.clamp(min=float(_SMALLEST * median)))


# By (source, output name): other sizes along open axes may make outputs of another size, so each source has its own.
Scales = dict[tuple[str, str], Scale]


def source(group: str) -> str:
    """Returns `sizes` or `data`, the kind of samples a group of probes holds."""
    return "sizes" if group.startswith("sizes") else "data"


def in_samples(tensor: Tensor, axis: int | None = 0) -> Tensor:
    """Returns a tensor as samples x the rest, at least one axis; without an axis of samples it is one sample."""
    if axis is None or not tensor.ndim:
        tensor = tensor[None]
    elif axis:
        tensor = tensor.movedim(axis, 0)
    return tensor if tensor.ndim > 1 else tensor[:, None]


def representable(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the reference within the range of the output: a mask with the smallest float64 means the smallest."""
    if not dtype.is_floating_point:
        return exact
    finite = torch.finfo(dtype)
    return exact.clamp(finite.min, finite.max)


def relative(error: Tensor, size: Tensor) -> Tensor:
    """Returns errors in units of a size; no error is 0 and an error where the size is 0 is infinite."""
    return torch.where(error > 0, error / size, 0.0)


def _exact(expected: Expected) -> Tensor:
    """What is not finite fails a check of its own; here it must not make the limit infinite."""
    exact = in_samples(representable(expected.exact, expected.own.dtype), expected.axis)
    return exact.where(torch.isfinite(exact), 0.0)


def _telling(magnitude: Tensor, own: Tensor) -> Tensor:
    """The magnitudes that say how large an output is, nan for the others.

    Zeros are left out, and the largest value if it occurs twice: a mask such as -1e9. Clipped outputs lose what was
    clipped.
    """
    masked = own == own.max()
    kept = magnitude > 0
    if int(masked.sum()) > 1 and bool((kept & ~masked).any()):
        kept &= ~masked
    return magnitude.where(kept, torch.nan)


def _typical(telling: Tensor) -> list[Tensor]:
    """The median magnitude per sample and index of every axis behind them; nan where all is zero."""
    return [
        telling.movedim(axis, 1).reshape(len(telling), telling.shape[axis], -1).nanmedian(2).values
        for axis in range(1, telling.ndim)
    ]


def _amax_but(values: Tensor, axis: int) -> Tensor:
    """The largest value per index of an axis."""
    return values.amax([other for other in range(values.ndim) if other != axis])


def _larger(errors: Tensor, before: Tensor) -> Tensor:
    if len(before) != len(errors):  # the axis is open
        before = before.max().expand(len(errors))
    return torch.maximum(errors, before)


def _spread(sizes: Tensor) -> float:
    """By what factor the sizes along an axis differ."""
    there = sizes[sizes > 0]
    return float(there.max() / there.min()) if len(there) else 1.0


def _nanmedian(values: Tensor, dim: int, missing: float = 0.0) -> Tensor:
    return values.nanmedian(dim).values.nan_to_num(nan=missing)


def axis_of_samples(whole: Sequence[int], alone: Sequence[int], size: int) -> int | None:
    """Returns the axis that has an entry per sample: the first, or another if all others agree; None without any.

    Args:
        whole: shape of an output for a batch of `size` samples.
        alone: its shape for one sample.
        size: number of samples.
    """
    if len(whole) != len(alone) or not whole:
        return None
    if whole[0] == size and alone[0] == 1:
        return 0
    for axis in range(len(whole)):
        if alone[axis] == 1 and list(whole) == [*alone[:axis], size, *alone[axis + 1 :]]:
            return axis
    return None


def axis_of_length(shape: Sequence[int], size: int) -> int | None:
    """Like `axis_of_samples`, of a model that runs no sample alone: the first axis with `size` entries, or None."""
    return next((axis for axis, length in enumerate(shape) if length == size), None)
