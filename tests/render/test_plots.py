"""The plots hold what the report says: measured in the SVG against its own axes."""

import math
import re

import pytest

from jumpout_export.render.plots import batchnorm as plots_batchnorm
from jumpout_export.render.plots import channels as plots_channels
from jumpout_export.render.plots.style import COLOURS, themed
from jumpout_export.report import BatchNormLayer

NUMBER = r"-?[\d.]+"


def layer(name: str = "bn", **changes: object) -> BatchNormLayer:
    values = {"name": name, "verdict": "drift", "w": 0.2, "w_low": 0.18, "w_high": 0.22}
    return BatchNormLayer(**{**values, **changes})


def marks(svg: str, colour: str) -> list[tuple[float, float]]:
    """Returns the places of the marks filled or edged with a colour, legends left out."""
    axes = svg[: svg.index('<g id="legend_1">')] if "legend_1" in svg else svg
    found = []
    for style, uses in re.findall(r'<g clip-path[^>]*?style="([^"]*)"[^>]*>(.*?)</g>', axes, re.DOTALL):
        if colour in style:
            found += re.findall(rf'x="({NUMBER})" y="({NUMBER})"', uses)
    for style, uses in re.findall(r'<g style="([^"]*)">(.*?)</g>', axes, re.DOTALL):
        if colour in style:
            found += re.findall(rf'x="({NUMBER})" y="({NUMBER})"', uses)
    return [(float(x), float(y)) for x, y in found]


def paths(svg: str, colour: str, kind: str) -> list[list[tuple[float, float]]]:
    """Returns the corners of the paths whose fill or stroke, the `kind`, is a colour, legends left out."""
    axes = svg[: svg.index('<g id="legend_1">')] if "legend_1" in svg else svg
    found = re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', axes)
    return [
        [(float(x), float(y)) for x, y in re.findall(rf"[ML] ({NUMBER}) ({NUMBER})", d)]
        for d, style in found
        if re.search(rf"(?<![-\w]){kind}: {colour}", style)
    ]


# -- drift


def warn_and_fail(svg: str, axis: int) -> tuple[float, float]:
    """Returns where the two margins stand on the axis of W."""
    return tuple(
        next(path[0][axis] for path in paths(svg, COLOURS[word], "stroke") if path[0][axis] == path[1][axis])
        for word in ("warn", "fail")
    )


@pytest.mark.parametrize("n", [3, 24, 25, 160])
def test_w_stands_where_its_number_is_between_the_margins(n):
    axis = 1 if n > 24 else 0
    ws = [0.01 * 1.02**i for i in range(n)]
    layers = [layer(f"bn{i}", verdict="ok", w=w, w_low=0.8 * w, w_high=1.3 * w) for i, w in enumerate(ws)]
    svg = plots_batchnorm.drift(layers, warn=0.05, fail=0.15)
    warn, fail = warn_and_fail(svg, axis)
    scale = (fail - warn) / math.log(0.15 / 0.05)
    drawn = marks(svg, COLOURS["c1"])
    assert len(drawn) == n
    for place, w in zip(drawn, ws, strict=True):
        assert place[axis] == pytest.approx(warn + scale * math.log(w / 0.05), abs=0.05)
    ends = [path for path in paths(svg, COLOURS["c1"], "stroke") if len(path) == 2]
    for (low, high), w in zip(ends, ws, strict=True):
        assert low[axis] == pytest.approx(warn + scale * math.log(0.8 * w / 0.05), abs=0.05)
        assert high[axis] == pytest.approx(warn + scale * math.log(1.3 * w / 0.05), abs=0.05)


