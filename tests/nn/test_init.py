"""The Hendrycks-Gimpel initialisation keeps variances, and its constants are the integrals they claim to be."""

import pytest
import torch
from torch import nn

from jumpout_export.nn.init import MOMENTS, hendrycks_gimpel_, second_moment

FUNCTIONS = {
    "identity": lambda z: z,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "tanh": torch.tanh,
    "elu": nn.functional.elu,
}


@pytest.mark.parametrize("name", MOMENTS)
def test_the_moments_are_gaussian_integrals(name):
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64, requires_grad=True)
    y = FUNCTIONS[name](z)
    (slope,) = torch.autograd.grad(y.sum(), z)
    density = torch.exp(-(z.detach() ** 2) / 2) / (2 * torch.pi) ** 0.5
    step = 24 / 400_000
    expected = (y.detach() ** 2 * density).sum() * step, (slope**2 * density).sum() * step
    assert MOMENTS[name] == pytest.approx([value.item() for value in expected], rel=1e-4)


def test_rows_have_the_norm_of_the_formula():
    layer = nn.Linear(30, 20)
    hendrycks_gimpel_(layer, "relu", mask_second_moment=1.25)
    expected = (0.5 * 1.25 + 0.5 / 1.25) ** -0.5
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.full((20,), expected))
    assert layer.bias.abs().max() == 0


def test_orthogonal_rows_are_orthogonal():
    layer = hendrycks_gimpel_(nn.Linear(30, 20), orthogonal=True)
    torch.testing.assert_close(layer.weight @ layer.weight.t(), torch.eye(20) * (0.5 + 0.5) ** -1, atol=1e-5, rtol=0)


def test_convolutions_take_the_forward_term_alone_and_keep_the_variance():
    torch.manual_seed(0)
    moment = second_moment(p=0.5, alpha=1.0, active_fraction=1.0)  # dropout .5: mask z / .5, second moment 2
    layer = hendrycks_gimpel_(nn.Conv2d(8, 400, 3, bias=False), "relu", moment)
    z = torch.randn(400, 8, 3, 3)
    x = torch.relu(z) * (torch.rand_like(z) < 0.5) / 0.5
    assert layer(x).var().item() == pytest.approx(1.0, rel=0.05)  # 160,000 outputs of independent rows and inputs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nonlinearity": "selu"}, "nonlinearity must be one of identity, relu, gelu, tanh, elu, got 'selu'"),
        ({"mask_second_moment": 0.5}, "mask_second_moment must be finite and >= 1, got 0.5"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        hendrycks_gimpel_(nn.Linear(2, 2), **arguments)


def test_a_wrong_active_fraction_is_named():
    with pytest.raises(ValueError, match=r"active_fraction must be in \(0, 1\], got 0"):
        second_moment(active_fraction=0)
