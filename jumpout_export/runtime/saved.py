"""A saved file that is looked at from many sides: read once, and each of its sessions opened once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.runtime.session import Level, Session, open_session

if TYPE_CHECKING:
    from onnx import ModelProto


class SavedFile:
    """An ONNX file that nobody writes to as long as it is looked at.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sessions: dict[tuple[str, Level], Session] = {}

    @cached_property
    def proto(self) -> ModelProto:
        """Its protobuf without external data, not to be changed.

        Raises:
            LoadError: as `load_onnx`.
        """
        return load_onnx(self.path)

    def session(self, provider: str, level: Level) -> Session:
        """Returns the session of a provider and level; raises as `open_session`, each time."""
        key = provider, level
        if key not in self._sessions:
            self._sessions[key] = open_session(self.path, provider, level)
        return self._sessions[key]
