"""Runs a file that nobody has reviewed without letting it take the machine: bounded memory, bounded time.

What a graph takes is not known before it runs: a few bytes can ask for terabytes (ConstantOfShape, Expand, Range), or
for 2^63 rounds of a Loop. What the sizes in the file already say is refused before (`onnxfile/sizes.py`); this is for
the rest.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

_Result = TypeVar("_Result")

# One run on one batch. A network that needs longer would make PyTorch need as long, many times over.
SECONDS = 600.0
# What stays free for everything else, in bytes.
_SPARE = 256 << 20


def run_within_limits(session: Any, outputs: list[str], feeds: dict[str, Any]) -> list[Any]:
    """Returns what `session.run(outputs, feeds)` returns, or raises what ONNX Runtime raises when it is stopped.

    Args:
        session: an ONNX Runtime session on the CPU.
        outputs: names.
        feeds: arrays by name.

    Raises:
        TimeoutError: after `SECONDS`.
        MemoryError: if the run asks for more memory than the machine has free.
        Exception: of ONNX Runtime, if it cannot run the graph.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    late = threading.Event()

    def stop() -> None:
        late.set()
        options.terminate = True  # ONNX Runtime looks at it between two nodes

    timer = threading.Timer(SECONDS, stop)
    timer.daemon = True
    timer.start()
    try:
        return within_memory(lambda: session.run(outputs, feeds, options))
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        if late.is_set():
            raise TimeoutError(f"one run takes longer than {SECONDS:g} seconds, it was stopped") from error
        raise
    finally:
        timer.cancel()


def within_memory(action: Callable[[], _Result]) -> _Result:
    """Returns `action()`; what it asks for beyond the memory that is free now fails, instead of ending the process.

    Linux grants memory that it does not have, and ends the process when it is used. Elsewhere nothing is limited, and
    what a container may use is not looked at: there the process ends, and nothing is published either.

    Raises:
        MemoryError: if that much memory is not free.
    """
    with _address_space():
        try:
            return action()
        except Exception as error:  # as above
            if isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
                raise MemoryError("it asks for more memory than this machine has free") from error
            raise


# The arena that could not grow, and C++'s own exception.
_NO_MEMORY = ("bfc_arena.cc", "std::bad_alloc", "Failed to allocate memory")


@contextlib.contextmanager
def _address_space() -> Iterator[None]:
    free = _free_bytes()
    if free is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _own_bytes() + max(free - _SPARE, _SPARE)
    if resource.RLIM_INFINITY != soft <= most:
        yield  # whoever started this process has set a stricter limit
        return
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _free_bytes() -> int | None:
    """What can be used without swapping, by Linux's own estimate; None where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _own_bytes() -> int:
    """The address space that this process has already."""
    import resource

    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
