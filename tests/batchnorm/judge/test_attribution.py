"""Why a layer drifts: parts that add up exactly, with a known cause each."""

import math

import pytest
import torch
from support.attributed import assert_adds_up, check, edit, healthy, samples, trained
from support.checked import row
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.judge.attribute import attribute
from jumpout_export.batchnorm.judge.estimate import Estimate
from jumpout_export.nn.modules import Jumpout


@pytest.mark.integration
@pytest.mark.parametrize("noise", [nn.Identity(), nn.Dropout(0.4), Jumpout(p=0.3)], ids=["none", "dropout", "jumpout"])
def test_the_parts_add_up_to_the_last_bits(noise):
    model = trained(noise)
    edit(model[4], 0.2, 0.3)
    for layer in check(model).layers:
        for quantity in ("log_ratio", "delta"):
            assert_adds_up(layer, quantity)
        assert layer.stale + layer.stochastic + layer.propagated == pytest.approx(layer.median_log_ratio, abs=1e-14)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 10, 33, 100])
def test_parts_of_the_median_add_up_for_any_number_of_channels_and_shares_to_one(channels):
    torch.manual_seed(channels)
    estimates = []
    for _ in range(3):
        sums = torch.rand(6, channels, dtype=torch.double)
        sums[0] = 1
        sums[2] = sums[1].square() + 0.1 + torch.rand(channels)
        estimates.append(Estimate(sums, torch.full((channels,), 1e-5), 1.0))
    parts = attribute(estimates, torch.ones(channels, dtype=torch.bool))
    assert sum(parts.median) == pytest.approx(float(estimates[2].log_ratio.quantile(0.5)), abs=1e-14)
    assert sum(parts.shares.values()) == pytest.approx(1, abs=1e-12)
    whole = (estimates[2].delta.square() + (estimates[2].r.sqrt() - 1).square()).sum()
    # Of the parts, the one that is all of the drift in delta has the share of delta in the sum of W^2.
    assert sum(parts.of_mean) == pytest.approx(float(estimates[2].delta.square().sum() / whole), abs=1e-12)


@pytest.mark.integration
@pytest.mark.parametrize(("d", "c"), [(0.5, 0.0), (0.0, 0.6), (-0.3, -0.5)], ids=["mean", "variance", "both"])
def test_an_edited_layer_is_stale_and_the_origin_and_what_drifts_behind_it_is_propagated(d, c):
    model = healthy().double()
    x = samples(seed=3).double()
    before = row(check(model, x), "4")
    edit(model[4], d, c)
    report = check(model, x)
    edited = row(report, "4")
    assert (report.origin, edited.verdict, edited.cause) == ("4", "drift", "stale")
    expected = (torch.tensor(before.delta) - d) * math.exp(-c / 2)
    torch.testing.assert_close(torch.tensor(edited.delta), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.tensor(edited.log_ratio), torch.tensor(before.log_ratio) - c, rtol=1e-6, atol=1e-6)
    behind = [layer for layer in report.layers[2:] if layer.verdict == "drift"]
    assert behind
    assert [layer.cause for layer in behind] == ["propagated"] * len(behind)
    assert row(report, "1").cause is None
    # Re-normalised by the batch, what comes behind sees nothing of the edit.
    for layer in report.layers[2:]:
        assert abs(layer.stale) < 0.03 > abs(layer.stochastic)


def test_before_the_first_batchnorm_nothing_is_propagated_to_the_last_bit():
    first = check(trained(nn.Dropout(0.5))).layers[0].attribution
    assert set(first.log_ratio_propagated) == set(first.delta_propagated) == {0.0}
    assert set(first.log_ratio_stochastic) == set(first.delta_stochastic) == {0.0}


@pytest.mark.parametrize("noise", [nn.Dropout(0.5), Jumpout(p=0.4, normalize="none", alpha=1.0)], ids=repr)
def test_dropout_before_a_layer_is_its_cause_and_makes_it_the_origin(noise):
    report = check(trained(noise))
    assert [layer.verdict for layer in report.layers[:2]] == ["ok", "ok"]
    layer = row(report, "7")
    assert (report.origin, layer.verdict, layer.cause) == ("7", "drift", "stochastic")
    assert layer.stochastic < -0.15
    assert abs(layer.stale) < 0.1 > abs(layer.propagated)


def test_functional_noise_that_depends_on_the_training_flag_is_stochastic():
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(x, 0.5, self.training)

    report = check(trained(Functional()))
    assert (report.origin, row(report, "7").cause) == ("7", "stochastic")


