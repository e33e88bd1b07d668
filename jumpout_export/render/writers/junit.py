"""A report as JUnit XML, which pages of test results read: Jenkins, GitLab, GitHub actions, Azure.

Written with the standard library, in the form that pytest writes by default and Jenkins validates (its xunit plugin's
junit-10.xsd). A package would be one more to install for sixty lines: junitparser 5.0 writes control characters in a
name as they are, which no reader of XML takes; junit-xml 1.9 drops them, had no release since 2023 and needs six.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from jumpout_export.render.cases import Case, cases_of, parts_of, verdict_of
from jumpout_export.render.writers.document import visible
from jumpout_export.report import Report, VerifyReport

_NAME = "jumpout-export"


def render_junit(report: Report) -> str:
    """Returns a report as JUnit XML, the same text for the same report: a case for each check, and one for the verdict.

    A check that failed is a failure, with what was measured, the limit, the layer and the note; one that was not run is
    skipped; one with a warning passes, and its text is its output. The verdict is an error where it could not be
    decided: nothing failed and nothing is in error exactly if the report passed.
    """
    report = visible(report)
    suites = [_suite(name, part) for name, part in parts_of(report).items()]
    sums = {name: str(sum(int(suite.attrib[name]) for suite in suites)) for name in ("tests", "failures", "errors")}
    root = ET.Element("testsuites", {"name": _NAME, **sums})
    root.extend(suites)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(name: str, report: Report) -> ET.Element:
    cases = cases_of(report)
    verdict = verdict_of(report)
    made = [_case(name, verdict, "error"), *(_case(name, case, "skipped") for case in cases)]
    found = {tag: str(sum(case.find(tag) is not None for case in made)) for tag in ("failure", "error", "skipped")}
    suite = ET.Element(
        "testsuite",
        name=f"{_NAME} {name}",
        tests=str(len(made)),
        failures=found["failure"],
        errors=found["error"],
        skipped=found["skipped"],
    )
    properties = _properties(report)
    if properties:
        listed = ET.SubElement(suite, "properties")
        for key, value in properties.items():
            ET.SubElement(listed, "property", name=key, value=value)
    suite.extend(made)
    return suite


def _case(suite: str, case: Case, not_run: str) -> ET.Element:
    # A dot would start a package.
    element = ET.Element("testcase", classname=f"{_NAME}.{suite.replace('.', '_')}", name=case.name)
    text = case.sentence()
    if case.verdict == "fail":
        failure = ET.SubElement(element, "failure", type="fail", message=text)
        failure.text = _lines(case)
    elif case.verdict == "not_run":
        ET.SubElement(element, not_run, type="not_run", message=text or "not run")
    elif case.verdict == "warning":
        ET.SubElement(element, "system-out").text = f"warning: {text}"
    return element


def _lines(case: Case) -> str:
    facts = {"measured": case.measured, "limit": case.limit, "layer": case.layer or None, "note": case.note or None}
    return "\n".join(f"{name}: {value}" for name, value in facts.items() if value is not None)


def _properties(report: Report) -> dict[str, str]:
    if not isinstance(report, VerifyReport):
        return {}
    facts = {"path": report.path, "sha256": report.sha256, **report.environment}
    return {name: value for name, value in facts.items() if value}
