"""Whether a sample's result depends on the others in its batch."""

import pytest
import torch

from jumpout_export.verify.values.independence import depends_on_others

X = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)


def found(function, x=X, double=True, axis=0):
    """What is found for an output that `function` makes of a batch, and of its samples alone."""
    alone = [function(x[row : row + 1]) for row in range(len(x))]
    together = alone[-1] if axis is None else torch.cat(alone, axis)
    return depends_on_others("data", "y", function(x), together, axis, double=double)


def test_a_sample_by_itself_is_independent_and_one_less_the_batchs_mean_is_not():
    assert found(lambda x: x * 2) == ""
    text = "data: output `y` of sample 0 of 4 differs by 4.5 (limit 4.5e-06) alone and in its batch"
    assert found(lambda x: x - x.mean(0)) == text


def test_one_place_alone_is_named():
    def third(x):
        return x * (1 + (torch.arange(len(x)) == 2))[:, None]

    assert found(third).startswith("data: output `y` of sample 2 of 4 differs by 8")


@pytest.mark.parametrize(("double", "share"), [(True, 1e-6), (False, 1e-4)])
def test_the_limit_is_a_share_of_the_channels_largest_value(double, share):
    ones = torch.ones(4, 2, dtype=torch.float64)
    for factor, problem in ((0.9, False), (1.2, True)):
        result = found(lambda x, factor=factor: x + factor * share * (len(x) == 1), ones, double)
        assert bool(result) is problem


def test_a_huge_channel_hides_no_other():
    huge = torch.ones(4, 2, dtype=torch.float64) * torch.tensor([1.0, 1e3])
    assert found(lambda x: x + torch.tensor([1e-5, 0.0]) * (len(x) == 1), huge)


def test_an_output_without_a_batch_axis_is_the_same_for_any_samples():
    assert found(lambda x: torch.ones(3), axis=None) == ""
    assert found(lambda x: x.sum(), axis=None).startswith("data: output `y` has no batch axis and differs by")


def test_integers_are_compared_in_float64_alone():
    assert found(lambda x: (x - x.mean()).argmax(1)) == ""
    ranks = found(lambda x: x.sum(1).argsort().argsort())
    assert ranks == "data: output `y` of sample 1 of 4 is another one alone than in its batch"
    assert found(lambda x: x.sum(1).argsort().argsort(), double=False) == ""


def test_another_batch_axis():
    assert found(lambda x: x.T, axis=1) == ""
    assert "of sample 0 of 4 differs" in found(lambda x: x.T - x.T.mean(1, keepdim=True), axis=1)
