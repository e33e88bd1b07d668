"""The question whether a file was recalibrated is asked where nothing but the BatchNorms differs, and nowhere else."""

import pytest

from jumpout_export.report import Check
from jumpout_export.verify.constants.batchnorms import Located
from jumpout_export.verify.recalibrated import explained

WEIGHTS = Check(name="weights", verdict="pass")


def located(*errors):
    return [Located(f"bn{i}", i, f"bn{i}", "node", error=error, limit=1e-6) for i, error in enumerate(errors)]


def note(errors, weights=WEIGHTS):
    verdict = "fail" if any(error > 1e-6 for error in errors) else "pass"
    checks = [Check(name="batchnorm constants", verdict=verdict, note="a wall of names"), weights]
    (first, *_) = explained(checks, located(*errors))
    return first.note


@pytest.mark.parametrize(
    ("errors", "start"),
    [([0.1], "the only BatchNorm differs"), ([0.1, 0.2, 3.0], "all 3 BatchNorms differ")],
)
def test_it_is_asked_where_all_differ_and_every_other_weight_agrees(errors, start):
    assert note(errors).startswith(f"{start} and every other weight agrees: was it exported with --recalibrate?")
    assert note(errors).endswith("; a wall of names")


@pytest.mark.parametrize(
    ("errors", "weights"),
    [
        ([0.1, 0.2, 0.0], WEIGHTS),
        ([0.0, 0.0], WEIGHTS),
        ([0.1, 0.2], WEIGHTS.model_copy(update={"verdict": "fail"})),
        ([], WEIGHTS),
    ],
    ids=["one agrees", "all agree", "another weight differs", "without BatchNorm"],
)
def test_it_is_not_asked_otherwise(errors, weights):
    assert note(errors, weights) == "a wall of names"
