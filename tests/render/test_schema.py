"""The JSON of a report: it comes back unchanged and fits the schema in docs/."""

import json
import math

import jsonschema
import pytest
from support.project import PROJECT

from jumpout_export.report import (
    BatchNormLayer,
    BatchNormReport,
    Check,
    ExportReport,
    FoldedLayer,
    OutputEffect,
    PipelineReport,
    ProviderReport,
    TrainingHistory,
    VerifyReport,
    json_schema,
)

SCHEMA = PROJECT / "docs" / "report.schema.json"

ROW = BatchNormLayer(
    name="bn", channels=2, verdict="drift", w=0.2, w_low=0.1, w_high=0.3, cause="stale", delta=[0.1, -0.1], stale=0.1
)
BATCHNORM = BatchNormReport(
    verdict="drift", origin="bn", samples=9, layers=[ROW], outputs=OutputEffect(samples=9, logit_shift=0.1, kl=0.2)
)
VERIFY = VerifyReport(
    passed=False,
    providers={"cpu": ProviderReport(verdict="fail", reason="x")},
    checks=[Check(name="a", measured=1.0, limit=0.5, verdict="fail"), Check(name="b", verdict="not_run", note="why")],
)
EXPORT = ExportReport(
    passed=True, folded=[FoldedLayer(path="a", kind="Jumpout", action="identity")], batchnorm=BATCHNORM, opset=20
)
PIPELINE = PipelineReport(
    training=TrainingHistory(loss=[1.0], active_fraction={"a": [0.5]}), before=BATCHNORM, after=BATCHNORM, export=EXPORT
)
REPORTS = [BATCHNORM, VERIFY, EXPORT, PIPELINE, BatchNormReport(verdict="ok", samples=0), PipelineReport()]


def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_comes_back_from_its_json(report):
    assert type(report).model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_fits_the_schema(report):
    validator().validate(json.loads(report.model_dump_json()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_come_back_and_fit_the_schema(value):
    report = BATCHNORM.model_copy(update={"layers": [ROW.model_copy(update={"w": value, "delta": [value]})]})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    parsed = json.loads(report.model_dump_json(), parse_constant=refuse)
    validator().validate(parsed)
    back = BatchNormReport.model_validate(parsed).layers[0]
    assert repr(back.w) == repr(value)
    assert repr(back.delta) == repr([value])


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"verdict": "perhaps"}, "unknown verdict"), ({"extra": 1}, "unknown field"), ({"warn": "much"}, "no number")],
)
def test_the_schema_refuses_what_is_no_report(change, reason):
    assert not validator().is_valid({**json.loads(BATCHNORM.model_dump_json()), **change}), reason


def test_the_schema_in_docs_is_current():
    command = (
        "python -c 'import json; from jumpout_export.report import json_schema; "
        "print(json.dumps(json_schema(), indent=2))' > docs/report.schema.json"
    )
    assert json.loads(SCHEMA.read_text()) == json_schema(), f"write it again: {command}"