def test_a_part_of_a_training_model_that_is_in_eval_mode_stays_so():
    model = trained(nn.Dropout(0.5))
    model[5][1].eval()
    assert set(row(check(model), "7").attribution.log_ratio_stochastic) == {0.0}
    assert set(row(check(model.eval()), "7").attribution.log_ratio_stochastic) != {0.0}


def test_a_frozen_batchnorm_stores_what_it_normalises_by_in_every_state():
    model = healthy().train()
    edit(model[4], 0.0, 1.0)
    model[4].eval()
    report = check(model)
    # What is behind it was re-normalised by its own statistics in training, too: nothing comes from upstream.
    assert max(map(abs, row(report, "7").attribution.log_ratio_propagated)) < 0.02
    assert row(report, "7").cause == "stale"


# With keep rate k and scale s = k^-alpha (Wang, Zhou, Bilmes 2019; design of this package), for a linear layer behind
# independent masks: variance ratio k^(2 - 2 alpha) (1 + (1 - k) / k rho), mean ratio k^(1 - alpha).
@pytest.mark.parametrize(("p", "alpha"), [(0.3, 0.75), (0.5, 1.0), (0.2, 0.0)])
def test_jumpout_before_a_linear_layer_has_the_parts_of_the_closed_form(p, alpha):
    torch.manual_seed(0)
    x = torch.randn(4096, 40, dtype=torch.double).relu() * torch.rand(40, dtype=torch.double)
    model = nn.Sequential(Jumpout(p=p, normalize="none", alpha=alpha), nn.Linear(40, 32), nn.BatchNorm1d(32)).double()
    layer = check(model, x, size=128).layers[0]
    k = 1 - p
    w = model[1].weight
    u = x @ w.T
    rho = x.square().mean(0) @ w.T.square() / u.var(0)
    log_ratio = -((2 - 2 * alpha) * math.log(k) + torch.log1p((1 - k) / k * rho))
    mean = u.mean(0) * (1 - k ** (1 - alpha))
    tau = math.sqrt(1 + model[2].eps)
    # Two samples of 4096 numbers each, of which one is noisier: allow for the larger of their errors in both.
    assert_within(layer.attribution.log_ratio_stochastic, log_ratio, math.sqrt(2 * 2.5 / 4096))
    noisy = u.std(0) * torch.exp(log_ratio.abs() / 2) / tau
    assert_within(layer.attribution.delta_stochastic, mean / tau, noisy * math.sqrt(2 / 4096))


@pytest.mark.parametrize(("p", "alpha"), [(0.3, 0.75), (0.4, 0.5)])
def test_jumpout_directly_before_a_batchnorm_has_the_parts_of_the_closed_form(p, alpha):
    torch.manual_seed(0)
    center, k = torch.linspace(-2, 2, 32), 1 - p
    x = torch.randn(4096, 32) * 1.5 + center
    model = nn.Sequential(Jumpout(p=p, normalize="none", alpha=alpha), nn.BatchNorm1d(32))
    layer = check(model, x, size=128).layers[0]
    c, v = x.double().mean(0), x.double().var(0)
    trained = k ** (1 - 2 * alpha) * (c.square() + v) - k ** (2 - 2 * alpha) * c.square()
    assert_within(layer.attribution.log_ratio_stochastic, (v / trained).log(), math.sqrt(2 * 3 / 4096))
    error = (trained.sqrt() + v.sqrt()) / math.sqrt(4096)
    assert_within(layer.attribution.delta_stochastic, c * (1 - k ** (1 - alpha)), error)


def assert_within(measured: list[float], expected: torch.Tensor, error: torch.Tensor | float) -> None:
    """Each of 32 channels within four standard errors, and most within two."""
    z = (torch.tensor(measured) - expected.detach()).abs() / error
    assert z.max() < 4
    assert (z < 2).double().mean() > 0.8


def test_what_is_measured_does_not_depend_on_whether_the_cause_is_measured_too():
    class Augmented:
        def __iter__(self):
            return (batch + 0.1 * torch.randn_like(batch) for batch in samples().split(64))

    model = trained(nn.Dropout(0.5))
    torch.manual_seed(5)
    reports = [check_batchnorm(model, Augmented(), outputs=False, attribution=cause) for cause in (True, False)]
    for one, two in zip(reports[0].layers, reports[1].layers, strict=True):
        assert (one.delta, one.log_ratio, one.w) == (two.delta, two.log_ratio, two.w)
        assert two.attribution is two.stale is two.cause is None
    assert reports[0].layers[2].cause == "stochastic"
    assert "`1`" not in reports[1].layers[2].note


def test_augmentation_inside_the_forward_function_is_the_same_in_all_states():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(x + torch.randn_like(x))

    report = check(trained(nn.Dropout(0.5)), forward_fn=forward)
    assert set(report.layers[0].attribution.log_ratio_stochastic) == {0.0}
