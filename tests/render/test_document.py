"""Every kind of report in every form: verdict first, nothing lost, nothing smuggled in."""

import html
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt  # comes with rich
from rich.console import Console

from jumpout_export.render import render_html, render_markdown, render_terminal
from jumpout_export.render.blocks import Table
from jumpout_export.render.numbers import number, score
from jumpout_export.render.writers.document import build_document
from jumpout_export.report import (
    AlphaAdvice,
    BatchNormCall,
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
)


def layer(name: str = "features.1", w: float = 0.2, verdict: str = "drift", **changes: object) -> BatchNormLayer:
    numbers = {"w": w, "w_low": 0.9 * w, "w_high": 1.1 * w, "delta": [w, -w], "log_ratio": [-w, w / 2]}
    return BatchNormLayer(name=name, verdict=verdict, channels=2, images=100, **{**numbers, **changes})


def batchnorm(verdict: str = "drift", w: float = 0.2, **changes: object) -> BatchNormReport:
    layers = [layer("features.1", w / 20, "ok"), layer("features.5", w, verdict, note="served variance is 0.7 of it")]
    origin = "features.5" if verdict == "drift" else None
    return BatchNormReport(**{"verdict": verdict, "origin": origin, "images": 1437, "layers": layers, **changes})


def check(name: str, verdict: str = "pass", measured: float | None = 2e-7, limit: float | None = 1e-5) -> Check:
    return Check(name=name, verdict=verdict, measured=measured, limit=limit, note=f"note of {verdict}")


def checks(fail: bool) -> list[Check]:
    passing = [check(f"cpu/{level}/batch={size}/worst error") for level in ("off", "all") for size in range(12)]
    bad = [check("cpu/all/batch=99/worst error", "fail", 3.25e-3)] if fail else []
    return [check("file/random nodes", measured=0, limit=0), *passing, *bad]


def export(fail: bool = False, **changes: object) -> ExportReport:
    cpu = ProviderReport(verdict="fail" if fail else "pass", reason="one check failed" if fail else "")
    values = {
        "passed": not fail,
        "providers": {"cpu": cpu, "cuda": ProviderReport(verdict="not_run", reason="libcudnn.so.9 is missing")},
        "checks": checks(fail),
        "first_divergence": "features.8" if fail else None,
        "path": "runs/demo/model.onnx",
        "sha256": "ab" * 32,
        "opset": 20,
        "folded": [FoldedLayer(path="features.3", kind="Jumpout", action="relu", settings="sigma=0.1")],
        "provenance": {"torch": "2.13.0"},
        "notes": ["left in train mode: features"],
    }
    return ExportReport(**{**values, **changes})


def pipeline(fail: bool = False) -> PipelineReport:
    history = TrainingHistory(
        loss=[2.0, 1.0, 0.5],
        train_accuracy=[0.3, 0.6, 0.9],
        test_accuracy=[0.4, 0.7, 0.975],
        active_fraction={"features.3": [0.5, 0.4, 0.45], "features.7": [0.6, 0.5, 0.4]},
        rate={"features.3": [0.1, 0.2, 0.2], "features.7": [0.1, 0.1, 0.3]},
    )
    effect = OutputEffect(
        images=360, logit_shift=0.2, kl=0.03, flip_rate=0.02, top1_before=0.9, top1_after=0.95,
        nll_before=0.2, nll_after=0.3, ece_before=0.02, ece_after=0.02,
    )  # fmt: skip
    return PipelineReport(
        title="demo: digits",
        training=history,
        before=batchnorm(outputs=effect),
        after=batchnorm("drift" if fail else "ok", 0.1 if fail else 1e-6),
        export=export(fail),
        environment={"python": "3.11"},
        notes=["one seed"],
    )


REPORTS = {
    "batchnorm ok": (batchnorm("ok", 0.01), "PASS"),
    "batchnorm drift": (batchnorm(), "FAIL"),
    "batchnorm inconclusive": (batchnorm("inconclusive", 0.05), "INCONCLUSIVE"),
    "batchnorm empty": (BatchNormReport(verdict="ok", images=0), "NOT RUN"),
    "verify": (VerifyReport(passed=True, checks=[check("cpu/all/x")]), "PASS"),
    "verify empty": (VerifyReport(passed=False), "FAIL"),
    "inspect": (VerifyReport(kind="inspect", passed=False, checks=[check("file/x", "fail", 2, 0)]), "FAIL"),
    "export": (export(batchnorm=batchnorm("ok", 0.01)), "PASS"),
    "export fail": (export(fail=True), "FAIL"),
    "pipeline": (pipeline(), "PASS"),
    "pipeline fail": (pipeline(fail=True), "FAIL"),
    "pipeline empty": (PipelineReport(training=TrainingHistory()), "NOT RUN"),
}


