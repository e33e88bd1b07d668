"""`python -m jumpout_export` and `jumpout-export`: what has to be there before the long imports of the command line."""

from __future__ import annotations

from typing import NoReturn

from jumpout_export.signals import handle_signals


def main() -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    handle_signals()
    from jumpout_export.cli import app as cli

    cli.main()


if __name__ == "__main__":
    main()
