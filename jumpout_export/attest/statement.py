"""What is signed: an in-toto statement whose predicate is a test result, made of a report and read back.

https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md, version 0.1
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jumpout_export.attest.files import Subject
from jumpout_export.errors import LoadError
from jumpout_export.render import cases_of, verdict_of
from jumpout_export.report import CheckVerdict, VerifyReport
from jumpout_export.text import parse_json

PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
# A test result knows no "not run"; a verification that was not completed has not passed.
_RESULTS: dict[CheckVerdict, str] = {"pass": "PASSED", "warning": "WARNED", "fail": "FAILED", "not_run": "FAILED"}


@dataclass(frozen=True)
class Result:
    """What a statement says.

    Attributes:
        result: `PASSED`, `WARNED` or `FAILED`.
        subjects: the files that it is about.
        passed: names of the checks that passed.
        warned: names of those with a warning.
        failed: names of those that failed, and of those that were needed and not run.
        facts: how it was verified: the kind of report, versions, the command, its notes, checks that were not run.
    """

    result: str
    subjects: tuple[Subject, ...]
    passed: tuple[str, ...]
    warned: tuple[str, ...]
    failed: tuple[str, ...]
    facts: dict[str, Any]


def result_of(report: VerifyReport, subjects: Sequence[Subject]) -> Result:
    """Returns what there is to say of a report; the result is `PASSED` or `WARNED` exactly if it passed."""
    cases = list(zip(cases_of(report), report.checks, strict=True))
    return Result(
        result=_RESULTS[verdict_of(report).verdict],
        subjects=tuple(subjects),
        passed=tuple(case.name for case, _ in cases if case.verdict == "pass"),
        warned=tuple(case.name for case, _ in cases if case.verdict == "warning"),
        failed=tuple(case.name for case, check in cases if check.blocks),
        facts={
            "kind": report.kind,
            "providers": {name: provider.verdict for name, provider in report.providers.items()},
            "notRun": [case.name for case, check in cases if check.verdict == "not_run" and not check.blocks],
            "environment": report.environment,
            "notes": report.notes,
        },
    )


def write_statement(result: Result, report_name: str, report_sha256: str) -> bytes:
    """Returns the statement as JSON, the same bytes for the same content; the report is its configuration."""
    from google.protobuf.json_format import MessageToDict
    from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as Predicate
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    configuration = ResourceDescriptor(
        name=report_name,
        digest={"sha256": report_sha256},
        media_type="application/json",
        annotations=result.facts,
    )
    predicate = Predicate(
        result=result.result,
        configuration=[configuration.pb],
        passed_tests=result.passed,
        warned_tests=result.warned,
        failed_tests=result.failed,
    )
    subjects = [
        ResourceDescriptor(name=one.name, digest={"sha256": one.sha256}, annotations={"role": one.role}).pb
        for one in result.subjects
    ]
    statement = Statement(subjects, PREDICATE_TYPE, MessageToDict(predicate))
    statement.validate()
    return json.dumps(MessageToDict(statement.pb), sort_keys=True, separators=(",", ":")).encode()


def read_statement(payload: bytes) -> Result:
    """Returns what a statement says; fields that are unknown are ignored, as in-toto wants it.

    Raises:
        LoadError: if it is no statement of a test result, or names no ONNX file.
    """
    from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
    from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as Predicate
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    try:
        message = ParseDict(parse_json(payload), Message(), ignore_unknown_fields=True)
        Statement.copy_from_pb(message).validate()
        predicate = ParseDict(MessageToDict(message.predicate), Predicate(), ignore_unknown_fields=True)
    except (ValueError, ParseError, AttributeError, TypeError, RecursionError) as error:
        raise LoadError(f"no in-toto statement: {error}") from error
    if message.predicate_type != PREDICATE_TYPE:
        raise LoadError(f"a statement of another kind, {message.predicate_type}; needed is {PREDICATE_TYPE}")
    if predicate.result not in _RESULTS.values():
        raise LoadError(f"no result that is known: {predicate.result!r}; known are PASSED, WARNED and FAILED")
    subjects = tuple(
        Subject(one.name, one.digest.get("sha256", ""), MessageToDict(one.annotations).get("role", ""))
        for one in message.subject
    )
    if [one.role for one in subjects].count("model") != 1:
        raise LoadError("a statement that does not say which of its files is the ONNX file")
    configuration = [MessageToDict(one.annotations) for one in predicate.configuration]
    return Result(
        result=predicate.result,
        subjects=subjects,
        passed=tuple(predicate.passed_tests),
        warned=tuple(predicate.warned_tests),
        failed=tuple(predicate.failed_tests),
        facts=configuration[0] if configuration else {},
    )