def test_before_and_after_stand_side_by_side_on_one_scale():
    was, now = [layer("a"), layer("b")], [layer("a", verdict="ok", w=0.01), layer("b", verdict="ok", w=0.02)]
    one = plots_batchnorm.drift(was, beside=now, warn=0.05, fail=0.15)
    two = plots_batchnorm.drift(now, beside=was, name="drift-after", warn=0.05, fail=0.15)
    assert warn_and_fail(one, 0) == warn_and_fail(two, 0)
    before, after = marks(one, COLOURS["fail"]), marks(two, COLOURS["c1"])
    assert (len(before), len(after)) == (2, 2)
    assert after[0][0] < after[1][0] < warn_and_fail(one, 0)[0] < before[0][0]


@pytest.mark.parametrize("n", [1, 60])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1e-9, 1e9])
def test_a_w_that_is_off_the_scale_is_drawn_at_its_edge(n, value):
    layers = [layer(f"bn{i}", w=value, w_low=value, w_high=value) for i in range(n)]
    svg = plots_batchnorm.drift(layers, warn=0.05, fail=0.15)
    if math.isnan(value):
        assert svg.count(">NaN<") == n
    else:
        assert len(marks(svg, COLOURS["fail"])) == n
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', svg)


def test_of_many_layers_the_first_that_drifts_is_named_with_its_position():
    layers = [
        layer(f"stage.bn{i}", verdict="drift" if i in (30, 90) else "ok", w=0.3 if i == 90 else 0.1) for i in range(120)
    ]
    svg = plots_batchnorm.drift(layers, warn=0.05, fail=0.15)
    assert ">31 stage.bn30<" in svg
    assert ">91 stage.bn90<" in svg


# -- attribution


@pytest.mark.parametrize("n", [1, 30])
def test_parts_are_stacked_on_their_side_of_zero_and_the_total_is_marked(n):
    parts = {"stale": -0.1, "stochastic": 0.3, "propagated": 0.2, "median_log_ratio": 0.4}
    svg = plots_batchnorm.attribution([layer(f"bn{i}", **parts) for i in range(n)])
    axis = 1 if n > 24 else 0
    extents = []
    for colour in ("c6", "c2", "c7"):
        (corners, *others) = paths(svg, COLOURS[colour], "fill")
        assert len(others) == n - 1
        values = [corner[axis] for corner in corners]
        # The vertical axis of an SVG points down.
        extents.append((max(values), min(values)) if axis else (min(values), max(values)))
    (stale_low, zero), (also_zero, middle), (also_middle, end) = extents
    assert (zero, middle) == (pytest.approx(also_zero, abs=0.05), pytest.approx(also_middle, abs=0.05))
    unit = (zero - stale_low) / 0.1
    assert middle - zero == pytest.approx(0.3 * unit, abs=0.05)
    assert end - middle == pytest.approx(0.2 * unit, abs=0.05)
    totals = marks(svg, COLOURS["ink"])
    assert len(totals) == n
    assert totals[0][axis] - zero == pytest.approx(0.4 * unit, abs=0.05)


def test_parts_that_are_not_finite_are_left_out():
    bad = {"stale": math.nan, "stochastic": math.inf, "propagated": 0.2, "median_log_ratio": math.inf}
    for layers in ([layer("a", **bad)], [layer("a", **bad), layer("b", stale=None)]):
        svg = plots_batchnorm.attribution(layers)
        assert marks(svg, COLOURS["ink"]) == []
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', svg)


# -- channels


def channels(delta: list[float], log_ratio: list[float], **changes: object) -> tuple[str, plots_channels.Cloud]:
    row = layer(delta=delta, log_ratio=log_ratio, **changes)
    return plots_channels.channels("channels-1", row, None, warn=0.05, fail=0.15), plots_channels.cloud(row, fail=0.15)


def test_channels_stand_where_their_numbers_are_and_significant_ones_are_triangles():
    delta, log_ratio = [0.0, 0.15, -0.1, 0.05], [0.0, 0.0, 0.2, -0.25]
    svg, cloud = channels(delta, log_ratio, flagged=[2, 3])
    quiet, loud = marks(svg, COLOURS["muted"])[-2:], marks(svg, COLOURS["c2"])
    assert sorted(cloud.places) == [0, 1, 2, 3]
    (origin, right) = sorted(quiet)
    unit = (right[0] - origin[0]) / 0.15
    # In order of W, which is 0.14 for both to two digits.
    for x, y in loud:
        i = min((2, 3), key=lambda i: abs(x - origin[0] - delta[i] * unit))
        assert x == pytest.approx(origin[0] + delta[i] * unit, abs=0.05)
        assert (y < origin[1]) == (log_ratio[i] > 0)
    assert len(loud) == 2


