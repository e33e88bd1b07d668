"""What torchrun adds to a command: a process group, a share of the data for each process, and one that speaks."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Literal, NoReturn

from jumpout_export.errors import LoadError
from jumpout_export.exit_codes import WRONG_USAGE
from jumpout_export.streams import drop_stdout
from jumpout_export.supervisor import announce


def world_size() -> int:
    """Returns how many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Returns this process's number among them."""
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def process_group() -> Iterator[Literal["world"] | None]:
    """Joins the processes of torchrun for the block; yields what `process_group=` of the library takes.

    gloo, because what is exchanged is small and lies on the CPU anyway.
    """
    if world_size() == 1:
        yield None
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield "world"
    finally:
        dist.destroy_process_group()


def require_one_process(command: str) -> None:
    """Raises a LoadError if a command that is not made for it runs under torchrun."""
    if world_size() > 1:
        raise LoadError(
            f"{command} runs in one process, got {world_size()} from torchrun; only check-bn and recalibrate-bn share "
            "the samples between processes"
        )


def leave(code: int) -> NoReturn:
    """Announces the exit code and ends the process with it.

    Under torchrun at once, because gloo's threads sometimes abort in the destructors at exit.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough
        drop_stdout()
    except OSError as error:
        drop_stdout()
        print(f"error: stdout cannot be written: {error.strerror or error}", file=sys.stderr)
        code = code or WRONG_USAGE
    announce(code)
    if world_size() == 1:
        sys.exit(code)
    sys.stderr.flush()
    os._exit(code)
