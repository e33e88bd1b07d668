"""The command line, one thin file per verb, put together. stdout carries the result, stderr progress and messages.

Exit codes: 0 passed; 1 a check failed; 2 wrong usage; 3 could not be verified here.
"""

from __future__ import annotations

from typing import NoReturn

import typer

from jumpout_export.cli import info as cli_info
from jumpout_export.cli import ranks as cli_ranks
from jumpout_export.cli.batchnorm import check_bn, recalibrate_bn
from jumpout_export.cli.demo import demo
from jumpout_export.cli.errors import run
from jumpout_export.cli.export import export
from jumpout_export.cli.fold import fold
from jumpout_export.cli.verify import inspect, verify

app = typer.Typer(
    name="jumpout-export",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Check BatchNorm between training and serving, and export ONNX files proven free of training-time noise.\n\n"
    "Exit codes: 0 passed, 1 a check failed, 2 wrong usage, 3 could not be verified here.",
)


@app.callback()
def _before_every_command(context: typer.Context) -> None:
    if context.invoked_subcommand not in ("check-bn", "recalibrate-bn"):
        cli_ranks.require_one_process(context.invoked_subcommand or "")


# In the order of the help.
app.command()(demo)
app.command()(export)
app.command()(verify)
app.command("check-bn")(check_bn)
app.command("recalibrate-bn")(recalibrate_bn)
app.command()(inspect)
app.command()(fold)
app.command()(cli_info.info)


def main() -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    run(app)
