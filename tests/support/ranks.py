"""Several processes of one gloo group, as `torchrun --standalone` starts them, each a copy of the warm Python."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from torch.distributed import TCPStore

from support.warm import warm_python


def run_ranks(count: int, *arguments: object, timeout: float = 120, **settings: object) -> list[tuple[int, str, str]]:
    """Runs the program `arguments` in `count` processes; once one fails the others are ended, as torchrun does.

    Args:
        count: number of processes.
        arguments: what follows `python` on a command line.
        timeout: seconds for all of them.
        settings: of `subprocess.Popen`; `env` is what the processes get beside their rank.

    Returns:
        Exit code, stdout and stderr of each rank.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    base = {**(settings.pop("env", None) or os.environ), "OMP_NUM_THREADS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
    base |= {"LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0"}
    command = [*warm_python(), *map(str, arguments)]
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(_started(command, {**base, "RANK": str(rank), "LOCAL_RANK": str(rank)}, settings))
            for rank in range(count)
        ]
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda rank: _finished(rank, ranks, timeout), ranks))


@contextlib.contextmanager
def _started(command: list[str], env: dict[str, str], settings: dict) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _finished(rank: subprocess.Popen[str], ranks: list[subprocess.Popen[str]], timeout: float) -> tuple[int, str, str]:
    out, err = rank.communicate(timeout=timeout)
    if rank.returncode:
        for other in ranks:
            other.terminate()
    return rank.returncode, out, err
