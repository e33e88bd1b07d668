"""What is known of one execution provider of ONNX Runtime, and the one place where a session on it is made."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpout_export.errors import NotVerifiableError
from jumpout_export.onnxfile.load import DEFAULT_OPSET, IR_VERSION
from jumpout_export.runtime.installation import INSTALL_CPU, explain_installation
from jumpout_export.runtime.limits import within_memory
from jumpout_export.runtime.worker import Runtime
from jumpout_export.text import first_line

if TYPE_CHECKING:
    from onnx import ModelProto

HERE = Runtime()


@dataclass(frozen=True)
class Placed:
    """A node of the graph that a session runs."""

    name: str  # the node's name, may be empty; nodes of subgraphs are among them
    operator: str  # its operator, for example `Conv`
    provider: str  # ONNX Runtime's name of the execution provider, for example `CPUExecutionProvider`

    def __str__(self) -> str:
        where = f" runs on {self.provider}"
        return (f"`{self.name}` ({self.operator})" if self.name else f"a node without name ({self.operator})") + where


def _threads_of_torch() -> int:
    import torch

    return torch.get_num_threads()


def placed(session: Any, runtime: Runtime = HERE) -> list[Placed]:
    """Returns all nodes of a session of a runtime that was opened with `ASSIGNMENT_ENTRY` (`worker.py`)."""
    return [Placed(*node) for node in runtime.nodes(session)]


@dataclass(frozen=True, eq=False)
class Provider:
    """An execution provider: everything that is another on the next one. `providers.py` lists those there are."""

    name: str  # as `providers=` and `--providers` take it
    onnxruntime_name: str  # for example `CPUExecutionProvider`
    settings: Mapping[str, str] = field(default_factory=dict)  # given to ONNX Runtime
    # whether it takes what no other provider does, so that there is no other place for a node to be
    is_fallback: bool = False
    must_repeat: bool = False  # whether two runs have to agree bitwise
    # whether its memory may be limited; a device's driver reserves more address space than there is
    limited: bool = False
    install: str = INSTALL_CPU  # the command that installs an ONNX Runtime with it here; empty if there is none
    package: str = ""  # of the ONNX Runtime with it, for an environment of its own, as pip takes it
    about_dropout: str = ""  # what to know of its Dropout in training mode, for a file that is random on purpose
    runtime: Runtime = HERE  # the ONNX Runtime that it is in

    def open(self, model: Path | ModelProto, *, optimized: bool, profile: str | None = None, runs: bool = True) -> Any:
        """Returns an onnxruntime.InferenceSession.

        Args:
            model: a file, or a model in memory.
            optimized: with all of ONNX Runtime's optimizations, or as the graph is written.
            profile: with a profile of its runs, in a file whose path starts with this.
            runs: whether the session is going to be run; False asks only whether the file loads, without torch.

        Raises:
            Exception: of ONNX Runtime, if it cannot load the model.
        """
        source = str(model) if isinstance(model, Path) else model.SerializeToString()

        def session() -> Any:
            return self.runtime.open(
                source,
                self.onnxruntime_name,
                self.settings,
                optimized=optimized,
                threads=_threads_of_torch() if runs else 1,
                alone=self.is_fallback,
                profile=profile,
            )

        return within_memory(session) if self.limited else session()

    def nodes(self, session: Any) -> list[Placed]:
        """Returns where each node of a session of this provider runs; nothing where there is no other place."""
        return [] if self.is_fallback else placed(session, self.runtime)

    def elsewhere(self, session: Any) -> list[str]:
        """Returns, a phrase each, the nodes of a session that are not on this provider, or that it has none."""
        nodes = placed(session, self.runtime)
        return [str(node) for node in nodes if node.provider != self.onnxruntime_name] or (
            [] if nodes else ["it has no node"]
        )

    def explain_unusable(self) -> str | None:
        """Returns why the provider cannot be used here and what helps, or None if a convolution ran there.

        Nothing is taken from a list of names: ONNX Runtime lists CUDA without any CUDA library, and then runs
        everything on the CPU without a word. The answer is kept for the life of the process.
        """
        return self._unusable

    def explain_libraries(self) -> str | None:
        """Returns what keeps ONNX Runtime from loading the provider, and what helps; None if nothing is known to."""
        return None

    def explain_error(self, error: BaseException) -> str | None:  # noqa: ARG002
        """Returns what an error says about this machine, and what helps; None for one that is the file's."""
        return None

    def explain_trial(self, problem: str) -> str:
        """Returns why the convolution of the trial did not run, as far as more than `problem` is known."""
        return problem

    @cached_property
    def _unusable(self) -> str | None:
        installation = "" if self.runtime.python else explain_installation()
        try:
            facts = self.runtime.facts()
        except NotVerifiableError as error:
            return str(error)
        except Exception as error:  # of this one `installation` says it
            return installation or self._missing_there(first_line(error))
        if self.onnxruntime_name not in facts["providers"]:
            return self._not_in(facts["version"], installation)
        problem = self._cannot_tell(facts) or self.explain_libraries() or self._try()
        return f"{problem}; besides, {installation}" if problem and installation else problem

    def _cannot_tell(self, facts: dict[str, Any]) -> str | None:
        """Returns that this ONNX Runtime is too old to say where a node runs, which nothing else proves."""
        if self.is_fallback or facts["assigns"]:
            return None
        python = f"{self.runtime.python} -m " if self.runtime.python else ""
        return (
            f"onnxruntime {facts['version']} cannot tell which nodes run on {self.name.upper()}, 1.24 and later can: "
            f"{python}pip install --upgrade {shlex.quote(self.package)}"
        )

    def _missing_there(self, why: str) -> str:
        """Returns what another Python lacks, and the command that installs it."""
        python = self.runtime.python
        return f"{python} has no onnxruntime and numpy ({why}): {python} -m pip install {shlex.quote(self.package)}"

    def _not_in(self, version: str, installation: str | None) -> str:
        """Returns that an ONNX Runtime was built without the provider, and the commands that bring one with it."""
        ways = [installation] if installation else []
        if not (installation or self.runtime.python) and self.install:
            ways.append(f"install one that has: pip uninstall onnxruntime && {self.install}")
        if not installation and self.package:
            folder = f"onnxruntime-{self.name}"
            ways.append(
                f"give it an environment of its own: python3 -m venv {folder} && {folder}/bin/pip install "
                f"{shlex.quote(self.package)}, and name it: --provider-python {folder}/bin/python"
            )
        whose = (
            f"onnxruntime {version} of {self.runtime.python}"
            if self.runtime.python
            else f"installed onnxruntime {version}"
        )
        return f"the {whose} has no {self.onnxruntime_name}; {'; or '.join(ways)}"

    def _try(self) -> str | None:
        try:
            problem = self._try_convolution()
        except Exception as error:  # ONNX Runtime raises a dozen types without a common base
            reason = self.explain_error(error)
            if reason is not None:
                return reason
            problem = f"ONNX Runtime cannot run a convolution on {self.onnxruntime_name}: {first_line(error)}"
        return self.explain_trial(problem) if problem else None

    def _try_convolution(self) -> str | None:
        """Runs a convolution, which on CUDA needs cuDNN too; returns what is wrong with where it ran or its result."""
        import numpy as np
        from onnx import parser

        model = parser.parse_model(
            f'<ir_version: {IR_VERSION}, opset_import: ["" : {DEFAULT_OPSET}]>'
            "try (float[1,1,2,2] x) => (float[1,1,2,2] y) <float[1,1,1,1] w = {3}> { y = Conv(x, w) }"
        )
        session = self.open(model, optimized=True)
        wrong = [] if self.is_fallback else self.elsewhere(session)
        if wrong:
            return f"ONNX Runtime does not run a convolution on {self.onnxruntime_name}: {wrong[0]}"
        x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
        (y,) = session.run(None, {"x": x})
        if np.array_equal(y, 3 * x):
            return None
        return f"a convolution on {self.onnxruntime_name} computes {y.tolist()}"
