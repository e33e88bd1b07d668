"""The three-valued verdict against a margin."""

import math

import pytest

from jumpout_export.effect.margins import LEAST_SAMPLES, samples_needed, within_margin


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, 0.005, "ok"),
        (-0.02, 0.01, "ok"),
        (-0.02, 0.011, "inconclusive"),
        (0.005, 0.02, "inconclusive"),  # significantly worse, and not by more than the margin
        (0.0101, 0.02, "fails"),
        (math.nan, math.nan, "inconclusive"),
        (-math.inf, math.inf, "inconclusive"),
    ],
)
def test_an_interval_is_judged_by_its_ends(low, high, verdict):
    assert within_margin(low, high, 0.01) == verdict


@pytest.mark.parametrize("change", [-0.004, 0.004, 0.03])
def test_as_many_samples_as_it_says_decide(change):
    samples, half, margin = 200, 0.05, 0.01
    needed = samples_needed(change - half, change + half, margin, samples)
    assert within_margin(change - half, change + half, margin) == "inconclusive"
    for more, decided in ((needed, True), (needed * 0.9, False)):
        narrow = half * math.sqrt(samples / more)
        assert (within_margin(change - narrow, change + narrow, margin) != "inconclusive") is decided


def test_a_change_of_the_margin_itself_is_never_decided():
    assert samples_needed(0.0, 0.02, 0.01, 100) is None
    assert samples_needed(-math.inf, math.inf, 0.01, 100) is None
    assert samples_needed(-0.001, 0.001, 0.01, 3) == LEAST_SAMPLES
