"""What each command does after its one call: show the report and choose the exit code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer

from jumpout_export import render
from jumpout_export.cli.ranks import rank
from jumpout_export.cli.words import in_commands
from jumpout_export.environment import environment
from jumpout_export.errors import LoadError
from jumpout_export.exit_codes import FAILED, NOT_VERIFIED, PASSED
from jumpout_export.report import (
    BatchNormReport,
    BatchNormSetsReport,
    ExportReport,
    PipelineReport,
    Report,
    VerifyReport,
)
from jumpout_export.signals import Interrupted
from jumpout_export.streams import drop_stdout


def check_folder(folder: Path | None, option: str) -> None:
    """Raises a LoadError if a file is in the place of the folder that `option` names."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise LoadError(f"{option} {folder} must be a folder, it is a file")


def show(report: Report, json: bool, directory: Path | None) -> None:
    """Writes the report to `directory`, where one is given, and prints it on stdout; of several processes one.

    A report on a file is given the command and the versions it was made with.

    Raises:
        LoadError: if one of them cannot be written, such as on a full disk.
        ImportError: if the page of the report needs a package that is missing.
    """
    if rank() != 0:
        return
    if isinstance(report, VerifyReport):
        facts = {name: value for name, value in environment().items() if name != "device"}
        report.environment = {"command": shlex.join(["jumpout-export", *sys.argv[1:]]), **facts}
    report = in_commands(report)
    published = _published(report)
    if directory is not None:
        try:
            render.write_report(report, directory)
        except OSError as error:
            raise LoadError(f"--report {directory} cannot be written: {error.strerror or error}{published}") from error
        except ImportError as error:  # JSON and Markdown are there
            raise ImportError(f"{error}{published}") from error
    if json:
        say(lambda: typer.echo(report.model_dump_json(indent=2)), published)
    else:
        say(lambda: render.render_terminal(report), published)


def say(print_result: Callable[[], object], published: str = "") -> None:
    """Prints on stdout; a reader that has seen enough, as `| head`, is no error.

    Raises:
        LoadError: if stdout cannot be written, such as on a full disk; it ends with what was published all the same.
    """
    try:
        print_result()
        sys.stdout.flush()
    except Interrupted:
        raise
    except (BrokenPipeError, SystemExit):  # rich exits; the verdict stays the verdict
        drop_stdout()
    except OSError as error:
        drop_stdout()
        raise LoadError(f"stdout cannot be written: {error.strerror or error}{published}") from error


def _published(report: Report) -> str:
    export = report.export if isinstance(report, PipelineReport) else report
    return f"; {export.path} was published" if isinstance(export, ExportReport) and export.passed else ""


def finish(report: Report, json: bool, directory: Path | None) -> NoReturn:
    """Shows the report and ends the command with its exit code; raises what `show` raises."""
    show(report, json, directory)
    raise typer.Exit(exit_code(report))


def exit_code(report: Report) -> int:
    """Returns the exit code that says what the report says."""
    if report:
        return PASSED
    if isinstance(report, BatchNormReport | BatchNormSetsReport):
        return NOT_VERIFIED if report.verdict == "inconclusive" else FAILED
    if isinstance(report, VerifyReport):
        failed = any(check.verdict == "fail" for check in report.checks) or any(
            provider.verdict == "fail" for provider in report.providers.values()
        )
        return FAILED if failed else NOT_VERIFIED
    codes = [exit_code(part) for part in (report.batchnorm, report.export) if part is not None]
    return FAILED if FAILED in codes else NOT_VERIFIED
