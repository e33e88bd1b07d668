"""How numbers are written."""

import math

import pytest

from jumpout_export.render.numbers import (
    number,
    p_value,
    percent,
    points,
    ratio,
    score,
    score_interval,
    score_range,
    signed,
)
from jumpout_export.text import count

NOT_FINITE = [(math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "-∞")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0"), (-0.0, "0"), (1.0, "1"), (0.05, "0.05"), (0.37149, "0.371"), (1234.5, "1234"),
        (999.6, "1000"), (1797.0, "1797"), (1e-6, "1e-6"), (1.2345e-7, "1.23e-7"), (2e9, "2e9"), *NOT_FINITE,
    ],
)  # fmt: skip
def test_numbers_are_written_with_three_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0.000"), (-0.0, "0.000"), (0.37149, "0.371"), (12.0, "12.000"), (2e-8, "<0.001"),
        (4.9e-4, "<0.001"), (5.1e-4, "0.001"), (-2e-8, ">-0.001"), (-0.25, "-0.250"), (1e9, "1e9"), *NOT_FINITE,
    ],
)  # fmt: skip
def test_a_w_is_written_with_three_decimals_and_never_as_zero_when_it_is_not(value, text):
    assert score(value) == text


def test_an_interval_is_short_in_a_table_and_in_words_in_a_sentence():
    assert score_range(0.19, 0.2304) == "0.190–0.230"
    assert score_range(math.nan, math.nan) == score_range(math.inf, math.inf) == "–"
    assert score_range(0.1, math.inf) == "0.100–∞"
    assert score_interval(0.0, 2e-5) == "0.000 to <0.001"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.000"), (-1e-9, "0.000"), (0.16, "+0.160"), (-0.3004, "-0.300"), *NOT_FINITE],
)
def test_a_number_whose_sign_matters_shows_it(value, text):
    assert signed(value) == text


@pytest.mark.parametrize(
    ("log_ratio", "text"),
    [
        (None, "–"), (0.0, "1.00"), (math.log(0.738), "0.74"), (math.log(37.5), "37.50"), (math.log(0.0421), "0.0421"),
        (math.log(1234), "1234"), (1e6, "∞"), (math.inf, "∞"), (-math.inf, "0"), (math.nan, "NaN"),
    ],
)  # fmt: skip
def test_a_variance_ratio_is_that_of_its_logarithm(log_ratio, text):
    assert ratio(log_ratio) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0.0%"), (0.97222, "97.2%"), (1.0, "100.0%"), (1e-5, "<0.1%"), (0.9999, ">99.9%"),
        (0.9994, "99.9%"), (math.nan, "NaN"),
    ],
)  # fmt: skip
def test_fractions_are_written_as_percentages(value, text):
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.039, "+3.9"), (-0.0211, "-2.1"), (1e-5, "0.0"), (-1e-5, "0.0"), *NOT_FINITE]
)
def test_differences_of_fractions_are_written_in_points_with_their_sign(value, text):
    assert points(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.04e-5, "2e-5"), (2.16e-5, "2.2e-5"), (0.0341, "0.034"), (0.5, "0.5"), (1.0, "1"), (1.04e-4, "0.0001"),
        (0.0, "<1e-300"), (math.nan, "NaN"),
    ],
)  # fmt: skip
def test_probabilities_are_written_with_two_significant_digits(value, text):
    assert p_value(value) == text


def test_counts_have_separators_and_a_plural():
    assert [count(1, "layer"), count(2, "layer"), count(4096, "sample")] == ["1 layer", "2 layers", "4,096 samples"]
