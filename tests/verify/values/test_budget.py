"""The error budget against its documented formula."""

import torch

from jumpout_export.budget import CAP, FACTOR, FLOOR, WITHOUT_REFERENCE, ceiling, relative_limits

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
    assert (ceiling(torch.int64), ceiling(torch.bool)) == (0, 0)
