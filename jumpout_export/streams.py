"""stdout and stderr of the command line, whatever state its caller left them in: no exit code depends on it."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

_STDIN, _STDOUT, _STDERR = range(3)


class _Lossy(io.FileIO):
    """A stream for messages, which are lost where they cannot be written: a full disk is no verdict."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data).cast("B"))


def prepare_streams() -> None:
    """Opens those of stdin, stdout and stderr that are closed, and lets stderr never fail.

    What a process opens takes the lowest free number: prints would end up in a file of ours. A closed stdout stays one
    that cannot be written, since nobody would get the result.
    """
    # Python knows no stream for a closed handle.
    for handle, mode in ((_STDIN, os.O_RDONLY), (_STDOUT, os.O_RDONLY), (_STDERR, os.O_WRONLY)):
        try:
            os.fstat(handle)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdout is None:
        sys.stdout = open(_STDOUT, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 as long as the process
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    stream = io.BufferedWriter(_Lossy(_STDERR, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(stream, encoding, errors="backslashreplace", line_buffering=True)


def drop_stdout() -> None:
    """Throws away what is still to be printed: Python would try again at its end, and change the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
