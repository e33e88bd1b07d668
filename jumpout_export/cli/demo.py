"""The command demo, and what to look at after it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from jumpout_export.cli import options


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to write to")] = Path("runs/demo"),
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of images instead of the embedded digits")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="passes over the training images")] = 16,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Train on real images, check and recalibrate BatchNorm, export, verify and report."""
    from jumpout_export.cli.ready import check_report
    from jumpout_export.cli.results import exit_code, say, show
    from jumpout_export.cli.work import working
    from jumpout_export.demo import run_demo

    check_report(out, "--out")
    with working() as progress:
        report = run_demo(out, data, seed, epochs, progress)
    show(report, json, out, "--out")
    if not json:
        # `make demo` leaves the environment of .venv inactive.
        program = "jumpout-export" if shutil.which("jumpout-export") else f"{sys.executable} -m jumpout_export"
        hint = (
            f"\nEverything is in {out}. Look next at:\n"
            f"  {out / 'report.html'}   the report, for a browser\n"
            f"  cd {out} && {program} verify model.onnx --against model:network --weights weights.safetensors "
            "--data data.npz\n"
            f"  cd {out} && {program} check-bn model:network --weights weights_as_trained.safetensors --data data.npz"
        )
        say(lambda: typer.echo(hint))
    raise typer.Exit(exit_code(report))
