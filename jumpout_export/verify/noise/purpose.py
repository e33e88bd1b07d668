"""What a file is meant to be, deterministic or random on purpose: what that excuses, and how it is verified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from jumpout_export.errors import ArgumentError
from jumpout_export.model.batches import Batch
from jumpout_export.onnxfile.metadata import RANDOM, add_entries
from jumpout_export.onnxfile.training import random_nodes
from jumpout_export.report import Check, VerifyReport
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.text import count, joined
from jumpout_export.verify.noise.on_purpose import verify_random
from jumpout_export.verify.runner import run_providers

if TYPE_CHECKING:
    from onnx import ModelProto

# By argument, why it cannot be had of a file that is random on purpose.
_REFUSED = {
    "golden": "golden data cannot be made for a file that is random on purpose: there is no output to replay, because "
    "each depends on",
    "triton": "Triton cannot serve a file that is random on purpose: it optimizes what draws away and gives ONNX "
    "Runtime no seed for",
}


class Deterministic:
    """A file that has to be free of noise; that of modules in `allow` must not matter.

    Attributes:
        metadata: what the file's metadata has to say of it.
        notes: what a report has to say of it.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        """Takes the modules that may draw random numbers."""
        self._allow = tuple(allow)
        self.metadata: dict[str, str] = {}
        self.notes: list[str] = []

    def mark(self, path: Path, file: ModelProto) -> None:
        """Writes into the metadata of the file at `path`, which is read as `file`, what there is to say of it."""
        add_entries(path, file, self.metadata)

    def excused(self, checks: Iterable[Check]) -> list[Check]:
        """Returns the checks of the file, without what is wanted."""
        return list(checks)

    def refuse(self, arguments: Iterable[str]) -> None:
        """Raises if one of these arguments of an export asks for what cannot be had.

        Raises:
            ValueError: if each output depends on random numbers.
        """

    def verify(
        self,
        file: SavedFile,
        original: nn.Module,
        network: nn.Module,
        batches: Iterable[Batch],
        providers: tuple[str, ...],
        **settings: Any,
    ) -> VerifyReport:
        """Returns the comparison of the file with the model; the arguments are those of `run_providers`."""
        return run_providers(file, original, network, batches, providers, allow=self._allow, **settings)


class OnPurpose(Deterministic):
    """A file with random nodes whose noise is wanted (Monte-Carlo dropout)."""

    def __init__(self, nodes: Sequence[str], allow: Iterable[str]) -> None:
        """Takes the random nodes, and the modules whose noise is wanted."""
        super().__init__(allow)
        drawing = f"{count(len(nodes), 'node')} ({joined(list(nodes))})"
        self._text = f"random on purpose: {drawing}, allowed in {_modules(self._allow)}"
        self.metadata = {RANDOM: self._text}
        self.notes = [f"NOT deterministic: {self._text}"]

    def excused(self, checks: Iterable[Check]) -> list[Check]:
        """Lets random nodes pass: they are what was asked for."""
        wanted = ("file/random nodes", "file/training dropout")
        return [
            check.model_copy(update={"verdict": "pass", "limit": check.measured, "note": f"{self._text}; {check.note}"})
            if check.name in wanted and check.verdict == "fail"
            else check
            for check in checks
        ]

    def refuse(self, arguments: Iterable[str]) -> None:
        """Raises: there is nothing to replay, and no server that gives seeds."""
        for argument in arguments:
            raise refusal(argument, self._allow)

    def verify(
        self,
        file: SavedFile,
        original: nn.Module,
        network: nn.Module,  # noqa: ARG002 what is random has no bits to compare
        batches: Iterable[Batch],
        providers: tuple[str, ...],
        **settings: Any,
    ) -> VerifyReport:
        """Compares distributions, at batch sizes of their own, and the network without its noise, if it can be had."""
        del settings["axes"], settings["recorded"]
        return verify_random(file.path, original, batches, providers, allow=self._allow, **settings)


def purpose_of(file: ModelProto, allow: Iterable[str]) -> Deterministic:
    """Returns what a file is meant to be, by its nodes and the modules whose noise is wanted; nothing is written."""
    allow = tuple(allow)
    nodes = random_nodes(file)
    return OnPurpose(nodes, allow) if allow and nodes else Deterministic(allow)


def refusal(argument: str, allow: Iterable[str]) -> ArgumentError:
    """Returns why what an argument of an export asks for cannot be had together with noise that is wanted."""
    return ArgumentError(
        argument,
        f"{_REFUSED[argument]} the random numbers allowed in {_modules(allow)} (allow, --allow); leave {argument} "
        f"(--{argument}) out",
    )


def _modules(allow: Iterable[str]) -> str:
    return ", ".join(f"`{entry}`" if entry else "the whole model" for entry in allow)
