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


def test_a_size_is_that_of_the_channel_times_how_much_larger_the_image_is():
    """Channels of 0.25, 2 and 4 in the median image; the second image is 1.5 times that, the third half of it."""
    scale = scaled([[0.25, 2, 4], [0.375, 3, 6], [0.125, 1, 2]])
    assert scale.channels.tolist() == [0.25, 2, 4]
    assert scale.median == 2
    assert scale.size.squeeze(2).tolist() == [[0.25, 2, 4], [0.375, 3, 6], [0.25, 2, 4]]
    assert scale.coarse.squeeze(2).tolist() == [[2, 2, 4], [3, 3, 6], [2, 2, 4]]
    assert scale.units == (scale.size, scale.coarse)


def test_pytorchs_own_error_is_kept_per_channel_at_its_largest():
    scale = scaled([[1.0, 4.0], [1.0, 8.0], [1.0, 4.0]], [[1.0, 4.0], [1.5, 8.0], [1.0, 5.0]])
    assert scale.own_errors.tolist() == [0.25, 0.25]  # 0.5 of an image twice as large, 1 of 4
    later = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    scale.add(Expected("y", torch.tensor([[2.0, 4.0]]), later), new=False)
    assert scale.own_errors.tolist() == [1.0, 0.25]
    assert scale.channels.tolist() == [1, 4]  # what is not new says nothing about sizes


def test_integers_have_no_size_and_no_limit():
    scale = Scale()
    scale.add(Expected("y", torch.tensor([1, 2]), torch.tensor([1, 2])))
    assert scale.own_errors.numel() == 0
    assert [limit.tolist() for limit in scale.budget(has_reference=True).limits] == [[], [0.0]]


def test_an_output_in_less_than_its_type_is_judged_by_what_it_was_computed_in():
    values = torch.ones(2, 2, dtype=torch.float64)
    scale = Scale()
    scale.add(Expected("y", values, values, torch.float32))
    assert scale.budget(has_reference=True).limits[1].item() == torch.tensor(1e-3).item()


def test_errors_in_units_of_nothing_are_infinite_and_no_error_is_none():
    assert relative(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 4.0])).tolist() == [0.0, math.inf, 0.25]


@pytest.mark.parametrize(
    ("group", "kind"),
    [("data", "data"), ("batch=2", "data"), ("random batch=2", "random"), ("sizes batch=3 height=9", "sizes")],
)
def test_a_group_has_the_sizes_of_its_kind_of_images(group, kind):
    assert source(group) == kind
