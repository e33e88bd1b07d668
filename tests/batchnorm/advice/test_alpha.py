"""The law of the scaled mask before a BatchNorm, against the compiled op; and where the law is said to apply."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F

from jumpout_export import Jumpout
from jumpout_export.batchnorm.advice import noise_path
from jumpout_export.batchnorm.advice.alpha import (
    SLICES,
    advice_sentence,
    advise,
    exact_alpha,
    mean_ratio,
    sampled_rates,
    variance_ratio,
)
from jumpout_export.batchnorm.advice.noise_path import NoisePath
from jumpout_export.batchnorm.advice.scale_paths import noise_paths
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.model.randomness import same_bits
from jumpout_export.nn.functional import check_settings, jumpout_with_statistics
from jumpout_export.report import AlphaAdvice

SIX = 6.0
ONE = torch.ones(1, dtype=torch.float64)


def paths_of(model: nn.Module, *batches: torch.Tensor, images: int = 512) -> dict[str, NoisePath]:
    return noise_paths(Feed(model, list(batches)), batchnorm_layers(model), images)


def advice_of(model: nn.Module, *batches: torch.Tensor, images: int = 512) -> dict[str, AlphaAdvice]:
    return advise(Feed(model, list(batches)), batchnorm_layers(model), images)


def alpha_of(module: nn.Module) -> float:
    return module.alpha if isinstance(module, Jumpout) else 1.0


def law(path: NoisePath) -> torch.Tensor:
    rates = sampled_rates(path.module, torch.cat(path.active))
    return variance_ratio(rates, alpha_of(path.module), path.rho, path.squared_mean)


def activations(*shape: int, seed: int = 1) -> torch.Tensor:
    """Units after a ReLU: correlated pixels, a mean, and as many active ones in every sample."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if len(shape) > 2:
        x = x + x.roll(1, -1) + 0.3
    threshold = x.flatten(1).median(dim=1).values.reshape(-1, *[1] * (len(shape) - 1))
    return torch.relu(x - threshold)


def per_channel(y: torch.Tensor) -> torch.Tensor:
    return y.transpose(0, 1).flatten(1)


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
        for image in range(3):
            for row in range(3):
                for column in range(3):
                    value = 0.0
                    for channel in range(2):
                        for i in range(3):
                            for j in range(3):
                                unit = float(padded[image, 2 * out + channel, 2 * row + i, 2 * column + j])
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
    # The same pixel in every image: what varies is rounding.
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(30, 5), nn.BatchNorm1d(5))
    assert advice_of(model, activations(1, 30).float().repeat(64, 1)) == {}


