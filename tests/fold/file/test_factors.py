"""The algebra of masks and scales: products, opposites, and what of them is a whole dropout."""

import onnx_ir as ir
import pytest

from jumpout_export.fold.file.factors import Factor, Keep, Mask, describe, is_dropout, rounding

EPS = 2.0**-23


def mask(keep=0.7, **options):
    return Mask(ir.node("RandomUniformLike", []), Keep(keep) if isinstance(keep, float) else keep, True, **options)


def rate():
    return ir.Value(name="rate")


def test_a_keep_probability_and_its_opposite():
    assert Keep(0.75).opposite() == Keep(0.25)
    value = rate()
    assert Keep(value).opposite() == Keep(value, complement=True)
    assert str(Keep(value).opposite()) == "1 - `rate`"
    assert str(Keep(0.7)) == "0.7"


def test_a_mask_and_its_opposite_draw_from_the_same_source():
    one = mask(0.5)
    assert one.opposite() != one
    assert one.opposite().source is one.source
    assert one.opposite().opposite() == one


def test_factors_multiply():
    keep = Keep(rate())
    product = Factor(frozenset({mask()}), 2.0).times(Factor(number=4.0, powers={keep: 1.0}), -0.5)
    assert (product.number, product.powers) == (1.0, {keep: -0.5})
    assert product.times(Factor(powers={keep: 1.0}), 0.5).powers == {keep: 0.0}


@pytest.mark.parametrize(
    ("other", "power"),
    [
        (Factor(number=0.0), -1.0),
        (Factor(number=-2.0), 0.5),
        (Factor(number=1e300), 2.0),
        (Factor(frozenset({mask()})), 2.0),
    ],
    ids=["by zero", "a root of less than nothing", "too large", "a power of a mask"],
)
def test_a_product_without_a_value_is_none(other, power):
    assert Factor(number=2.0).times(other, power) is None


def test_one_mask_and_nothing_else():
    assert Factor(frozenset({mask()})).is_mask
    assert not Factor(frozenset({mask()}), 2.0).is_mask
    assert not Factor(frozenset({mask(), mask()})).is_mask
    assert Factor(frozenset({mask()}), powers={Keep(rate()): 0.0}).is_mask


def test_a_scale_of_a_tensor_may_have_any_power_up_to_one():
    keep = Keep(rate(), complement=True)
    of = frozenset({mask(keep)})
    for power, whole in ((-1.0, True), (-0.75, True), (-0.3, True), (0.0, False), (-1.2, False), (0.5, False)):
        assert is_dropout(Factor(of, powers={keep: power}), EPS) is whole
    assert not is_dropout(Factor(of, 1.1, {keep: -1.0}), EPS)
    assert not is_dropout(Factor(number=1.0), EPS)


def test_two_masks_need_the_scale_of_both():
    both = frozenset({mask(0.5), mask(0.8)})
    assert is_dropout(Factor(both, 1 / 0.4), EPS)
    assert not is_dropout(Factor(both, 1 / 0.5), EPS)


def test_the_precision_of_a_node():
    for kind, eps in ((ir.DataType.FLOAT16, 2.0**-10), (ir.DataType.FLOAT, EPS), (None, EPS)):
        node = ir.node("Mul", [])
        node.outputs[0].dtype = kind
        assert rounding(node) == eps


def test_a_factor_for_a_person():
    keep = Keep(rate(), complement=True)
    assert describe(Factor(frozenset({mask()}), 1 / 0.7)) == "keep 0.7, scale 1.42857"
    assert (
        describe(Factor(frozenset({mask(keep)}), powers={keep: -0.75})) == "keep 1 - `rate`, scale (1 - `rate`)^-0.75"
    )
