"""How numbers are written: the same rule for the same quantity wherever it stands."""

from __future__ import annotations

import math


def number(value: float | None) -> str:
    """Returns `value` with at most three significant digits, whole below a million; "–" for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}" if value else "0"
    if 1e-3 <= abs(value) < 999.5:
        return f"{value:.3g}"
    if 999.5 <= abs(value) < 1e6:
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def score(value: float | None) -> str:
    """Returns a W, or another number in standard deviations, with three decimals; "<0.001" where those would be 0."""
    if value is None or not math.isfinite(value) or abs(value) >= 1e4:
        return number(value)
    if 0 < abs(value) < 5e-4:
        return "<0.001" if value > 0 else ">-0.001"
    return f"{value or 0:.3f}"


def score_interval(low: float, high: float) -> str:
    """Returns an interval of W as `0.174 to 0.194`."""
    return f"{score(low)} to {score(high)}"


def score_range(low: float, high: float) -> str:
    """Returns an interval of W for a table, `0.174–0.194`; "–" where there is none."""
    if math.isnan(low) or math.isnan(high) or (math.isinf(low) and low == high):
        return "–"
    return f"{score(low)}–{score(high)}"


def signed(value: float | None) -> str:
    """Returns a number whose sign matters with three decimals: `+0.160`, `-0.300`; zero has no sign."""
    if value is None or not math.isfinite(value) or abs(value) >= 1e4:
        return number(value)
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text


def ratio(log_ratio: float | None) -> str:
    """Returns the variance ratio r of ln r with two decimals, three significant digits below 0.1 and from 100 on."""
    if log_ratio is None or math.isnan(log_ratio):
        return number(log_ratio)
    # exp overflows beyond; nothing that large is a ratio that somebody reads.
    value = math.exp(log_ratio) if log_ratio < 700 else math.inf
    return f"{value:.2f}" if 0.1 <= value < 100 else number(value)


def percent(value: float | None) -> str:
    """Returns a fraction in [0, 1] as a percentage with one decimal; "–" for None."""
    if value is None or not math.isfinite(value):
        return number(value)
    # Only what is nothing is written as 0%, only what is all as 100%.
    if 0 < value < 5e-4:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= value < 1 else f"{100 * value:.1f}%"


def points(difference: float) -> str:
    """Returns the difference of two fractions in percentage points with one decimal and its sign: `+3.9`."""
    if not math.isfinite(difference):
        return number(difference)
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0 else text


def p_value(value: float) -> str:
    """Returns a probability with two significant digits: `0.034`, `2e-5`."""
    if not math.isfinite(value):
        return number(value)
    if value >= 1e-4 or value < 0:
        return f"{value:.2g}"
    if value == 0:
        return "<1e-300"  # an exact test is never certain; this one left the range of a float
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
