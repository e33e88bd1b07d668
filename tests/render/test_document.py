"""Every kind of report in every form: verdict first, and nothing shown as it is not."""

import subprocess
import sys

import pytest
from support.documents import REPORTS, Tags, batchnorm, check, checks, export, layer, pipeline, terminal, words

from jumpout_export.render import render_html, render_markdown, render_terminal
from jumpout_export.render.blocks import Table
from jumpout_export.render.writers.document import build_document
from jumpout_export.report import (
    BatchNormReport,
    Check,
    FoldedLayer,
    PipelineReport,
    ProviderReport,
    VerifyReport,
)


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("render", [render_markdown, render_html, terminal], ids=["markdown", "html", "terminal"])
def test_every_report_shows_its_verdict_and_reason_in_every_form(name, render):
    report, word = REPORTS[name]
    document = build_document(report)
    assert document.verdict.text.split(" ", 1)[1] == word
    text = words(render(report))
    assert document.verdict.text in text
    assert words(document.sentence) in text


@pytest.mark.parametrize("name", REPORTS)
def test_pass_is_said_of_truthy_reports_only(name):
    report, word = REPORTS[name]
    assert (word == "PASS") == (bool(report) and "empty" not in name)


def test_a_failed_check_is_named_with_measured_and_limit():
    sentence = build_document(export(fail=True)).sentence
    start = "`model.onnx`: The first layer that differs is `features.8`. 1 of 26 checks failed, first "
    assert sentence.startswith(f"{start}`cpu/all/batch=99/worst error`, measured 0.00325, limit 1e-5: note of fail.")


def test_what_differs_is_said_before_by_how_much():
    constants = Check(name="batchnorm constants", measured=3, limit=0, verdict="fail", note="`bn` holds stale values")
    report = VerifyReport(passed=False, checks=[*checks(fail=True), constants], first_divergence=".", path="m.onnx")
    document = build_document(report)
    assert document.sentence == (
        "`m.onnx`: The first difference is in what the model's own forward computes. 2 of 27 checks failed, first "
        "`batchnorm constants`, measured 3, limit 0: `bn` holds stale values."
    )
    blocks = [block for section in document.sections for block in section.blocks]
    (table,) = [block for block in blocks if isinstance(block, Table) and block.title == "Checks that did not pass"]
    assert [row[0].text for row in table.rows] == ["batchnorm constants", "cpu/all/batch=99/worst error"]


def test_a_file_that_is_random_on_purpose_is_amber():
    report = export(provenance={"jumpout_export.random": "random on purpose: 1 node"})
    document = build_document(report)
    assert (document.verdict.text, document.verdict.tone) == ("! PASS, RANDOM ON PURPOSE", "warn")
    assert "is random on purpose, NOT deterministic" in document.sentence
    assert '<div class="verdict warn">' in render_html(report)
    assert '<div class="verdict good">' in render_html(export())
    assert build_document(PipelineReport(export=report)).verdict == document.verdict
    assert build_document(export(fail=True, provenance=report.provenance)).verdict.text == "✗ FAIL"


UNPUBLISHED = {
    "failed export": export(fail=True),
    "not verified": export(
        passed=False, providers={"cuda": ProviderReport(verdict="not_run", reason="libcudnn.so.9 is missing")}
    ),
    "failed fold": export(fail=True, kind="fold", providers={}),
}


@pytest.mark.parametrize("report", UNPUBLISHED.values(), ids=UNPUBLISHED)
@pytest.mark.parametrize("render", [render_markdown, render_html, terminal], ids=["markdown", "html", "terminal"])
def test_a_file_that_was_not_written_is_not_shown_as_if_it_was(report, render):
    sentence = build_document(report).sentence
    assert sentence.endswith(" Nothing was written; an older file, if there is one, is unchanged.")
    text = words(render(report))
    assert "not published" in text
    assert "SHA-256" not in text
    assert "ab" * 32 not in text
    assert "What the file's own metadata says." not in text
    if render is not terminal:  # which leaves provenance out
        assert "What the metadata of the file would say; it was not published." in text


@pytest.mark.parametrize(
    "report", [export(), VerifyReport(passed=False, path="m.onnx", sha256="ab" * 32)], ids=["published", "verified"]
)
def test_a_file_that_is_there_is_shown_with_its_hash(report):
    text = words(render_markdown(report))
    assert "SHA-256" in text
    assert "Nothing was written" not in text
    assert "not published" not in text


def test_weights_beside_the_file_are_shown_with_their_size():
    report = export(data_files={"model.onnx.0123456789abcdef.data": 6291456})
    assert "| weights in | `model.onnx.0123456789abcdef.data (6,291,456 bytes)` |" in render_markdown(report)
    assert "weights in" not in render_markdown(export())


def test_on_a_narrow_page_a_failed_check_is_a_block_whose_numbers_have_names():
    tags = Tags(render_html(export(fail=True))).tags
    stacked = [number for number, (_, attributes) in enumerate(tags) if attributes.get("class") == "stacked"]
    assert stacked
    titles = {attributes.get("data-title") for tag, attributes in tags[stacked[0] :] if tag == "td"}
    assert {"check", "verdict", "measured", "limit", "what"} <= titles
    # A table without numbers keeps its headings.
    folded = next(number for number, (_, attributes) in enumerate(tags) if attributes.get("id") == "folded")
    assert next(attributes for tag, attributes in tags[folded:] if tag == "table") == {}


