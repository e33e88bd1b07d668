"""Proves in ONNX Runtime that a folded file is the noisy one with its rates at zero, and draws nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from jumpout_export.export.budget import ceiling
from jumpout_export.export.checks import counted
from jumpout_export.export.limits import run_within_limits, within_memory
from jumpout_export.export.refold_inputs import Draw, Feeds, draw_inputs
from jumpout_export.report import Check

if TYPE_CHECKING:
    from onnx import ModelProto

# Optimized and plain kernels may round a value that is cut to an integer to either side.
_INTEGERS = 0.01


class Runner:
    """An ONNX Runtime session on the CPU.

    Args:
        model: a file, or a model in memory.
        optimized: with all of ONNX Runtime's optimizations, or as the graph is written.
    """

    def __init__(self, model: Path | ModelProto, optimized: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what it would log is in the exception
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        # Its fallback prints to stdout, and would only try the same again.
        self._session = within_memory(
            lambda: onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        )
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, feeds: Feeds) -> dict[str, Any]:
        """Returns the outputs by name."""
        return dict(zip(self.outputs, run_within_limits(self._session, self.outputs, feeds), strict=True))


def prove(folded: Path, neutral: ModelProto, seed: int) -> tuple[list[Check], list[Draw]]:
    """Returns the checks of the folded file against the noisy model with its rates at zero, and the inputs they used.

    Raises:
        NotVerifiableError: if no random inputs can be made that the model runs.
    """
    reference = Runner(neutral)
    draws = draw_inputs(neutral, reference, seed)
    runners = {"off": Runner(folded), "all": Runner(folded, optimized=True)}
    different, random, apart, broken = [], [], [], []
    for draw in draws:
        expected = reference(draw.feeds)
        plain = runners["off"](draw.feeds)
        different += _differences(expected, plain, draw.label)
        broken += [f"{draw.label}: `{name}`" for name, value in expected.items() if not _finite(value)]
        for level, runner in runners.items():
            once, again = runner(draw.feeds), runner(draw.feeds)
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
        elif value.size and float((value != other).mean()) > _INTEGERS:
            far.append(f"{label}: `{name}` differs")
    return far
