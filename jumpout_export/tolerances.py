"""How far one result may be from another, and why that far: every tolerance of the package, and where it is used.

The error budget of a verified file comes first, the other thresholds are at the end.

The reference is the folded model in float64. torch's own float32 result is off from it too, by an error that the
model itself makes: it grows with depth and with cancellation, from 1e-7 to 1e-4 and more, so no fixed tolerance is
right for two models. Every value of an output is judged in units of its size (`verify/values/scale.py`), and by
torch's own errors at its place: per axis behind the samples the largest at its index, or what indices of about its size
show in the middle, of which the smallest counts:

    |ort - reference| <= min((FACTOR * torch's own largest error + FLOOR * eps) * size, CAP * coarse)

with eps of the output's dtype, and coarse the size, or that of the median channel where that is larger. FLOOR covers
what torch's own error does not show, such as a layer that torch happens to round exactly. CAP is the ceiling: a model
that amplifies rounding cannot buy itself a limit under which a wrong file passes. Where torch's own error is above
CAP / FACTOR, a right file may fail too: it cannot be told from a wrong one.

A float16 file has the float64 run of the same rounded weights as its reference, so what the rounding of the weights
costs is no part of the limit. A float64 output of a float32 model is judged as float32: it was computed in that.

Measured on 34 networks (small convnets, MLPs with 1 to 20 layers with and without BatchNorm, a ResNet, LSTM,
Transformer, softmax and other last layers, masked outputs, dead channels, rows 1e12 apart, one that cancels
1000 - 1000, 1000 classes, float16 and float64), 3 seeds, 1, 8 and 64 samples in batches of 1, 2, 7 and as they came,
both optimization levels: with a FACTOR of 4 the largest error is 0.74 of its limit, mostly below 0.4. On ResNets with
1000 classes it came to 0.95: one of many thousands of rounding errors is the largest, and torch's own are known from a
few samples. Hence the 8, with which 0.62 is the largest of 12 seeds and two networks, and 0.87 that of 14 kinds of
network whose weights are 3 or 10 times the usual. With dtype=float16, on 6 networks of up to 35 layers, 3 seeds and a
FACTOR of 4: 0.19, PyTorch's own error up to 0.4% of the size. In bfloat16, on 14 kinds of network and 2 seeds,
PyTorch's own error is 0.3% to 6.3% of the size, mostly below 1.5% and about 8 times that of float16, as its eps is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 8.0
FLOOR = 16.0
# Half precision rounds each result to half an eps: 16 eps would be 1.6%.
_FLOOR_HALF = 2.0
CAP = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.25}
# In eps, where nothing more precise than the output exists: the model fails in float64, or is in float64 itself.
# Up to 1232 eps were measured (20 layers with BatchNorm), mostly below 50.
WITHOUT_REFERENCE = 2000.0

# Of an output's size: above it PyTorch's own error makes any comparison idle. In float32 it is a thousandth of it.
ILL_CONDITIONED = 0.01
# Of the largest value: what another order of additions changes at most, by far, and another path of the model, other
# samples in the batch or a missing term of a sum do not stay below (`model/axes.py`, `export/size_guards.py`,
# `verify/noise/sums.py`).
ROUNDING, ROUNDING_HALF = 1e-4, 1e-2
# A sample alone against the same sample in its batch, of the largest value of the channel and of the whole output: far
# above what rounding does, and far below what other samples do to a mean over the batch; a channel that is a million
# times larger hides no other (`verify/values/independence.py`).
ALONE_DOUBLE, ALONE_SINGLE = (1e-6, 1e-10), (ROUNDING, 1e-5)
# A fold in float64 is this exact, in units of the largest output; a wrong one is off by far more
# (`fold/network/half.py`).
FOLD_EXACT = 1e-9
# Share of the values: optimized and plain kernels may round one that is cut to an integer to either side
# (`fold/file/proof.py`).
OTHER_INTEGERS = 0.01
# In eps of the precision of a file, as everything below. Between x and y of a dropout (`fold/file/observe.py`).
DROPOUT_ROUNDINGS = 64
# What the model makes of weights, against a constant of the file (`verify/constants`).
ROUNDINGS = 16.0
# Up to here weights multiplied by one number still count as parallel (`verify/constants/batchnorms.py`).
PARALLEL_ROUNDINGS = 64.0
# Of a weight's length: so near to it, a constant that nothing else explains is a wrong copy of it
# (`verify/constants/weights.py`).
NEAR = 0.1
# Share of all values that a forward reads that may be known by the outputs alone: on right files of the networks of
# `tests/support/architectures.py`, of recurrent layers and of attention nothing is (`verify/constants/weights.py`).
UNSHOWN = 1e-3
# Two floats of the file and of the model are the same weight (`verify/divergence/search.py`).
WEIGHT_ROUNDINGS = 4.0
# Of a value, on inputs of other magnitudes (`verify/magnitudes.py`): a file that is off by more has hardly a digit of
# it, PyTorch's own error below the second is of no account, and it counts where such values are a tenth of all.
DIGITS_LOST, DIGITS_KEPT, DIGITS_LOST_SHARE = 1e-2, 1e-4, 0.1


@dataclass(frozen=True)
class Budget:
    """How far one output may be off: by the smaller of two errors, each in a unit of its own (`Scale.units`)."""

    # in units of the size, per axis behind the samples one for each of its indices; the smallest at its place holds
    limits: tuple[Tensor, ...]
    ceiling: float  # in units of the coarse size

    @classmethod
    def of(
        cls,
        own_errors: Sequence[Tensor],
        dtype: torch.dtype,
        has_reference: bool,
        sizes: Sequence[Tensor | None] | None = None,
    ) -> Budget:
        """Returns the documented limits; the arguments are those of `relative_limits`, for every axis."""
        pairs = zip(own_errors, sizes or [None] * len(own_errors), strict=True)
        limits = tuple(relative_limits(errors, dtype, has_reference, its) for errors, its in pairs)
        return cls(limits, ceiling(dtype))

    def limit(self, index: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """Returns the limits in units of the size at some places: an index along every axis behind the samples.

        Of an axis that has another length than it had when the limits were measured, the largest one holds.
        """
        if self.limits and len(self.limits) != len(index):  # an output has other axes for some batches
            return torch.full(index[0].shape, min(float(limits.max()) for limits in self.limits), dtype=torch.float64)
        smallest = torch.full(index[0].shape, math.inf if self.limits else 0.0, dtype=torch.float64)
        for limits, at, length in zip(self.limits, index, shape, strict=bool(self.limits)):
            smallest = torch.minimum(smallest, limits[at] if len(limits) == length else limits.max())
        return smallest

    def ceilings(self, index: Sequence[Tensor], _shape: Sequence[int]) -> Tensor:
        """Returns the ceiling at some places, in units of the coarse size."""
        return torch.full(index[0].shape, self.ceiling, dtype=torch.float64)

    def allowed(self, units: Sequence[Tensor]) -> Tensor:
        """Returns the largest allowed error of every value; `units` are samples x the rest."""
        size, coarse = units
        places = [torch.arange(length) for length in size.shape[1:]]
        grid = torch.meshgrid(*places, indexing="ij")
        return torch.minimum(self.limit(grid, size.shape[1:]) * size, self.ceiling * coarse)

    def tie(self) -> float:
        """Returns the largest difference in units of the size that may be none at all."""
        return min([self.ceiling, *(float(limits.max()) for limits in self.limits if len(limits))])

    def line(self, channels: Tensor, median: float, main: int = 0, axis: int = 1) -> str:
        """Returns it as `cpp/replay/tolerance.cpp` reads it in a file's metadata: along one axis alone.

        Args:
            channels: sizes along that axis in the median sample.
            median: size of its median index.
            main: the axis, counted behind the samples.
            axis: the same of the output; named in the line if it is not dimension 1.
        """
        where = "" if axis == 1 else f" axis={axis}"
        sizes, limits = _numbers(channels), _numbers(self.limits[main])
        return f"cap={self.ceiling:g} median={median:.4g}{where} sizes={sizes} limits={limits}"


def relative_limits(own_errors: Tensor, dtype: torch.dtype, has_reference: bool, sizes: Tensor | None = None) -> Tensor:
    """Returns the largest allowed error per channel, in units of its size, before the ceiling.

    Args:
        own_errors: max |torch - reference| / size, of shape (channels,).
        dtype: of the output; exact for integers and booleans.
        has_reference: whether the reference is float64.
        sizes: of the channels, (channels,), where they are known.
    """
    if not dtype.is_floating_point:
        return torch.zeros_like(own_errors)
    eps = torch.finfo(dtype).eps
    if not has_reference or dtype == torch.float64:
        return torch.full_like(own_errors, WITHOUT_REFERENCE * eps)
    # With few samples torch may round one channel exactly by luck: none is held to less than half of them show.
    typical = torch.maximum(own_errors.median(), _of_like_size(own_errors, sizes))
    return FACTOR * torch.maximum(own_errors, typical) + _floor(dtype) * eps


def _of_like_size(own_errors: Tensor, sizes: Tensor | None) -> Tensor:
    """Returns the median error of the channels of about the same size, in units of each channel's own.

    What comes from the layers before is about as large in all of them: it does not shrink with a channel that is small
    on the few samples that were seen.
    """
    found = torch.zeros_like(own_errors)
    if sizes is None:
        return found
    errors = own_errors * sizes
    decade = torch.where(sizes > 0, sizes, torch.nan).log10().floor()
    for place in decade[~decade.isnan()].unique():
        near = (decade - place).abs() <= 1
        here = decade == place
        found[here] = errors[near].median() / sizes[here]
    return found


def ceiling(dtype: torch.dtype) -> float:
    """Returns the ceiling of the limit, in units of the size; 0 for integers and booleans."""
    return CAP.get(dtype, CAP[torch.float16]) if dtype.is_floating_point else 0.0


def describe_budget(dtype: torch.dtype, has_reference: bool = True) -> str:
    """Returns the limit of a floating-point output as one line, for reports and provenance."""
    cap = f"at most {ceiling(dtype):g} in {str(dtype).removeprefix('torch.')}, of the channel's size"
    if not has_reference or dtype == torch.float64:
        why = "" if has_reference else " (the model does not run in float64)"
        return f"{WITHOUT_REFERENCE:g} eps, {cap}{why}"
    return f"{FACTOR:g} x torch's own error against float64 + {_floor(dtype):g} eps, {cap}"


def _floor(dtype: torch.dtype) -> float:
    return FLOOR if torch.finfo(dtype).eps < 1e-4 else _FLOOR_HALF


def rounding_share(dtype: torch.dtype) -> float:
    """Returns what share of the largest value is put down to rounding where no reference says more; 0 for integers."""
    if not dtype.is_floating_point:
        return 0.0
    return ROUNDING if torch.finfo(dtype).eps < 1e-4 else ROUNDING_HALF


def _numbers(values: Tensor) -> str:
    return ",".join(f"{value:.4g}" for value in values.tolist())
