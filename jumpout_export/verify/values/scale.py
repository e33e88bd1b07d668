"""How large each channel of an output is: what an error in it is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from jumpout_export.tolerances import Budget
from jumpout_export.verify.values.reference import Expected

# Of the median channel. Less is rounding of what the layers before hold, as in a channel that is always zero.
_SMALLEST = 1e-3
# Images that the medians are taken over; later ones would change them little.
_MOST_IMAGES = 512
# What rounding grows to in most values if it is amplified, and not if it decides between two: of the largest error.
_FEW = 1e-3
_AMPLIFIES = "the model amplifies rounding"
_TIES = (
    "PyTorch itself orders near ties differently in float32 and float64 (most values agree and few are others, as "
    "after topk, sort, argmax or a comparison)"
)


class Scale:
    """Sizes of one output's channels, and torch's own errors in units of them.

    The size of a value is the largest of its own magnitude and its channel's: the median over images, zeros and
    masked values left out, times how much larger than the median image this image is. Medians, because one image,
    one channel or one masked class that is a million times larger must not loosen the limit of all others.

    Attributes:
        dtype: what the limit depends on: the output's type, or the model's where that is less precise.
        size: of every value of the batch last added, as images x channels x the rest.
        coarse: like `size`, but not below the size of the median channel: the ceiling's unit. A channel of nothing
            but rounding errors, such as a dead one after BatchNorm, is 100% wrong and harmless.
        own_errors: largest error of torch per channel, in units of `size`.
        own_coarse: largest error of torch, in units of `coarse`.
        why: what makes that error large where it is: few values that are others altogether, or all of them.
        channels: size of every channel in the median image.
        median: size of the median channel.
    """

    def __init__(self) -> None:
        self.dtype = torch.float32
        self.size = self.coarse = torch.empty(0)
        self.own_errors = torch.empty(0)
        self.own_coarse = 0.0
        self.why = ""
        self.channels, self.median = torch.empty(0), 0.0
        self._typical: list[Tensor] = []

    def prime(self, expected: Expected) -> None:
        """Takes in the magnitudes of a batch, before anything is compared with them."""
        if not expected.own.numel() or not expected.own.dtype.is_floating_point:
            return
        typical = _typical(_magnitude(expected), in_channels(expected.own).abs())
        if self._typical and self._typical[0].shape[1] != typical.shape[1]:
            self._typical.clear()  # dimension 1 is open: its indices mean something else now
        if sum(len(rows) for rows in self._typical) < _MOST_IMAGES:
            self._typical.append(typical)

    def add(self, expected: Expected, new: bool = True) -> None:
        """Takes in one batch; `new` says whether its images were not there before."""
        self.dtype = expected.precision or expected.own.dtype
        if not expected.own.numel() or not self.dtype.is_floating_point:
            return
        magnitude = _magnitude(expected)
        typical = _typical(magnitude, in_channels(expected.own).abs())
        if new or not self._typical or self._typical[0].shape[1] != typical.shape[1]:
            self.prime(expected)
        exact = in_channels(representable(expected.exact, expected.own.dtype))
        own = (in_channels(expected.own).double() - exact).abs().nan_to_num(nan=0.0, posinf=0.0)
        self._measure(magnitude, typical)
        errors = relative(own, self.size).amax((0, 2))
        if self.own_errors.numel() not in (0, len(errors)):
            self.own_errors = self.own_errors.max().expand(len(errors))
        self.own_errors = torch.maximum(errors, self.own_errors) if self.own_errors.numel() else errors
        shares = relative(own, self.coarse)
        largest = float(shares.max())
        if largest >= self.own_coarse:
            self.why = _TIES if float(shares.median()) < _FEW * largest else _AMPLIFIES
        self.own_coarse = max(self.own_coarse, largest)

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """What the two limits of a `Budget` are measured in, of every value of the batch last added."""
        return self.size, self.coarse

    def budget(self, has_reference: bool) -> Budget:
        """Returns how far the output may be off; `has_reference` says whether the exact values are float64."""
        return Budget.of(self.own_errors, self.dtype, has_reference)

    def _measure(self, magnitude: Tensor, typical: Tensor) -> None:
        channels = _nanmedian(torch.cat(self._typical), 0)
        median = _nanmedian(channels.where(channels > 0, torch.nan), 0)
        channels = channels.clamp(min=float(_SMALLEST * median))
        self.channels, self.median = channels, float(median)
        # The upper median of the channels says how much larger this image is; nan where it is all zero.
        larger = -_nanmedian(-(typical / channels).where(channels > 0, torch.nan), 1, missing=-1.0)
        larger = larger.clamp(min=1.0)[:, None, None]
        self.size = torch.maximum(channels[None, :, None] * larger, magnitude)
        self.coarse = torch.maximum(self.size, median * larger)


# By (source, output name): random images may be of another size than real ones, so each source has its own.
Scales = dict[tuple[str, str], Scale]


def source(group: str) -> str:
    """Returns `random`, `sizes` or `data`, the kind of images a group of samples holds."""
    return next((kind for kind in ("random", "sizes") if group.startswith(kind)), "data")


def in_channels(tensor: Tensor) -> Tensor:
    """Returns a tensor as images x channels x the rest; without a dimension 1 there is one channel."""
    return tensor.reshape(*tensor.shape[:2], -1) if tensor.ndim >= 2 else tensor.reshape(-1, 1, 1)


def representable(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the reference within the range of the output: a mask with the smallest float64 means the smallest."""
    if not dtype.is_floating_point:
        return exact
    finite = torch.finfo(dtype)
    return exact.clamp(finite.min, finite.max)


def relative(error: Tensor, size: Tensor) -> Tensor:
    """Returns errors in units of a size; no error is 0 and an error where the size is 0 is infinite."""
    return torch.where(error > 0, error / size, 0.0)


def _magnitude(expected: Expected) -> Tensor:
    """What is not finite fails a check of its own; here it must not make the limit infinite."""
    exact = in_channels(representable(expected.exact, expected.own.dtype))
    return exact.abs().nan_to_num(nan=0.0, posinf=0.0)


def _typical(magnitude: Tensor, own: Tensor) -> Tensor:
    """The median magnitude per image and channel; nan where all is zero.

    The largest value is left out if it occurs twice: a mask such as -1e9. Clipped outputs lose their clipped values.
    """
    masked = own == own.max()
    kept = magnitude > 0
    if int(masked.sum()) > 1 and bool((kept & ~masked).any()):
        kept &= ~masked
    return magnitude.where(kept, torch.nan).nanmedian(2).values


def _nanmedian(values: Tensor, dim: int, missing: float = 0.0) -> Tensor:
    return values.nanmedian(dim).values.nan_to_num(nan=missing)
