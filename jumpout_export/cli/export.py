"""The command export, and the check of BatchNorm whose verdict it records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jumpout_export.cli import options
from jumpout_export.errors import LoadError

if TYPE_CHECKING:
    from jumpout_export.cli.work import Job
    from jumpout_export.model.batches import Progress
    from jumpout_export.report import BatchNormReport


def export(
    model: options.ModelOrProgram,
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="the file to write; appears only if it passed")],
    weights: options.Weights = None,
    data: options.Data = None,
    input_shape: options.InputShape = None,
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="recalibrate BatchNorm on the data first")] = False,
    save_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="NEW.safetensors",
            help="where --recalibrate writes the new weights; OUT.recalibrated.safetensors by default",
        ),
    ] = None,
    require_batchnorm: Annotated[
        bool, typer.Option("--require-batchnorm", help="publish nothing where BatchNorm drifts or is undecided")
    ] = False,
    providers: options.Providers = "cpu",
    provider_python: options.ProviderPython = None,
    opset: Annotated[
        int | None, typer.Option(metavar="N", help="ONNX opset, 18 or later; the converter's own, 18, by default")
    ] = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch/--static", help="leave the batch size open")] = True,
    dynamic: options.Dynamic = None,
    dtype: options.DtypeOption = None,
    external_data: options.ExternalData = False,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="module path that may stay random in eval mode; repeatable")
    ] = None,
    allow_constant: options.AllowConstant = None,
    no_made_up_inputs: options.NoMadeUpInputs = False,
    thorough: options.Thorough = False,
    keep_debug_info: Annotated[
        bool, typer.Option("--keep-debug-info", help="keep source lines and file names in the file")
    ] = False,
    quantize: options.QuantizeOption = None,
    calibration: options.Calibration = None,
    min_sqnr: options.MinSqnr = None,
    max_clipped: options.MaxClipped = None,
    top1_margin: options.Top1Margin = None,
    nll_margin: options.NllMargin = None,
    no_accuracy: options.NoAccuracy = False,
    golden: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder for golden data, in ONNX's test_data_set_0 layout")
    ] = None,
    triton: options.TritonRepository = None,
    samples: options.NumSamples = 4096,
    batch_size: options.BatchSize = 128,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    json: options.Json = False,
    report: options.ReportDir = None,
    junit: options.Junit = None,
    summary: options.Summary = None,
) -> None:
    """Fold, convert and verify a model; OUT.onnx appears only if every check passed."""
    from jumpout_export.cli.ready import (
        check_data,
        check_pages,
        check_providers,
        check_report,
        parse_providers,
        quantized_limits,
    )
    from jumpout_export.cli.results import finish
    from jumpout_export.cli.work import batches_for, build_job, is_program, up_to, working
    from jumpout_export.export.arguments import check_arguments, check_quantize
    from jumpout_export.export.publish import export_onnx
    from jumpout_export.export.triton import check_entry
    from jumpout_export.runtime.providers import providers_in
    from jumpout_export.verify.precision import dtypes

    check_pages(junit, summary)
    chosen = parse_providers(providers)
    dynamic_axes = parse_dynamic(dynamic)
    torch_dtype = dtypes()[dtype] if dtype else None
    kind = quantize.value if quantize is not None else None
    limits = quantized_limits(
        kind is not None, "--quantize int8", min_sqnr, max_clipped, top1_margin, nll_margin, no_accuracy
    )
    check_quantize(
        kind,
        calibration,
        limits,
        {"dtype": torch_dtype, "golden": golden, "external_data": external_data, "allow": allow},
    )
    check_arguments(out, golden, opset, torch_dtype)
    check_entry(triton, out, chosen)
    check_report(report)
    check_data([data, calibration])
    place = _place_of_weights(save_weights, out, recalibrate, [weights, Path(data) if data else None])
    with providers_in(provider_python, chosen), working() as progress:
        check_providers(chosen)
        job = build_job(model, weights, device, data, input_shape, batch_size, seed, programs=True)
        for option, wanted in (("--recalibrate", recalibrate), ("--require-batchnorm", require_batchnorm)):
            if wanted and is_program(model):
                raise LoadError(f"{option}: the exported program {model} has no BatchNorm layers; give the factory")
            if wanted and data is None:
                raise LoadError(f"{option} needs real samples: give --data")
        ranges = (
            batches_for(job.network, calibration, batch_size, seed, option="--calibration") if calibration else None
        )
        checked = _check_before(job, model, data, recalibrate, samples, progress)
        result = export_onnx(
            job.network,
            out,
            next(iter(job.batches)),
            calibration=job.some() if kind is None else job.up_to(samples),
            providers=chosen,
            provider_python=provider_python,
            opset=opset,
            dynamic_batch=dynamic_batch,
            dynamic_axes=dynamic_axes,
            dtype=torch_dtype,
            external_data=external_data or None,
            allow=tuple(allow or ()),
            allow_constant=tuple(allow_constant or ()),
            made_up=not no_made_up_inputs,
            thorough=thorough,
            keep_debug_info=keep_debug_info,
            batchnorm=checked.batchnorm,
            require_batchnorm=require_batchnorm,
            quantize=kind,
            quantize_calibration=up_to(ranges, samples) if ranges is not None else None,
            quantized=limits,
            golden=golden,
            triton=triton,
            save_weights=place if checked.before is not None else None,
            seed=seed,
            progress=progress,
        )
    result.batchnorm_before = checked.before
    result.notes += checked.notes
    finish(result, json, report, junit=junit, summary=summary)


def parse_dynamic(entries: list[str] | None) -> dict[str, dict[int, str]]:
    """Returns `--dynamic INPUT:AXIS=NAME` entries as {input: {axis: name}}.

    Raises:
        LoadError: if one has another form, or names an axis twice.
    """
    axes: dict[str, dict[int, str]] = {}
    for entry in entries or ():
        place, _, name = entry.partition("=")
        given, _, axis = place.rpartition(":")
        if not (given and axis.isdecimal() and name):
            raise LoadError(f"--dynamic must be INPUT:AXIS=NAME, for example image:2=height, got {entry!r}")
        if int(axis) in axes.get(given, {}):
            raise LoadError(f"--dynamic names axis {axis} of {given} twice")
        axes.setdefault(given, {})[int(axis)] = name
    return axes


@dataclass
class _Checked:
    """What is known of BatchNorm: of the weights that are exported, and of those before they were recalibrated."""

    batchnorm: BatchNormReport | None = None
    before: BatchNormReport | None = None
    notes: list[str] = field(default_factory=list)


def _place_of_weights(given: Path | None, out: Path, recalibrate: bool, inputs: list[Path | None]) -> Path | None:
    """Returns where the recalibrated weights go, if any are made; never over what the command reads.

    Raises:
        LoadError: if that would be over an input, or the option is given for weights that nobody changes.
    """
    from jumpout_export.export.statistics import check_weights_target

    if not recalibrate:
        if given is not None:
            raise LoadError("--save-weights writes what --recalibrate makes: give both, or neither")
        return None
    place = given or out.with_suffix(".recalibrated.safetensors")
    for read in inputs:
        if read is not None and (read == place or (read.exists() and place.exists() and read.samefile(place))):
            raise LoadError(
                f"the recalibrated weights would be written over {read}, which is read: give another --save-weights"
            )
    check_weights_target(place)
    return place


def _check_before(
    job: Job, model: str, data: str | None, recalibrate: bool, samples: int, progress: Progress
) -> _Checked:
    """Returns the check whose verdict an export records, recalibrated before if asked for."""
    from functools import partial

    from jumpout_export.batchnorm.check import check_batchnorm
    from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
    from jumpout_export.cli.work import is_program
    from jumpout_export.model.norms import serves_with_statistics

    if is_program(model):
        typer.echo(
            f"BatchNorm was not checked: the exported program {model} is a graph without BatchNorm layers; for that "
            "run check-bn on the factory",
            err=True,
        )
        return _Checked()
    if data is None:
        typer.echo("BatchNorm was not checked: that needs --data", err=True)
        return _Checked()
    if not any(map(serves_with_statistics, job.network.modules())):
        return _Checked()
    check = partial(check_batchnorm, job.network, job.batches, samples=samples, progress=progress)
    if not recalibrate:
        return _Checked(check())
    before = check(outputs=False)
    done = recalibrate_batchnorm(job.network, job.batches, samples=samples, outputs=True, progress=progress)
    before.outputs = done.outputs
    recalibrated = f"BatchNorm layers recalibrated: {len(done.layers)}; passes over the data: {done.passes}"
    return _Checked(check(outputs=False), before, [recalibrated, *([done.note] if done.note else [])])
