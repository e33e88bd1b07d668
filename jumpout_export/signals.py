"""Ctrl-C and SIGTERM: they end the command at once, or no longer, as soon as it publishes what it made."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from typing import NoReturn

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
# What is sent to a process group comes twice, from whoever sent it and from the parent process (`supervisor.py`); the
# second must not hit what cleans up after the first.
_ECHO = 1.0
_publishing = threading.Event()
_last = [-_ECHO]  # when the last one came, in seconds


class Interrupted(SystemExit):
    """Ends with 128 + the signal's number, as a shell reports it, and runs every `finally` on the way out."""


def handle_signals() -> None:
    """Lets a signal end the command as `interrupt` does; before the long imports, which would print a traceback."""
    _publishing.clear()
    _last[0] = -_ECHO
    for number in _NUMBERS:
        signal.signal(number, _handler)
    atexit.register(_ignore_if_publishing)


def defer_signals() -> None:
    """From here on no signal ends the command: a file is being published, and the exit code has to say so.

    What is left is short: renames, the report, the result. Nothing happens where `handle_signals` was not called.
    """
    _publishing.set()


def interrupt(number: int) -> NoReturn:
    """Says so and raises `Interrupted`, which ends the process."""
    # Typer would end with 1, which means that a check failed.
    _say("interrupted")
    raise Interrupted(128 + number)


def _handler(number: int, _: object) -> None:
    now = time.monotonic()
    echo, _last[0] = now - _last[0] < _ECHO, now
    if echo:
        return
    if not _publishing.is_set():
        interrupt(number)
    _say("interrupted too late: the file is being published, and the command ends with its own exit code")


def _ignore_if_publishing() -> None:
    """Python takes its handlers away before the process ends; a signal would then still change the exit code."""
    for number in _NUMBERS:
        if _publishing.is_set() and signal.getsignal(number) is _handler:
            signal.signal(number, signal.SIG_IGN)


def _say(text: str) -> None:
    # Not through sys.stderr: the signal may come in the middle of a write there, or while it is caught.
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
