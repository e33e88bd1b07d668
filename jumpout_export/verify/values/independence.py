"""Whether a sample's result depends on the other samples in its batch, as with BatchNorm on batch statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from jumpout_export.tolerances import ALONE_DOUBLE, ALONE_SINGLE
from jumpout_export.verify.values.scale import in_samples


def depends_on_others(group: str, name: str, together: Tensor, alone: Tensor, axis: int | None, *, double: bool) -> str:
    """Returns how samples have other values in a batch than alone; empty if not.

    An output without an axis of samples must be the same whatever the samples are: a mean over the batch is none of a
    sample.

    Args:
        group: of the batch.
        name: of the output.
        together: the output for the batch.
        alone: the outputs for its samples alone, put together.
        axis: that has an entry per sample; None without any.
        double: whether both are of a model in float64; otherwise the comparison is coarser, and of floats only.
    """
    what = f"{group}: output `{name}`"
    if together.shape != alone.shape:
        return f"{what} has shape {list(alone.shape)} alone and {list(together.shape)} in its batch"
    if not together.numel():
        return ""
    mine, its = in_samples(together, axis), in_samples(alone, axis)
    if not together.is_floating_point():
        wrong = (mine != its).reshape(len(mine), -1).any(1) if double else torch.zeros(1, dtype=torch.bool)
        return f"{what} {_of(wrong, axis)} is another one alone than in its batch" if wrong.any() else ""
    finite = torch.isfinite(mine) & torch.isfinite(its)  # what is not finite fails a check of its own
    errors = torch.where(finite, mine - its, torch.zeros_like(its)).abs().double()
    of_channel, of_output = ALONE_DOUBLE if double else ALONE_SINGLE
    sizes = mine.double().abs().nan_to_num(nan=0.0, posinf=0.0)
    others = [dim for dim in range(mine.ndim) if dim != 1]
    limits = of_channel * sizes.amax(others, keepdim=True) + of_output * sizes.max()
    beyond = errors - limits
    if float(beyond.max()) <= 0:
        return ""
    worst = int(beyond.argmax())
    error, limit = float(errors.flatten()[worst]), float(limits.expand_as(errors).flatten()[worst])
    wrong = (beyond > 0).reshape(len(mine), -1).any(1)
    return f"{what} {_of(wrong, axis)} differs by {error:.2g} (limit {limit:.2g}) alone and in its batch"


def _of(wrong: Tensor, axis: int | None) -> str:
    """Which samples it is about."""
    if axis is None:
        return "has no batch axis and"
    return f"of sample {int(wrong.int().argmax())} of {len(wrong)}"
