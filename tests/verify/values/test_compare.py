"""Values just inside and just outside of their limits, against hand-made expectations."""

import math

import pytest
import torch

from jumpout_export.tolerances import CAP, FACTOR, FLOOR, Budget
from jumpout_export.verify.values.compare import Comparison, Largest, Place
from jumpout_export.verify.values.reference import Expected
from jumpout_export.verify.values.scale import Scale

EPS = torch.finfo(torch.float32).eps


def verdicts(got, own, exact=None, group="data", prime=()):
    """The checks by name of one comparison of `got` with what PyTorch says."""
    own = torch.as_tensor(own)
    exact = own if exact is None else torch.as_tensor(exact)
    expected = Expected("y", own, exact.double() if own.is_floating_point() else exact)
    scale = Scale()
    for values in prime:
        scale.prime(Expected("y", values, values.double()))
    scale.add(expected)
    comparison = Comparison("cpu/off", False, {("data", "y"): scale, ("sizes", "y"): scale})
    comparison.add(group, 5, [expected], [torch.as_tensor(got)])
    checks = comparison.checks(has_reference=True)
    return {check.name.removeprefix(f"cpu/off/{group}/"): check for check in checks}


def verdict(*arguments, **named):
    return verdicts(*arguments, **named)["worst error"].verdict


@pytest.mark.parametrize(("factor", "result"), [(0.9, "pass"), (1.1, "fail")])
def test_an_error_just_inside_passes_and_just_outside_fails(factor, result):
    own = 2.0 + 1e-4
    share = (torch.tensor(own).item() - 2.0) / 2
    error = 2 * factor * (FACTOR * share + FLOOR * EPS)
    checks = verdicts([[1.0, 2.0 + error]], [[1.0, own]], [[1.0, 2.0]])
    worst = checks["worst error"]
    assert worst.verdict == result
    assert worst.measured == pytest.approx(error, rel=1e-2)
    assert worst.note == "output `y`, sample 5, index (1,); 1 sample, top-1 agrees on 1"


def test_a_network_that_outputs_zero_may_not_output_anything_else():
    assert verdict(torch.zeros(1, 2), torch.zeros(1, 2)) == "pass"
    wrong = verdicts([[0.0, 1e-30]], torch.zeros(1, 2))["worst error"]
    assert (wrong.verdict, wrong.limit) == ("fail", 0.0)


def test_nan_in_one_value_does_not_make_the_limit_infinite():
    checks = verdicts([[math.nan, 3.0]], [[math.nan, 2.0]])
    assert checks["cpu/off/finite"].verdict == "fail"
    assert checks["worst error"].verdict == "fail"
    assert checks["worst error"].limit < 1e-5
    assert verdict([[math.nan, 2.0]], [[1.0, 2.0]]) == "fail"


def test_torchs_own_error_buys_no_limit_above_the_ceiling():
    """Own errors of the output's size, as of sin(1e7 x): even a hundredth of them is too much."""
    exact = torch.randn(50, 3)
    own = exact + torch.randn(50, 3)
    assert verdict(exact, own, exact) == "pass"
    assert verdict(exact + 0.5 * CAP[torch.float32] * exact.abs().median(), own, exact) == "pass"
    wrong = verdicts(exact + 0.01, own, exact)["worst error"]
    assert (wrong.verdict, wrong.measured > 5 * wrong.limit) == ("fail", True)


@pytest.mark.parametrize("shape", [(64, 5), (64, 5, 3, 3), (64, 5, 7)])
def test_one_huge_channel_loosens_no_other(shape):
    torch.manual_seed(0)
    exact = torch.randn(shape)
    exact[:, 0] *= 1e9
    wrong = exact.clone()
    wrong[:, 3] *= 1.0001
    found = verdicts(wrong, exact)["worst error"]
    assert found.verdict == "fail"
    assert "index (3," in found.note
    assert verdict(exact * (1 + EPS), exact) == "pass"


