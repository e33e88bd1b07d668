"""The table of layers on a terminal: bars that point the right way, names that stay apart, any width and any length."""

import io
import math
import re

import pytest
from rich.console import Console

from jumpout_export.render import render_terminal
from jumpout_export.render.blocks import SignedBar, bar_text, places, scale_of, scale_text
from jumpout_export.render.names import numbered_all, shortened, shortened_all
from jumpout_export.report import BatchNormLayer, BatchNormReport, PipelineReport


def layer(name: str, log_ratio: float | None = -0.3, verdict: str = "drift", **changes: object) -> BatchNormLayer:
    w = 0.2 if verdict == "drift" else 0.01
    values = {"w": w, "w_low": w - 0.01, "w_high": w + 0.01, "cause": "stochastic" if verdict == "drift" else None}
    return BatchNormLayer(name=name, verdict=verdict, median_log_ratio=log_ratio, **{**values, **changes})


def check(*layers: BatchNormLayer, **changes: object) -> BatchNormReport:
    drifting = [row.name for row in layers if row.verdict == "drift"]
    verdict = "drift" if drifting else "ok"
    values = {"verdict": verdict, "origin": drifting[0] if drifting else None, "samples": 4096, "layers": layers}
    return BatchNormReport(**{**values, **changes})


def terminal(report: object, width: int = 80, encoding: str = "utf-8", **console: object) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    render_terminal(report, Console(file=file, width=width, legacy_windows=False, **console))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def row_of(name: str, text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name))


REAL = check(
    layer("features.1", 0.01, "ok"),
    layer("features.4", -0.05, "inconclusive"),
    layer("features.8", -0.31),
    layer("features.12", 0.155, cause="propagated"),
    layer("features.17", -0.62),
)


# -- bars


def halves(text: str) -> tuple[int, int]:
    """Returns how long the bar is left and right of the middle, in halves of a character."""
    left, right = text.split("│")
    return tuple(2 * side.count("█") + side.count("▐") + side.count("▌") for side in (left, right))


