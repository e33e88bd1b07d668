"""Runs the command line: every exception becomes one line on stderr and an exit code."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from jumpout_export import signals
from jumpout_export.cli import ranks as cli_ranks
from jumpout_export.errors import (
    ArgumentError,
    ArgumentTypeError,
    JumpoutExportError,
    LoadError,
    MissingExtensionError,
    NotVerifiableError,
)
from jumpout_export.exit_codes import FAILED, NOT_VERIFIED, PASSED, WRONG_USAGE
from jumpout_export.streams import drop_stdout
from jumpout_export.text import first_line

# A full disk, and a stdout that is closed or whose other end is gone for good.
_UNWRITABLE = (errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EBADF)
# Arguments of the library, as the command line names them.
_OPTIONS = {
    "allow": "--allow",
    "allow_constant": "--allow-constant",
    "dtype": "--dtype",
    "dynamic_axes": "--dynamic",
    "external_data": "--external-data",
    "golden": "--golden",
    "max_clipped": "--max-clipped",
    "min_sqnr": "--min-sqnr",
    "nll_margin": "--nll-margin",
    "opset": "--opset",
    "path": "OUT.onnx",
    "provider_python": "--provider-python",
    "quantize": "--quantize",
    "quantize_calibration": "--calibration",
    "refuse_if_worse": "--refuse-if-worse",
    "require_batchnorm": "--require-batchnorm",
    "save_weights": "--save-weights",
    "top1_margin": "--top1-margin",
    "triton": "--triton",
}


def run(app: Callable[[], Any]) -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    signals.handle_signals()
    try:
        app()
    except SystemExit as ending:  # how typer ends, with the verdict or its own message about a wrong option
        # torchrun ends all processes once one fails: the verdict is left to the one that prints the report.
        code = ending.code if isinstance(ending.code, int) else PASSED if ending.code is None else NOT_VERIFIED
        cli_ranks.leave(code if cli_ranks.rank() == 0 else PASSED)
    except LoadError as error:
        _fail(error, WRONG_USAGE)
    except (NotVerifiableError, MissingExtensionError) as error:
        _fail(error, NOT_VERIFIED)
    except JumpoutExportError as error:
        _fail(error, FAILED)
    except ImportError as error:  # an extra is missing; the message names it
        _fail(error, NOT_VERIFIED)
    except (ArgumentError, ArgumentTypeError) as error:
        option = _OPTIONS.get(error.argument)
        _fail(f"{option}: {error}" if option else error, WRONG_USAGE)
    except (ValueError, TypeError) as error:
        _fail(error, WRONG_USAGE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:  # stdout of `--help` among others
            drop_stdout()
            _fail(f"{error.filename or 'a file'} cannot be written: {error.strerror}", WRONG_USAGE)
        traceback.print_exc()  # neither passed nor failed: it says why nothing was verified
        cli_ranks.leave(NOT_VERIFIED)
    except BaseException as error:  # nothing of ours: whoever raises one wants to end the process
        _fail(f"the code of the model or the data raised {type(error).__name__}: {first_line(error)}", NOT_VERIFIED)
    cli_ranks.leave(PASSED)


def _fail(error: object, code: int) -> NoReturn:
    where = f"rank {cli_ranks.rank()}: " if cli_ranks.world_size() > 1 else ""
    typer.echo(f"error: {where}{error}", err=True)
    cli_ranks.leave(code)
