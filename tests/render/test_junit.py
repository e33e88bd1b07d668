"""JUnit XML and the lines for a job's page: every check is a case, nothing that was not run has passed."""

import math
import xml.etree.ElementTree as ET

import junitparser
import pytest
from support.documents import batchnorm, check, export, pipeline

from jumpout_export.render import append_summary, render_junit, render_summary, verdict_of, write_junit
from jumpout_export.report import BatchNormReport, BatchNormSetsReport, Check, PipelineReport, VerifyReport, passes

# What may stand where, after Jenkins's xunit plugin (junit-10.xsd), the form of pytest's xunit2: children, attributes,
# and those attributes that must be there.
FORM = {
    "testsuites": ({"testsuite"}, {"name", "tests", "failures", "errors", "time"}, set()),
    "testsuite": (
        {"testcase", "properties"},
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname"},
        {"name", "tests", "failures", "errors"},
    ),
    "testcase": ({"failure", "error", "skipped", "system-out"}, {"name", "classname", "time"}, {"name"}),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, {"name", "value"}),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "skipped": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


def misplaced(element):
    children, allowed, needed = FORM[element.tag]
    wrong = [f"{element.tag}/{child.tag}" for child in element if child.tag not in children]
    wrong += [f"{element.tag}@{name}" for name in {*element.attrib} - allowed | needed - {*element.attrib}]
    return wrong + [text for child in element if child.tag in children for text in misplaced(child)]


def every_verdict(**changes):
    """A report with one check of each verdict."""
    checks = [
        check("cpu/all/batch=1/worst error"),
        Check(name="metadata", verdict="warning", note="the file says nothing of the weights"),
        Check(name="magnitudes", verdict="not_run", required=False, note="the outputs are integers"),
        check("cpu/all/batch=7/worst error", "fail", 3.25e-3),
    ]
    values = {
        "providers": {"cpu": {"verdict": "fail", "reason": "one check failed"}},
        "first_divergence": "layer1.0.bn",
    }
    return VerifyReport(**{"passed": False, "path": "m.onnx", "checks": checks, **values, **changes})


def passing(checks):
    return VerifyReport(passed=passes(checks), path="m.onnx", checks=checks)


REPORTS = {
    "verify": every_verdict(),
    "export": export(),
    "failed export": export(fail=True),
    "ok": batchnorm("ok", 0.01),
    "drift": batchnorm(),
    "undecided": batchnorm("inconclusive"),
    "sets": BatchNormSetsReport(sets={"day.npz": batchnorm("ok", 0.01), "night.npz": batchnorm()}),
    "no sets": BatchNormSetsReport(),
    "pipeline": pipeline(),
    "failed pipeline": pipeline(fail=True),
    "nothing": PipelineReport(),
    "nothing compared": VerifyReport(passed=True),
    "warnings alone": passing([check("a"), Check(name="b", verdict="warning", note="n")]),
    "required and not run": passing([check("a"), Check(name="b", verdict="not_run", note="n")]),
}
every_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)


def suites(report):
    return list(junitparser.JUnitXml.fromstring(render_junit(report).encode()))


def cases(report):
    return {case.name: case for suite in suites(report) for case in suite}


def kinds(case):
    return [type(result) for result in case.result]


def test_each_check_is_a_case_with_its_verdict():
    (suite,) = suites(every_verdict())
    found = {case.name: case for case in suite}
    assert [*found] == ["verdict", *(check.name for check in every_verdict().checks)]
    assert kinds(found["cpu/all/batch=1/worst error"]) == []
    assert kinds(found["metadata"]) == []
    assert found["metadata"].system_out == "warning: the file says nothing of the weights"
    assert kinds(found["magnitudes"]) == [junitparser.Skipped]
    assert found["magnitudes"].result[0].message == "the outputs are integers"
    assert kinds(found["verdict"]) == [junitparser.Failure]
    assert (suite.tests, suite.failures, suite.skipped, suite.errors) == (5, 2, 1, 0)


def test_a_failure_says_measured_limit_note_and_layer():
    (failure,) = cases(every_verdict())["cpu/all/batch=7/worst error"].result
    assert isinstance(failure, junitparser.Failure)
    assert failure.message == "measured 0.00325, limit 1e-5, layer layer1.0.bn: note of fail"
    assert failure.text.splitlines() == [
        "measured: 0.00325",
        "limit: 1e-05",
        "layer: layer1.0.bn",
        "note: note of fail",
    ]


def test_what_is_wrong_in_the_file_is_in_no_layer():
    bad = Check(name="file/random nodes", measured=1, limit=0, verdict="fail", note="RandomNormal")
    (failure,) = cases(every_verdict(checks=[bad]))["file/random nodes"].result
    assert failure.message == "measured 1, limit 0: RandomNormal"


