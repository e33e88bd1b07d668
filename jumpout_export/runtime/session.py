"""ONNX Runtime sessions that run where they were asked to run, or say why they cannot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from jumpout_export.errors import NotVerifiableError
from jumpout_export.onnxfile.load import DEFAULT_OPSET, IR_VERSION
from jumpout_export.runtime.cuda import explain_driver
from jumpout_export.runtime.limits import run_within_limits, within_memory
from jumpout_export.runtime.placement import ASSIGNMENT_ENTRY, NAMES, Placed, placed
from jumpout_export.runtime.providers import CUDA_SETTINGS, explain_unusable

if TYPE_CHECKING:
    from onnx import ModelProto

Feeds = dict[str, np.ndarray[Any, Any]]

Level = Literal["off", "all"]
LEVELS: tuple[Level, ...] = ("off", "all")
PROVIDERS = ("cpu", "cuda")


@dataclass(frozen=True)
class Session:
    """An open session.

    Attributes:
        inputs: names of the graph's inputs, in order.
        outputs: names of the graph's outputs, in order.
        shapes: of the graph's inputs: sizes, names of open axes, None for an open one without a name.
        nodes: where each node runs; empty on `cpu`, where there is no other place.
    """

    inputs: list[str]
    outputs: list[str]
    shapes: list[list[int | str | None]]
    nodes: list[Placed]
    _session: Any

    def run(self, values: list[Tensor]) -> list[Tensor]:
        """Returns all outputs on the CPU, for the inputs in the graph's order."""
        feeds = {name: value.numpy(force=True) for name, value in zip(self.inputs, values, strict=True)}
        # The driver reserves more address space than there is memory, so a session on a device is not limited.
        run = self._session.run if self.nodes else partial(run_within_limits, self._session)
        return [torch.from_numpy(array) for array in run(self.outputs, feeds)]


def check_providers(providers: Iterable[str]) -> tuple[str, ...]:
    """Returns the provider names, each once.

    Raises:
        ValueError: if one is unknown or there is none.
    """
    names = (providers,) if isinstance(providers, str) else tuple(dict.fromkeys(providers))
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown or not names:
        raise ValueError(f"providers must be of {', '.join(PROVIDERS)}, got {', '.join(map(repr, unknown)) or 'none'}")
    return names


def open_session(path: Path, provider: str, level: Level) -> Session:
    """Opens a session on the saved file.

    Args:
        path: the ONNX file.
        provider: `cpu` or `cuda`.
        level: `off` runs the graph as it is written; `all` is what ONNX Runtime does by default. Both matter: its
            optimizer removes a Dropout that is in training mode, so the file looks deterministic there only.

    A session on `cuda` may hold nodes that run on the CPU: `check_placement` has to look at `nodes`. ONNX Runtime's
    own refusal, `session.disable_cpu_ep_fallback`, names no node and says the same where a library is missing.

    Raises:
        NotVerifiableError: if `cuda` cannot be used here; the message says why and what helps.
        Exception: of ONNX Runtime, if it cannot load the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if level == "off" else levels.ORT_ENABLE_ALL
    # The same number of threads each time, so that sums are split alike; also stops it from pinning to cores.
    options.intra_op_num_threads = torch.get_num_threads()
    # Idle threads of one session would otherwise spin and take the cores from the next one and from torch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what it would log is in the exception
    if provider == "cuda":
        session = _open_cuda(path, options)
    else:
        # Its fallback prints to stdout, and would only try the same again.
        session = within_memory(
            lambda: onnxruntime.InferenceSession(str(path), options, providers=[NAMES[provider]], enable_fallback=0)
        )
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return Session(
        [value.name for value in inputs],
        [value.name for value in outputs],
        [list(value.shape) for value in inputs],
        placed(session) if provider != "cpu" else [],
        session,
    )


def _open_cuda(path: Path, options: Any) -> Any:
    import onnxruntime

    reason = explain_unusable("cuda")
    if reason is not None:
        raise NotVerifiableError(f"CUDA cannot be used: {reason}")
    options.add_session_config_entry(*ASSIGNMENT_ENTRY)
    options.use_deterministic_compute = True
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[(NAMES["cuda"], CUDA_SETTINGS)], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        reason = explain_driver(error)  # out of memory, for example: nothing is known about the file
        if reason is None:
            raise
        raise NotVerifiableError(f"CUDA cannot be used: {reason}") from error


def newest_opset() -> int:
    """Returns the newest opset that the installed ONNX Runtime loads, of those that the installed onnx knows."""
    from onnx import defs

    for opset in range(defs.onnx_opset_version(), DEFAULT_OPSET, -1):
        if _is_loaded(opset):
            return opset
    return DEFAULT_OPSET


def _is_loaded(opset: int) -> bool:
    import onnxruntime
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", opset)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception:  # ONNX Runtime raises a dozen types without a common base; that it does is the answer
        return False
    return True


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