@pytest.mark.parametrize("width", [9, 15, 21])
@pytest.mark.parametrize("value", [-0.5, -0.31, -0.06, 0.0, 0.06, 0.25, 0.5])
def test_a_bar_points_left_for_less_and_right_for_more_and_is_as_long_as_the_number(value, width):
    text = bar_text(SignedBar(value, 0.5), width)
    assert len(text) == width
    assert text[width // 2] == "│"
    left, right = halves(text)
    length = 2 * (width // 2) * abs(value) / 0.5
    assert abs(max(left, right) - length) <= 0.5
    assert (left > 0) == (value < 0)
    assert (right > 0) == (value > 0)


def test_a_bar_touches_the_middle():
    assert bar_text(SignedBar(-0.25, 1.0), 9) == "   █│    "
    assert bar_text(SignedBar(0.375, 1.0), 9) == "    │█▌  "


def test_the_margins_are_marked_where_the_bar_leaves_room():
    assert bar_text(SignedBar(0.0, 0.2, (-0.103, 0.098)), 9) == " ┊  │ ┊  "
    assert bar_text(SignedBar(0.15, 0.2, (-0.103, 0.098)), 9) == " ┊  │███ "


def test_what_lies_off_the_scale_ends_in_an_arrow():
    assert bar_text(SignedBar(7.0, 2.0), 9) == "    │███▶"
    assert bar_text(SignedBar(-math.inf, 2.0), 9) == "◀███│    "
    assert bar_text(SignedBar(math.nan, 2.0), 9) == "    │    "


def test_the_scale_is_the_smallest_that_holds_the_numbers_and_the_margins():
    marks = (-0.103, 0.098)
    assert scale_of([0.01, -0.02], marks) == 0.2
    assert scale_of([0.01, -0.31, None, math.nan, math.inf], marks) == 0.5
    assert scale_of([40.0], marks) == 2.0
    assert scale_of([], ()) == 0.2
    assert scale_text(0.5, 9) == "-0.5 +0.5"


def test_a_bar_on_the_page_stands_where_its_number_is():
    start, length, marks = places(SignedBar(-0.25, 0.5, (-0.1, 0.1, 0.7)))
    assert (start, length) == (25.0, 25.0)
    assert marks == pytest.approx([40.0, 60.0])
    assert places(SignedBar(9.0, 0.5))[:2] == (50.0, 50.0)
    assert places(SignedBar(math.nan, 0.5))[:2] == (50.0, 0.0)


# -- the table


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_row_has_verdict_w_interval_bar_cause_and_ratio(width, encoding):
    text = terminal(REAL, width, encoding)
    assert max(map(len, text.splitlines())) <= width
    drifting = row_of("features.8", text)
    for part in ("drift", "0.200", "0.190", "0.210", "stochastic", "0.73"):
        assert part in drifting
    assert ("BatchNorm2d" in drifting) == (width == 120)
    assert "all BatchNorm2d" in text
    assert "0.95" in row_of("features.4", text)
    # The bar has its middle below the middle of its scale.
    header = next(line for line in text.splitlines() if "-0.7" in line and "+0.7" in line)
    middle = (header.index("-0.7") + header.index("+0.7") + 3) // 2
    for name, side in [("features.8", -1), ("features.12", 1), ("features.17", -1)]:
        row = row_of(name, text)
        assert row[middle] in "│|"
        assert row[middle + side] in "█▐▌#="
        assert row[middle - side] in " ┊:"


def test_without_unicode_the_table_is_plain_and_keeps_its_columns():
    text = terminal(REAL, 80, "ascii")
    assert text.isascii()
    assert re.search(r"x drift +0\.200 +0\.190-0\.210 +##\|: +stochastic +0\.73", text), text
    wide = terminal(REAL, 80)
    assert [len(line) for line in text.splitlines()] == [len(line) for line in wide.splitlines()]


def test_colour_is_used_on_a_terminal_only():
    assert "\x1b[" in terminal(REAL, force_terminal=True, color_system="standard")
    assert "\x1b" not in terminal(REAL)


def test_a_report_without_the_new_numbers_has_neither_bars_nor_ratios():
    text = terminal(check(layer("bn", None)))
    assert "✗ drift" in text
    assert "│" not in text
    assert "ln r" not in text
    assert "ratio" not in row_of("layer", text)


def test_a_layer_without_the_number_among_others_has_an_empty_bar():
    text = terminal(check(layer("a", -0.3), layer("b", None)))
    assert "│" in row_of("a ", text)
    assert "│" not in row_of("b ", text)


# -- names


def test_names_are_shortened_in_the_middle_and_stay_apart():
    name = "backbone.encoder.attention.output.projection.normalization.layers.11.bn_final"
    other = name.replace("11", "12")
    text = terminal(check(layer(name), layer(other), layer("short", 0.1, "ok")))
    rows = [line.split("  ")[0] for line in text.splitlines() if "0.190–0.210  " in line]
    assert [bool(re.fullmatch(r"back.*….*1[12]\.bn_final", row)) for row in rows] == [True, True], rows
    assert rows[0] != rows[1]
    # The sentences have whole names.
    assert f"`{name}`" in "".join(line.strip() for line in text.splitlines()[-4:])


def test_names_that_would_look_alike_are_not_shortened():
    names = [f"model.{'a' * 30}{digit}{'z' * 30}.bn" for digit in "12"]
    assert shortened_all(names, 14) == names
    text = terminal(check(*(layer(name) for name in names)))
    assert "…" not in text
    # Folded over lines, each is still there as a whole.
    column = "".join(line[:25].split(" ")[0] for line in text.splitlines())
    assert all(name in column for name in names)


def test_a_short_name_keeps_head_and_tail():
    assert shortened("features.17", 11) == "features.17"
    assert shortened("backbone.layer4.2.downsample.1", 14) == "back…ample.1"[:4] + "…" + "wnsample.1"[-9:]
    assert all(len(shortened("x" * 40, length)) == length for length in range(3, 40))


def test_the_share_of_head_and_tail_is_what_keeps_most_names_apart():
    names = [f"a{i}.block.very.long.path.of.modules.bn" for i in range(5)]
    assert len(set(shortened_all(names, 14))) == 5
    assert all(len(name) <= 14 for name in shortened_all(names, 14))
    names = [f"block.very.long.path.of.modules.bn{i}" for i in range(5)]
    assert len(set(shortened_all(names, 14))) == 5


def test_a_plot_numbers_the_names_that_would_look_alike():
    names = [f"model.{'a' * 30}{digit}{'z' * 30}.bn" for digit in "12"] + ["head.bn"]
    shown = numbered_all(names, 20)
    assert shown[0].startswith("1 model")
    assert shown[1].startswith("2 model")
    assert shown[2] == "head.bn"
    assert all(len(name) <= 20 for name in shown)


# -- many layers


def many(drifting: tuple[int, ...], n: int = 162, kind: str = "drift") -> BatchNormReport:
    rows = [layer(f"bn{i}", -0.4, kind) if i in drifting else layer(f"bn{i}", 0.001, "ok", w=i / 1e5) for i in range(n)]
    return check(*rows)


def names_in_table(text: str) -> list[str]:
    return re.findall(r"^(bn\d+) ", text, re.MULTILINE)


def test_of_many_layers_those_to_look_at_are_shown_and_the_rest_is_counted():
    text = terminal(many((30, 61)))
    assert "Layers to look at:" in text
    assert names_in_table(text) == ["bn30", "bn61"]
    assert "✓ 160 more are ok: largest W 0.002, bn161; report.json and report.html list all 162 layers" in " ".join(
        text.split()
    )


def test_undecided_layers_are_to_look_at_too():
    report = many((5,), kind="inconclusive").model_copy(update={"verdict": "inconclusive"})
    assert names_in_table(terminal(report)) == ["bn5"]


def test_of_many_layers_that_are_ok_the_worst_are_shown():
    text = terminal(many(()))
    assert "Layers with the largest W:" in text
    assert names_in_table(text) == [f"bn{i}" for i in range(157, 162)]
    assert "✓ 157 more are ok: largest W 0.002, bn156" in text


def test_where_all_of_many_layers_drift_the_origin_and_the_worst_are_shown():
    rows = [layer(f"bn{i}", w=0.2 + i / 1e3, w_low=0.19) for i in range(120)]
    text = terminal(check(*rows))
    assert names_in_table(text) == ["bn0", *(f"bn{i}" for i in range(81, 120))]
    assert "Layers to look at (40 of 120, those with the largest W):" in text
    assert "✗ drift All layers: report.json and report.html list all 120 layers" in text


def test_after_recalibration_of_many_layers_those_that_drifted_are_shown():
    fixed = many(())
    text = terminal(PipelineReport(before=many((30,)), after=fixed))
    assert names_in_table(text) == ["bn30"]
    row = row_of("bn30", text)
    assert row.index("✗ drift") < row.index("0.200") < row.index("✓ ok") < row.index("<0.001")
    assert "✓ 161 more are ok" in text


# -- what follows the table


def test_the_origin_follows_the_table_and_the_verdict_is_the_last_line():
    text = " ".join(terminal(REAL, 120).split())
    assert "- Origin: `features.8`, where the drift starts: W 0.200, 95% 0.190 to 0.210. Mostly stochastic: " in text
    assert text.index("Origin:") > text.index("features.17")
    assert text.endswith(
        "✗ FAIL: 3 of 5 BatchNorm layers drift, starting at `features.8`: W 0.200 (95% 0.190 to 0.210), margin 0.05."
    )


def test_several_processes_and_an_early_stop_are_said():
    text = terminal(check(layer("bn"), ranks=3, stopped_early=True))
    assert "Samples: 4,096, on 3 processes, stopped early" in text


def test_kinds_are_counted_where_they_differ():
    text = terminal(check(layer("a"), layer("b", kind="BatchNorm1d"), layer("c")))
    assert "Layers that agree: 0 of 3, 2 BatchNorm2d, 1 BatchNorm1d" in text
