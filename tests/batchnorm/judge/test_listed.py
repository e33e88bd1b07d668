"""Reports of models with very many channels list a share of them, and say which."""

import math

import pytest

from jumpout_export.batchnorm.judge.listed import LEAST_LISTED, MOST_LISTED, list_some
from jumpout_export.report import Attribution, BatchNormLayer, BatchNormReport


def row(name: str, count: int, *, parts: bool = True) -> BatchNormLayer:
    """W grows with a channel's index times 7 modulo the count, so index and order differ."""
    delta = [(7 * i % count) / count for i in range(count)]
    log_ratio = [0.0] * count
    part = {f"{what}_{cause}": [float(i) for i in range(count)] for what in ("log_ratio", "delta")
            for cause in ("stale", "stochastic", "propagated")}  # fmt: skip
    return BatchNormLayer(
        name=name,
        channels=count,
        verdict="drift",
        w=0.5,
        w_low=0.4,
        w_high=0.6,
        delta=delta,
        log_ratio=log_ratio,
        delta_se=[0.1] * count,
        log_ratio_se=[0.1] * count,
        attribution=Attribution(**part) if parts else None,
    )


def report(rows: list[BatchNormLayer]) -> BatchNormReport:
    return BatchNormReport(verdict="drift", origin=None, samples=8, warn=0.05, fail=0.15, layers=rows, not_observed=[])


def test_up_to_the_bound_every_channel_is_listed():
    rows = [row("a", MOST_LISTED - 100), row("b", 100)]
    before = [one.model_copy(deep=True) for one in rows]
    list_some(rows)
    assert rows == before


def test_beyond_it_every_layer_lists_its_share_spaced_in_the_order_of_w_with_the_largest():
    rows = [row("a", 60_001), row("b", 20_003, parts=False), row("c", 20)]
    whole = [one.model_copy(deep=True) for one in rows]
    list_some(rows)
    for one, was in zip(rows[:2], whole, strict=False):
        kept = one.listed
        assert len(kept) == was.channels * MOST_LISTED // (60_001 + 20_003 + 20)
        assert kept == sorted(set(kept)), "an index stands once, in order"
        assert one.delta == [was.delta[i] for i in kept]
        assert max(one.delta) == max(was.delta)
        # delta is uniform on [0, 1), and evenly spaced ranks keep its quantiles to one part in their number
        ranked = sorted(one.delta)
        assert all(abs(value - k / (len(kept) - 1)) < 2 / len(kept) for k, value in enumerate(ranked))
    assert rows[0].attribution.delta_stale == [float(i) for i in rows[0].listed]
    assert rows[0].attribution.delta_data == []
    assert len(rows[2].delta) == LEAST_LISTED, "a small layer keeps some"


def test_a_channel_without_numbers_is_kept_as_the_worst():
    one = row("a", 3 * MOST_LISTED)
    one.delta[5] = math.nan
    list_some([one])
    assert 5 in one.listed


@pytest.mark.parametrize("channels", [200_000])
def test_two_hundred_thousand_channels_make_a_report_of_megabytes(channels):
    rows = [row("a", channels)]
    assert len(report(rows).model_dump_json()) > 12e6
    list_some(rows)
    text = report(rows).model_dump_json()
    assert len(text) < 4e6
    assert BatchNormReport.model_validate_json(text) == report(rows)
