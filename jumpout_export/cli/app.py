"""The command line, one thin file per verb, put together. stdout carries the result, stderr progress and messages.

Exit codes: 0 passed; 1 a check failed; 2 wrong usage; 3 could not be verified here.

A verb's file imports at its top what says what the command takes, and in the function what does the work: help, wrong
usage and completion answer without torch.
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

import jumpout_export
from jumpout_export.cli import info as cli_info
from jumpout_export.cli import ranks as cli_ranks
from jumpout_export.cli.attest import attest, verify_attestation
from jumpout_export.cli.batchnorm import check_bn, recalibrate_bn
from jumpout_export.cli.demo import demo
from jumpout_export.cli.errors import run
from jumpout_export.cli.export import export
from jumpout_export.cli.fold import fold
from jumpout_export.cli.verify import inspect, verify

app = typer.Typer(
    name="jumpout-export",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Check BatchNorm between training and serving, and export ONNX files proven free of training-time noise.\n\n"
    "Exit codes: 0 passed, 1 a check failed, 2 wrong usage, 3 could not be verified here.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jumpout-export {jumpout_export.__version__}")
        raise typer.Exit


@app.callback()
def _before_every_command(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 its callback answers
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in ("check-bn", "recalibrate-bn"):
        cli_ranks.require_one_process(context.invoked_subcommand or "")


def _example(text: str) -> str:
    """The last lines of a command's help, kept as they are."""
    return f"Example:\n\n\b\n  jumpout-export {text}"


# In the order of the help.
app.command(epilog=_example("demo --out runs/demo"))(demo)
app.command(epilog=_example("export zoo:resnet model.onnx --weights trained.safetensors --data images/"))(export)
app.command(epilog=_example("verify model.onnx --against zoo:resnet --weights trained.safetensors --data images/"))(
    verify
)
app.command("check-bn", epilog=_example("check-bn zoo:resnet --weights trained.safetensors --data images/"))(check_bn)
app.command(
    "recalibrate-bn",
    epilog=_example("recalibrate-bn zoo:resnet --weights trained.safetensors --data images/ -o new.safetensors"),
)(recalibrate_bn)
app.command(epilog=_example("inspect model.onnx"))(inspect)
app.command(epilog=_example("fold noisy.onnx folded.onnx"))(fold)
app.command(epilog=_example("attest model.onnx --report report.json --key key.pem"))(attest)
app.command(
    "verify-attestation", epilog=_example("verify-attestation model.onnx.intoto.jsonl --public-key public.pem")
)(verify_attestation)
app.command(epilog=_example("info --json"))(cli_info.info)


def main() -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    run(app)
