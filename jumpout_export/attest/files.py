"""The files that a statement is about: an ONNX file, its weights and its golden data, by their sha256."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from jumpout_export.errors import LoadError, NotAttestableError
from jumpout_export.onnxfile.data import external_files, sha256_of
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.report import Check, VerifyReport

Role = Literal["model", "weights", "golden data"]


@dataclass(frozen=True)
class Subject:
    """A file by its name, relative to the folder of the ONNX file with `/` between, and its sha256 in hex."""

    name: str
    sha256: str
    role: str  # a `Role`, or whatever a statement of another writer says


def subjects_of(model: Path, report: VerifyReport, golden: Path | None) -> list[Subject]:
    """Returns the files of a verification, the ONNX file first; each has been read anew.

    Args:
        model: the ONNX file.
        report: of its verification.
        golden: the folder of its golden data, in the model's folder or below; all of its `.pb` files count.

    Raises:
        NotAttestableError: if one is not the file that was verified; the message names every one that is not.
        LoadError: if one cannot be read, or there is no golden data where it should be.
    """
    if not report.sha256:
        raise NotAttestableError(
            "the report holds no sha256: an export that did not pass publishes no file, so there is none to attest; "
            "nothing was signed"
        )
    # What a changed file says of its weights is not to be believed.
    known = _sha256(model) == report.sha256
    weights = sorted(external_files(load_onnx(model)) if known else report.data_sha256)
    if unknown := [name for name in weights if not report.data_sha256.get(name)]:
        raise NotAttestableError(
            f"the report does not say which {', '.join(unknown)} was verified: an older version wrote it, or the "
            "replay in C++; verify the file with `jumpout-export verify`; nothing was signed"
        )
    verified = {model: report.sha256, **{model.parent / name: report.data_sha256[name] for name in weights}}
    found = {path: _sha256(path) for path in verified}
    if changed := [path for path, digest in verified.items() if found[path] != digest]:
        said = "; ".join(
            f"{path} is not the file that was verified: {_both(found[path], verified[path])}" for path in changed
        )
        raise NotAttestableError(f"{said}; verify it again; nothing was signed")
    roles: dict[Path, Role] = {path: "model" if path == model else "weights" for path in verified}
    for path in _golden_files(model.parent, golden) if golden else []:
        found[path] = _sha256(path)
        roles[path] = "golden data"
    return [Subject(path.relative_to(model.parent).as_posix(), found[path], role) for path, role in roles.items()]


def unsafe_names(subjects: Iterable[Subject]) -> list[str]:
    """Returns the names that lead out of the folder of the ONNX file; none of them is opened."""
    return [
        subject.name
        for subject in subjects
        if not subject.name
        or "\\" in subject.name
        or PurePosixPath(subject.name).is_absolute()
        or ".." in PurePosixPath(subject.name).parts
    ]


def file_check(subject: Subject, path: Path) -> Check:
    """Returns whether a file has the bytes that were attested."""
    name = f"file/{subject.name}"
    try:
        found = sha256_of(path)
    except OSError as error:
        return Check(name=name, verdict="fail", note=f"{path} cannot be read: {error.strerror or error}")
    if found == subject.sha256:
        return Check(name=name, verdict="pass", note=f"sha256 {found}, as attested")
    return Check(name=name, verdict="fail", note=f"{path} was changed: {_both(found, subject.sha256)}")


def _both(found: str, wanted: str) -> str:
    return f"its sha256 is {found}, it was {wanted}"


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}") from error


def _golden_files(folder: Path, golden: Path) -> list[Path]:
    if not golden.resolve().is_relative_to(folder.resolve()):
        raise LoadError(
            f"--golden {golden} must lie in the folder of the ONNX file, {folder}, or below: whoever is given the "
            "files finds it there"
        )
    inside = folder / golden.resolve().relative_to(folder.resolve())
    files = sorted(path for path in inside.rglob("*.pb") if path.is_file()) if inside.is_dir() else []
    if not files:
        raise LoadError(f"--golden {golden} holds no golden data, test_data_set_0/input_0.pb and so on")
    return files
