"""A report on which all is well is one screen: what asks for nothing is folded away under a line that says so."""

import pytest
from support.documents import batchnorm, export, layer, pipeline

from jumpout_export.render import render_html
from jumpout_export.render.blocks import Items, Plots
from jumpout_export.render.writers.document import build_document
from jumpout_export.report import BatchNormReport, Check, OutputEffect

EFFECT = OutputEffect(
    samples=360, logit_shift=0.01, top1_before=0.9, top1_after=0.9, nll_before=0.2, nll_after=0.2, mcnemar_p=1.0
)
NUMBERS = {"stale": 0.2, "stochastic": -0.2, "propagated": 0.0, "delta": [0.01, 0.0], "log_ratio": [0.01, 0.0]}


def check(*verdicts, **changes):
    layers = [layer(f"bn{i}", 0.2 if it == "drift" else 0.01, it, **NUMBERS) for i, it in enumerate(verdicts)]
    worst = next((it for it in ("drift", "inconclusive") if it in verdicts), "ok")
    return batchnorm(worst, layers=layers, outputs=EFFECT, origin="bn0" if worst == "drift" else None, **changes)


def open_sections(report):
    return [section.key for section in build_document(report).sections if not section.settled]


def plots(report):
    blocks = [block for section in build_document(report).sections for block in section.blocks]
    return {plot.name: plot.title for block in blocks if isinstance(block, Plots) for plot in block.plots}


def test_where_all_layers_agree_every_section_is_folded_away():
    report = check("ok", "ok")
    assert open_sections(report) == []
    page = render_html(report)
    assert page.count('<details class="whole">') == page.count("</section>")
    assert "2 layers agree, largest W 0.010 at <code>bn0</code>" in page
    assert "recalibrating changes nothing beyond chance" in page


@pytest.mark.parametrize("verdict", ["drift", "inconclusive"])
def test_one_layer_that_does_not_agree_opens_its_sections(verdict):
    assert {"batchnorm", "outputs", "channels"} <= set(open_sections(check("ok", verdict)))
    assert "outputs" in open_sections(check("ok", "ok", not_observed=["bn9"]))


def test_where_nothing_drifts_nobody_asks_where_it_comes_from():
    assert "attribution" in plots(check("ok", "drift"))
    assert "causes" in open_sections(check("ok", "drift"))
    for verdicts in (("ok", "ok"), ("ok", "inconclusive")):
        assert "attribution" not in plots(check(*verdicts))
        assert "causes" not in [section.key for section in build_document(check(*verdicts)).sections]


def test_channels_are_drawn_of_layers_that_are_off_and_of_no_others():
    assert plots(check("ok", "drift", "ok"))["channels-1"] == "bn1"
    assert "channels-2" not in plots(check("ok", "drift", "ok"))
    assert not [name for name in plots(check("ok", "ok")) if name.startswith("channels")]


def test_notes_on_a_check_are_never_folded_away():
    report = check("ok", "ok", notes=["The labels come in runs."])
    (notes,) = [section for section in build_document(report).sections if not section.settled]
    assert notes.blocks == (Items(("The labels come in runs.",)),)


def test_before_and_after_a_recalibration_stand_side_by_side():
    report = pipeline()
    assert list(plots(report))[4:6] == ["drift", "drift-after"]
    assert "batchnorm" in open_sections(report)  # what was mended is what one wants to see


def test_checks_that_passed_are_folded_away_and_one_that_did_not_opens_them():
    assert "parity" not in open_sections(export())
    assert "parity" in open_sections(export(fail=True))
    warned = export()
    warned.checks.append(Check(name="file/paths", verdict="warning", note="a path"))
    assert "parity" in open_sections(warned)


def test_a_check_of_nothing_is_not_settled():
    assert "batchnorm" in open_sections(BatchNormReport(verdict="ok", samples=0))
