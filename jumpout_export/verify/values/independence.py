"""Whether an image's result depends on the other images in its batch, as with BatchNorm on batch statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jumpout_export.model.batches import Batch
from jumpout_export.model.samples import Sample, rows
from jumpout_export.model.signature import Output
from jumpout_export.tolerances import ALONE_DOUBLE, ALONE_SINGLE


def depends_on_others(
    sample: Sample, together: list[Output], run: Callable[[Batch], list[Output]], *, double: bool
) -> dict[str, str]:
    """Returns, per output, how an image has another value alone than in its batch; empty if not.

    An output without a batch axis must be the same whatever the images are: a mean over the batch is none of an image.

    Args:
        sample: a batch of several images; its first, middle and last one are run alone.
        together: the outputs for it.
        run: returns the outputs for a batch.
        double: whether `run` computes in float64; otherwise the comparison is coarser, and of floats only.
    """
    size = sample.batch.size
    found: dict[str, str] = {}
    for row in sorted({0, size // 2, size - 1}):
        for whole, alone in zip(together, run(rows(sample.batch, range(row, row + 1), sample.batched)), strict=True):
            axis = _batch_axis(whole.tensor, alone.tensor, size)
            mine, its, what = whole.tensor, alone.tensor, "has no batch axis and"
            if axis is not None:
                mine, its, what = mine.select(axis, row), its.select(axis, 0), f"of image {row}"
            problem = _difference(mine, its, _sizes(whole.tensor, axis), double)
            text = f"{sample.group}: output `{whole.name}` {what} {problem}" if problem else ""
            found[whole.name] = found.get(whole.name) or text
    return found


def _batch_axis(whole: Tensor, alone: Tensor, size: int) -> int | None:
    """The axis that has an entry per image: the first, or another if all others agree."""
    if whole.ndim != alone.ndim or not whole.ndim:
        return None
    if whole.shape[0] == size and alone.shape[0] == 1:
        return 0
    for axis in range(whole.ndim):
        expected = [*alone.shape[:axis], size, *alone.shape[axis + 1 :]]
        if alone.shape[axis] == 1 and list(whole.shape) == expected:
            return axis
    return None


def _sizes(whole: Tensor, axis: int | None) -> Tensor:
    """The largest magnitude of every channel (dimension 1), or of the whole output where it has none."""
    magnitude = whole.double().abs().nan_to_num(nan=0.0, posinf=0.0)
    if axis != 0 or whole.ndim < 2 or not whole.numel():
        return magnitude.max() if whole.numel() else magnitude
    others = [dim for dim in range(whole.ndim) if dim != 1]
    return magnitude.amax(others).reshape(-1, *[1] * (whole.ndim - 2))


def _difference(together: Tensor, alone: Tensor, sizes: Tensor, double: bool) -> str:
    if together.shape != alone.shape:
        return f"has shape {list(alone.shape)} alone and {list(together.shape)} in its batch"
    if not together.is_floating_point():
        same = torch.equal(together, alone) or not double
        return "" if same else "is another one alone than in its batch"
    if not together.numel():
        return ""
    finite = torch.isfinite(together) & torch.isfinite(alone)  # what is not finite fails a check of its own
    errors = torch.where(finite, together - alone, torch.zeros_like(alone)).abs().double()
    of_channel, of_output = ALONE_DOUBLE if double else ALONE_SINGLE
    limits = (of_channel * sizes + of_output * sizes.max()).expand_as(errors)
    worst = int((errors - limits).argmax())
    error, limit = float(errors.flatten()[worst]), float(limits.flatten()[worst])
    return f"differs by {error:.2g} (limit {limit:.2g}) alone and in its batch" if error > limit else ""
