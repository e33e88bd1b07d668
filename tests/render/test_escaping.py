"""Names from a model are text in every form, a page loads nothing, and numbers that are none are shown."""

import math
import re
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt
from support.documents import Tags, check, export, layer, pipeline, terminal

from jumpout_export.render import render_html, render_markdown
from jumpout_export.render.numbers import number, score
from jumpout_export.report import (
    AlphaAdvice,
    BatchNormCall,
    BatchNormReport,
    Check,
    FoldedLayer,
    OutputEffect,
    PipelineReport,
    ProviderReport,
    TrainingHistory,
)

HOSTILE = "<script>alert(1)</script>|`x`[red]$y$-->\x1b[31m\"' &amp; _z_ \u202e名"


def hostile_report() -> PipelineReport:
    report = pipeline(fail=True)
    bad = layer(HOSTILE, note=HOSTILE)
    check_with_it = [Check(name=HOSTILE, measured=i, limit=1, verdict="fail", note=HOSTILE) for i in range(2, 5)]
    return PipelineReport(
        title=HOSTILE,
        training=TrainingHistory(active_fraction={HOSTILE: [0.5, 0.4], "_underscore": [0.3, 0.2]}),
        before=BatchNormReport(verdict="drift", origin=HOSTILE, samples=1, layers=[bad], not_observed=[HOSTILE]),
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
    assert len(plots) == 5
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
        samples=1, logit_shift=value, top1_before=value, top1_after=0.5, nll_before=1, nll_after=value, mcnemar_p=value,
        top1_change_low=value, top1_change_high=value, nll_change_low=value, nll_change_high=value,
    )  # fmt: skip
    broken = [Check(name=f"cpu/all/{i}", measured=value, limit=limit, verdict="fail") for i, limit in enumerate(BROKEN)]
    bad = BatchNormReport(
        verdict="drift", origin="bn", samples=1, layers=[row], outputs=effect, warn=abs(value), fail=value
    )
    report = PipelineReport(
        training=history, before=bad, after=bad, export=export(True, checks=[*broken, check("a/b/c")])
    )
    for text in (render_html(report), render_markdown(report), terminal(report)):
        assert "FAIL" in text
        assert score(value) in text
        assert number(value) in text
