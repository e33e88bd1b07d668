"""The commands verify and inspect: is the file the model, and is nothing of training in it?"""

from __future__ import annotations

from typing import Annotated

import typer

from jumpout_export.cli import options


def verify(
    file: options.OnnxFile,
    against: Annotated[
        str,
        typer.Option(metavar="MODEL", help="package.module:factory of the model, file.pt2, or another file.onnx"),
    ],
    weights: options.Weights = None,
    data: options.Data = None,
    input_shape: options.InputShape = None,
    providers: options.Providers = "cpu",
    provider_python: options.ProviderPython = None,
    batch_size: options.BatchSize = 128,
    device: options.Device = "cpu",
    allow_constant: options.AllowConstant = None,
    no_made_up_inputs: options.NoMadeUpInputs = False,
    thorough: options.Thorough = False,
    quantized: options.QuantizedSwitch = False,
    min_sqnr: options.MinSqnr = None,
    max_clipped: options.MaxClipped = None,
    top1_margin: options.Top1Margin = None,
    nll_margin: options.NllMargin = None,
    no_accuracy: options.NoAccuracy = False,
    samples: options.NumSamples = 4096,
    seed: options.Seed = 0,
    json: options.Json = False,
    report: options.ReportDir = None,
    junit: options.Junit = None,
    summary: options.Summary = None,
) -> None:
    """Verify an ONNX file against a torch model, or against the ONNX file that it was made of, in ONNX Runtime."""
    from jumpout_export.cli.ready import (
        check_data,
        check_pages,
        check_providers,
        check_report,
        parse_providers,
        quantized_limits,
    )
    from jumpout_export.cli.results import finish
    from jumpout_export.cli.work import build_job, is_file, working
    from jumpout_export.extras import require_onnx
    from jumpout_export.runtime.providers import providers_in
    from jumpout_export.verify.verify import verify_onnx

    check_pages(junit, summary)
    check_report(report)
    chosen = parse_providers(providers)
    limits = quantized_limits(quantized, "--quantized", min_sqnr, max_clipped, top1_margin, nll_margin, no_accuracy)
    require_onnx("onnx", "onnxruntime")
    check_data([data])
    with providers_in(provider_python, chosen), working() as progress:
        check_providers(chosen)
        job = build_job(against, weights, device, data, input_shape, batch_size, seed, programs=True, files=True)
        result = verify_onnx(
            file,
            against if is_file(against) else job.network,
            job.some() if limits is None else job.up_to(samples),
            chosen,
            provider_python=provider_python,
            allow_constant=tuple(allow_constant or ()),
            made_up=not no_made_up_inputs,
            thorough=thorough,
            quantized=limits or False,
            seed=seed,
            progress=progress,
        )
    finish(result, json, report, junit=junit, summary=summary)


def inspect(
    file: options.OnnxFile,
    json: options.Json = False,
    report: options.ReportDir = None,
    junit: options.Junit = None,
    summary: options.Summary = None,
) -> None:
    """Prove without running it that an ONNX file holds nothing random and nothing in training mode."""
    from jumpout_export.cli.ready import check_pages, check_report
    from jumpout_export.cli.results import finish
    from jumpout_export.verify.inspect import inspect_onnx

    check_pages(junit, summary)
    check_report(report)
    result = inspect_onnx(file)
    finish(result, json, report, junit=junit, summary=summary)
