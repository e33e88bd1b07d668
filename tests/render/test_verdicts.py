"""What a check makes of a report: a warning is amber and passes, what has to be shown and was not does not."""

import json

import pytest
from support.documents import check, terminal

from jumpout_export.cli.results import exit_code
from jumpout_export.render import render_html, render_markdown
from jumpout_export.render.blocks import Group, Plots
from jumpout_export.render.writers.document import build_document
from jumpout_export.report import Check, ProviderReport, VerifyReport, counted, passes

GOOD, BAD = check("cpu/all/x"), check("cpu/all/y", "fail", 1.0)
WARNING = counted("file/local paths", ["/home/me"], otherwise="warning")
NEEDED = Check(name="outputs", verdict="not_run", note="`score` never moved")
OPTIONAL = Check(name="made up", verdict="not_run", required=False, note="none is left")


def report(*checks, **changes):
    values = {"checks": list(checks), "passed": passes(checks), "path": "m.onnx"}
    return VerifyReport(**{**values, **changes})


@pytest.mark.parametrize(
    ("checks", "code"),
    [
        ([GOOD], 0),
        ([GOOD, WARNING], 0),
        ([GOOD, OPTIONAL], 0),
        ([GOOD, NEEDED], 3),
        ([GOOD, WARNING, NEEDED, OPTIONAL], 3),
        ([GOOD, BAD], 1),
        ([WARNING, NEEDED, BAD], 1),
    ],
    ids=lambda value: value if isinstance(value, int) else "+".join(one.verdict for one in value),
)
def test_the_verdict_and_the_exit_code_follow_from_the_checks(checks, code):
    assert bool(report(*checks)) == (code == 0)
    assert exit_code(report(*checks)) == code


@pytest.mark.parametrize("verdict", ["fail", "not_run"])
def test_a_provider_that_did_not_pass_is_a_report_that_did_not(verdict):
    assert passes([GOOD], {"cpu": ProviderReport(verdict="pass")})
    assert not passes([GOOD], {"cpu": ProviderReport(verdict="pass"), "cuda": ProviderReport(verdict=verdict)})


def test_a_warning_is_amber_and_named_and_the_report_passes():
    document = build_document(report(GOOD, WARNING))
    assert (document.verdict.text, document.verdict.tone) == ("! PASS, WITH WARNINGS", "warn")
    assert document.sentence == (
        "`m.onnx` equals the PyTorch model: 1 of 2 checks passed. 1 warning, first `file/local paths`, measured 1, "
        "limit 0: /home/me."
    )
    group = next(b for s in document.sections for b in s.blocks if isinstance(b, Group) and b.title == "file")
    assert (group.state.text, group.state.tone, group.summary) == ("! warning", "warn", "1 with a warning")


@pytest.mark.parametrize("render", [render_markdown, render_html, terminal], ids=["markdown", "html", "terminal"])
def test_a_warning_is_shown_in_every_form(render):
    text = render(report(GOOD, WARNING))
    assert "! warning" in text
    assert "! PASS, WITH WARNINGS" in text


def test_the_page_draws_a_warning_with_numbers():
    many = [check(f"cpu/all/{i}", "warning" if i == 3 else "pass", 1e-7) for i in range(12)]
    document = build_document(report(*many))
    (plots,) = [block for section in document.sections for block in section.blocks if isinstance(block, Plots)]
    assert "svg" in plots.plots[0].draw()


def test_what_was_not_shown_is_named_with_its_reason():
    document = build_document(report(GOOD, OPTIONAL, NEEDED))
    assert document.verdict.text == "? NOT VERIFIED"
    assert document.sentence.endswith("2 of 3 checks were not run. First `outputs`: `score` never moved.")


def test_a_report_says_which_schema_it_follows():
    assert json.loads(report(GOOD).model_dump_json())["schema_version"] == 2