def test_one_huge_sample_loosens_no_other_and_may_have_its_own_errors():
    torch.manual_seed(0)
    exact = torch.randn(64, 4)
    exact[7] *= 1e5
    right = exact.clone()
    right[7] += 1e5 * 4 * EPS
    assert verdict(right, exact) == "pass"
    right[8] += 1e-3
    assert verdicts(right, exact)["worst error"].note.startswith("output `y`, sample 13, index")


@pytest.mark.parametrize("mask", [-1e4, -1e9, torch.finfo(torch.float32).min])
def test_masked_values_loosen_nothing_wherever_they_are(mask):
    torch.manual_seed(0)
    values = torch.randn(32, 6, 8)
    exact = values.masked_fill(values > -0.3, mask)  # more than half of them
    assert verdict(exact, exact) == "pass"
    wrong = torch.where(exact == mask, exact, exact + 1e-4)
    assert verdict(wrong, exact) == "fail"


def test_a_mask_with_the_smallest_float64_means_the_smallest_float32():
    own, exact = torch.randn(8, 3), torch.randn(8, 3, dtype=torch.float64)
    own[:, 1], exact[:, 1] = torch.finfo(torch.float32).min, torch.finfo(torch.float64).min
    exact[:, [0, 2]] = own[:, [0, 2]].double()
    assert verdict(own, own, exact) == "pass"


def test_a_channel_of_rounding_errors_passes_beside_channels_of_values():
    """A dead channel after BatchNorm: the rounding of what came before, times 1 / sqrt(eps)."""
    torch.manual_seed(0)
    exact, own, got = (torch.randn(32, 4), *(torch.randn(32) * 1e-5 for _ in range(2)))
    exact[:, 2] = 0
    first, second = exact.clone(), exact.clone()
    first[:, 2], second[:, 2] = own, got
    assert verdict(second, first, exact) == "pass"
    second[:, 2] *= 1000
    assert verdict(second, first, exact) == "fail"


def test_one_value_near_zero_in_one_sample_is_no_small_channel():
    """Its size is that of its channel in other samples, which are known before the comparison."""
    torch.manual_seed(0)
    others = torch.randn(40, 3)
    exact, got = torch.tensor([[0.5, 1e-6, -1.0]]), torch.tensor([[0.5, 1e-6 + 5e-7, -1.0]])
    assert verdict(got, exact, prime=[others]) == "pass"
    assert verdict(got, exact, prime=[others * torch.tensor([1.0, 1e-5, 1.0])]) == "fail"


@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 1), (6, 1), (2, 3, 4, 5)])
def test_outputs_of_any_shape_are_compared(shape):
    torch.manual_seed(0)
    exact = torch.randn(shape)
    assert verdict(exact, exact) == "pass"
    assert verdict(exact * 1.001, exact) == "fail"


def test_an_open_second_dimension_is_compared():
    scale = Scale()
    comparison = Comparison("cpu/off", False, {("data", "y"): scale})
    for length in (1, 7, 2):
        expected = Expected("y", torch.ones(3, length), torch.ones(3, length, dtype=torch.float64))
        scale.add(expected)
        comparison.add("data", 0, [expected], [torch.ones(3, length) + (0.5 if length == 7 else 0)])
    check = next(check for check in comparison.checks(has_reference=True) if "worst" in check.name)
    assert (check.verdict, check.measured) == ("fail", 0.5)


def test_another_top_1_fails_unless_it_is_a_tie():
    exact = torch.tensor([[1.0, 2.0, 2.0 + 1e-7], [3.0, 1.0, 2.0]], dtype=torch.float64)
    tie = verdicts([[1.0, 2.0 + 1e-6, 2.0], [3.0, 1.0, 2.0]], exact.float(), exact)
    assert tie["top-1"].verdict == "pass"
    assert tie["worst error"].verdict == "pass"
    assert tie["worst error"].note.endswith("2 samples, top-1 agrees on 1")
    wrong = verdicts([[1.0, 2.0, 2.0], [1.0, 3.0, 2.0]], exact.float(), exact)["top-1"]
    assert (wrong.verdict, wrong.measured) == ("fail", 1)
    assert wrong.note == "output `y`: another class on 1 of 2 samples"
    assert "top-1" not in verdicts(torch.ones(3, 1), torch.ones(3, 1))


