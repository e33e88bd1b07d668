"""The size of each channel, which errors are measured in."""

import math

import pytest
import torch

from jumpout_export.verify.values.reference import Expected
from jumpout_export.verify.values.scale import Scale, relative, source


def test_ties_that_pytorch_orders_otherwise_in_float64_are_told_from_an_amplifier():
    exact = torch.linspace(1, 2, 100, dtype=torch.float64)[None]
    own = (exact + 1e-7).float()
    swapped, amplified = own.clone(), own + torch.linspace(0.1, 0.2, 100)
    swapped[0, [10, 60]] = own[0, [60, 10]]
    whys = {}
    for name, value in (("swapped", swapped), ("amplified", amplified)):
        scale = Scale()
        scale.add(Expected("y", value, exact))
        assert scale.own_coarse > 0.05
        whys[name] = scale.why
    assert whys["amplified"] == "the model amplifies rounding"
    assert whys["swapped"].startswith("PyTorch itself orders near ties differently in float32 and float64")


def scaled(exact, own=None):
    exact = torch.tensor(exact, dtype=torch.float64)
    scale = Scale()
    scale.add(Expected("y", exact.float() if own is None else torch.tensor(own), exact))
    return scale


def test_a_size_is_that_of_the_channel_times_how_much_larger_the_sample_is():
    """Channels of 0.25, 2 and 4 in the median sample; the second sample is 1.5 times that, the third half of it."""
    scale = scaled([[0.25, 2, 4], [0.375, 3, 6], [0.125, 1, 2]])
    assert scale.channels.tolist() == [0.25, 2, 4]
    assert scale.median == 2
    assert scale.size.tolist() == [[0.25, 2, 4], [0.375, 3, 6], [0.25, 2, 4]]
    assert scale.coarse.tolist() == [[2, 2, 4], [3, 3, 6], [2, 2, 4]]
    assert scale.units == (scale.size, scale.coarse)


def test_pytorchs_own_error_is_kept_per_channel_at_its_largest():
    scale = scaled([[1.0, 4.0], [1.0, 8.0], [1.0, 4.0]], [[1.0, 4.0], [1.5, 8.0], [1.0, 5.0]])
    assert scale.own_errors[0].tolist() == [0.25, 0.25]  # 0.5 of a sample twice as large, 1 of 4
    later = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    scale.add(Expected("y", torch.tensor([[2.0, 4.0]]), later), new=False)
    assert scale.own_errors[0].tolist() == [1.0, 0.25]
    assert scale.channels.tolist() == [1, 4]  # what is not new says nothing about sizes


def test_integers_have_no_size_and_no_limit():
    scale = Scale()
    scale.add(Expected("y", torch.tensor([1, 2]), torch.tensor([1, 2])))
    assert scale.own_errors == []
    assert scale.budget(has_reference=True).allowed((torch.ones(2, 1), torch.ones(2, 1))).tolist() == [[0], [0]]


def test_an_output_in_less_than_its_type_is_judged_by_what_it_was_computed_in():
    values = torch.ones(2, 2, dtype=torch.float64)
    scale = Scale()
    scale.add(Expected("y", values, values, torch.float32))
    assert scale.budget(has_reference=True).ceiling == 1e-3


def test_errors_in_units_of_nothing_are_infinite_and_no_error_is_none():
    assert relative(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 4.0])).tolist() == [0.0, math.inf, 0.25]


@pytest.mark.parametrize(
    ("group", "kind"),
    [("data", "data"), ("batch=2", "data"), ("made-up batch=2", "data"), ("sizes batch=3 height=9", "sizes")],
)
def test_a_group_has_the_sizes_of_its_kind_of_samples(group, kind):
    assert source(group) == kind


def unit(exact, at, axis=0):
    """The size of one value in the last sample."""
    scale = Scale()
    exact = exact.double()
    scale.add(Expected("y", exact.float(), exact, None, axis))
    return float(scale.size[(-1, *at)])


@pytest.mark.parametrize("shape", [(16, 1, 7), (16, 10, 7), (16, 5, 3, 7)])
def test_a_score_beside_boxes_has_a_size_of_its_own_along_whatever_axis(shape):
    torch.manual_seed(0)
    exact = torch.randn(shape) * 1e6
    exact[..., 6] = torch.rand(shape[:-1])
    score, box = (0,) * (len(shape) - 2) + (6,), (0,) * (len(shape) - 1)
    assert unit(exact, score) < 2
    assert 1e5 < unit(exact, box) < 1e7


def test_a_score_in_an_output_with_the_batch_behind_it():
    torch.manual_seed(0)
    exact = torch.randn(4, 16) * 1e6
    exact[3] = torch.rand(16)
    assert unit(exact, (3,), axis=1) < 2
    assert unit(exact, (3, 5), axis=None) < 2


def test_a_single_value_that_is_small_in_every_sample_has_a_size_of_its_own():
    torch.manual_seed(0)
    exact = torch.randn(16, 5, 7) * 1e6
    exact[:, 2, 3] = torch.rand(16)
    assert unit(exact, (2, 3)) < 30
    assert unit(exact, (2, 4)) > 1e5
    assert unit(exact[:4], (2, 3)) > 1e4  # of four samples a value's own median says little


def test_a_value_that_is_near_zero_by_luck_has_the_size_of_its_neighbours():
    torch.manual_seed(0)
    exact = torch.randn(16, 3, 8, 8)
    exact[-1] *= 1e-6
    exact[-1, 0, 0, 0] = 1
    scale = Scale()
    scale.add(Expected("y", exact.float(), exact.double()))
    assert float(scale.size[-1].min()) > 0.1
