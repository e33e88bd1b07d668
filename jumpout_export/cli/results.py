"""What each command does after its one call: show the report and choose the exit code."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Callable
from functools import partial
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
from jumpout_export.text import first_line


def show(
    report: Report,
    json: bool,
    directory: Path | None,
    option: str = "--report",
    *,
    junit: Path | None = None,
    summary: Path | None = None,
) -> None:
    """Writes the report to `directory`, `junit` and `summary`, those given, and prints it on stdout; of processes one.

    A report on a file is given the command and the versions it was made with. What keeps it from being written to the
    folder, which `option` names, or to a file is said on stderr: what was found is printed, and stays the verdict.

    Raises:
        LoadError: if stdout cannot be written, such as on a full disk.
    """
    if rank() != 0:
        return
    if isinstance(report, VerifyReport):
        facts = {name: value for name, value in environment().items() if name != "device"}
        report.environment = {"command": shlex.join(["jumpout-export", *sys.argv[1:]]), **facts}
    report = in_commands(report)
    published = _published(report)
    wanted = (
        (option, directory, render.write_report),
        ("--junit", junit, render.write_junit),
        ("--summary", summary, render.append_summary),
    )
    problems = {
        f"{name} {place}": problem
        for name, place, write in wanted
        if place is not None and (problem := _problem(partial(write, report, place))) is not None
    }
    try:
        if json:
            say(lambda: typer.echo(report.model_dump_json(indent=2)), published)
        else:
            say(lambda: render.render_terminal(report), published)
    finally:
        for place, problem in problems.items():
            typer.echo(f"warning: {place} cannot be written: {problem}; {_KEPT}", err=True)


_KEPT = "what was found is printed, and the exit code is that of the verdict"


def _problem(write: Callable[[], object]) -> str | None:
    """Writes the report; returns why it could not be, None if it could."""
    try:
        write()
    except OSError as error:
        return error.strerror or str(error)
    except ImportError as error:
        return str(error)
    except Exception as error:  # whatever is wrong with the page, hours of work may be behind what was found
        traceback.print_exc()
        return f"{type(error).__name__}: {first_line(error)}"
    return None


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


def finish(
    report: Report, json: bool, directory: Path | None, *, junit: Path | None = None, summary: Path | None = None
) -> NoReturn:
    """Shows the report and ends the command with its exit code; raises what `show` raises."""
    show(report, json, directory, junit=junit, summary=summary)
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
