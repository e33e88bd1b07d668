"""What the advice on alpha says."""

import math

import pytest
from support.masked import advice

from jumpout_export.batchnorm.advice.alpha import (
    advice_sentence,
)

SENTENCES = {
    "inflates": (
        advice(),
        -math.log(1.14),
        "inflates the variance this layer is trained on by 14% (predicted +13%); alpha = 0.88 would have kept it.",
    ),
    "not measured": (
        advice(),
        None,
        "should inflate the variance this layer is trained on by 13%; alpha = 0.88 would keep it.",
    ),
    "shrinks": (
        advice(predicted=-math.log(0.87)),
        -math.log(0.88),
        "shrinks the variance this layer is trained on by 12% (predicted -13%); alpha = 0.88 would have kept it.",
    ),
    "disagrees": (
        advice(),
        -math.log(1.4),
        (
            "should inflate the variance this layer is trained on by 13%, but it is measured to inflate it by 40%: "
            "something else, such as noise further upstream, plays a part; alpha = 0.88 would have kept its own part."
        ),
    ),
    "agrees as well as a strong noise can": (
        advice(predicted=-0.6),
        -0.4,
        "inflates the variance this layer is trained on by 49% (predicted +82%); alpha = 0.88 would have kept it.",
    ),
    "dropout": (
        advice(alpha=1.0),
        -math.log(1.13),
        (
            "inflates the variance this layer is trained on by 13% (predicted +13%); "
            "alpha = 0.88 (a scale of k^-0.88, as Jumpout has, instead of 1 / k, k the keep rate) would have kept it."
        ),
    ),
    "no alpha": (
        advice(alpha_star=-0.5),
        -math.log(1.13),
        (
            "inflates the variance this layer is trained on by 13% (predicted +13%); "
            "no alpha would have kept it: lower its rate, or move it behind the BatchNorm."
        ),
    ),
    "keeps": (
        advice(predicted=-math.log(1.004)),
        -math.log(0.996),
        "keeps the variance this layer is trained on (predicted +0%).",
    ),
}


@pytest.mark.parametrize(("entry", "measured", "expected"), SENTENCES.values(), ids=SENTENCES)
def test_the_sentence_says_what_how_much_why_and_what_to_do(entry, measured, expected):
    assert advice_sentence(entry, measured) == f"The noise of `drop2` (alpha {entry.alpha:.2f}) {expected}"


def test_a_part_that_is_not_a_number_was_not_measured():
    assert advice_sentence(advice(), math.nan) == advice_sentence(advice())
