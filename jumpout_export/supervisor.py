"""The command line's two processes: one works, its light parent waits for the verdict and hands signals on.

The exit code is what scripts act on, and the code of a model shares the process with ours: `os._exit(0)` in it, a crash
of a library or the system's lack of memory end that process with any code. So a code counts only if it was announced
over a pipe; whatever ends the process before that is not verified. The parent never imports torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from jumpout_export.exit_codes import NOT_VERIFIED

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_FORWARDED = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# Linux's prctl.
_PR_SET_PDEATHSIG = 1

# The process that may announce, and its end of the pipe.
_pipe: tuple[int, int] | None = None


def supervise(work: Callable[[], object]) -> NoReturn:
    """Runs `work` in a child process, and ends this one with the code that it announces.

    The child has this process's terminal, streams and group, so whatever is sent to the group reaches both. Where there
    are no child processes `work` runs in this one.

    Args:
        work: ends its process with an exit code, after `announce`.
    """
    pid = os.getpid()
    blocked = read = write = None
    if hasattr(os, "fork"):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        read, write = os.pipe()
    child = _fork()
    if child and read is not None and write is not None:
        os.close(write)
        _hand_on(child)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked or ())
        os._exit(_await(child, read))
    if child == 0 and read is not None and write is not None:
        global _pipe  # noqa: PLW0603 the one fact about this process
        os.close(read)
        _pipe = os.getpid(), write
        _end_with(pid)
    if blocked is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    work()
    sys.exit(NOT_VERIFIED)


def announce(code: int) -> None:
    """Tells the parent process the exit code; nothing happens where there is none, nor in a copy of this process."""
    if _pipe is not None and _pipe[0] == os.getpid():
        with contextlib.suppress(OSError):
            os.write(_pipe[1], bytes([code & 0xFF]))


def _fork() -> int | None:
    """As `os.fork`; None where no process can be had."""
    try:
        return os.fork() if hasattr(os, "fork") else None
    except OSError:
        return None


def _hand_on(child: int) -> None:
    def handler(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` wants that
            signal.signal(number, handler)


def _await(child: int, read: int) -> int:
    """The exit code for this process: what the child announced, however it ended afterwards."""
    _, status = os.waitpid(child, 0)
    os.set_blocking(read, False)  # processes that the child leaves behind hold the other end open
    with contextlib.suppress(BlockingIOError):
        if said := os.read(read, 1):
            return said[0]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hint = "; the system does that where memory runs out" if number == signal.SIGKILL else ""
        _say(f"error: {signal.Signals(number).name} ended the process before there was a verdict{hint}")
        return 128 + number if number in _FORWARDED else NOT_VERIFIED
    code = os.WEXITSTATUS(status)
    _say(
        f"error: the process ended with exit code {code} before there was a verdict: the code of the model or the data "
        "ended it, for example with os._exit"
    )
    return NOT_VERIFIED


def _end_with(parent: int) -> None:
    """Lets this process be killed as soon as its parent is, where the system can do that: nobody else waits for it."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it was killed before
            os._exit(NOT_VERIFIED)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