def test_layers_are_cases_with_their_w():
    found = cases(batchnorm())
    assert kinds(found["features.1"]) == []
    (failure,) = found["features.5"].result
    assert isinstance(failure, junitparser.Failure)
    assert failure.message.startswith("measured 0.2, limit 0.05, layer features.5: W, 95% 0.180 to 0.220; served")
    (undecided,) = cases(batchnorm("inconclusive"))["features.5"].result
    assert isinstance(undecided, junitparser.Skipped)
    (unseen,) = cases(BatchNormReport(verdict="inconclusive", samples=9, not_observed=["head.bn"]))["head.bn"].result
    assert isinstance(unseen, junitparser.Skipped)


def test_each_set_is_a_suite_of_its_own():
    day, night = suites(REPORTS["sets"])
    assert (day.name, day.failures) == ("jumpout-export check-bn day.npz", 0)
    assert (night.name, night.failures) == ("jumpout-export check-bn night.npz", 2)


@every_report
def test_nothing_is_red_exactly_if_the_report_passed(report):
    checked = report and "NOT RUN" not in render_summary(report).splitlines()[2]
    red = [case for suite in suites(report) for case in suite if case.is_failure or case.is_error]
    assert (not red) == bool(checked)
    assert verdict_of(report).verdict in ({"pass", "warning"} if checked else {"fail", "not_run"})


@every_report
def test_the_file_has_the_form_that_readers_validate(report):
    text = render_junit(report)
    assert misplaced(ET.fromstring(text)) == []
    assert text == render_junit(report)
    for suite in suites(report):
        counted = [len([c for c in suite if kind in kinds(c)]) for kind in (junitparser.Failure, junitparser.Skipped)]
        assert (suite.tests, suite.failures, suite.skipped) == (len(list(suite)), *counted)
        assert len({(case.classname, case.name) for case in suite}) == suite.tests


def test_another_form_is_found():
    wrong = "<testsuites><testsuite name='a' tests='1' failures='0'><testcase classname='b'><passed/></testcase>"
    assert misplaced(ET.fromstring(f"{wrong}</testsuite></testsuites>")) == [
        "testsuite@errors",
        "testcase/passed",
        "testcase@name",
    ]


def test_names_from_a_hostile_file_stay_names():
    name = 'a\x07b\x00<&>"\ud800]]>\u202e'
    report = passing([Check(name=name, verdict="fail", measured=math.nan, note=name), check("verdict"), check(name)])
    found = cases(report)
    assert len(found) == 4
    hostile = next(case for shown, case in found.items() if "<&>" in shown)
    assert hostile.result[0].message.startswith("measured NaN: a\\x07b\\x00")
    assert "verdict (2)" in found


def test_an_older_file_is_replaced_and_folders_are_made(tmp_path):
    path = tmp_path / "new" / "results" / "j.xml"
    for report in (export(fail=True), export()):
        write_junit(report, path)
    assert junitparser.JUnitXml.fromfile(str(path)).tests == 26
    assert [file.name for file in path.parent.iterdir()] == ["j.xml"]


def test_a_summary_says_what_did_not_pass():
    text = render_summary(every_verdict())
    assert text.startswith(
        "## ONNX verification\n\n**✗ FAIL**: `m.onnx`: The first layer that differs is `layer1.0.bn`."
    )
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("|")[2].strip() for row in rows] == ["✗ fail", "– not run", "! warning"]
    assert rows[0].split("|")[3:6] == [" 0.00325 ", " 1e-5 ", " `layer1.0.bn` "]
    assert "| `cpu/all/batch=1/worst error`" not in text


def test_a_summary_of_what_passed_has_no_table():
    text = render_summary(export())
    assert "What did not pass" not in text
    assert f"- SHA-256: {'ab' * 32}" in text


def test_a_summary_stays_short():
    report = every_verdict(checks=[check(f"cpu/{i}/worst error", "fail", 1.0) for i in range(300)])
    lines = render_summary(report).splitlines()
    assert len([line for line in lines if line.startswith("| `cpu/")]) == 20
    assert lines[-1] == "And 280 more: see the report."
    of_sets = render_summary(REPORTS["sets"])
    assert "| `check-bn night.npz: features.5` | ✗ drift |" in of_sets
    assert "| `features.5` | ? inconclusive |" in render_summary(batchnorm("inconclusive"))


def test_summaries_are_appended(tmp_path):
    page = tmp_path / "pages" / "job.md"
    append_summary(export(), page)
    append_summary(batchnorm(), page)
    assert page.read_text() == f"{render_summary(export())}\n{render_summary(batchnorm())}"
