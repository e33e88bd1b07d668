"""Signs what a verification found, for exactly the files that it is about."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from jumpout_export.attest.envelope import short, sign
from jumpout_export.attest.files import Subject, subjects_of
from jumpout_export.attest.keys import load_signer, require_attest
from jumpout_export.attest.statement import result_of, write_statement
from jumpout_export.disk import check_target, open_plain, private_folder, replace_file, writing
from jumpout_export.errors import LoadError
from jumpout_export.extras import require_onnx
from jumpout_export.report import ExportReport, PipelineReport, VerifyReport, passes
from jumpout_export.text import parse_json

SUFFIX = ".intoto.jsonl"
_KINDS: dict[str, type[VerifyReport | PipelineReport]] = {
    "verify": VerifyReport,
    "export": ExportReport,
    "fold": ExportReport,
    "pipeline": PipelineReport,
}


@dataclass(frozen=True)
class Attestation:
    """What was signed; truthy exactly when it says that the verification passed.

    Attributes:
        path: the envelope.
        result: `PASSED`, `WARNED` or `FAILED`.
        subjects: the files that it is about, the ONNX file first.
        key: the scheme and the start of the id of the key, which its public half has, too.
        failed: names of the checks that failed, or that were needed and not run.
    """

    path: Path
    result: str
    subjects: tuple[Subject, ...]
    key: str
    failed: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.result != "FAILED"


def attest_onnx(
    path: str | os.PathLike[str],
    report: str | os.PathLike[str],
    key: str | os.PathLike[str],
    *,
    golden: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Attestation:
    """Writes an in-toto statement of what a report says of an ONNX file, signed, as a DSSE envelope.

    The statement is about the ONNX file, the files that its weights lie in and the golden data, by their sha256; what
    was verified must be what is there. A report that did not pass is attested as `FAILED`, never as passed. The bytes
    are the same each time with an ed25519 key.

    Args:
        path: the ONNX file.
        report: of `verify`, `export`, `fold` or `demo`: report.json, or the folder that it lies in.
        key: a private key as PEM, ed25519 or ECDSA.
        golden: the folder of golden data, as `export_onnx` was given it.
        out: the file to write; the ONNX file's name with `.intoto.jsonl` by default.

    Raises:
        NotAttestableError: if a file is not the one that was verified, or the report is about none; nothing is written.
        LoadError: if the report, the key or a file cannot be read, or is of another kind.
        ValueError: if the envelope cannot be written where it should be.
        ImportError: if a package of the `attest` extra is missing, or onnx.
    """
    require_attest()
    require_onnx("onnx")
    model = Path(path)
    source = Path(report) / "report.json" if Path(report).is_dir() else Path(report)
    target = Path(out) if out is not None else model.with_name(f"{model.name}{SUFFIX}")
    check_target(target, "--out", target.suffix)
    signer = load_signer(Path(key))
    found, digest = _read_report(source)
    subjects = subjects_of(model, found, None if golden is None else Path(golden))
    _refuse_inputs(target, [Path(key), source, *(model.parent / subject.name for subject in subjects)])
    result = result_of(found, subjects)
    with writing(target), private_folder(target) as folder:
        finished = folder / target.name
        finished.write_text(sign(write_statement(result, source.name, digest), signer), encoding="utf-8")
        replace_file(finished, target)
    used = signer.public_key
    return Attestation(target, result.result, tuple(subjects), f"{used.scheme}, key {short(used.keyid)}", result.failed)


def _read_report(path: Path) -> tuple[VerifyReport, str]:
    """The report of a verification, and the sha256 of the bytes that it was read from."""
    try:
        with open_plain(path) as file:
            data = file.read()
        content = parse_json(data)
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind not in _KINDS:
            raise LoadError(
                f"--report {path} is a report of kind {kind}; a verification is one of {', '.join(_KINDS)}: inspect "
                "runs nothing, and a BatchNorm check is about no file"
            )
        report = _KINDS[kind].model_validate(content)
    except OSError as error:
        raise LoadError(f"--report {path} cannot be read: {error.strerror or error}") from error
    except (ValidationError, ValueError, RecursionError) as error:
        raise LoadError(f"--report {path} is no report of this version: {str(error).splitlines()[0]}") from error
    if isinstance(report, PipelineReport):
        if report.export is None:
            raise LoadError(f"--report {path}: nothing was exported")
        report = report.export
    if report.passed and not (report.providers and passes(report.checks, report.providers)):
        what = "one of its checks did not" if report.providers else "nothing was run"
        raise LoadError(f"--report {path} contradicts itself: it says that it passed, and {what}")
    return report, hashlib.sha256(data).hexdigest()


def _refuse_inputs(target: Path, inputs: list[Path]) -> None:
    if taken := next((path for path in inputs if target.exists() and target.samefile(path)), None):
        raise LoadError(f"--out {target} would be written over {taken}, which is read: give another --out")