def test_the_rings_are_where_w_is_the_margin():
    svg, _ = channels([0.0, 0.15], [0.0, 2 * math.log(1.15)])
    ring = paths(svg, COLOURS["fail"], "stroke")[0]
    origin, corner = sorted(marks(svg, COLOURS["muted"])[-2:])
    assert max(x for x, _ in ring) == pytest.approx(corner[0], abs=0.1)
    assert min(y for _, y in ring) == pytest.approx(corner[1], abs=0.1)
    assert origin[1] > corner[1]


def test_of_a_wide_layer_a_bounded_number_of_channels_is_drawn_with_the_worst_among_them():
    n = 5000
    delta = [0.0001 * i for i in range(n)]
    svg, cloud = channels(delta, [0.0] * n)
    assert (len(cloud.places), cloud.total) == (plots_channels.MAX_MARKS, n)
    assert cloud.places[0] == 0
    assert cloud.places[-1] == n - 1
    gaps = {b - a for a, b in zip(cloud.places, cloud.places[1:], strict=False)}
    assert gaps <= {n // plots_channels.MAX_MARKS, n // plots_channels.MAX_MARKS + 1}
    assert len(svg) < 30_000


def test_where_a_layer_lists_some_of_its_channels_the_significant_ones_are_found_by_their_indices():
    delta, log_ratio = [0.0, 0.15, -0.1, 0.05], [0.0, 0.0, 0.2, -0.25]
    svg, cloud = channels(delta, log_ratio, flagged=[2, 70], listed=[2, 30, 50, 70], channels=90)
    assert sorted(cloud.places) == [0, 1, 2, 3]
    loud = marks(svg, COLOURS["c2"])
    assert len(loud) == 2
    assert sorted(x for x, _ in loud) == pytest.approx([loud_x(svg, delta, i) for i in (0, 3)], abs=0.05)


def loud_x(svg: str, delta: list[float], i: int) -> float:
    """Where channel `i` stands, from the two quiet ones at known places."""
    left, right = sorted(x for x, _ in marks(svg, COLOURS["muted"])[-2:])  # delta -0.1 and 0.15
    return left + (delta[i] + 0.1) * (right - left) / 0.25


def test_a_dead_channel_does_not_hide_the_others():
    svg, cloud = channels([0.01] * 99 + [0.0], [0.02] * 99 + [-11.0])
    assert cloud.outside == 1
    assert cloud.reach[1] < 1
    assert len(marks(svg, COLOURS["muted"])[-100:]) == 100


def test_channels_that_are_no_numbers_are_left_out_and_infinite_ones_are_at_the_edge():
    svg, cloud = channels([math.nan, 0.1, math.inf, 0.0], [0.0, math.nan, 0.0, -math.inf])
    assert sorted(cloud.places) == [2, 3]
    assert cloud.outside == 2
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', svg)


@pytest.mark.parametrize(("delta", "log_ratio"), [([], []), ([0.1], []), ([math.nan], [0.0])])
def test_a_layer_without_channels_has_no_cloud(delta, log_ratio):
    _, cloud = channels(delta, log_ratio)
    assert cloud is None


# -- for the page


def test_a_themed_plot_has_no_colour_of_its_own_and_no_address():
    svg, _ = channels([0.1, 0.2], [0.1, 0.2], flagged=[0])
    shown = themed(svg, "channels-1", 'a "label"')
    assert not re.search(r"#[0-9a-f]{6}\b", shown)
    assert "http" not in shown
    assert 'aria-label="a &quot;label&quot;"' in shown
