"""The command line: one thin command per verb. stdout carries the result, stderr progress and messages.

Exit codes: 0 passed; 1 a check failed; 2 wrong usage; 3 could not be verified here.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from jumpout_export import demo as demo_module
from jumpout_export.cli import info as cli_info
from jumpout_export.cli import ranks as cli_ranks
from jumpout_export.cli.batchnorm import check_before_export, check_bn, recalibrate_bn
from jumpout_export.cli.errors import run
from jumpout_export.cli.options import (
    BatchSize,
    Data,
    Device,
    DtypeOption,
    Dynamic,
    ExternalData,
    InputShape,
    Json,
    ModelOrProgram,
    NumImages,
    OnnxFile,
    Providers,
    ReportDir,
    Seed,
    Weights,
)
from jumpout_export.cli.work import (
    build_model,
    check_folder,
    exit_code,
    is_program,
    parse_dynamic,
    parse_providers,
    read_batches,
    say,
    show,
    try_first_batch,
    working,
)
from jumpout_export.disk import check_target
from jumpout_export.errors import LoadError
from jumpout_export.export.arguments import check_arguments
from jumpout_export.export.publish import export_onnx
from jumpout_export.fold.file.fold_file import TARGET, fold_onnx
from jumpout_export.verify.inspect import inspect_onnx
from jumpout_export.verify.precision import dtypes
from jumpout_export.verify.verify import verify_onnx

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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("runs/demo"),
    data: Annotated[Path | None, typer.Option(help="folder of images instead of the embedded digits")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the training images")] = demo_module.EPOCHS,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train on real images, check and recalibrate BatchNorm, export, verify and report."""
    check_folder(out, "--out")
    with working() as progress:
        report = demo_module.run_demo(out, data, seed, epochs, progress)
    show(report, json, out)
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


@app.command()
def export(
    model: ModelOrProgram,
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="the file to write; appears only if it passed")],
    weights: Weights = None,
    data: Data = None,
    input_shape: InputShape = None,
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="recalibrate BatchNorm on the data first")] = False,
    providers: Providers = "cpu",
    opset: Annotated[
        int | None, typer.Option(help="ONNX opset, 18 or later; the converter's own, 18, by default")
    ] = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch/--static", help="leave the batch size open")] = True,
    dynamic: Dynamic = None,
    dtype: DtypeOption = None,
    external_data: ExternalData = False,
    allow: Annotated[
        list[str] | None, typer.Option(help="module path that may stay random in eval mode; repeatable")
    ] = None,
    keep_debug_info: Annotated[
        bool, typer.Option("--keep-debug-info", help="keep source lines and file names in the file")
    ] = False,
    golden: Annotated[
        Path | None, typer.Option(help="folder for golden data, in ONNX's test_data_set_0 layout")
    ] = None,
    images: NumImages = 4096,
    batch_size: BatchSize = 128,
    device: Device = "cpu",
    seed: Seed = 0,
    json: Json = False,
    report: ReportDir = None,
) -> None:
    """Fold, convert and verify a model; OUT.onnx appears only if every check passed."""
    chosen = parse_providers(providers)
    dynamic_axes = parse_dynamic(dynamic)
    torch_dtype = dtypes()[dtype] if dtype else None
    check_arguments(out, golden, opset, torch_dtype)
    check_folder(report, "--report")
    with working() as progress:
        network = build_model(model, weights, device, programs=True)
        batches = read_batches(data, input_shape, batch_size, seed)
        try_first_batch(network, batches)
        if recalibrate and is_program(model):
            raise LoadError(f"--recalibrate: the exported program {model} has no BatchNorm layers; give the factory")
        batchnorm = check_before_export(network, model, batches, data, recalibrate, images, progress)
        result = export_onnx(
            network,
            out,
            next(iter(batches)),
            calibration=list(itertools.islice(batches, 4)),
            providers=chosen,
            opset=opset,
            dynamic_batch=dynamic_batch,
            dynamic_axes=dynamic_axes,
            dtype=torch_dtype,
            external_data=external_data or None,
            allow=tuple(allow or ()),
            keep_debug_info=keep_debug_info,
            batchnorm=batchnorm,
            golden=golden,
            seed=seed,
            progress=progress,
        )
    show(result, json, report)
    raise typer.Exit(exit_code(result))


@app.command()
def verify(
    file: OnnxFile,
    against: Annotated[
        str, typer.Option(metavar="MODEL", help="package.module:factory of the torch model, or file.pt2")
    ],
    weights: Weights = None,
    data: Data = None,
    input_shape: InputShape = None,
    providers: Providers = "cpu",
    batch_size: BatchSize = 128,
    device: Device = "cpu",
    seed: Seed = 0,
    json: Json = False,
    report: ReportDir = None,
) -> None:
    """Verify an ONNX file against a torch model in ONNX Runtime."""
    check_folder(report, "--report")
    chosen = parse_providers(providers)
    with working() as progress:
        network = build_model(against, weights, device, programs=True)
        batches = read_batches(data, input_shape, batch_size, seed)
        try_first_batch(network, batches)
        inputs = list(itertools.islice(batches, 4))
        result = verify_onnx(file, network, inputs, chosen, seed=seed, progress=progress)
    show(result, json, report)
    raise typer.Exit(exit_code(result))


app.command("check-bn")(check_bn)
app.command("recalibrate-bn")(recalibrate_bn)


@app.command()
def inspect(file: OnnxFile, json: Json = False, report: ReportDir = None) -> None:
    """Prove without running it that an ONNX file holds nothing random and nothing in training mode."""
    check_folder(report, "--report")
    result = inspect_onnx(file)
    show(result, json, report)
    raise typer.Exit(exit_code(result))


@app.command()
def fold(
    file: OnnxFile,
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="the file to write; appears only if it passed")],
    seed: Seed = 0,
    json: Json = False,
    report: ReportDir = None,
) -> None:
    """Rewrite an ONNX file that carries training-time noise into a deterministic one, with proof, or refuse."""
    check_target(out, TARGET)
    check_folder(report, "--report")
    result = fold_onnx(file, out, seed=seed)
    show(result, json, report)
    raise typer.Exit(exit_code(result))


@app.command()
def info(json: Json = False) -> None:
    """Show what runs here: versions, the compiled extension, CUDA, ONNX Runtime's providers and why one cannot."""
    import json as json_module

    facts = cli_info.facts()
    if json:
        text = json_module.dumps(facts, indent=2)
    else:
        width = max(map(len, facts))
        text = "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())
    say(lambda: typer.echo(text))


def main() -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    run(app)
