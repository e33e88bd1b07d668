"""The ONNX Runtime of another Python: a worker process there (`worker.py`), asked over a pipe, arrays in a folder."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumpout_export.errors import ArgumentError, NotVerifiableError
from jumpout_export.runtime import limits, worker
from jumpout_export.runtime.worker import Runtime

# An answer is one line; that about a session names each of its nodes. What never ends is none.
_LONGEST = 64 << 20
# What a worker that was told to end may take for it, in seconds.
_PATIENCE = 5.0


class ElsewhereError(RuntimeError):
    """What ONNX Runtime raised in the other Python, in its words."""


@dataclass(frozen=True)
class _Value:
    """An input or output, as onnxruntime describes it."""

    name: str
    type: str
    shape: list[int | str | None]


class Elsewhere(Runtime):
    """The onnxruntime of another Python, in a process that starts when it is first needed and ends with `close`.

    Args:
        python: the Python; a path, or a name that is looked for as the shell does.

    Raises:
        ValueError: if there is no such program.
    """

    def __init__(self, python: str | os.PathLike[str]) -> None:
        self.python = find_python(python)
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes] = queue.Queue(maxsize=1)
        self._numbers = itertools.count()
        self._broken = ""  # why it answers nothing any more
        self._facts: dict[str, Any] = {}
        self.closed: list[int] = []  # sessions that nobody holds any more

    def facts(self) -> dict[str, Any]:
        """As of this Python's.

        Raises:
            NotVerifiableError: if there is no answer.
            ElsewhereError: if numpy or onnxruntime cannot be imported there.
        """
        if not self._facts:
            answer = self.ask("facts")
            if not isinstance(answer, dict) or not isinstance(answer.get("providers"), list):
                raise self._give_up(f"says {answer!r} of itself")
            self._facts = answer
        return self._facts

    def open(self, source: str | bytes, provider: str, settings: Mapping[str, str], **options: Any) -> Any:
        """Returns a session there that is used as an onnxruntime.InferenceSession; a file is read there from its path.

        Raises:
            NotVerifiableError: if there is no answer.
            ElsewhereError: of ONNX Runtime, if it cannot load the model.
        """
        number, model = next(self._numbers), None
        if isinstance(source, bytes):
            model = self._started() / f"model-{number}.onnx"
            model.write_bytes(source)
        path = str(model or Path(source).absolute())  # type: ignore[arg-type] # it is bytes where there is a model
        try:
            answer = self.ask("open", number=number, source=path, provider=provider, settings=dict(settings), **options)
        finally:
            if model is not None:
                model.unlink(missing_ok=True)
        try:
            inputs, outputs = ([_Value(*value) for value in answer[kind]] for kind in ("inputs", "outputs"))
            nodes = [(str(name), str(operator), str(where)) for name, operator, where in answer["nodes"]]
        except (TypeError, KeyError, ValueError) as error:
            raise self._give_up(f"says {answer!r} of a session".replace("\n", " ")[:200]) from error
        return _Session(self, number, inputs, outputs, nodes)

    def nodes(self, session: Any) -> list[tuple[str, str, str]]:
        """As of this Python's."""
        return session.nodes

    def load(self, libraries: list[str]) -> str:
        """As of this Python's."""
        return str(self.ask("load", libraries=libraries))

    def run(self, number: int, outputs: list[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Returns the outputs of a session there.

        Raises:
            NotVerifiableError: if there is no answer, or the arrays cannot be handed over.
            ElsewhereError: of ONNX Runtime, if it cannot run the graph.
        """
        import numpy as np  # help and wrong usage, which name the providers, do without

        folder = self._started()
        inputs = {name: f"in-{place}.npy" for place, name in enumerate(feeds)}
        results = [f"out-{place}.npy" for place in range(len(outputs))]
        try:
            for name, file in inputs.items():
                np.save(folder / file, feeds[name], allow_pickle=False)
            self.ask("run", number=number, outputs=outputs, inputs=inputs, results=results)
            return [np.load(folder / file, allow_pickle=False) for file in results]
        except (OSError, ValueError) as error:
            raise self._give_up(f"cannot be given arrays, or gives none ({error})") from error
        finally:
            for file in (*inputs.values(), *results):
                (folder / file).unlink(missing_ok=True)

    def ask(self, action: str, **request: Any) -> Any:
        """Returns the answer to a request; `worker.py` has them.

        Raises:
            NotVerifiableError: if the worker cannot be started, ends, is silent for too long, or talks nonsense; it is
                not asked again.
            ElsewhereError: what was raised there.
        """
        self._started()
        if self.closed and action != "close":
            numbers, self.closed = self.closed, []
            self.ask("close", numbers=numbers)
        process = self._process
        assert process is not None
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # that it has ended shows in its answer
            process.stdin.write(json.dumps({"do": action, **request}).encode() + b"\n")
            process.stdin.flush()
        try:
            line = self._answers.get(timeout=limits.SECONDS)
        except queue.Empty:
            raise self._give_up(f"did not answer within {limits.SECONDS:g} seconds") from None
        if not line:
            raise self._give_up(self._end(process))
        try:
            answer = json.loads(line)
            if not isinstance(answer, dict) or not answer.keys() & {"result", "error"}:
                raise ValueError("no answer")
        except ValueError:
            said = line[:60].decode(errors="replace").strip()
            raise self._give_up(f"answers {said!r} instead of what a worker does; is it a Python?") from None
        if "error" in answer:
            raise ElsewhereError(str(answer["error"]))
        return answer["result"]

    def close(self) -> None:
        """Ends the worker and removes the folder."""
        process, self._process = self._process, None
        self._broken = self._broken or "is closed"
        if process is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr] # it is a pipe
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE if self._broken == "is closed" else 0.1)
            with contextlib.suppress(OSError):  # and what a wrapper around a Python has started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _started(self) -> Path:
        """The folder of the worker, which runs.

        Raises:
            NotVerifiableError: if it does not.
        """
        if self._broken:
            raise NotVerifiableError(f"the worker in {self.python} {self._broken}")
        if self._process is None:
            self._folder = Path(tempfile.mkdtemp(prefix="jumpout-export-"))
            # By itself (-I): neither PYTHONPATH nor the folder that it lies in is for the other Python's eyes.
            command = [self.python, "-I", worker.__file__, str(self._folder)]
            try:
                with (self._folder / "stderr").open("wb") as said:
                    self._process = subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=said,
                        cwd=self._folder,
                        start_new_session=True,  # Ctrl-C ends it by way of this process
                    )
            except OSError as error:
                raise self._give_up(f"cannot be started: {error.strerror}") from error
            threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()
        assert self._folder is not None
        return self._folder

    def _end(self, process: subprocess.Popen[bytes]) -> str:
        """How a worker ended by itself, with the last line of what it said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        code = process.returncode
        how = "closed its output" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        assert self._folder is not None
        said = (self._folder / "stderr").read_text(errors="replace").strip()
        return how + (f": {said.splitlines()[-1][:200]}" if said else "")

    def _give_up(self, why: str) -> NotVerifiableError:
        self._broken = why
        self.close()
        return NotVerifiableError(f"the worker in {self.python} {why}")


class _Session:
    """A session in the other Python, as an onnxruntime.InferenceSession is used."""

    def __init__(
        self,
        runtime: Elsewhere,
        number: int,
        inputs: list[_Value],
        outputs: list[_Value],
        nodes: list[tuple[str, str, str]],
    ) -> None:
        self._runtime, self._number = runtime, number
        self._inputs, self._outputs, self.nodes = inputs, outputs, nodes

    def get_inputs(self) -> list[_Value]:
        return self._inputs

    def get_outputs(self) -> list[_Value]:
        return self._outputs

    def run(self, outputs: list[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        names = outputs if outputs is not None else [value.name for value in self._outputs]
        return self._runtime.run(self._number, names, feeds)

    def __del__(self) -> None:
        self._runtime.closed.append(self._number)  # said with the next request: this may be in the middle of one


def find_python(python: str | os.PathLike[str]) -> str:
    """Returns the absolute path of a program, links as they are: a virtual environment is known by its link.

    Raises:
        ValueError: if there is none.
    """
    found = shutil.which(python)
    if found is not None:
        return os.path.abspath(found)
    inside = Path(python) / "bin" / "python"
    hint = f"; the Python in that environment is {inside}" if inside.exists() else ""
    what = "is a folder" if Path(python).is_dir() else "is no program that can be run"
    raise ArgumentError("provider_python", f"provider_python must be a Python, {os.fspath(python)} {what}{hint}")


def _read(stream: Any, answers: queue.Queue[bytes]) -> None:
    """Hands on each line, and an empty one at the end."""
    with stream:
        line = b"-"
        while line:
            line = stream.readline(_LONGEST)
            answers.put(line)
