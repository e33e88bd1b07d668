"""A report as files in a folder, each written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from jumpout_export.disk import move
from jumpout_export.render.sections.channels import MAX_PANELS
from jumpout_export.render.writers.document import build_document
from jumpout_export.render.writers.html import draw_plots, page
from jumpout_export.render.writers.junit import render_junit
from jumpout_export.render.writers.markdown import markdown
from jumpout_export.render.writers.summary import render_summary
from jumpout_export.report import Report


def write_report(report: Report, directory: str | os.PathLike[str]) -> dict[str, Path]:
    """Writes `report.json`, `report.md`, `report.html` and the plots as `plot-*.svg`; returns file name -> path.

    Each file is written beside its target and renamed, so no reader ever sees half of one. JSON and Markdown come
    first, and are there even if the page cannot be made. What an older report left of files that are not written anew
    is removed, because it would belong to another report.

    Args:
        report: any report.
        directory: created if it is missing.

    Raises:
        NotADirectoryError: if `directory` is a file.
        ImportError: if jinja2 or matplotlib is not installed, after JSON and Markdown were written.
    """
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"the report needs a folder, but {folder} is a file; name another folder")
    document = build_document(report)
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}

    def write(name: str, text: str) -> None:
        written[name] = _write(folder / name, text)

    try:
        write("report.json", report.model_dump_json(indent=2) + "\n")
        write("report.md", markdown(document))
        plots = draw_plots(document)
        write("report.html", page(document, plots))
        for name, svg in plots.items():
            write(f"plot-{name}.svg", svg)
    finally:
        # Once the new report.json is there, whatever an older report left belongs to another one.
        for name in _FILES if written else ():
            if name not in written:
                (folder / name).unlink(missing_ok=True)
    return written


# Every plot there is, and with them every file.
_PLOTS = (
    *("accuracy", "loss", "active", "rate", "drift", "drift-after", "attribution", "parity"),
    *(f"channels-{i}" for i in range(1, MAX_PANELS + 1)),
)
_FILES = ("report.json", "report.md", "report.html", *(f"plot-{name}.svg" for name in _PLOTS))


def write_junit(report: Report, file: str | os.PathLike[str]) -> Path:
    """Writes the report as JUnit XML (`render_junit`), whole or not at all; its folder is created if it is missing."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _write(path, render_junit(report))


def append_summary(report: Report, file: str | os.PathLike[str]) -> Path:
    """Appends the report's few lines of Markdown (`render_summary`) to a file; its folder is created if missing."""
    path = Path(file)
    text = render_summary(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as page:
        page.write(f"\n{text}" if page.tell() else text)
    return path


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
