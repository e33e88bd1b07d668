"""Which layers a recalibration changes, and what they may hold: frozen, unreached, poisoned, half precision."""

import math

import pytest
import torch
from support.recalibrated import bits, by_hand, network, norms, samples, worst_difference
from torch import nn

from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.model.randomness import same_bits


def test_only_the_layers_named_change():
    model = network()
    before = bits(model)
    recalibrate_batchnorm(model, samples().split(32), layers=["9"])
    after = bits(model)
    assert {name for name in before if not same_bits(before[name], after[name])} == {"9.running_mean", "9.running_var"}


def test_a_frozen_layer_is_recalibrated_when_named():
    model = network().train()
    model[1].eval()
    before = model[1].running_mean.clone()
    recalibrate_batchnorm(model, samples().split(32), layers=("1",))
    assert not torch.equal(before, model[1].running_mean)


def test_eval_and_no_gradient_is_frozen_but_eval_alone_is_not():
    model = network().eval()
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    before = bits(model)
    recalibrate_batchnorm(model, samples().split(32))
    assert torch.equal(before["1.running_mean"], model[1].running_mean)
    assert not torch.equal(before["5.running_mean"], model[5].running_mean)


def test_layers_that_the_forward_does_not_reach_are_left_alone():
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model, x = Skips(), torch.randn(20, 3)
    recalibrate_batchnorm(model, [x])
    assert torch.equal(model.unused.running_mean, torch.zeros(3))
    with pytest.raises(ValueError, match="did not reach `unused`; nothing was written"):
        recalibrate_batchnorm(model, [x], layers=["used", "unused"])
    with pytest.raises(ValueError, match="nothing to recalibrate: the forward pass did not reach `unused`"):
        recalibrate_batchnorm(model, [x], layers=["unused"])


def test_a_layer_poisoned_with_nan_is_repaired():
    model = network()
    expected = by_hand(model, samples())
    model[5].running_var[2] = math.nan
    model[9].running_mean[0] = math.inf
    recalibrate_batchnorm(model, samples().split(32))
    assert worst_difference(expected, model) < 1e-6


@pytest.mark.parametrize("method", ["exact", "batch"])
def test_nan_in_the_data_is_an_error_and_nothing_is_written(method):
    model = network()
    before = bits(model)
    bad = samples()
    bad[50, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"the input of BatchNorm `1` holds NaN or infinity.*nothing was written"):
        recalibrate_batchnorm(model, bad.split(32), method)
    assert same_bits(before, bits(model))


def test_nan_that_a_later_layer_makes_names_that_layer():
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sqrt()

    model = nn.Sequential(nn.BatchNorm1d(3), Root(), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="the input of BatchNorm `2` holds NaN"):
        recalibrate_batchnorm(model, [torch.randn(20, 3)])


def test_buffers_keep_their_dtype_and_must_hold_the_result():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3)).half()
    x = torch.randn(64, 3).half()
    recalibrate_batchnorm(model, [x])
    assert model[0].running_var.dtype == torch.float16
    torch.testing.assert_close(model[0].running_var, x.double().var(0).half(), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match=r"`0` sees a mean or variance too large for its torch.float16 buffers"):
        recalibrate_batchnorm(model, [1000 * x])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_stores_what_it_sees_rounded_once(dtype):
    model = network(3).to(dtype)
    x = samples().to(dtype)
    recalibrate_batchnorm(model, x.split(32))
    seen = {}
    for norm in norms(model):
        norm.register_forward_pre_hook(lambda m, args: seen.update({m: args[0].double()}))
    with torch.no_grad():
        model.eval()(x)
    for norm in norms(model):
        values = seen[norm].transpose(0, 1).flatten(1)
        assert norm.running_mean.dtype == norm.running_var.dtype == dtype
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(norm.running_mean.double(), values.mean(1), rtol=tolerance, atol=1e-3)
        torch.testing.assert_close(norm.running_var.double(), values.var(1), rtol=tolerance, atol=0)


def test_one_value_per_channel_has_no_variance():
    with pytest.raises(ValueError, match="BatchNorm `0`: the variance of a single value per channel is undefined"):
        recalibrate_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), [torch.randn(1, 3)])


def test_batches_of_one_sample_are_fine_for_exact():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.BatchNorm1d(3)), torch.randn(30, 3)
    recalibrate_batchnorm(model, x.split(1))
    torch.testing.assert_close(model[0].running_var, x.var(0))
