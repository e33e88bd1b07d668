"""The command fold: takes the noise out of a file that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jumpout_export.cli import options
from jumpout_export.disk import check_target


def fold(
    file: options.OnnxFile,
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="the file to write; appears only if it passed")],
    seed: options.Seed = 0,
    json: options.Json = False,
    report: options.ReportDir = None,
    junit: options.Junit = None,
    summary: options.Summary = None,
) -> None:
    """Rewrite an ONNX file that carries training-time noise into a deterministic one, with proof, or refuse."""
    from jumpout_export.cli.ready import check_pages, check_report
    from jumpout_export.cli.results import finish
    from jumpout_export.fold.file.fold_file import TARGET, fold_onnx

    check_pages(junit, summary)
    check_target(out, TARGET)
    check_report(report)
    result = fold_onnx(file, out, seed=seed)
    finish(result, json, report, junit=junit, summary=summary)
