"""How far a replay may be off from the golden outputs: the rule of `export/budget.py` as text, for any language.

One line per output, in the file's metadata under `jumpout_export.tolerance.NAME`:

    cap=0.001 median=3.1 sizes=2.9,3.1,4.0 limits=2.3e-06,2.1e-06,1.9e-06

with an entry of `sizes` and `limits` per channel (index of dimension 1; one in all if there is none). A value y of
channel c, in an image whose values are f times the usual size (f is at least 1), may be off by

    min(limits[c] * max(sizes[c] * f, |y|), cap * max(sizes[c] * f, |y|, median * f))

f is the upper median over channels of the image's median magnitude over `sizes`: see `export/scale.py`. Integers and
booleans have `cap=0`: they must be equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from jumpout_export.export.budget import ceiling, relative_limits
from jumpout_export.export.reference import Expected
from jumpout_export.export.scale import Scale

PREFIX = "tolerance."


def tolerance_line(expected: Sequence[Expected], has_reference: bool) -> str:
    """Returns the tolerance of one output, measured on its golden values.

    Args:
        expected: what PyTorch says, first on the golden inputs, then on others near them: a few images alone show too
            little of how far PyTorch itself is off.
        has_reference: whether the exact values are float64.
    """
    golden, *others = expected
    dtype = golden.own.dtype
    if not dtype.is_floating_point or not golden.own.numel():
        return "cap=0 median=0 sizes=0 limits=0"
    scale = Scale()
    scale.add(golden)
    for other in others:
        scale.add(other, new=False)
    limits = relative_limits(scale.own_errors, scale.dtype, has_reference)
    sizes, median = _numbers(scale.channels), f"{scale.median:.4g}"
    return f"cap={ceiling(scale.dtype):g} median={median} sizes={sizes} limits={_numbers(limits)}"


def _numbers(values: Tensor) -> str:
    return ",".join(f"{value:.4g}" for value in values.tolist())
