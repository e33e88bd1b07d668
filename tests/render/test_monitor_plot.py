"""The monitor's plot: what it names, marks and says where there is nothing to draw."""

import math
import re
import sys

import pytest
from support.monitored import held_out, history, network

from jumpout_export import BatchNormMonitor
from jumpout_export.render.plots.monitor import plot_monitor
from jumpout_export.render.plots.style import themed
from jumpout_export.report import MonitorHistory


def texts(svg: bytes) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())


def test_the_plot_names_layers_and_margins_and_is_the_same_for_the_same_history():
    svg = plot_monitor(history())
    shown = texts(svg)
    assert {"layer0.bn", "layer1.bn", "jump", "drop", "warn 0.05", "fail 0.15", "training step"} <= set(shown)
    assert {"200", "1000", "W, standard deviations"} <= set(shown)
    assert "rate_cap often binds" not in shown
    assert svg == plot_monitor(history())
    assert svg != plot_monitor(history(), warn=0.04)
    assert "warn 0.04" in texts(plot_monitor(history(), warn=0.04))
    assert "var(--c1)" in themed(svg.decode(), "monitor", "the monitor")


def test_the_plot_marks_where_the_cap_often_binds():
    capped = history()
    capped.capped["jump"] = [0.0, 0.05, 0.06, 1.0, math.nan]
    svg = plot_monitor(capped)
    assert "rate_cap often binds" in texts(svg)
    alone = history()
    alone.capped["jump"][3] = 1.0
    assert plot_monitor(alone).count(b"<use") == svg.count(b"<use") - 1


def test_the_plot_shows_both_curves_where_serving_statistics_were_watched():
    both = history()
    both.w_serving = {name: [0.4 * w for w in values] for name, values in both.w.items()}
    both.w_serving["layer0.bn"][0] = math.nan
    svg = plot_monitor(both)
    assert "serving statistics" in texts(svg)
    assert "serving statistics" not in texts(plot_monitor(history()))
    assert svg.count(b"stroke-dasharray") > plot_monitor(history()).count(b"stroke-dasharray") + 2


def test_the_plot_of_many_layers_names_the_highest():
    shown = texts(plot_monitor(history(layers=20)))
    assert "the 8 highest, 12 more in grey" in shown
    assert [name for name in shown if name.endswith(".bn")] == [f"layer{i}.bn" for i in range(12, 20)]


def test_gaps_and_infinite_values_are_drawn():
    odd = history()
    odd.w["layer0.bn"][1] = odd.w_low["layer0.bn"][1] = odd.w_high["layer0.bn"][1] = math.nan
    odd.w["layer1.bn"][2] = odd.w_low["layer1.bn"][2] = odd.w_high["layer1.bn"][2] = math.inf
    odd.w["layer1.bn"][3] = odd.w_low["layer1.bn"][3] = 0.0
    assert b"nan" not in plot_monitor(odd)
    assert b"inf" not in plot_monitor(odd)


def test_a_plot_without_looks_or_stochastic_layers_says_so():
    empty = MonitorHistory(w={"bn": []}, w_low={"bn": []}, w_high={"bn": []})
    shown = texts(plot_monitor(empty))
    assert "no look yet" in shown
    assert "bn" in shown
    assert not [text for text in shown if text.startswith("rate")]


def test_the_plot_is_written_as_its_name_says(tmp_path):
    monitor = BatchNormMonitor(network(), held_out(), every=1)
    monitor.step()
    assert monitor.plot(tmp_path / "bn.svg").read_bytes() == plot_monitor(monitor.history)
    assert monitor.plot(tmp_path / "bn.PNG").read_bytes().startswith(b"\x89PNG")
    assert monitor.plot(str(tmp_path / "bn.svg"), warn=0.1, fail=0.2).read_bytes() == plot_monitor(
        monitor.history, warn=0.1, fail=0.2
    )
    with pytest.raises(ValueError, match=r"the name of the plot must end in \.svg or \.png, got 'bn\.pdf'"):
        monitor.plot("bn.pdf")


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"the plot needs matplotlib.*pip install 'jumpout-export\[report\]'"):
        plot_monitor(history())