class Net(nn.Module):
    """A model whose forward is a function of its modules."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def net(forward, noise: nn.Module | None = None, **modules: nn.Module) -> Net:
    modules.setdefault("linear", nn.Conv2d(4, 4, 3, padding=1))
    return Net(forward, noise=noise or Jumpout(p=0.2), norm=nn.BatchNorm2d(4), **modules)


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


class ScaledConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


FOUND = {
    "nested": net(
        lambda m, x: m.norm(m.linear(m.noise(x))),
        nn.Sequential(nn.Sequential(nn.Identity(), Jumpout(p=0.2)), nn.Identity()),
        linear=nn.Sequential(conv(), nn.Identity()),
    ),
    "relu": net(lambda m, x: m.norm(m.linear(m.relu(m.noise(x)))), relu=nn.ReLU()),
    "relu in place": net(lambda m, x: m.norm(m.linear(m.relu(m.noise(x)))), relu=nn.ReLU(inplace=True)),
    "leaky relu": net(lambda m, x: m.norm(m.linear(m.relu(m.noise(x)))), relu=nn.LeakyReLU()),
    "jumpout in place": net(lambda m, x: m.norm(m.linear(m.noise(x))), Jumpout(p=0.2, relu=True, inplace=True)),
    "functional reshape and back": net(lambda m, x: m.norm(m.linear(m.noise(x).flatten(1).view(x.shape)))),
    "pixels folded before the norm": net(lambda m, x: m.norm(m.linear(m.noise(x)).flatten(2).unsqueeze(3))),
    "by keyword": net(lambda m, x: m.norm(input=m.linear(input=m.noise(x=x)))),
    "read past the layer too": net(
        lambda m, x: (m.norm(m.linear(m.noise(x))), m.past(x))[0],
        past=conv(),
    ),
    "dropout of rate 0 between": net(lambda m, x: m.norm(m.linear(m.drop(m.noise(x)))), drop=nn.Dropout(0.0)),
    "norm called twice on the same": net(lambda m, x: m.norm(m.linear(m.noise(x))) + m.norm(m.linear(m.noise(x)))),
    "linear shared with a clean input": net(lambda m, x: m.norm(m.linear(m.noise(m.linear(x).relu())))),
    "weight norm": net(lambda m, x: m.norm(m.linear(m.noise(x))), linear=nn.utils.parametrizations.weight_norm(conv())),
    "directly": net(lambda m, x: m.norm(m.noise(x))),
    "dropout 1d of maps as sequences": net(
        lambda m, x: m.norm(m.linear(m.noise(x.flatten(2)).view(x.shape))), nn.Dropout1d(0.2)
    ),
}
NOT_FOUND = {
    "channels dropped, then cut up": net(
        lambda m, x: m.norm(m.linear(m.noise(x).view(-1, 9)).view(8, 4, -1, 1)),
        nn.Dropout2d(0.2),
        linear=nn.Linear(9, 9),
    ),
    "channels dropped, then other channels": net(
        lambda m, x: m.norm(m.linear(m.noise(x).view(8, 2, 12, 6))),
        nn.Dropout2d(0.2),
        linear=nn.Conv2d(2, 4, 3),
    ),
    "functional relu": net(lambda m, x: m.norm(m.linear(m.noise(x).relu()))),
    "functional relu in place": net(lambda m, x: m.norm(m.linear(m.noise(x).relu_()))),
    "in place behind the linear layer": net(lambda m, x: m.norm(m.linear(m.noise(x)).mul_(2))),
    "residual add before": net(lambda m, x: m.norm(m.linear(m.noise(x) + x))),
    "residual add behind": net(lambda m, x: m.norm(m.linear(m.noise(x)) + x)),
    "pooling": net(lambda m, x: m.norm(m.linear(m.pool(m.noise(x)))), pool=nn.AvgPool2d(2)),
    "sigmoid": net(lambda m, x: m.norm(m.linear(m.gate(m.noise(x)))), gate=nn.Sigmoid()),
    "relu behind the linear layer": net(lambda m, x: m.norm(m.gate(m.linear(m.noise(x)))), gate=nn.ReLU()),
    "two linear layers": net(lambda m, x: m.norm(m.second(m.linear(m.noise(x)))), second=conv()),
    "only past the layer": net(lambda m, x: (m.noise(x), m.norm(m.linear(x)))[1]),
    "half of it": net(lambda m, x: m.norm(m.linear(m.noise(torch.cat([x, x]))[: len(x)]))),
    "transposed": net(lambda m, x: m.norm(m.linear(m.noise(x).transpose(2, 3)))),
    "channels moved behind the linear layer": net(lambda m, x: m.norm(m.linear(m.noise(x)).transpose(0, 1)[:, :4])),
    "channels cut up behind the linear layer": net(lambda m, x: m.norm(m.linear(m.noise(x)).view(16, 4, 3, 6))),
    "one element read several times": net(
        lambda m, x: m.norm(m.linear(m.noise(x)[:, 0, :, :1].expand(8, 6, 24)).unsqueeze(3)),
        linear=nn.Conv1d(6, 4, 3),
    ),
    "two noises": net(lambda m, x: m.norm(m.linear(m.drop(m.noise(x)))), drop=nn.Dropout(0.2)),
    "noise of another law": net(lambda m, x: m.norm(m.linear(m.drop(m.noise(x)))), drop=nn.AlphaDropout(0.2)),
    "alpha dropout": net(lambda m, x: m.norm(m.linear(m.noise(x))), nn.AlphaDropout(0.2)),
    "whole samples dropped": net(lambda m, x: m.norm(m.linear(m.noise(x))), nn.Dropout3d(0.2)),
    "rate 0": net(lambda m, x: m.norm(m.linear(m.noise(x))), nn.Dropout(0.0)),
    "jumpout of rate 0": net(lambda m, x: m.norm(m.linear(m.noise(x))), Jumpout(sigma=0.0, p_min=0.0)),
    "rate 1": net(lambda m, x: m.norm(m.linear(m.noise(x))), nn.Dropout(1.0)),
    "no unit active": net(lambda m, x: m.norm(m.linear(-m.noise(-x))), Jumpout(p=0.2)),
    "reflected padding": net(
        lambda m, x: m.norm(m.linear(m.noise(x))), linear=nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    ),
    "a layer of its own": net(lambda m, x: m.norm(m.linear(m.noise(x))), linear=ScaledConv(4, 4, 3)),
    "transposed convolution": net(
        lambda m, x: m.norm(m.linear(m.noise(x))), linear=nn.ConvTranspose2d(4, 4, 3, padding=1)
    ),
    "norm called on clean input too": net(lambda m, x: m.norm(m.linear(m.noise(x))) + m.norm(x)),
    "norm called behind two layers": net(
        lambda m, x: m.norm(m.linear(m.noise(x))) + m.norm(m.second(m.noise(x))), second=conv()
    ),
    "linear on the last of three dimensions": Net(
        lambda m, x: m.norm(m.linear(m.noise(x.flatten(2)))),
        noise=Jumpout(p=0.2),
        linear=nn.Linear(36, 36),
        norm=nn.BatchNorm1d(4),
    ),
    "no noise at all": net(lambda m, x: m.norm(m.linear(x)), nn.Identity()),
}


@pytest.mark.parametrize("model", FOUND.values(), ids=FOUND)
@torch.no_grad()
def test_advice_where_the_law_applies(model):
    x = activations(8, 4, 6, 6).float()
    advice = advice_of(model, x)
    assert list(advice) == ["norm"]
    assert advice["norm"].path.startswith("noise")
    assert math.isfinite(advice["norm"].alpha_star)


@pytest.mark.parametrize("model", NOT_FOUND.values(), ids=NOT_FOUND)
def test_no_advice_where_it_does_not(model):
    assert advice_of(model, activations(8, 4, 6, 6).float() + 0.01) == {}


def test_a_frozen_stochastic_layer_gets_no_advice():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))
    x = activations(8, 4, 6, 6).float()
    assert advice_of(model, x)
    model.noise.eval()
    assert advice_of(model, x) == {}
    model.eval()  # nothing tells frozen layers from others in a model that is being served
    assert advice_of(model, x)


def test_frozen_norms_and_other_norms_are_passed_over():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))
    x = activations(8, 4, 6, 6).float()
    model.norm.eval()
    assert advice_of(model, x) == {}
    model = nn.Sequential(Jumpout(), nn.InstanceNorm2d(4, track_running_stats=True), conv(), nn.BatchNorm2d(4))
    assert advice_of(model, x) == {}


def test_one_stochastic_layer_may_feed_several_norms():
    model = Net(
        lambda m, x: m.second(m.right(h := m.noise(x))) + m.first(m.left(h)),
        noise=Jumpout(p=0.2),
        left=conv(),
        right=conv(),
        first=nn.BatchNorm2d(4),
        second=nn.BatchNorm2d(4),
    )
    advice = advice_of(model, activations(8, 4, 6, 6).float())
    assert list(advice) == ["first", "second"]
    assert {entry.path for entry in advice.values()} == {"noise"}


def test_memory_that_is_used_again_is_not_mistaken():
    def forward(m, x):
        for _ in range(20):
            m.noise(x)  # freed at once, unless it is held
        return m.norm(m.linear(x + 0))

    assert advice_of(net(forward), activations(8, 4, 6, 6).float()) == {}


def test_inference_mode_gives_no_advice():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))
    model.forward = torch.inference_mode()(model.forward)
    assert advice_of(model, activations(8, 4, 6, 6).float()) == {}


def test_autocast_changes_the_advice_by_its_rounding_only():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))

    def forward_fn(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    x = activations(32, 4, 6, 6).float()
    expected = advice_of(model, x)["norm"]
    found = advise(Feed(model, [x], forward_fn=forward_fn), batchnorm_layers(model))["norm"]
    assert found.rho != expected.rho
    assert found.rho == pytest.approx(expected.rho, rel=0.01)


def test_only_so_many_images_are_seen():
    seen = []
    model = net(lambda m, x: (seen.append(len(x)), m.norm(m.linear(m.noise(x))))[1])
    advice_of(model, *activations(64, 4, 6, 6).float().split(8), images=20)
    assert seen == [8, 8, 8]
    with pytest.raises(ValueError, match="images must be at least 1, got 0"):
        advice_of(model, activations(8, 4, 6, 6).float(), images=0)


def test_images_are_counted_where_only_forward_fn_knows_the_batch():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))
    calls = []

    def forward_fn(model, batch):
        calls.append(1)
        return model(batch.image)

    class Example:
        image = activations(8, 4, 6, 6).float()

    feed = Feed(model, [Example()] * 6, forward_fn=forward_fn)
    assert advise(feed, batchnorm_layers(model), 20)
    assert len(calls) == 3


def test_a_batch_of_one_value_per_channel_is_left_out():
    model = nn.Sequential(Jumpout(p=0.2), nn.Linear(30, 5), nn.BatchNorm1d(5))
    x = activations(33, 30).float()
    assert advice_of(model, x[:1]) == {}
    assert advice_of(model, x[:1], x[1:]) == advice_of(model, x[1:])


def snapshot(model: nn.Module) -> tuple[object, ...]:
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    flags = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    sampled = [m.statistics for m in model.modules() if isinstance(m, Jumpout)]
    return state, flags, hooks, sampled, torch.get_rng_state(), [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_model_is_left_as_it_was_found_also_after_an_exception(training):
    def forward(m, x):
        y = m.norm(m.linear(m.noise(x)))
        if len(x) == 7:
            raise RuntimeError("the user's own")
        return y

    model = net(forward)
    x = activations(15, 4, 6, 6).float()
    model(x)
    model.train(training)
    before = snapshot(model)
    assert advice_of(model, x[:8])
    assert same_bits(snapshot(model), before)
    with pytest.raises(RuntimeError, match="the user's own"):
        advice_of(model, x[:8], x[8:])
    assert same_bits(snapshot(model), before)


def test_a_compiled_model_gets_the_same_advice():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))
    x = activations(8, 4, 6, 6).float()
    expected = advice_of(model, x)["norm"]
    compiled = torch.compile(model, backend="eager")
    compiled(x)  # what was compiled knows no hook
    assert list(advice_of(compiled, x).values()) == [expected]


def advice(**changes: float | str) -> AlphaAdvice:
    known = {"path": "drop2", "alpha": 0.75, "rho": 0.4, "alpha_star": 0.88, "predicted": -math.log(1.13)}
    return AlphaAdvice(**{**known, **changes})


SENTENCES = {
    "inflates": (
        advice(),
        -math.log(1.14),
        "inflates the variance this layer is trained on by 14% (predicted +13%); alpha = 0.88 would have kept it.",
    ),
    "not measured": (
        advice(),
        None,
        "should inflate the variance this layer is trained on by 13%; alpha = 0.88 would keep it.",
    ),
    "shrinks": (
        advice(predicted=-math.log(0.87)),
        -math.log(0.88),
        "shrinks the variance this layer is trained on by 12% (predicted -13%); alpha = 0.88 would have kept it.",
    ),
    "disagrees": (
        advice(),
        -math.log(1.4),
        (
            "should inflate the variance this layer is trained on by 13%, but it is measured to inflate it by 40%: "
            "something else, such as noise further upstream, plays a part; alpha = 0.88 would have kept its own part."
        ),
    ),
    "agrees as well as a strong noise can": (
        advice(predicted=-0.6),
        -0.4,
        "inflates the variance this layer is trained on by 49% (predicted +82%); alpha = 0.88 would have kept it.",
    ),
    "dropout": (
        advice(alpha=1.0),
        -math.log(1.13),
        (
            "inflates the variance this layer is trained on by 13% (predicted +13%); "
            "alpha = 0.88 (a scale of k^-0.88, as Jumpout has, instead of 1 / k, k the keep rate) would have kept it."
        ),
    ),
    "no alpha": (
        advice(alpha_star=-0.5),
        -math.log(1.13),
        (
            "inflates the variance this layer is trained on by 13% (predicted +13%); "
            "no alpha would have kept it: lower its rate, or move it behind the BatchNorm."
        ),
    ),
    "keeps": (
        advice(predicted=-math.log(1.004)),
        -math.log(0.996),
        "keeps the variance this layer is trained on (predicted +0%).",
    ),
}


@pytest.mark.parametrize(("entry", "measured", "expected"), SENTENCES.values(), ids=SENTENCES)
def test_the_sentence_says_what_how_much_why_and_what_to_do(entry, measured, expected):
    assert advice_sentence(entry, measured) == f"The noise of `drop2` (alpha {entry.alpha:.2f}) {expected}"


def test_a_part_that_is_not_a_number_was_not_measured():
    assert advice_sentence(advice(), math.nan) == advice_sentence(advice())
