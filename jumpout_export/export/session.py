"""ONNX Runtime sessions that run where they were asked to run, or say why they cannot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from jumpout_export.errors import NotVerifiableError
from jumpout_export.export.checks import first_line

Level = Literal["off", "all"]
LEVELS: tuple[Level, ...] = ("off", "all")
PROVIDERS = ("cpu", "cuda")

_CUDA = "CUDAExecutionProvider"
_GPU_HINT = "pip uninstall onnxruntime && pip install 'jumpout-export[onnx-gpu]'"


@dataclass(frozen=True)
class Session:
    """An open session.

    Attributes:
        inputs: names of the graph's inputs, in order.
        outputs: names of the graph's outputs, in order.
        batch: size of the first input's first axis, None where it is open.
    """

    inputs: list[str]
    outputs: list[str]
    batch: int | None
    _session: Any

    def run(self, values: list[Tensor]) -> list[Tensor]:
        """Returns all outputs on the CPU, for the inputs in the graph's order."""
        feeds = {name: value.numpy(force=True) for name, value in zip(self.inputs, values, strict=True)}
        return [torch.from_numpy(array) for array in self._session.run(self.outputs, feeds)]


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

    Raises:
        NotVerifiableError: if `cuda` cannot be used here; the message says why and what installs it.
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
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    inputs, outputs = session.get_inputs(), session.get_outputs()
    first = next((value.shape[0] for value in inputs if value.shape), None)
    return Session(
        [value.name for value in inputs],
        [value.name for value in outputs],
        first if isinstance(first, int) else None,
        session,
    )


def _open_cuda(path: Path, options: Any) -> Any:
    import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        raise NotVerifiableError(
            f"the installed onnxruntime {onnxruntime.__version__} has no {_CUDA}; install one that has: {_GPU_HINT}"
        )
    onnxruntime.preload_dlls()
    # Without this the provider's missing libraries, or a node it lacks, silently become a run on the CPU.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[(_CUDA, settings)])
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        reason = first_line(error)
        raise NotVerifiableError(f"ONNX Runtime opens no CUDA session: {reason}; install: {_GPU_HINT}") from error
    if _CUDA not in session.get_providers():
        raise NotVerifiableError(f"ONNX Runtime opened a session without {_CUDA}; install: {_GPU_HINT}")
    return session
