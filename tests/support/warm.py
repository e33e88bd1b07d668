"""A Python that has imported everything: `[*warm_python(), "-c", code]` starts as `[sys.executable, "-c", code]` does.

torch and what belongs to it take seconds to import, and a hundred tests start a process. One process of a test session
(`warm_server.py`) imports them and waits. What a test starts is a client, as small as Python gets (`warm_client.py`):
it hands its arguments, folder, environment and open streams to the server, which forks; the copy runs the code with
those streams, with an interpreter that ends as every other does, and the client ends as the copy did, by its exit code
or by its signal. A signal that the client gets, the copy gets.

What is not the same, so that such a test takes `sys.executable`: modules are there before the first line runs; a
SIGKILL of the client ends the copy a moment later; the copy is no member of the client's process group; what an
environment variable settles when Python starts or a package is imported is settled.
"""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def _is_available() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # another system, an old one, or a container that forbids it
        return False
    return True


AVAILABLE = _is_available()


def warm_python() -> list[str]:
    """Returns the first words of a command; those of a new Python where the server cannot run."""
    return [sys.executable, "-I", "-S", str(HERE / "warm_client.py"), _server()] if AVAILABLE else [sys.executable]


@functools.cache
def _server() -> str:
    """Starts the server of this process and returns its address."""
    folder = tempfile.mkdtemp(prefix="warm-")
    address = os.path.join(folder, "socket")
    process = subprocess.Popen(
        [sys.executable, str(HERE / "warm_server.py"), address],
        stdin=subprocess.PIPE,  # its end tells the server that this process has ended
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert process.stdout.readline() == b"ready\n", "the server did not start"
    atexit.register(_stop, process)
    return address


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.stdin.close()
    process.wait(10)
    process.stdout.close()
