"""Checks a signed statement and the files that it is about, without a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jumpout_export.attest.envelope import read_envelope, signature_check
from jumpout_export.attest.files import file_check, unsafe_names
from jumpout_export.attest.keys import load_public_key, require_attest
from jumpout_export.attest.statement import Result, read_statement
from jumpout_export.errors import LoadError
from jumpout_export.report import Check, CheckVerdict, passes
from jumpout_export.text import count, some_of

_VERDICTS: dict[str, CheckVerdict] = {"PASSED": "pass", "WARNED": "warning", "FAILED": "fail"}


class AttestationReport(BaseModel):
    """What became of a signed statement; truthy exactly when it holds and says that the verification passed.

    Attributes:
        kind: always `attestation`.
        passed: the signature is the key's, every file has the bytes that were attested, and the result is no `FAILED`.
        path: the envelope.
        result: `PASSED`, `WARNED` or `FAILED`; empty where the signature does not hold, as all below.
        checks: the signature, the statement, each file and the result.
        files: the sha256 that was attested of each file, by its name relative to the folder of the ONNX file.
        facts: what the statement says of how it was verified.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["attestation"] = "attestation"
    passed: bool
    path: str
    result: str = ""
    checks: list[Check]
    files: dict[str, str] = Field(default_factory=dict)
    facts: dict[str, object] = Field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.passed


def verify_attestation(
    path: str | os.PathLike[str], public_key: str | os.PathLike[str], model: str | os.PathLike[str] | None = None
) -> AttestationReport:
    """Returns whether a statement is signed with a key and is about these files.

    Nothing of the statement is looked at unless the signature holds.

    Args:
        path: the envelope that `attest_onnx` wrote.
        public_key: as PEM, ed25519 or ECDSA.
        model: the ONNX file, whatever its name is now; its weights and golden data lie beside it as they did. By
            default all files lie beside the envelope under the names that they had.

    Raises:
        LoadError: if the envelope or the key cannot be read.
        ImportError: if a package of the `attest` extra is missing.
    """
    require_attest()
    envelope_path = Path(path)
    key = load_public_key(Path(public_key))
    envelope = read_envelope(envelope_path)
    checks = [signature_check(envelope, key)]
    if not passes(checks):
        return AttestationReport(passed=False, path=str(envelope_path), checks=checks)
    try:
        found = read_statement(envelope.payload)
    except LoadError as error:
        checks.append(Check(name="statement", verdict="fail", note=f"what was signed is {error}"))
        return AttestationReport(passed=False, path=str(envelope_path), checks=checks)
    checks += _statement_checks(found)
    if passes(checks):
        folder = envelope_path.parent if model is None else Path(model).parent
        for subject in found.subjects:
            given = model is not None and subject.role == "model"
            checks.append(file_check(subject, Path(model or "") if given else folder / subject.name))
    checks.append(_result_check(found))
    return AttestationReport(
        passed=passes(checks),
        path=str(envelope_path),
        result=found.result,
        checks=checks,
        files={subject.name: subject.sha256 for subject in found.subjects},
        facts=found.facts,
    )


def _statement_checks(found: Result) -> list[Check]:
    if unsafe := unsafe_names(found.subjects):
        note = f"it names files outside of the model's folder, which are not opened: {some_of(unsafe)}"
        return [Check(name="statement", verdict="fail", note=note)]
    return [Check(name="statement", verdict="pass", note=f"a test result about {count(len(found.subjects), 'file')}")]


def _result_check(found: Result) -> Check:
    counted = {"passed": found.passed, "with a warning": found.warned, "failed": found.failed}
    said = ", ".join(f"{len(names):,} {words}" for words, names in counted.items() if names) or "no test"
    first = f", first {found.failed[0]}" if found.failed else ""
    kind = found.facts.get("kind", "a verification")
    return Check(name="result", verdict=_VERDICTS[found.result], note=f"{found.result} by {kind}: {said}{first}")