def test_integers_may_equal_either_precision_and_nothing_else():
    for got, result in (([1, 4], "pass"), ([1, 5], "pass"), ([1, 6], "fail")):
        check = verdicts(got, [1, 4], torch.tensor([1, 5]), group="batch=2")["worst error"]
        assert (check.verdict, check.limit) == (result, 0.0)


def largest(error, start=10):
    """Of two samples with two channels of two values, all of size 2, by channel."""
    return Largest.of(error, torch.full_like(error, 2.0), start, 1)


def limits_of(*limits):
    return Budget((torch.tensor(limits), torch.tensor([9.0, 9.0])), 9.0).limit


def test_the_largest_error_of_each_channel_is_kept_with_its_place():
    error = torch.zeros(2, 2, 2)
    error[1, 0, 1], error[0, 1, 0] = 4.0, 1.0
    one = largest(error)
    assert one.shares.tolist() == [2.0, 0.5]
    assert one.against(limits_of(1.0, 1.0)) == (2.0, Place(4.0, 2.0, 11, (0, 1)), 2.0)
    # The limit of the second channel is the tighter one, so its smaller error is the worse one.
    share, place, limit = one.against(limits_of(1.0, 0.1))
    assert (share, place) == (pytest.approx(5.0), Place(1.0, 2.0, 10, (1, 0)))
    assert limit == pytest.approx(0.2)
    error[0, 1, 0], error[1, 0, 1] = 6.0, 0.0
    both = one.merged(largest(error, start=20))
    assert both.shares.tolist() == [2.0, 3.0]
    assert both.samples.tolist() == [11, 20]


def test_what_is_beyond_the_limit_of_its_place_is_found_whatever_else_is_there():
    """Against all values at once: the largest errors per index of every axis are enough."""
    torch.manual_seed(0)
    for _ in range(200):
        error = torch.rand(3, 4, 5).double() ** 4
        budget = Budget((torch.rand(4), torch.rand(5)), math.inf)
        beyond = bool((error > budget.allowed((torch.ones(3, 4, 5), torch.ones(3, 4, 5)))).any())
        found = [Largest.of(error, torch.ones(3, 4, 5), 0, axis).against(budget.limit)[0] > 1 for axis in (1, 2)]
        assert any(found) is beyond


def test_a_value_beyond_its_limit_is_of_its_kind_of_samples():
    own = torch.tensor([[1.0, 2.0]])
    expected = Expected("y", own, own.double())
    scale = Scale()
    scale.add(expected)
    comparison = Comparison("cpu/off", True, {("data", "y"): scale, ("sizes", "y"): scale})
    comparison.add("batch=2", 0, [expected], [own])
    assert comparison.beyond(has_reference=True) == set()
    comparison.add("sizes batch=1", 0, [expected], [own + 1e-4])
    assert comparison.beyond(has_reference=True) == {"sizes"}


def test_another_shape_and_runs_that_differ_fail():
    own = torch.ones(1, 2)
    comparison = Comparison("cpu/off", True, {})
    comparison.add("data", 0, [Expected("y", own, own.double())], [torch.ones(2, 1, dtype=torch.float64)])
    comparison.differing_runs.append("data: two runs differ")
    outputs, finite, repeatable = comparison.checks(has_reference=True)
    assert outputs.note == "data: output `y` is float64[2, 1], in PyTorch it is float32[1, 2]"
    assert [check.verdict for check in (outputs, finite, repeatable)] == ["fail", "pass", "fail"]
