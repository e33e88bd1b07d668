"""What a command needs, asked for before it works: a folder for the report, packages of extras, providers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from jumpout_export.disk import require_plain
from jumpout_export.errors import LoadError, NotVerifiableError

if TYPE_CHECKING:
    from jumpout_export.quantized.settings import Quantized


def check_report(folder: Path | None, option: str = "--report") -> None:
    """Makes sure that a report can be written to the folder that `option` names, if it names one.

    Raises:
        LoadError: if a file is in its place, or it cannot be made or written to.
        ImportError: if its page needs a package that is missing.
    """
    from jumpout_export.render import require_page

    if folder is None:
        return
    _check_place(folder, option, is_folder=True)
    require_page()


def check_pages(junit: Path | None, summary: Path | None) -> None:
    """Makes sure that --junit and --summary can be written; an older --junit file is removed.

    Left where it is, it would be read as the result of a command that ends without one.

    Raises:
        LoadError: if one cannot be written, or --junit does not end in .xml.
        ValueError: if a device or a pipe is in the place of the --junit file.
    """
    if summary is not None:
        _check_place(summary, "--summary", is_folder=False)
    if junit is None:
        return
    if junit.suffix != ".xml":
        raise LoadError(f"--junit {junit} must end in .xml: a file that is there is replaced")
    _check_place(junit, "--junit", is_folder=False)
    if junit.exists():
        require_plain(junit.resolve(), f"--junit {junit}")
    try:
        junit.unlink(missing_ok=True)
    except OSError as error:
        raise LoadError(f"--junit {junit} cannot be written: {error.strerror or error}") from error


def _check_place(path: Path, option: str, *, is_folder: bool) -> None:
    """Makes sure that a folder, or a file and the folders it lies in, can be made or written to."""
    try:
        if path.exists() and path.is_dir() != is_folder:
            be, is_now = ("folder", "file") if is_folder else ("file", "folder")
            raise LoadError(f"{option} {path} must be a {be}, it is a {is_now}")
        place = next(place for place in (path, *path.absolute().parents) if place.exists())
    except OSError as error:
        raise LoadError(f"{option} {path} cannot be written: {error.strerror or error}") from error
    if place == path and not is_folder:
        if not os.access(path, os.W_OK):
            raise LoadError(f"{option} {path} cannot be written: it is protected")
    elif not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise LoadError(f"{option} {path} cannot be written: {place} takes no new files or folders")


def quantized_limits(
    asked: bool,
    switch: str,
    min_sqnr: float | None,
    max_clipped: float | None,
    top1_margin: float | None,
    nll_margin: float | None,
    no_accuracy: bool,
) -> Quantized | None:
    """Returns the limits that a quantized file is judged by, None where that was not asked for by `switch`.

    Raises:
        LoadError: if a limit is given without it.
        ValueError: if one is out of its range.
    """
    from jumpout_export.quantized.settings import Quantized

    numbers = {
        "min_sqnr": min_sqnr,
        "max_clipped": max_clipped,
        "top1_margin": top1_margin,
        "nll_margin": nll_margin,
    }
    given = {name: value for name, value in numbers.items() if value is not None}
    if not asked:
        named = [f"--{name.replace('_', '-')}" for name in given] + ["--no-accuracy"] * no_accuracy
        if named:
            raise LoadError(f"{', '.join(named)}: a limit of quantized files; give {switch}, too")
        return None
    return Quantized(**given, accuracy=not no_accuracy)


def check_data(specs: Iterable[str | None]) -> None:
    """Makes sure that the packages are there that read what --data and --reference name.

    Raises:
        ImportError: if one is missing.
    """
    from jumpout_export.loading.images import require_pillow

    if any(spec is not None and Path(spec).is_dir() for spec in specs):
        require_pillow()


def parse_providers(text: str) -> tuple[str, ...]:
    """Returns the ONNX Runtime providers in a comma-separated list.

    Raises:
        LoadError: if one is unknown.
    """
    from jumpout_export.runtime.providers import PROVIDERS, provider_choices

    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    if not names or set(names) - PROVIDERS.keys():
        raise LoadError(f"--providers must be {provider_choices()}, got {text!r}")
    return names


def check_providers(names: Sequence[str]) -> None:
    """Says on stderr which of the providers cannot be used here, and why; the verdict on these is `not_run`.

    Raises:
        NotVerifiableError: if none can be used, so that nothing could be verified.
    """
    from jumpout_export.runtime.providers import provider_of

    providers = [provider_of(name) for name in names]
    reasons = {one.name: one.explain_unusable() for one in providers if not one.is_fallback}
    said = [f"{name.upper()} cannot be used: {reason}" for name, reason in reasons.items() if reason is not None]
    if len(said) == len(names):
        raise NotVerifiableError(f"--providers {','.join(names)}: {'; '.join(said)}")
    for line in said:
        typer.echo(f"warning: --providers: {line}", err=True)
