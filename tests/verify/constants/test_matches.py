"""Whether one constant of a file is one weight, a wrong copy of it, or something else."""

import tracemalloc

import numpy as np
import pytest
from onnx import numpy_helper

from jumpout_export.onnxfile.tables import Constant
from jumpout_export.tolerances import ROUNDINGS
from jumpout_export.verify.constants.matches import Known, candidates_of, matches, same_values

WEIGHT = np.arange(1, 13, dtype=np.float32).reshape(3, 4) / 7
EPS = 2.0**-23


def match(array, *known, name="c"):
    """The names of the known values that it is, of which it is a wrong copy and how, and whether it is any."""
    constant = Constant(numpy_helper.from_array(np.ascontiguousarray(array), name), "")
    found = matches(constant, candidates_of(list(known)))
    wrong = (found.wrong.known.name, found.wrong.text) if found.wrong is not None else None
    return {one.name for one in found.equal}, wrong, bool(found.equal)


def changed(places, by=1.0):
    array = WEIGHT.copy()
    array.flat[places] += by
    return array


@pytest.mark.parametrize("layout", [WEIGHT, WEIGHT.T, WEIGHT.reshape(-1)], ids=["as it is", "swapped", "flat"])
def test_a_weight_is_found_bit_for_bit_in_either_layout(layout):
    assert match(layout, Known("w", WEIGHT)) == ({"w"}, None, True)


def test_a_copy_with_one_wrong_value_is_named_with_its_place():
    names, nearest, any_equal = match(changed(6), Known("w", WEIGHT))
    assert (names, any_equal) == (set(), False)
    assert nearest == (
        "w",
        "`w` has 1 of 12 values wrong in the file, there `c`, the first at [1, 2]: 2 instead of 1",
    )
    assert match(changed(6), Known("w", WEIGHT), name="w")[1][1].startswith(
        "`w` has 1 of 12 values wrong in the file, t"
    )


def test_one_bit_is_a_wrong_value_of_a_weight_and_none_of_what_is_made_of_weights():
    off = np.nextafter(WEIGHT, np.float32(9))
    off.flat[1:] = WEIGHT.flat[1:]
    assert match(off, Known("w", WEIGHT))[1] is not None
    assert match(off, Known("", WEIGHT)) == ({""}, None, True)


@pytest.mark.parametrize(("roundings", "right"), [(ROUNDINGS - 1, True), (ROUNDINGS + 1, False)])
def test_what_is_made_of_weights_may_be_off_by_some_roundings_of_its_largest_value(roundings, right):
    off = changed(0, by=roundings * EPS * float(WEIGHT.max()))
    _, nearest, any_equal = match(off, Known("", WEIGHT))
    assert any_equal is right
    assert (nearest is None) is right


def test_most_of_the_values_make_a_wrong_copy_and_fewer_something_else():
    assert match(changed(range(5)), Known("w", WEIGHT))[1] is not None
    assert match(changed(range(7)), Known("w", WEIGHT)) == (set(), None, False)


def test_the_name_of_a_weight_makes_any_constant_a_copy_of_it():
    array = WEIGHT + 1
    assert match(array, Known("w", WEIGHT, by_name=True), name="w")[1][1].startswith("`w` has 12 of 12 values wrong")
    assert match(array, Known("w", WEIGHT, by_name=False), name="w")[1] is None
    assert match(array, Known("w", WEIGHT, by_name=True), name="other")[1] is None


def test_what_is_not_judged_has_no_wrong_copy():
    assert match(changed(6), Known("w", WEIGHT, judged=False)) == (set(), None, False)
    assert match(WEIGHT, Known("w", WEIGHT, judged=False)) == ({"w"}, None, True)


def test_of_two_alike_the_nearer_one_is_named():
    other = changed([0, 1, 2])
    assert match(changed([0]), Known("w", WEIGHT), Known("other", other))[1][0] == "w"
    assert match(changed([0, 1]), Known("w", WEIGHT), Known("other", other))[1][0] == "other"


def test_zeros_in_common_are_no_resemblance():
    zeros, mask = np.zeros(64, np.float32), (np.arange(64) % 5 == 0).astype(np.float32)
    assert match(zeros, Known("mask", mask)) == (set(), None, False)
    assert match((np.arange(64) % 5 < 2).astype(np.float32), Known("mask", mask)) == (set(), None, False)


def test_floats_are_no_integers():
    assert match(np.arange(40), Known("w", np.arange(40, dtype=np.float32))) == (set(), None, False)
    assert match(np.arange(40), Known("table", np.arange(40))) == ({"table"}, None, True)


def test_a_mask_is_no_wrong_copy_of_places():
    """As the mask that a transformer compares its positions with: all of it is true, and so is any number but 0."""
    assert match(np.ones(12, bool), Known("", np.arange(12))) == (set(), None, False)
    assert match(np.array([1, 0, 1]), Known("mask", np.array([True, False, True]))) == ({"mask"}, None, True)


def test_a_large_constant_is_read_whole():
    """Of more than 4096 values some are looked at first; the one that is wrong is found all the same."""
    weight = np.random.default_rng(1).standard_normal(20_000).astype(np.float32)
    wrong = weight.copy()
    wrong[19_999] += 1
    assert match(weight, Known("w", weight)) == ({"w"}, None, True)
    assert (
        "has 1 of 20000 values wrong in the file, there `c`, the first at [19999]"
        in match(wrong, Known("w", weight))[1][1]
    )


def test_equal_means_bits_unless_roundings_are_allowed():
    values = np.array([0.0, np.nan, np.inf, 1.0], np.float32)
    wanted = np.array([-0.0, np.nan, np.inf, 1 + EPS], np.float32)
    assert same_values(values, wanted, None).tolist() == [False, True, True, False]
    assert same_values(values, wanted, 1.0).tolist() == [True, True, True, True]
    assert same_values(np.array([1, 2]), np.array([1, 3]), 9.0).tolist() == [True, False]


@pytest.mark.parametrize("swap", [False, True], ids=["as it is", "swapped"])
def test_a_large_weight_that_is_there_costs_no_copies_of_it(swap):
    """Tens of seconds of an export with 128 million weights were copies in float64."""
    weight = np.random.default_rng(0).standard_normal((2048, 1024)).astype(np.float32)
    layout = np.ascontiguousarray(weight.T if swap else weight)
    constant, candidates = Constant(numpy_helper.from_array(layout, "c"), ""), candidates_of([Known("w", weight)])
    tracemalloc.start()
    try:
        assert [one.name for one in matches(constant, candidates).equal] == ["w"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * weight.nbytes  # the values once, and some blocks of them