def terminal(report: object, width: int = 80, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    render_terminal(report, Console(file=file, width=width, color_system=None, legacy_windows=False))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def words(text: str) -> str:
    """Returns `text` without what wraps or marks it up, so that a sentence can be looked for."""
    return " ".join(html.unescape(re.sub(r"</?[a-z][^>]*>|[`\\*]", "", text)).split())


class Tags(HTMLParser):
    """What a browser would see as elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


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
    bare = BatchNormReport(verdict="inconclusive", images=9, layers=[layer("bn", 0.05, "inconclusive")])
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
    assert "after recalibration" in render_html(report)


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
    assert [attributes for tag, attributes in page.tags if tag == "details"] == [{}, {}, {}]
    assert "batch=3/worst error" in page.text
    assert "<details><summary>✗ fail cpu/all: 1 failed" in render_markdown(report)


HOSTILE = "<script>alert(1)</script>|`x`[red]$y$-->\x1b[31m\"' &amp; _z_ \u202e名"


def hostile_report() -> PipelineReport:
    report = pipeline(fail=True)
    bad = layer(HOSTILE, note=HOSTILE)
    check_with_it = [Check(name=HOSTILE, measured=i, limit=1, verdict="fail", note=HOSTILE) for i in range(2, 5)]
    return PipelineReport(
        title=HOSTILE,
        training=TrainingHistory(active_fraction={HOSTILE: [0.5, 0.4], "_underscore": [0.3, 0.2]}),
        before=BatchNormReport(verdict="drift", origin=HOSTILE, images=1, layers=[bad], not_observed=[HOSTILE]),
        after=report.after,
        export=export(
            fail=True,
            checks=check_with_it,
            first_divergence=HOSTILE,
            folded=[FoldedLayer(path=HOSTILE, kind=HOSTILE, action=HOSTILE, settings=HOSTILE)],
            providers={HOSTILE: ProviderReport(verdict="fail", reason=HOSTILE)},
            provenance={HOSTILE: HOSTILE},
            notes=[HOSTILE],
        ),
        environment={HOSTILE: HOSTILE},
        notes=[HOSTILE],
    )


def test_a_page_contains_names_as_text_only():
    page = render_html(hostile_report())
    parsed = Tags(page)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in parsed.text
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "_underscore" in parsed.text


def test_the_escaping_test_can_fail():
    assert "script" in {tag for tag, _ in Tags(f"<p>{HOSTILE}</p>").tags}


def test_markdown_contains_names_as_text_only():
    text = render_markdown(hostile_report())
    assert "\x1b" not in text
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    blocks = [token.content.strip() for token in tokens if token.type == "html_block"]
    assert blocks
    assert all(re.fullmatch(r"<details[^>]*><summary>[^<]*</summary>|</details>", block) for block in blocks), blocks
    inline = [child for token in tokens for child in token.children or []]
    assert not [child.content for child in inline if child.type in {"html_inline", "link_open", "em_open", "image"}]
    # Split or lost anywhere, the name would not be found whole; visible() is what all forms show of it.
    cells = ["".join(c.content for c in token.children or []) for token in tokens if token.type == "inline"]
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert cells.count(shown) + cells.count(shown.replace("`", "")) >= 15


def test_the_terminal_gets_no_control_characters_and_no_markup():
    text = terminal(hostile_report(), width=400)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]" in text
    assert "\\x1b[31m" in text


def test_plots_are_well_formed_and_ids_are_unique_on_the_page():
    page = render_html(hostile_report())
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 4
    for plot in plots:
        ET.fromstring(plot)
    ids = [attributes["id"] for _, attributes in Tags(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_page_loads_nothing():
    page = render_html(pipeline())
    tags = Tags(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "img", "object", "embed"}
    links = [
        value for _, attributes in tags for name, value in attributes.items() if name in {"href", "src", "xlink:href"}
    ]
    assert links
    assert all(link.startswith("#") for link in links), links
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_plots_follow_the_theme_of_the_page():
    page = render_html(pipeline())
    plots = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--ink)" in plots
    # A colour of its own would not change in the dark.
    assert set(re.findall(r"#[0-9a-f]{6}\b", plots)) == set()
    assert "prefers-color-scheme: dark" in page


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


BROKEN = [math.nan, math.inf, -math.inf, 0.0, -1.0]


@pytest.mark.parametrize("value", BROKEN)
def test_numbers_that_are_none_render_in_every_form(value):
    row = layer(
        "bn", value, "drift", w_low=value, w_high=value, delta=[value, 1.0], log_ratio=[1.0, value], flagged=[0, 7],
        median_log_ratio=value, stale=value, stochastic=value, propagated=0.1, worst_channel=1, delta_p95=value,
        advice=AlphaAdvice(path="drop", alpha=value, rho=value, alpha_star=value, predicted=value),
        calls=[BatchNormCall(w=value, median_log_ratio=value, delta_rms=value)],
    )  # fmt: skip
    history = TrainingHistory(loss=[value], test_accuracy=[value], active_fraction={"j": [value, 0.5], "k": []})
    effect = OutputEffect(
        images=1, logit_shift=value, top1_before=value, top1_after=0.5, nll_before=1, nll_after=value, mcnemar_p=value,
        top1_change_low=value, top1_change_high=value, nll_change_low=value, nll_change_high=value,
    )  # fmt: skip
    broken = [Check(name=f"cpu/all/{i}", measured=value, limit=limit, verdict="fail") for i, limit in enumerate(BROKEN)]
    bad = BatchNormReport(
        verdict="drift", origin="bn", images=1, layers=[row], outputs=effect, warn=abs(value), fail=value
    )
    report = PipelineReport(
        training=history, before=bad, after=bad, export=export(True, checks=[*broken, check("a/b/c")])
    )
    for text in (render_html(report), render_markdown(report), terminal(report)):
        assert "FAIL" in text
        assert score(value) in text
        assert number(value) in text


def test_what_is_no_report_is_refused():
    with pytest.raises(TypeError, match="only a report can be rendered: got dict, allowed is BatchNormReport"):
        render_markdown({"verdict": "ok"})
