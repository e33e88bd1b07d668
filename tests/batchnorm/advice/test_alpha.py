"""The law of the scaled mask before a BatchNorm, against the op itself."""

import math

import pytest
import torch
from scipy import integrate, stats
from support.masked import SIX, activations, advice_of, law, paths_of, per_channel
from torch import nn
from torch.nn import functional as F

from jumpout_export import Jumpout
from jumpout_export.batchnorm.advice import noise_path
from jumpout_export.batchnorm.advice.alpha import (
    SLICES,
    exact_alpha,
    mean_ratio,
    sampled_rates,
    variance_ratio,
)
from jumpout_export.nn.functional import check_settings, jumpout_with_statistics

ONE = torch.ones(1, dtype=torch.float64)


@torch.no_grad()
def trained_variance(net: nn.Module, x: torch.Tensor, repeats: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled over calls: the variance of the output in train mode, per channel, and its standard error."""
    net.train()
    calls = [per_channel(net(x)) for _ in range(repeats)]
    mean = torch.stack([y.mean(dim=1) for y in calls])
    square = torch.stack([y.square().mean(dim=1) for y in calls])
    influence = square - 2 * mean.mean(dim=0) * mean
    return square.mean(dim=0) - mean.mean(dim=0).square(), influence.std(dim=0) / math.sqrt(repeats)


CASES = {
    "jumpout, linear": ((64, 30), [Jumpout(p=0.2), nn.Linear(30, 5)]),
    "jumpout, conv with padding": ((16, 4, 6, 6), [Jumpout(sigma=0.1), nn.Conv2d(4, 6, 3, padding=1)]),
    "jumpout, groups, stride, dilation": (
        (16, 4, 9, 8),
        [Jumpout(sigma=0.2, normalize="none", alpha=0.9), nn.Conv2d(4, 6, 3, 2, (2, 1), 2, groups=2)],
    ),
    "jumpout of alpha 0, linear": ((64, 30), [Jumpout(sigma=0.2, alpha=0.0), nn.Linear(30, 5)]),
    "jumpout per sample, conv 1d": (
        (64, 4, 12),
        [Jumpout(sigma=0.2, normalize="sample", alpha=0.3), nn.Conv1d(4, 5, 3, padding="same")],
    ),
    "jumpout clipped, conv 3d": (
        (16, 2, 4, 5, 4),
        [Jumpout(sigma=0.1, p_min=0.05, p_max=0.2, truncation="clip"), nn.Conv3d(2, 3, 3, padding=1)],
    ),
    "jumpout under its cap, linear": ((64, 30), [Jumpout(sigma=0.4, rate_cap=0.6), nn.Linear(30, 5)]),
    "jumpout, relu, flatten, linear": (
        (64, 3, 3, 3),
        [Jumpout(sigma=0.1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 5)],
    ),
    "jumpout alone": ((64, 5, 4), [Jumpout(sigma=0.1)]),
    "dropout, conv": ((16, 4, 6, 6), [nn.Dropout(0.3), nn.Conv2d(4, 6, 3, padding=1, bias=False)]),
    "dropout 1d, conv": ((64, 4, 12), [nn.Dropout1d(0.3), nn.Conv1d(4, 6, 3, padding=1)]),
    "dropout 2d, grouped conv": ((64, 4, 6, 6), [nn.Dropout2d(0.3), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)]),
    "dropout 3d, conv": ((64, 2, 4, 5, 4), [nn.Dropout3d(0.3), nn.Conv3d(2, 3, 3)]),
    "dropout 2d, flatten, linear": ((64, 6, 3, 3), [nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(54, 5)]),
    "dropout 2d alone": ((64, 5, 4, 4), [nn.Dropout2d(0.3)]),
}


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_predicted_variance_is_the_one_measured_with_the_op(case):
    shape, modules = case
    x, net = activations(*shape), nn.Sequential(*modules).double()
    channels = net(x).shape[1]
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[net(x).ndim](channels).double()
    path = paths_of(nn.Sequential(net, norm), x)["1"]
    with torch.no_grad():
        silent = per_channel(net.eval()(x))
    torch.testing.assert_close(path.variance, silent.var(dim=1, correction=0))
    trained, error = trained_variance(net, x)
    predicted = law(path) * path.variance
    assert ((trained - predicted).abs() < SIX * error).all()
    assert ((predicted - path.variance).abs() > SIX * error).any()  # the noise is there to be seen


def test_relu_inside_jumpout_counts_the_active_units_of_its_input():
    x = torch.randn(64, 30, dtype=torch.float64) - 0.3
    net = nn.Sequential(Jumpout(sigma=0.1, relu=True), nn.Linear(30, 5)).double()
    path = paths_of(nn.Sequential(net, nn.BatchNorm1d(5).double()), x)["1"]
    assert path.active[0].item() == (x > 0).double().mean().item()
    trained, error = trained_variance(net, x)
    assert ((trained - law(path) * path.variance).abs() < SIX * error).all()


def test_channelwise_noise_is_not_taken_for_elementwise_noise():
    x = activations(64, 4, 6, 6)
    conv = nn.Conv2d(4, 6, 3).double()
    element = paths_of(nn.Sequential(nn.Dropout(0.3), conv, nn.BatchNorm2d(6).double()), x)["2"]
    channel = paths_of(nn.Sequential(nn.Dropout2d(0.3), conv, nn.BatchNorm2d(6).double()), x)["2"]
    trained, error = trained_variance(nn.Sequential(nn.Dropout2d(0.3), conv), x)
    assert ((trained - law(element) * element.variance).abs() > SIX * error).any()
    assert channel.channelwise
    assert not element.channelwise


def test_rho_is_the_sum_over_taps_and_channels_of_each_output_pixel():
    x = activations(3, 4, 5, 5)
    conv = nn.Conv2d(4, 2, 3, stride=2, padding=1, groups=2).double()
    path = paths_of(nn.Sequential(Jumpout(p=0.2), conv, nn.BatchNorm2d(2).double()), x)["2"]
    weight, padded = conv.weight.detach(), F.pad(x, (1, 1, 1, 1))
    for out in range(2):
        power, values = 0.0, []
        for sample in range(3):
            for row in range(3):
                for column in range(3):
                    value = 0.0
                    for channel in range(2):
                        for i in range(3):
                            for j in range(3):
                                unit = float(padded[sample, 2 * out + channel, 2 * row + i, 2 * column + j])
                                value += float(weight[out, channel, i, j]) * unit
                                power += (float(weight[out, channel, i, j]) * unit) ** 2
                    values.append(value)
        mean = sum(values) / 27
        variance = sum((value - mean) ** 2 for value in values) / 27
        assert path.rho[out].item() == pytest.approx(power / 27 / variance)
        assert path.squared_mean[out].item() == pytest.approx(mean**2 / variance)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(4, 6, (4, 3), padding="same", groups=2),
        nn.Conv2d(4, 8, 2, padding="valid", groups=4),
        nn.Conv1d(4, 6, 4, padding="same", dilation=3),
        nn.Conv3d(4, 6, (1, 2, 3), stride=2, padding=1),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_the_power_of_dropped_channels_is_that_of_their_parts_of_the_output(layer):
    layer = layer.double()
    x = activations(5, 4, *(9, 8, 7)[: layer.weight.ndim - 2])
    with torch.no_grad():
        expected = sum(
            (layer(x * (torch.arange(4) == channel).view(-1, *[1] * (x.ndim - 2))) - layer(0 * x)).square()
            for channel in range(4)
        )
    torch.testing.assert_close(noise_path.mask_power(layer, x, 4), per_channel(expected).sum(dim=1))


def test_the_sums_do_not_depend_on_batches_or_chunks(monkeypatch):
    x = activations(40, 4, 6, 6)
    for noise in (Jumpout(p=0.2, normalize="none"), nn.Dropout2d(0.2)):
        model = nn.Sequential(noise, nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)).double()
        whole = paths_of(model, x)["2"]
        with monkeypatch.context() as patch:
            patch.setattr(noise_path, "CHUNK", 3 * x[0].numel())
            split = paths_of(model, *x.split(16))["2"]
        assert split.count == whole.count == 40 * 36
        for name in ("power", "total", "square"):
            torch.testing.assert_close(getattr(split, name), getattr(whole, name))


@pytest.mark.integration
@pytest.mark.parametrize("settings", [{"p": 0.2}, {"sigma": 0.2}], ids=["constant rate", "sampled rate"])
def test_the_same_net_with_alpha_star_keeps_the_variance_within_a_call(settings):
    x = activations(64, 4, 6, 6)
    noise, conv = Jumpout(**settings), nn.Conv2d(4, 1, 3, padding=1).double()
    advice = advice_of(nn.Sequential(noise, conv, nn.BatchNorm2d(1).double()), x)["2"]
    with torch.no_grad():
        u = conv(x) - conv.bias
    for alpha, kept in ((advice.alpha_star, True), (0.75, False)):
        noise.alpha = alpha
        found = []
        for _ in range(600):
            with torch.no_grad():
                y = conv(noise(x)) - conv.bias
            # The mean given the rate is k^(1 - alpha) times that of u, exactly.
            factor = (1 - noise.statistics.p_prime) ** (1 - alpha)
            found.append((y.square().mean() - (factor * u.mean()).square()) / u.var(correction=0))
        ratio = torch.stack(found)
        deviations = (ratio.mean() - 1).abs() / (ratio.std() / math.sqrt(600))
        assert bool(deviations < SIX) is kept


def test_alpha_star_is_the_closed_form_for_one_rate_and_the_root_for_many():
    rho = torch.tensor([0.0, 0.15, 0.21, 1.0, 7.0], dtype=torch.float64)
    p = 0.3
    closed = 1 - (1 + p * rho / (1 - p)).log() / (2 * abs(math.log(1 - p)))
    torch.testing.assert_close(exact_alpha(p * ONE, rho), closed)
    assert exact_alpha(p * ONE, ONE).item() == pytest.approx(0.5)  # a zero-mean input directly before a BatchNorm
    rates = sampled_rates(Jumpout(sigma=0.2), 0.5 * ONE)
    for value, root in zip(rho, exact_alpha(rates, rho), strict=True):
        assert variance_ratio(rates, root.item(), value).item() == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match="at least one rate above 0, got only zeros"):
        exact_alpha(torch.zeros(3), rho)


def test_the_laws_for_one_rate_are_the_closed_forms():
    p, alpha, c, v = 0.3, 0.75, 2.0, 0.5
    k = 1 - p
    direct = variance_ratio(p * ONE, alpha, torch.tensor((c**2 + v) / v), c**2 / v) * v
    assert direct.item() == pytest.approx(k ** (1 - 2 * alpha) * (c**2 + v) - k ** (2 - 2 * alpha) * c**2)
    assert mean_ratio(p * ONE, alpha).item() == pytest.approx(k ** (1 - alpha))
    # Plain dropout keeps the mean whatever the rate, so pooling calls adds nothing.
    two = torch.tensor([0.1, 0.5], dtype=torch.float64)
    assert mean_ratio(two, 1.0).item() == pytest.approx(1)
    assert torch.equal(variance_ratio(two, 1.0, ONE, 100.0), variance_ratio(two, 1.0, ONE))


def test_the_expectation_over_sampled_rates_is_the_integral():
    sigma, a, b, q, alpha, rho = 0.15, 0.02, 0.6, 0.5, 0.75, 0.4
    halfnormal = stats.halfnorm(scale=sigma)

    def ratio(rate):
        k = 1 - min(rate / q, 0.95)
        return k ** (2 - 2 * alpha) * (1 + (1 - k) / k * rho)

    integral = integrate.quad(lambda r: ratio(a + r) * halfnormal.pdf(r), 0, b - a, points=[0.95 * q - a])[0]
    expected = integral + ratio(b) * halfnormal.sf(b - a)
    rates = sampled_rates(Jumpout(sigma=sigma, p_min=a, p_max=b), q * ONE)
    assert variance_ratio(rates, alpha, torch.tensor(rho)).item() == pytest.approx(expected, rel=2e-4)


def test_rates_for_several_fractions_of_active_units_are_those_the_op_draws():
    x = torch.ones(20_000, 10, dtype=torch.float64)
    x[::2, 4:] = -1
    layer = Jumpout(sigma=0.1, normalize="sample")
    keys = ("sigma", "p_min", "p_max", "p", "normalize", "alpha", "rate_cap", "truncation", "relu")
    drawn = jumpout_with_statistics(x, check_settings(*(getattr(layer, key) for key in keys)))[1][:, 2]
    rates = sampled_rates(layer, torch.tensor([1.0, 0.4, 0.4, 1.0], dtype=torch.float64))
    assert len(rates) == SLICES
    assert abs(drawn.mean() - rates.mean()) < SIX * drawn.std() / math.sqrt(len(drawn))
    spread = (drawn - drawn.mean()).square()
    assert abs(spread.mean() - rates.var()) < SIX * spread.std() / math.sqrt(len(drawn))
    assert torch.equal(sampled_rates(layer, torch.zeros(1)), torch.zeros(SLICES, dtype=torch.float64))


def test_advice_is_of_the_median_channel_and_predicts_what_the_check_measures():
    x = activations(64, 4, 6, 6)
    norm = nn.BatchNorm2d(7, eps=0.1).double()
    model = nn.Sequential(Jumpout(sigma=0.1), nn.Conv2d(4, 7, 3).double(), norm)
    path, advice = paths_of(model, x)["2"], advice_of(model, x)["2"]
    assert (advice.path, advice.alpha) == ("0", 0.75)
    assert advice.rho == path.rho.sort().values[3].item()
    expected = ((path.variance + 0.1) / (law(path) * path.variance + 0.1)).log()
    assert advice.predicted == pytest.approx(expected.sort().values[3].item())
    rates = sampled_rates(path.module, path.active[0])
    assert advice.alpha_star == pytest.approx(exact_alpha(rates, path.rho).sort().values[3].item())


def test_constant_channels_are_left_out():
    x = activations(64, 4, 6, 6)
    conv = nn.Conv2d(4, 3, 3).double()
    with torch.no_grad():
        conv.weight[0] = 0
    model = nn.Sequential(Jumpout(p=0.2), conv, nn.BatchNorm2d(3).double())
    assert paths_of(model, x)["2"].rho.isfinite().tolist() == [False, True, True]
    assert math.isfinite(advice_of(model, x)["2"].predicted)
    with torch.no_grad():
        conv.weight.zero_()
    assert advice_of(model, x) == {}
    # The same pixel in every sample: what varies is rounding.
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(30, 5), nn.BatchNorm1d(5))
    assert advice_of(model, activations(1, 30).float().repeat(64, 1)) == {}