def test_drift_is_named_with_layer_interval_and_margin():
    sentence = build_document(batchnorm()).sentence
    assert (
        "1 of 2 BatchNorm layers drifts, starting at `features.5`: W 0.200 (95% 0.180 to 0.220), margin 0.05."
        in sentence
    )


def test_an_undecided_layer_gives_its_reason():
    assert "first `features.5`: served variance is 0.7 of it." in build_document(batchnorm("inconclusive")).sentence
    bare = BatchNormReport(verdict="inconclusive", samples=9, layers=[layer("bn", 0.05, "inconclusive")])
    assert "W lies between 0.045 and 0.055, the margin is 0.05." in build_document(bare).sentence


def test_a_provider_that_could_not_run_is_not_verified_rather_than_failed():
    cuda = ProviderReport(verdict="not_run", reason="libcudnn.so.9 is missing")
    document = build_document(VerifyReport(passed=False, providers={"cuda": cuda}, path="C:\\runs\\m.onnx"))
    assert document.verdict.text == "? NOT VERIFIED"
    assert document.sentence == "`m.onnx` could not be verified here. cuda was not run: libcudnn.so.9 is missing."


def test_a_failing_provider_without_a_failing_check_gives_its_reason():
    cuda = ProviderReport(verdict="fail", reason="node Conv_3 ran on the CPU")
    report = VerifyReport(passed=False, providers={"cuda": cuda}, checks=[check("cpu/all/x")])
    assert "cuda failed: node Conv_3 ran on the CPU." in build_document(report).sentence


def test_a_failed_recalibration_shows_both_checks():
    # A report that failed is falsy, which must not be mistaken for one that is not there.
    report = pipeline(fail=True)
    assert "After recalibration: 1 of 2 BatchNorm layers" in build_document(report).sentence
    markdown = render_markdown(report)
    assert "| `features.5` | ✗ drift | 0.200 | 0.180–0.220 | ✗ drift | 0.100 |" in markdown
    assert "After recalibration" in render_html(report)


def test_a_worse_likelihood_is_said():
    text = render_markdown(pipeline())
    assert "| top-1 accuracy | 90.0% | 95.0% | ✓ better by 5.0 points |" in text
    assert "| negative log likelihood, nats | 0.200 | 0.300 | ✗ worse by 0.100 |" in text
    assert "| calibration error (ECE) | 2.0% | 2.0% | = unchanged |" in text


def test_a_narrow_terminal_gets_lines_instead_of_a_cut_table():
    text = " ".join(terminal(export(fail=True), width=34).split())
    assert (
        "- check cpu/all/batch=99/worst error, verdict ✗ fail, measured 0.00325, limit 1e-5, what note of fail" in text
    )


def test_output_that_cannot_show_symbols_gets_words(capsys):
    text = terminal(batchnorm("drift", layers=[layer("héllo")]), encoding="ascii")
    assert "x FAIL" in text
    assert "h\\xe9llo" in text
    render_terminal(batchnorm())
    assert "✗ FAIL" in capsys.readouterr().out


def test_many_checks_are_grouped_and_folded_away_and_failures_are_not():
    report = export(fail=True)
    text = terminal(report)
    assert "✓ pass cpu/off: 12 passed, at most 2% of the limit" in text
    assert "✗ fail cpu/all: 1 failed, 12 passed, up to 325 times the limit" in text
    assert "batch=99" in text
    assert "batch=3" not in text
    page = Tags(render_html(report))
    groups = [attributes for tag, attributes in page.tags if tag == "details" and "class" not in attributes]
    assert groups == [{}, {}, {}]
    assert "batch=3/worst error" in page.text
    assert "<details><summary>✗ fail cpu/all: 1 failed" in render_markdown(report)


@pytest.mark.integration
def test_the_same_report_gives_the_same_bytes_in_another_process():
    report = pipeline(fail=True)
    first = render_html(report)
    assert render_html(PipelineReport.model_validate_json(report.model_dump_json())) == first
    code = (
        "import sys; from jumpout_export.render import render_html; from jumpout_export.report import PipelineReport; "
        "sys.stdout.buffer.write(render_html(PipelineReport.model_validate_json(sys.stdin.buffer.read())).encode())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], input=report.model_dump_json().encode(), capture_output=True, check=True
    )
    assert other.stdout.decode() == first


def test_plots_leave_matplotlib_as_it_was():
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"lines.linewidth": 7, "text.usetex": True}):
        changed = render_html(pipeline())
        assert matplotlib.rcParams["lines.linewidth"] == 7
    assert changed == render_html(pipeline())


def test_what_is_no_report_is_refused():
    with pytest.raises(TypeError, match="only a report can be rendered: got dict, allowed is BatchNormReport"):
        render_markdown({"verdict": "ok"})


def test_a_layer_that_stays_is_not_counted_as_removed():
    actions = ["identity"] * 9 + ["keep"] * 6 + ["relu"]
    layers = [FoldedLayer(path=f"layers.{i}", kind="Layer", action=action) for i, action in enumerate(actions)]
    text = words(terminal(export(folded=layers)))
    assert "Fold: ✓ done, 9 layers removed, 1 became relu, 6 stay" in text
    assert "Fold: ✓ done, 0 layers removed, 1 stays" in words(terminal(export(folded=layers[9:10])))
    assert "keep" not in text
