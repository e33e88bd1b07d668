"""What one pair of stored statistics can mean for a layer that is called several times in one forward."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jumpout_export.report import BatchNormCall


def differing_calls(calls: Sequence[BatchNormCall], warn: float) -> str:
    """Returns a sentence with advice if the calls of a layer get different inputs, else nothing.

    In training each call normalises by what it gets itself; served, all of them use the one average that is stored.
    """
    distances = [call.w for call in calls if not math.isnan(call.w)]
    if len(distances) < 2 or max(distances) <= warn:
        return ""
    few = len(distances) <= 4
    listed = ", ".join(f"{w:.3f}" for w in distances) if few else f"{min(distances):.3f} to {max(distances):.3f}"
    return (
        f"Its {len(calls)} calls get different inputs: in training each normalises by its own, served they share one "
        f"average, from which they are W = {listed}. No stored statistics fit all of them, and recalibrating only "
        "makes them the average of what is served. Give each call a BatchNorm of its own; or, where no call depends on "
        "another, join their inputs into one batch (torch.cat) before it, in training as in serving."
    )
