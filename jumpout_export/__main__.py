"""`python -m jumpout_export` and `jumpout-export`: what has to be there before the long imports of the command line."""

from __future__ import annotations

import atexit
import gc
import sys
from typing import NoReturn

from jumpout_export.exit_codes import NOT_VERIFIED
from jumpout_export.signals import Interrupted, handle_signals
from jumpout_export.streams import prepare_streams
from jumpout_export.supervisor import announce, supervise


def main() -> NoReturn:
    """Runs the command line in a child process and ends this one with the exit code of its verdict."""
    prepare_streams()
    handle_signals()
    supervise(_work)


def _work() -> None:
    atexit.register(gc.freeze)  # or Python looks through all of torch for garbage as it ends, 0.2 s and more
    try:
        from jumpout_export.cli import app as cli
    except Interrupted as ending:  # during the long imports
        announce(int(ending.code or 0))
        raise
    except ImportError as error:  # the compiled extension or a package is missing; the message names it
        print(f"error: {error}", file=sys.stderr)
        announce(NOT_VERIFIED)
        sys.exit(NOT_VERIFIED)
    cli.main()


if __name__ == "__main__":
    main()
