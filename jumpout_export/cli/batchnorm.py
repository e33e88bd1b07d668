"""The commands about BatchNorm: check-bn and recalibrate-bn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jumpout_export import signals
from jumpout_export.cli import options
from jumpout_export.cli import ranks as cli_ranks
from jumpout_export.disk import require_plain
from jumpout_export.errors import LoadError


def check_bn(
    model: options.Model,
    data: options.ManyData,
    weights: options.Weights = None,
    reference: options.ReferenceData = None,
    per_folder: options.PerFolder = False,
    groups: options.GroupsOption = None,
    samples: options.NumSamples = 4096,
    warn: options.Warn = 0.05,
    fail: options.Fail = 0.15,
    training_batch_size: options.TrainingBatchSize = None,
    weigh_by: options.WeighBy = options.Weight.samples,
    batch_size: options.BatchSize = 128,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    json: options.Json = False,
    report: options.ReportDir = None,
    junit: options.Junit = None,
    summary: options.Summary = None,
) -> None:
    """Check whether the stored BatchNorm statistics agree with what serving sees."""
    from jumpout_export.batchnorm.sets import check_batchnorm_sets
    from jumpout_export.cli.ready import check_data, check_pages, check_report
    from jumpout_export.cli.results import finish
    from jumpout_export.cli.work import batches_for, build_job, sets_of, working

    check_pages(junit, summary)
    check_report(report)
    specs = sets_of(data, per_folder=per_folder)
    check_data([*specs.values(), reference])
    with working() as progress:
        first, *others = specs
        job = build_job(model, weights, device, specs[first], None, batch_size, seed, groups=groups)
        sets = {first: job.batches}
        sets |= {name: batches_for(job.network, specs[name], batch_size, seed, groups) for name in others}
        known = None if reference is None else batches_for(job.network, reference, batch_size, seed, groups)
        with cli_ranks.process_group() as group:
            checked = check_batchnorm_sets(
                job.network,
                sets,
                reference=known,
                groups=groups,
                samples=samples,
                warn=warn,
                fail=fail,
                training_batch_size=training_batch_size,
                weigh_by=weigh_by.value,
                process_group=group,
                progress=progress,
            )
    result = checked if others or per_folder else checked.sets[first]
    finish(result, json, report, junit=junit, summary=summary)


def recalibrate_bn(
    model: options.Model,
    data: options.NeededData,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="NEW.safetensors", help="where to write the new weights")
    ] = None,
    weights: options.Weights = None,
    method: Annotated[
        options.Method, typer.Option(metavar=options.choices(options.Method), help="exact, batch or variance")
    ] = options.Method.exact,
    layers: options.Layers = None,
    refuse_if_worse: options.RefuseIfWorse = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the table, write nothing")] = False,
    samples: options.NumSamples = 4096,
    warn: options.Warn = 0.05,
    fail: options.Fail = 0.15,
    training_batch_size: options.TrainingBatchSize = None,
    weigh_by: options.WeighBy = options.Weight.samples,
    batch_size: options.BatchSize = 128,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    json: options.Json = False,
    report: options.ReportDir = None,
) -> None:
    """Recalibrate the BatchNorm statistics on the data and save the weights as safetensors."""
    from functools import partial

    from jumpout_export import loading
    from jumpout_export.batchnorm.check import check_batchnorm
    from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
    from jumpout_export.cli.ready import check_data, check_report
    from jumpout_export.cli.results import finish
    from jumpout_export.cli.work import build_job, working
    from jumpout_export.environment import environment
    from jumpout_export.report import PipelineReport

    check_report(report)
    check_data([data])
    if (output is None) != dry_run:
        raise LoadError("give either -o NEW.safetensors or --dry-run")
    if output is not None and output.suffix != ".safetensors":
        raise LoadError(f"-o {output} must end in .safetensors")
    if output is not None and not output.parent.is_dir():
        raise LoadError(f"-o {output}: the folder {output.parent} does not exist")
    if output is not None:
        require_plain(output, f"-o {output}")
    with working() as progress:
        job = build_job(model, weights, device, data, None, batch_size, seed)
        with cli_ranks.process_group() as group:
            check = partial(
                check_batchnorm,
                job.network,
                job.batches,
                samples=samples,
                warn=warn,
                fail=fail,
                training_batch_size=training_batch_size,
                outputs=False,
                weigh_by=weigh_by.value,
                process_group=group,
                progress=progress,
            )
            before = check()
            done = recalibrate_batchnorm(
                job.network,
                job.batches,
                method.value,
                samples=samples,
                layers=layers,
                outputs=True,
                refuse_if_worse=refuse_if_worse,
                weigh_by=weigh_by.value,
                process_group=group,
                progress=progress,
            )
            before.outputs = done.outputs
            after = check()
    result = PipelineReport(
        title=f"recalibrate-bn {model}, method {method.value}",
        before=before,
        after=after,
        environment=environment(),
        notes=[
            f"BatchNorm layers recalibrated: {len(done.layers)}; passes over the data: {done.passes}",
            *([done.note] if done.note else []),
            "dry run: nothing was written" if output is None else f"weights written to {output}",
        ],
    )
    if output is not None and cli_ranks.rank() == 0:
        signals.defer_signals()
        loading.save_weights(job.network, output)
    finish(result, json, report)
