"""ONNX Runtime sessions that run where they were asked to run, or say why they cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jumpout_export.errors import LoadError, NotVerifiableError
from jumpout_export.onnxfile.load import DEFAULT_OPSET, IR_VERSION, load_onnx
from jumpout_export.runtime.kernels import explain_bfloat16
from jumpout_export.runtime.limits import run_within_limits
from jumpout_export.runtime.provider import Placed, Provider
from jumpout_export.runtime.providers import fallback, provider_of
from jumpout_export.runtime.worker import BFLOAT16

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor

Feeds = dict[str, np.ndarray[Any, Any]]

Level = Literal["off", "all"]
LEVELS: tuple[Level, ...] = ("off", "all")


class ProviderLostError(NotVerifiableError):
    """A provider cannot be used any more, so nothing is known of what was to be run.

    Attributes:
        provider: its name.
    """

    def __init__(self, provider: str, why: object) -> None:
        super().__init__(f"{provider.upper()} cannot be used any more: {why}")
        self.provider = provider


@dataclass(frozen=True)
class Session:
    """An open session."""

    provider: Provider  # where it runs
    inputs: list[str]  # names of the graph's inputs, in order
    outputs: list[str]  # names of the graph's outputs, in order
    # of the graph's inputs: sizes, names of open axes, None for an open one without a name
    shapes: list[list[int | str | None]]
    nodes: list[Placed]  # where each node runs; empty on the CPU, where there is no other place
    _session: Any

    def __call__(self, feeds: Feeds) -> dict[str, Any]:
        """Returns the outputs by name, as ONNX Runtime gives them.

        Raises:
            ProviderLostError: if the process is gone in which it ran.
            Exception: of ONNX Runtime, if it cannot run the graph.
        """
        try:
            if self.provider.limited:
                values = run_within_limits(self._session, self.outputs, feeds)
            else:
                values = self._session.run(self.outputs, feeds)
        except NotVerifiableError as error:
            raise ProviderLostError(self.provider.name, error) from error
        return dict(zip(self.outputs, values, strict=True))

    def feeds(self, values: list[Tensor]) -> Feeds:
        """Returns tensors in the graph's order as arrays by name."""
        return {name: _array(value) for name, value in zip(self.inputs, values, strict=True)}

    def run(self, values: list[Tensor]) -> list[Tensor]:
        """Returns all outputs on the CPU, for the inputs in the graph's order."""
        import torch

        types = {value.name: value.type for value in self._session.get_outputs()}
        return [
            torch.from_numpy(array).view(torch.bfloat16) if types[name] == BFLOAT16 else torch.from_numpy(array)
            for name, array in self(self.feeds(values)).items()
        ]

    def end_profile(self) -> Path:
        """Returns the finished profile of a session that was opened with one."""
        return Path(self._session.end_profiling())


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    """A tensor as ONNX Runtime takes it; bfloat16, which numpy has not, as its bits."""
    import torch

    bits = value.dtype == torch.bfloat16
    return (value.contiguous().view(torch.uint16) if bits else value).numpy(force=True)


def open_session(
    model: Path | ModelProto, provider: str, level: Level, *, profile: str | None = None, runs: bool = True
) -> Session:
    """Opens a session.

    Args:
        model: the ONNX file, or a model in memory.
        provider: its name, for example `cpu`.
        level: `off` runs the graph as it is written; `all` is what ONNX Runtime does by default. Both matter: its
            optimizer removes a Dropout that is in training mode, so the file looks deterministic there only.
        profile: with a profile of its runs, in a file whose path starts with this.
        runs: whether it is going to be run; False asks only whether the file loads.

    A session on `cuda` may hold nodes that run on the CPU: `check_placement` has to look at `nodes`. ONNX Runtime's
    own refusal, `session.disable_cpu_ep_fallback`, names no node and says the same where a library is missing.

    Raises:
        NotVerifiableError: if the provider cannot be used, the file is too new for it, or it lacks bfloat16 kernels
            that the file needs; the message says what helps.
        Exception: of ONNX Runtime, if it cannot load the model.
    """
    where = provider_of(provider)
    reason = None if where.is_fallback else where.explain_unusable()
    if reason is not None:
        raise NotVerifiableError(f"{where.name.upper()} cannot be used: {reason}")
    try:
        session = where.open(model, optimized=level == "all", profile=profile, runs=runs)
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        reason = where.explain_error(error)  # out of memory, for example: nothing is known about the file
        if reason is not None:
            raise NotVerifiableError(f"{where.name.upper()} cannot be used: {reason}") from error
        if reason := _not_the_files_fault(where, model, error):
            raise NotVerifiableError(f"{where.name.upper()} cannot run this file: {reason}") from error
        raise
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return Session(
        where,
        [value.name for value in inputs],
        [value.name for value in outputs],
        [list(value.shape) for value in inputs],
        where.nodes(session),
        session,
    )


def newest_opset(provider: Provider | None = None) -> int:
    """Returns the newest opset that a provider's ONNX Runtime loads, of those that the installed onnx knows.

    Args:
        provider: which; the one of the CPU by default.
    """
    from onnx import defs

    for opset in range(defs.onnx_opset_version(), DEFAULT_OPSET, -1):
        if _is_loaded(provider or fallback(), opset):
            return opset
    return DEFAULT_OPSET


def _not_the_files_fault(provider: Provider, model: Path | ModelProto, error: Exception) -> str | None:
    """Returns what a provider lacks that a file which it does not open needs; None where nothing is known to."""
    try:
        proto = load_onnx(model) if isinstance(model, Path) else model
    except LoadError:
        return None
    reason = explain_bfloat16(error, proto, lambda one: provider.open(one, optimized=False, runs=False))
    return reason or (None if provider.is_fallback else _too_new(provider, proto))


def _too_new(provider: Provider, proto: ModelProto) -> str | None:
    """Returns that a provider's ONNX Runtime, which may be an older one than this, loads no file of this opset."""
    opset = next((entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), DEFAULT_OPSET)
    if _is_loaded(provider, opset, proto.ir_version):
        return None
    newest, version = newest_opset(provider), provider.runtime.facts()["version"]
    what = f"opset {opset}, IR version {proto.ir_version}"
    return f"it has {what}, which its onnxruntime {version} does not load; export it with --opset {newest} or older"


def _is_loaded(provider: Provider, opset: int, ir_version: int = IR_VERSION) -> bool:
    from onnx import parser

    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
    model = parser.parse_model(f"{header} probe (float[1] x) => (float[1] y) {{ y = Identity(x) }}")
    try:
        provider.open(model, optimized=True)
    except Exception:  # ONNX Runtime raises a dozen types without a common base; that it does is the answer
        return False
    return True
