"""The static check of a file's scales: whether any rounding can be meant by them."""

from __future__ import annotations

import numpy as np

from jumpout_export.quantized.read import Grid, QuantizedFile
from jumpout_export.report import Check, counted
from jumpout_export.text import count

_NAME = "quantization scales"


def form_check(file: QuantizedFile) -> Check:
    """Returns whether the file is quantized in a form that can be judged; another one is no verdict."""
    if file.problems:
        return Check(
            name="quantization form", measured=len(file.problems), limit=0, verdict="not_run",
            note="; ".join(dict.fromkeys(file.problems)),
        )  # fmt: skip
    rounded = f"{count(len(file.activations), 'activation')} and {count(len(file.weights), 'constant')} are rounded"
    return counted("quantization form", [], rounded)


def scales_check(file: QuantizedFile) -> Check:
    """Returns whether every scale is a positive number, every zero point an integer of its type, and pairs agree."""
    wrong = [f"{name}: {text}" for name, grid in file.grids.items() if (text := _problem(grid))]
    wrong += [
        f"{name}: QuantizeLinear has another scale or zero point than the DequantizeLinear behind it"
        for name, one, two in file.pairs
        if not one.same(two)
    ]
    total = sum(grid.scale.size for grid in file.grids.values())
    return counted(_NAME, wrong, f"{count(total, 'scale')} of {count(len(file.grids), 'node')} are positive numbers")


def _problem(grid: Grid) -> str:
    scale = grid.scale.reshape(-1)
    for wrong, what in (
        (np.isnan(scale), "NaN"),
        (np.isinf(scale), "infinite"),
        (scale == 0, "zero"),
        (scale < 0, "negative"),
    ):
        if wrong.any():
            where = f", the first at index {int(np.flatnonzero(wrong)[0])}" if scale.size > 1 else ""
            return f"{int(wrong.sum())} of {count(scale.size, 'scale')} {what}{where}"
    if grid.kind == "INT32" and grid.zero_point.any():
        return "a zero point of int32 must be 0"
    beyond = (grid.zero_point < grid.low) | (grid.zero_point > grid.high)
    return f"{int(beyond.sum())} zero points beyond {grid.low} to {grid.high}" if beyond.any() else ""
