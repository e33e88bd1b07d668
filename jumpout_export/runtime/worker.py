"""ONNX Runtime alone: opens sessions, says where their nodes run, runs them. Used here, and by another Python.

An environment has one ONNX Runtime. For that of another environment this file is run by its Python, which needs numpy
and onnxruntime and nothing of this package: `python -I worker.py FOLDER` answers what `runtime/elsewhere.py` asks, a
line of JSON each, with arrays as .npy files in the folder. As soon as nobody can ask any more it removes the folder and
ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import queue
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# A session opened with this remembers which provider each node was assigned to; ONNX Runtime 1.24 and later.
ASSIGNMENT_ENTRY = ("session.record_ep_graph_assignment_info", "1")
# As onnxruntime writes it, and as onnx numbers it.
BFLOAT16, _BFLOAT16 = "tensor(bfloat16)", 16


class Runtime:
    """The onnxruntime of this Python."""

    python = ""  # the Python that it is in; empty for this one

    def facts(self) -> dict[str, Any]:
        """Returns its `version`, its `providers`, the `cuda` that it is built for, and whether it `assigns`.

        Raises:
            Exception: if it cannot be imported.
        """
        import onnxruntime

        return {
            "version": onnxruntime.__version__,
            "providers": onnxruntime.get_available_providers(),
            "cuda": str(getattr(onnxruntime, "cuda_version", None) or ""),
            # whether it can tell which node runs on which provider
            "assigns": hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"),
        }

    def open(
        self,
        source: str | bytes,
        provider: str,
        settings: Mapping[str, str],
        *,
        optimized: bool,
        threads: int,
        alone: bool,
        profile: str | None = None,
    ) -> Any:
        """Returns an onnxruntime.InferenceSession.

        Args:
            source: the path of a file, or a serialized model.
            provider: ONNX Runtime's name of it.
            settings: of the provider.
            optimized: with all of ONNX Runtime's optimizations, or as the graph is written.
            threads: of one operator.
            alone: whether there is no other place for a node to be, so that nothing is to be said about that.
            profile: with a profile of its runs, in a file whose path starts with this.

        Raises:
            Exception: of ONNX Runtime, if it cannot load the model.
        """
        import onnxruntime

        options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        # The same number of threads each time, so that sums are split alike; also stops it from pinning to cores.
        options.intra_op_num_threads = threads
        # Idle threads of one session would otherwise spin and take the cores from the next one and from torch.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimized:  # weights as they are in the file; to rearrange them takes as long as to read them
            options.add_session_config_entry("session.disable_prepacking", "1")
        options.log_severity_level = 4  # what it would log is in the exception
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        if not alone:
            options.add_session_config_entry(*ASSIGNMENT_ENTRY)
            options.use_deterministic_compute = True
        # Its fallback prints to stdout, and would only try the same again.
        session = onnxruntime.InferenceSession(
            source, options, providers=[(provider, dict(settings))], enable_fallback=0
        )
        values = [*session.get_inputs(), *session.get_outputs()]
        return BitsSession(session) if any(value.type == BFLOAT16 for value in values) else session

    def nodes(self, session: Any) -> list[tuple[str, str, str]]:
        """Returns name, operator and provider of each node of a session that was not opened as `alone`."""
        return [
            (node.name, node.op_type, part.ep_name)
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]

    def load(self, libraries: list[str]) -> str:
        """Returns what the system's loader says of the first library that it does not load; empty if it loads all.

        Args:
            libraries: names; one that starts with `capi/` comes with onnxruntime, and counts only if it is there. Each
                may use what those before it define.
        """
        import onnxruntime

        package = Path(onnxruntime.__file__).parent
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it did not find
            onnxruntime.preload_dlls()
        for library in libraries:
            own = library.startswith("capi/")
            if own and not (package / library).exists():
                continue
            try:
                ctypes.CDLL(str(package / library) if own else library, mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                return str(error)
        return ""


class BitsSession:
    """A session that takes and gives bfloat16, which numpy has not: as the bits of each number, in uint16."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        """Everything else is that of the session."""
        return getattr(self._session, name)

    def run(self, outputs: list[str] | None, feeds: Mapping[str, Any], options: Any = None) -> list[Any]:
        """As that of an onnxruntime.InferenceSession."""
        from onnxruntime import OrtValue

        bits = {value.name for value in self._session.get_inputs() if value.type == BFLOAT16}
        values = {
            name: OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
            if name in bits
            else OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
        }
        names = outputs if outputs is not None else [value.name for value in self._session.get_outputs()]
        found = self._session.run_with_ort_values(names, values, options)
        return [_bits(value) if value.data_type() == BFLOAT16 else value.numpy() for value in found]


def _bits(value: Any) -> Any:
    """The numbers of an OrtValue in bfloat16 on the CPU, as uint16; onnxruntime itself hands over none."""
    import numpy as np

    size = value.tensor_size_in_bytes()
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(data, np.uint16).reshape(value.shape()).copy()


class _Served:
    """The runtime and its open sessions, for somebody who sends and gets what JSON can say."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._runtime = folder, Runtime()
        self._sessions: dict[int, Any] = {}

    def facts(self) -> dict[str, Any]:
        import numpy  # noqa: F401, ICN001 that it is missing is said before there is an array

        return self._runtime.facts()

    def load(self, libraries: list[str]) -> str:
        return self._runtime.load(libraries)

    def open(self, number: int, alone: bool, **options: Any) -> dict[str, Any]:
        session = self._sessions[number] = self._runtime.open(alone=alone, **options)
        values = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
        return {
            **{kind: [[one.name, one.type, list(one.shape)] for one in found] for kind, found in values.items()},
            "nodes": [] if alone else self._runtime.nodes(session),
        }

    def run(self, number: int, outputs: list[str], inputs: dict[str, str], results: list[str]) -> None:
        """Runs a session on the arrays in some files, and writes the outputs to others."""
        import numpy as np

        feeds = {name: np.load(self._folder / file, allow_pickle=False) for name, file in inputs.items()}
        for value, file in zip(self._sessions[number].run(outputs, feeds), results, strict=True):
            if not isinstance(value, np.ndarray):
                raise TypeError(f"an output is a {type(value).__name__}, only arrays can be handed over")
            np.save(self._folder / file, value, allow_pickle=False)

    def close(self, numbers: list[int]) -> None:
        for number in numbers:
            self._sessions.pop(number, None)


def serve(folder: Path) -> None:
    """Answers requests on stdin until it is closed: `{"do": name, ...}`, with `{"result": ...}` or `{"error": ...}`."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    served = _Served(folder)
    actions: dict[str, Callable[..., Any]] = {
        name: getattr(served, name) for name in ("facts", "load", "open", "run", "close")
    }
    for line in _requests(folder):
        request = json.loads(line)
        try:
            answer = {"result": actions[request.pop("do")](**request)}
        except Exception as error:  # ONNX Runtime raises a dozen types without a common base
            answer = {"error": str(error).strip() or type(error).__name__}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


def _requests(folder: Path) -> Iterator[str]:
    """The lines on stdin. A thread reads them, so that a long run ends as well when whoever asked for it is gone."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
