"""The error budget against its documented formula."""

import pytest
import torch

from jumpout_export.tolerances import (
    CAP,
    FACTOR,
    FLOOR,
    WITHOUT_REFERENCE,
    Budget,
    ceiling,
    relative_limits,
    rounding_share,
)

EPS = torch.finfo(torch.float32).eps


def test_the_limit_is_the_documented_formula():
    own = torch.tensor([1e-6, 1e-5, 1e-4], dtype=torch.float64)
    limits = relative_limits(own, torch.float32, True)
    # No channel is held to less than half of them show.
    torch.testing.assert_close(limits, FACTOR * torch.tensor([1e-5, 1e-5, 1e-4], dtype=torch.float64) + FLOOR * EPS)
    assert relative_limits(own, torch.float32, False).tolist() == [WITHOUT_REFERENCE * EPS] * 3
    double = WITHOUT_REFERENCE * torch.finfo(torch.float64).eps  # a float64 model has no better reference
    assert relative_limits(own, torch.float64, True).tolist() == [double] * 3 < [CAP[torch.float64]] * 3
    half = relative_limits(torch.zeros(1), torch.float16, True)
    assert half.item() == 2 * torch.finfo(torch.float16).eps < ceiling(torch.float16)
    assert relative_limits(own, torch.int64, True).tolist() == [0, 0, 0]


def test_a_channel_that_is_small_by_luck_is_held_to_what_others_of_its_size_show():
    # Errors that come from the layers before are about as large in every class; one class is small on two samples.
    sizes = torch.tensor([0.3, 0.2, 0.4, 0.3, 0.02])
    errors = torch.tensor([3e-5, 4e-5, 2e-5, 3e-5, 3e-7])
    limits = relative_limits(errors / sizes, torch.float32, True, sizes) * sizes
    assert float(limits[4]) == pytest.approx(FACTOR * 3e-5, rel=0.01)
    assert float(relative_limits(errors / sizes, torch.float32, True)[4] * sizes[4]) < 3e-5  # one error of the middle
    # A score beside boxes is not: their sizes are apart.
    sizes = torch.tensor([1e4, 2e4, 3e4, 1.0])
    errors = sizes * 1e-7
    limits = relative_limits(errors / sizes, torch.float32, True, sizes) * sizes
    assert float(limits[3]) == pytest.approx((FACTOR * 1e-7 + FLOOR * EPS), rel=0.01)
    assert (ceiling(torch.int64), ceiling(torch.bool)) == (0, 0)


def test_a_value_may_be_off_by_the_smaller_of_two_errors():
    budget = Budget((torch.tensor([1.0, 2.0]), torch.tensor([9.0])), 0.5)
    size, coarse = torch.tensor([[[2.0], [4.0]]]), torch.tensor([[[3.0], [40.0]]])
    assert budget.allowed((size, coarse)).tolist() == [[[1.5], [8.0]]]
    assert budget.tie() == 0.5
    assert Budget((torch.tensor([0.1, 0.2]),), 0.5).tie() == pytest.approx(0.2)


def test_of_all_axes_the_smallest_limit_holds():
    budget = Budget((torch.tensor([1.0, 2.0]), torch.tensor([5.0, 0.5, 1.5])), 100.0)
    size = torch.ones(1, 2, 3)
    assert budget.allowed((size, size)).tolist() == [[[1.0, 0.5, 1.0], [2.0, 0.5, 1.5]]]
    # An axis of another length than it had has the largest of its limits.
    size = torch.ones(1, 2, 2)
    assert budget.allowed((size, size)).tolist() == [[[1.0, 1.0], [2.0, 2.0]]]


def test_a_budget_has_the_limits_of_its_outputs_type():
    budget = Budget.of([torch.zeros(2)], torch.float32, has_reference=True)
    assert ([limit.tolist() for limit in budget.limits], budget.ceiling) == ([[FLOOR * EPS] * 2], CAP[torch.float32])
    budget = Budget.of([torch.ones(2)], torch.int64, True)
    assert ([limit.tolist() for limit in budget.limits], budget.ceiling) == ([[0, 0]], 0)


def test_the_line_in_a_file_names_ceiling_sizes_and_limits():
    budget = Budget((torch.tensor([1e-6, 2.5e-6]), torch.tensor([3e-6])), 1e-3)
    line = budget.line(torch.tensor([1.0, 0.5]), 0.5)
    assert line == "cap=0.001 median=0.5 sizes=1,0.5 limits=1e-06,2.5e-06"
    line = budget.line(torch.tensor([4.0]), 4.0, 1, 2)
    assert line == "cap=0.001 median=4 axis=2 sizes=4 limits=3e-06"


def test_where_no_reference_says_more_rounding_is_a_share_of_the_largest_value():
    shares = [rounding_share(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)]
    assert shares == [1e-4, 1e-4, 1e-2, 1e-2]
    assert rounding_share(torch.int64) == rounding_share(torch.bool) == 0
