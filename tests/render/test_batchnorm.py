"""What a BatchNorm report says in tables and sentences: the report's own numbers, and nothing where there are none."""

import math
import re
from html.parser import HTMLParser

import pytest

from jumpout_export.render import render_html, render_markdown
from jumpout_export.render.writers.document import build_document
from jumpout_export.report import (
    AlphaAdvice,
    BatchNormCall,
    BatchNormLayer,
    BatchNormReport,
    OutputEffect,
    PipelineReport,
)


def layer(name: str, **changes: object) -> BatchNormLayer:
    values = {
        "name": name, "verdict": "drift", "w": 0.2004, "w_low": 0.1802, "w_high": 0.2251, "cause": "stochastic",
        "channels": 3, "samples": 4096, "delta": [0.1, -0.2, 0.05], "log_ratio": [-0.3, -0.5, 0.01],
        "median_log_ratio": -0.3, "stale": -0.05, "stochastic": -0.35, "propagated": 0.1, "delta_p95": 0.187,
        "symmetric_kl": 0.0211, "max_ratio": 1.35, "worst_channel": 1, "flagged": [0, 1],
        "note": "Drift: 0.74 times the stored one.",
    }  # fmt: skip
    return BatchNormLayer(**{**values, **changes})


def check(*layers: BatchNormLayer, **changes: object) -> BatchNormReport:
    values = {"verdict": "drift", "origin": layers[0].name, "samples": 4096, "layers": layers}
    return BatchNormReport(**{**values, **changes})


