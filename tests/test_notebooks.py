"""What a notebook shows: one line, the page of a report, the steps in the log, and bars of progress."""

import html
import logging
import re
import sys
import types

import pytest
import torch
from support import documents
from torch import nn

from jumpout_export import check_batchnorm, export_onnx, recalibrate_batchnorm, show_progress
from jumpout_export.render import render_html
from jumpout_export.report import MonitorHistory

REPORTS = {name: report for name, (report, _) in documents.REPORTS.items()}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_every_report_is_one_line(report):
    line = repr(report)
    assert line == str(report)
    assert line.startswith(f"<{type(report).__name__}: ")
    assert "\n" not in line
    assert len(line) < 200


def test_the_line_says_what_was_found():
    drift, inspected = REPORTS["batchnorm drift"], REPORTS["inspect"]
    assert repr(drift).startswith("<BatchNormReport: drift, ")
    assert repr(drift).endswith(f"drift starts at {drift.origin}>")
    assert repr(drift.layers[0]).startswith(f"<BatchNormLayer: {drift.layers[0].name} ")
    assert repr(inspected) == "<VerifyReport: inspect not passed, 0 of 1 check, no file>"


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_a_notebook_shows_the_page_of_the_report(report):
    cell = report._repr_html_()
    page = html.unescape(re.fullmatch(r'<iframe sandbox srcdoc="([^"]*)" .*></iframe>', cell, re.DOTALL)[1])
    assert page == render_html(report)


def test_a_history_is_its_plot():
    history = MonitorHistory(steps=[1, 2], w={"bn": [0.1, 0.2]}, w_low={"bn": [0.0, 0.1]}, w_high={"bn": [0.2, 0.3]})
    assert repr(history) == "<MonitorHistory: 1 layer, 2 looks, the last at step 2>"
    assert "<svg" in history._repr_html_()


def test_without_the_extra_the_line_is_shown_with_the_command_that_installs_it(monkeypatch):
    report = next(iter(REPORTS.values()))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    cell = report._repr_html_()
    assert html.escape(repr(report)) in cell
    assert "pip install &#x27;jumpout-export[report]&#x27;" in cell


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.1), nn.Flatten(), nn.Linear(72, 2))


BATCHES = [torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def test_a_recalibration_is_one_line():
    assert len(repr(recalibrate_batchnorm(network(), BATCHES))) < 200


@pytest.mark.integration
def test_the_log_says_at_debug_which_step_runs(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "jumpout_export"):
        check_batchnorm(network(), BATCHES)
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "jumpout_export"):
        check_batchnorm(network(), BATCHES)
        export_onnx(network(), tmp_path / "m.onnx", BATCHES[0][:2])
    said = [record.getMessage() for record in caplog.records if record.name == "jumpout_export"]
    assert said[0] == "BatchNorm: checking BatchNorm"
    for step in ("export: fold", "export: convert", "export: inspect", "verify: compare on batch=1"):
        assert step in said, said
    assert said.index("export: fold") < said.index("export: convert") < said.index("verify: compare on batch=1")


def test_elsewhere_progress_is_lines_on_stderr(capsys):
    check_batchnorm(network(), BATCHES, progress=show_progress())
    out, err = capsys.readouterr()
    assert out == ""
    assert "checking BatchNorm 128/128\n" in err


class Handle(list):
    """What IPython's `display` returns: here all that was drawn in one place."""

    update = list.append


def test_in_a_notebook_progress_is_a_bar_per_step_drawn_in_its_place(monkeypatch, capsys):
    drawn = []
    shell = types.SimpleNamespace(kernel=object())  # as a notebook has
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: shell
    display.HTML, display.display = str, lambda content, display_id: drawn.append(Handle([content])) or drawn[-1]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    show = show_progress()
    for done in (1, 2, 3):
        show("checking <BatchNorm>", done, 3)
    show("reading", 7, None)
    first, second = drawn
    assert first[-1] == '<div><progress value="3" max="3"></progress> checking &lt;BatchNorm&gt;: 3 of 3</div>'
    assert second == ["<div>reading: 7</div>"]
    assert capsys.readouterr() == ("", "")
