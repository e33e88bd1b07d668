"""Whether a change for the worse stays below a margin: a verdict with three values, and how many samples it needs."""

from __future__ import annotations

import math

from jumpout_export.report import OutputVerdict

# The intervals of means are normal ones: below so many samples they say too little.
LEAST_SAMPLES = 30


def within_margin(low: float, high: float, margin: float) -> OutputVerdict:
    """Returns `ok` if the 95% interval of a change for the worse ends by the margin, `fails` if it begins beyond it.

    Everything between, NaN among it, is `inconclusive`. As a test of non-inferiority by a confidence interval (ICH E9,
    section 3.3.2), so that a change without significance is no proof of none.

    Args:
        low: lower end, positive where things got worse.
        high: upper end.
        margin: the largest change for the worse that is accepted, in the same unit.
    """
    if high <= margin:
        return "ok"
    return "fails" if low > margin else "inconclusive"


def samples_needed(low: float, high: float, margin: float, samples: int) -> int | None:
    """Returns about how many samples would decide, if the change stays what it is; None where no number is known.

    The width of an interval falls with the square root of the samples.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    away = abs(margin - middle)
    if not math.isfinite(half) or away < half / 1000:
        return None
    return max(LEAST_SAMPLES, math.ceil(samples * (half / away) ** 2))
