"""Proves in ONNX Runtime that a folded file is the noisy one with its rates at zero, and draws nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from jumpout_export.errors import NotVerifiableError
from jumpout_export.onnxfile.sizes import MOST_INPUT_ELEMENTS
from jumpout_export.report import Check, counted
from jumpout_export.runtime.providers import fallback
from jumpout_export.runtime.session import LEVELS, Feeds, open_session
from jumpout_export.text import first_line
from jumpout_export.tolerances import OTHER_INTEGERS, ceiling

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

BATCHES = (1, 2, 3)
# Sizes to try for open axes other than the batch, the batch size itself first.
_SIZES = (None, 4, 16, 32, 64, 224)


def prove(folded: Path, neutral: ModelProto, seed: int) -> tuple[list[Check], list[Draw]]:
    """Returns the checks of the folded file against the noisy model with its rates at zero, and the inputs they used.

    Raises:
        NotVerifiableError: if no random inputs can be made that the model runs.
    """
    cpu = fallback().name
    reference = open_session(neutral, cpu, "off")
    draws = draw_inputs(neutral, reference, seed)
    sessions = {level: open_session(folded, cpu, level) for level in LEVELS}
    different, random, apart, broken = [], [], [], []
    for draw in draws:
        expected = reference(draw.feeds)
        plain = sessions["off"](draw.feeds)
        different += _differences(expected, plain, draw.label)
        broken += [f"{draw.label}: `{name}`" for name, value in expected.items() if not _finite(value)]
        for level, session in sessions.items():
            once, again = session(draw.feeds), session(draw.feeds)
            random += _differences(once, again, f"{level}, {draw.label}")
            apart += _far(plain, once, draw.label)
    done = f"{len(draws)} runs on random inputs ({', '.join(draw.label for draw in draws)})"
    return [
        counted("proof/rates at zero", different, f"bitwise equal to the noisy file with its rates at zero, {done}"),
        counted("proof/repeatable", random, f"two runs agree bitwise, optimizer off and on, {done}"),
        counted("proof/optimizer", apart, f"optimizer off and on agree up to rounding, {done}"),
        counted("proof/finite", broken, "every output has finite values"),
    ], draws


def _differences(one: dict[str, Any], two: dict[str, Any], label: str) -> list[str]:
    if list(one) != list(two):
        return [f"{label}: outputs {list(two)}, expected {list(one)}"]
    return [f"{label}: `{name}`" for name in one if not _same(one[name], two[name])]


def _same(one: Any, two: Any) -> bool:
    if not isinstance(one, np.ndarray) or not isinstance(two, np.ndarray):
        return isinstance(one, list) and isinstance(two, list) and list(map(_same, one, two)).count(False) == 0
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def _finite(value: Any) -> bool:
    floating = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return not floating or not value.size or bool(np.isfinite(value).any())


def _far(one: dict[str, Any], two: dict[str, Any], label: str) -> list[str]:
    far = []
    for name, value in one.items():
        other = two[name]
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
            continue
        if value.shape != other.shape or value.dtype != other.dtype:
            far.append(f"{label}: `{name}` is {other.dtype}{list(other.shape)}, not {value.dtype}{list(value.shape)}")
        elif value.dtype.kind == "f" and value.size:
            finite = np.isfinite(value) & np.isfinite(other)
            size = float(np.abs(value[finite].astype(np.float64)).max(initial=0.0))
            error = float(np.abs(value[finite].astype(np.float64) - other[finite]).max(initial=0.0))
            limit = ceiling(torch.from_numpy(value[:0].reshape(-1)).dtype) * size
            if error > limit or not np.array_equal(np.isnan(value), np.isnan(other)):
                far.append(f"{label}: `{name}` differs by {error:.3g}, limit {limit:.3g}")
        elif value.size and float((value != other).mean()) > OTHER_INTEGERS:
            far.append(f"{label}: `{name}` differs")
    return far


@dataclass(frozen=True)
class Draw:
    """Inputs of one size."""

    label: str  # for example `batch=2` or `batch=2, other axes 16`
    feeds: Feeds  # by input name


def draw_inputs(model: ModelProto, run: Callable[[Feeds], Any], seed: int) -> list[Draw]:
    """Returns random inputs for the batch sizes 1, 2 and 3, or those that `run`, which runs the file, does not refuse.

    Raises:
        NotVerifiableError: if the file runs none of them, or has an input that is no tensor of numbers.
        ValueError: if the declared inputs are too large to be made.
    """
    inputs = [(value, _axes(value)) for value in graph_inputs(model.graph)]
    reason = "it has no input to vary"
    for other in _SIZES if any(isinstance(axis, str) for _, axes in inputs for axis in axes) else (None,):
        draws: list[Draw] = []
        for batch in BATCHES:
            draw = _draw(inputs, batch, other, np.random.default_rng(seed + batch))
            if draws and all(np.array_equal(draw.feeds[name], draws[0].feeds[name]) for name in draw.feeds):
                break
            try:
                run(draw.feeds)
            except Exception as error:  # ONNX Runtime raises a dozen types without a common base
                reason = first_line(error)
                continue
            draws.append(draw)
        if draws:
            return draws
    raise NotVerifiableError(f"the file cannot be run on random inputs of any size that was tried: {reason}")


def graph_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """Returns the inputs that have no default value."""
    defaults = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in defaults]


def _draw(
    inputs: list[tuple[ValueInfoProto, list[int | str]]], batch: int, other: int | None, rng: np.random.Generator
) -> Draw:
    # Every axis that is named as a first one is, and without other sizes to try every open axis, is as the batch.
    named = {axes[0] for _, axes in inputs if axes}
    sizes = [
        [axis if isinstance(axis, int) else batch if axis in named or other is None else other for axis in axes]
        for _, axes in inputs
    ]
    elements = sum(map(math.prod, sizes))
    if elements > MOST_INPUT_ELEMENTS:
        raise ValueError(f"the declared inputs have {elements} elements, at most {MOST_INPUT_ELEMENTS} are made")
    feeds = {value.name: _random(value, shape, rng) for (value, _), shape in zip(inputs, sizes, strict=True)}
    return Draw(f"batch={batch}" + (f", other axes {other}" if other else ""), feeds)


def _axes(value: ValueInfoProto) -> list[int | str]:
    """The size of each axis, or its name if it is open; an axis without a name is called by its place."""
    if not value.type.HasField("tensor_type"):
        raise NotVerifiableError(f"input `{value.name}` is no tensor, so no random inputs can be made")
    axes: list[int | str] = []
    for place, axis in enumerate(value.type.tensor_type.shape.dim):
        fixed = axis.HasField("dim_value") and axis.dim_value >= 0
        axes.append(axis.dim_value if fixed else axis.dim_param or ("" if place == 0 else f"{value.name} {place}"))
    return axes


def _random(value: ValueInfoProto, shape: list[int], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    from onnx import helper

    try:
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    except KeyError:
        kind = np.dtype(object)
    if kind.kind == "f" or kind.name == "bfloat16":
        return rng.standard_normal(shape).astype(kind)
    if kind.kind in "iub":  # an index into anything, and a flag
        return rng.integers(0, 2, shape).astype(kind)
    raise NotVerifiableError(f"input `{value.name}` holds no numbers, so no random inputs can be made")