def rows(report: object, section: str) -> list[list[str]]:
    """Returns the cells of all tables under a heading of the Markdown form."""
    text = render_markdown(report)
    part = text[text.index(f"\n## {section}") + 1 :].split("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]


def sections(report: object) -> list[str]:
    return [section.key for section in build_document(report).sections]


# -- drift per layer


def test_the_table_of_layers_holds_the_numbers_of_the_report():
    head, _, row = rows(check(layer("features.1")), "BatchNorm")[:3]
    assert head == ["layer", "kind", "verdict", "W", "95% interval", "ln r", "cause", "ratio r"]
    expected = ["`features.1`", "BatchNorm2d", "✗ drift", "0.200", "0.180–0.225", "-0.300", "stochastic", "0.74"]
    assert row == expected


def test_before_and_after_stand_side_by_side():
    after = check(layer("bn", verdict="ok", w=2e-8, cause=None), verdict="ok", origin=None)
    head, _, row = rows(PipelineReport(before=check(layer("bn")), after=after), "BatchNorm")[:3]
    shown = dict(zip(head, row, strict=True))
    assert (shown["before"], shown["W before"], shown["after"], shown["W after"]) == (
        "✗ drift", "0.200", "✓ ok", r"\<0.001",
    )  # fmt: skip


def test_a_layer_that_is_missing_after_recalibration_says_so():
    after = check(layer("other", verdict="ok"), verdict="ok", origin=None)
    head, _, row = rows(PipelineReport(before=check(layer("bn")), after=after), "BatchNorm")[:3]
    assert dict(zip(head, row, strict=True))["after"] == "– not run"


def test_the_origin_is_named_with_its_cause():
    text = render_markdown(check(layer("stem.bn"), layer("features.1", cause="propagated")))
    assert "- Origin: `stem.bn`, where the drift starts: W 0.200, 95% 0.180 to 0.225. Mostly stochastic: " in text
    assert "Origin" not in render_markdown(check(layer("stem.bn"), origin=None))


# -- causes and advice


def test_the_parts_of_the_drift_are_those_of_the_report_and_add_up():
    head, _, row = rows(check(layer("bn")), "Parts of the drift")
    assert head[1:5] == ["stale", "stochastic", "propagated", "total, ln r"]
    assert row[1:5] == ["-0.050", "-0.350", "+0.100", "-0.300"]
    assert sum(map(float, row[1:4])) == pytest.approx(float(row[4]))


def test_the_advice_shows_prediction_beside_measurement():
    advice = AlphaAdvice(path="drop.3", alpha=1.0, rho=1.5, alpha_star=0.7812, predicted=-0.33)
    head, _, row = rows(check(layer("bn", advice=advice), layer("other")), "The exponent")
    shown = dict(zip(head, row, strict=True))
    assert shown == {
        "layer": "`bn`", "fed by": "`drop.3`", "alpha": "1", "alpha\\*": "0.781", "rho": "1.5",
        "ln(P/T) predicted": "-0.330", "ln(P/T) measured": "-0.350",
        "P/T predicted": "0.72", "P/T measured": "0.70",
    }  # fmt: skip
    assert float(shown["P/T predicted"]) == pytest.approx(math.exp(-0.33), abs=0.005)


def test_the_numbers_behind_a_verdict_are_listed():
    head, _, row = rows(check(layer("bn", samples_needed=9100)), "Channels")
    assert dict(zip(head, row, strict=True)) == {
        "layer": "`bn`", "channels": "3", "significant": "2", "mean shift, 95%": "0.187",
        "symmetric KL, nats": "0.0211", "max(r, 1/r)": "1.35", "samples": "4,096", "samples needed": "9,100",
    }  # fmt: skip


def test_every_call_of_a_shared_layer_has_a_row():
    calls = [BatchNormCall(w=0.05, median_log_ratio=0.1, delta_rms=0.02)]
    calls.append(BatchNormCall(w=0.31, median_log_ratio=-0.6, delta_rms=0.14))
    table = rows(check(layer("shared", calls=calls), layer("once")), "Layers called several times")
    assert table[2:] == [
        ["`shared`", "1", "0.050", "+0.100", "1.11", "0.020"],
        ["`shared`", "2", "0.310", "-0.600", "0.55", "0.140"],
    ]


BARE = BatchNormLayer(name="bn", verdict="drift", w=0.2, w_low=0.1, w_high=0.3)


def test_what_a_report_does_not_hold_is_not_shown():
    assert sections(check(BARE)) == ["batchnorm"]
    assert set(sections(check(layer("bn")))) == {"batchnorm", "causes", "channels"}
    head = rows(check(BARE), "BatchNorm")[0]
    assert head == ["layer", "kind", "verdict", "W", "95% interval"]
    assert "svg" in render_html(check(BARE))


def test_layers_without_the_numbers_are_left_out_of_the_tables_of_those_that_have_them():
    report = check(layer("full"), BARE)
    assert [row[0] for row in rows(report, "Parts of the drift")[2:]] == ["`full`"]
    assert rows(report, "BatchNorm")[3][5:] == ["–", "–", "–"]


# -- outputs

EFFECT = OutputEffect(
    samples=10_000, logit_shift=0.31, kl=0.12, flip_rate=0.2144, top1_before=0.454, top1_after=0.493, nll_before=1.5121,
    nll_after=1.3984, ece_before=0.081, ece_after=0.0312, labelled=9_990, top1_change_low=0.0211,
    top1_change_high=0.057, mcnemar_p=2.04e-5, nll_change_low=-0.1201, nll_change_high=-0.1073,
)  # fmt: skip


def test_the_change_of_accuracy_comes_with_interval_and_test():
    text = render_markdown(check(layer("bn"), outputs=EFFECT)).replace("\\", "")
    assert (
        "- top-1 45.4% -> 49.3% (+3.9 points, 95% +2.1 to +5.7, McNemar p = 2e-5), 9,990 labelled samples\n"
        "- negative log likelihood 1.512 -> 1.398 (-0.114 nats, 95% -0.120 to -0.107), 9,990 labelled samples\n"
    ) in text
    assert "| top-1 accuracy | 45.4% | 49.3% | ✓ better by 3.9 points |" in text
    assert "| negative log likelihood, nats | 1.512 | 1.398 | ✓ better by 0.114 |" in text
    assert "| calibration error (ECE) | 8.1% | 3.1% | ✓ better by 5.0 points |" in text
    assert "| samples whose class changes | 21.4% |" in text


def test_a_change_that_chance_explains_is_neither_better_nor_worse():
    unsure = {"top1_after": 0.457, "mcnemar_p": 0.31, "nll_change_low": -0.2, "nll_change_high": 0.05}
    table = rows(check(layer("bn"), outputs=EFFECT.model_copy(update=unsure)), "Effect")
    assert table[2][3] == "= within chance (better by 0.3 points)"
    assert table[3][3] == "= within chance (better by 0.114)"
    cells = build_document(check(layer("bn"), outputs=EFFECT.model_copy(update=unsure))).sections[1].blocks[0].rows
    assert [row[3].tone for row in cells] == ["plain", "plain", "good"]
    unsure |= {"ece_after": 0.083, "ece_change_low": -0.01, "ece_change_high": 0.014}
    report = check(layer("bn"), outputs=EFFECT.model_copy(update=unsure))
    assert rows(report, "Effect")[4][3] == "= within chance (worse by 0.2 points)"
    text = "calibration error 8.1% -> 8.3% (+0.2 points, 95% -1.0 to +1.4), 9,990 labelled samples"
    assert text in render_markdown(report).replace("\\", "")
    pixels = {"mcnemar_p": None, "top1_after": 0.457, "top1_change_low": -0.01, "top1_change_high": 0.02}
    assert rows(check(layer("bn"), outputs=EFFECT.model_copy(update=pixels)), "Effect")[2][3].startswith("= within")


def test_an_effect_without_intervals_or_labels_claims_none():
    bare = OutputEffect(samples=9, logit_shift=0.1, top1_before=0.5, top1_after=0.4)
    assert "- top-1 50.0% -\\> 40.0% (-10.0 points)\n" in render_markdown(check(BARE, outputs=bare))
    text = render_markdown(check(BARE, outputs=OutputEffect(samples=9, logit_shift=0.1)))
    assert "top-1" not in text
    assert "likelihood |" not in text


# -- the page

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Nesting(HTMLParser):
    """Fails on a tag that is closed out of order or never."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order"


def full(n: int = 3) -> BatchNormReport:
    advice = AlphaAdvice(path="drop", alpha=1.0, rho=1.5, alpha_star=0.78, predicted=-0.33)
    calls = [BatchNormCall(w=0.05, median_log_ratio=0.1, delta_rms=0.02)] * 2
    names = [f"stage{i // 10}.bn{i % 10}" for i in range(n)]
    return check(*(layer(name, advice=advice, calls=calls) for name in names), outputs=EFFECT)


@pytest.mark.parametrize("n", [1, 3, 160])
def test_a_page_is_well_formed_and_holds_no_address(n):
    page = render_html(full(n))
    Nesting(page)
    assert "//" not in page
    assert re.findall(r"http.{8}", page) == ['http-equiv="']


def test_the_nesting_test_can_fail():
    with pytest.raises(AssertionError, match="out of order"):
        Nesting("<table><tr></table></tr>")
    with pytest.raises(AssertionError, match="never closed"):
        Nesting("<section><p></p>")


@pytest.mark.integration
def test_a_page_of_many_layers_lists_all_of_them_and_stays_small():
    report = full(160)
    wide = [
        row.model_copy(update={"delta": row.delta * 200, "log_ratio": row.log_ratio * 200}) for row in report.layers
    ]
    report = report.model_copy(update={"layers": wide})
    page = render_html(report)
    assert len(page) < 1_200_000
    assert all(f"<code>{row.name}</code>" in page for row in report.layers)
    assert page.count("<svg") == 2 + 9
    assert render_html(report) == page


def test_a_hostile_name_is_text_everywhere():
    name = '<script>alert(1)</script>"&]]>'
    report = full(2)
    report.layers[0] = report.layers[0].model_copy(update={"name": name, "kind": name, "note": name})
    report.layers[0].advice.path = name
    page = render_html(report.model_copy(update={"origin": name}))
    Nesting(page)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 6


def test_a_signed_bar_on_the_page_is_hidden_from_screen_readers_which_get_the_number():
    page = render_html(check(layer("bn", median_log_ratio=-0.25)))
    bar = re.search(r'-0\.250<span class="signed" aria-hidden="true"><i style="left:([\d.]+)%;width:([\d.]+)%">', page)
    left, width = map(float, bar.groups())
    # On the scale from -0.3 to 0.3, to the left of the middle.
    assert (left, width) == (pytest.approx(50 - 50 * 0.25 / 0.3, abs=0.1), pytest.approx(50 * 0.25 / 0.3, abs=0.1))


def test_every_plot_has_a_text_alternative():
    page = render_html(full(3))
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    assert len(labels) == page.count("<svg") == 5
    assert any(
        "W 0.200; 3 channels; 2 significant; worst channel 1: shift -0.200, ln -0.500" in text for text in labels
    )
