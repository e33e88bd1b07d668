"""A BatchNorm as the constants that a right file may hold, worked out by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from jumpout_export.model.operations import record
from jumpout_export.model.signature import onnx_batch
from jumpout_export.onnxfile.constants import Holder
from jumpout_export.tolerances import ROUNDINGS
from jumpout_export.verify.constants.calls import Call, batchnorm_calls, relative


def array(*values):
    return np.array(values, dtype=np.float64)


def call(layer=None):
    """scale = [4 / sqrt(3 + 1), 0.5 / sqrt(0 + 1)] = [2, 0.5] and shift = [0 - 1 * 2, 1 - 2 * 0.5] = [-2, 0]."""
    return Call("bn", 1, (array(4, 0.5), array(0, 1), array(1, 2), array(3, 0)), 1.0, layer)


LAYER = Holder("conv", "Conv", {"weights": np.array([[1.0, 2], [3, 4]]), "bias": array(10, 0)}, 2.0**-52)


LAYER_OF_ONE = Holder("conv", "Conv", {"weights": np.array([[1.0, 2]]), "bias": array(10)}, 2.0**-52)


def test_its_own_scale_and_shift():
    assert call().errors("scale", array(2, 0.55)).tolist() == [0, pytest.approx(0.1)]
    # The size of a shift is |mean * scale| + |beta|: 2 and 1 + 1, although the second shift is 0.
    assert call().errors("shift", array(-2.2, 0.5)).tolist() == [pytest.approx(0.1), 0.25]


def test_folded_into_a_layer():
    """Weights [[2, 4], [1.5, 2]], in units of each row's largest; bias [18, 0], in units of 22 and 2."""
    folded = call(LAYER)
    assert folded.errors("weights", np.array([[2.0, 4], [1.5, 2.2]])).tolist() == [0, pytest.approx(0.1)]
    assert folded.errors("weights", np.array([[2.0, 4.4], [1.5, 2.2]]), 1).tolist() == [pytest.approx(0.1)]
    assert folded.errors("bias", array(29, 1)).tolist() == [0.5, 0.5]


def test_the_limit_is_some_roundings_and_that_of_the_epsilon():
    assert call().limits(0.5).tolist() == [ROUNDINGS * 0.5 + 2**-23 * 0.25, ROUNDINGS * 0.5 + 2**-23]


def test_no_size_is_smaller_than_single_precision_resolves_and_nan_is_infinitely_wrong():
    assert relative(array(0, np.nan, 1e-40), array(0, 1, 0)).tolist() == [0, np.inf, pytest.approx(1e-40 * 2**103)]
    assert relative(np.array([[1.0, -3], [0, 0]]), array(2, 1)).tolist() == [1.5, 0]


def recorded(model, *shape):
    model = model.eval()
    return batchnorm_calls(record(model, onnx_batch(torch.rand(2, *shape), model)))


@pytest.mark.parametrize(
    ("layer", "norm", "shape", "kind", "rows"),
    [
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (3,), "Linear", (4, 3)),
        (nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), (3,), "Linear", (4, 3)),
        (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), (2, 5, 5), "Conv", (4, 18)),
        (nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), (2, 5, 5), "Conv", (4, 9)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (4, 5), "ConvTranspose", (6, 6)),
    ],
    ids=["linear", "without bias", "conv", "grouped", "transposed"],
)
def test_the_layer_that_it_reads_is_recorded_row_by_row_of_its_channels(layer, norm, shape, kind, rows):
    (found,) = recorded(nn.Sequential(layer, norm), *shape)
    assert (found.name, found.layer.where, found.layer.kind) == ("1", "0", kind)
    assert found.layer.parts["weights"].shape == rows
    bias = np.zeros(rows[0]) if layer.bias is None else layer.bias.detach().double().numpy()
    assert found.layer.parts["bias"].tolist() == bias.tolist()


def test_what_is_no_layer_or_normalises_by_the_batch_is_none():
    (found,) = recorded(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.BatchNorm1d(3)), 3)
    assert found.layer is None
    assert recorded(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), 3) == []
    assert len(recorded(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)), 3)) == 2


class Product(nn.Module):
    """A product with a bias that is counted twice and weights that count by half, and a BatchNorm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w, self.b, self.bn = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4)), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn(torch.addmm(self.b, x, self.w, beta=2.0, alpha=0.5))


def test_alpha_and_beta_of_a_product_are_part_of_its_weights():
    model = Product()
    (found,) = recorded(model, 3)
    np.testing.assert_allclose(found.layer.parts["weights"], model.w.detach().numpy().T / 2)
    np.testing.assert_allclose(found.layer.parts["bias"], 2 * model.b.detach().numpy())


def test_a_batchnorm_behind_another_reads_the_layer_with_that_one_folded_into_it():
    """scale 2 and shift -2, then scale 0.5 and shift 1: all in all 1 and 0, in units of what is added up on the way."""
    first = Call("a", 1, (array(2), array(0), array(1), array(0)), 1.0, LAYER_OF_ONE, 0)
    second = Call("b", 2, (array(0.5), array(1), array(0), array(0)), 1.0, first.folded(), 0, first)
    assert second.errors("weights", np.array([[1.0, 2]])).tolist() == [0]
    assert second.errors("bias", array(10)).tolist() == [0]
    # (|10 * 2| + |1 * 2|) * 0.5 + 1 = 12
    assert second.errors("bias", array(16)).tolist() == [0.5]


class Domains(nn.Module):
    """Statistics with other names, one row for each domain, as they are and made of others; behind a convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.mean = nn.Conv2d(2, 4, 3), nn.Parameter(torch.randn(2, 4))
        self.register_buffer("spread", torch.rand(4) + 0.5)
        self.register_buffer("centre", torch.rand(4))

    def forward(self, x):
        x = nn.functional.batch_norm(self.conv(x), self.mean[1], self.spread * 2)
        return nn.functional.batch_norm(x, self.centre, self.spread)


def test_statistics_may_have_any_name_and_be_made_of_others():
    first, second = recorded(Domains(), 2, 5, 5)
    assert (first.name, first.module, first.certain, first.layer.where) == ("", "", False, "conv")
    assert (second.name, second.module, second.certain, second.before) == ("centre", "", True, first)


def test_statistics_of_the_data_are_none():
    class Own(nn.Module):
        def forward(self, x):
            return nn.functional.batch_norm(x, x.mean((0, 2)), x.var((0, 2)))

    assert recorded(Own(), 5, 6) == []
