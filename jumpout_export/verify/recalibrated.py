"""Whether a file that differs may be the model with its BatchNorm recalibrated: one line instead of every layer."""

from __future__ import annotations

from collections.abc import Sequence

from jumpout_export.report import Check
from jumpout_export.text import count
from jumpout_export.verify.constants.batchnorms import Located

_QUESTION = "was it exported with --recalibrate? Then verify it with the weights that lie beside it (--weights)"


def explained(checks: Sequence[Check], located: Sequence[Located]) -> list[Check]:
    """Returns the checks, with that question first where all BatchNorms differ and every other weight agrees."""
    weights = [check.verdict for check in checks if check.name == "weights"]
    there = {one.name for one in located if one.where}
    wrong = {one.name for one in located if one.wrong}
    if not wrong or wrong != there or "fail" in weights:
        return list(checks)
    every = "the only BatchNorm differs" if len(wrong) == 1 else f"all {count(len(wrong), 'BatchNorm')} differ"
    start = f"{every} and every other weight agrees: {_QUESTION}"
    return [
        check.model_copy(update={"note": f"{start}; {check.note}"})
        if check.name == "batchnorm constants" and check.verdict == "fail"
        else check
        for check in checks
    ]
