"""The laws of Algorithm 1 against closed forms; random claims have a fixed seed and a bound of six standard errors."""

import math

import pytest
import torch
from scipy import integrate, stats

from jumpout_export import Jumpout, JumpoutStatistics, jumpout
from jumpout_export.nn.functional import check_settings, jumpout_with_statistics
from jumpout_export.nn.init import second_moment

SIX = 6.0


def rates(count, **settings):
    """Draws `count` rates in one call: one per sample."""
    return sampled_by(torch.ones(count, 1), normalize="sample", **settings)[1].p


def sampled_by(x, **settings):
    """The result and, per sample, what was sampled."""
    keys = ("sigma", "p_min", "p_max", "p", "normalize", "alpha", "rate_cap", "truncation", "relu")
    layer = Jumpout(**settings)
    y, sampled = jumpout_with_statistics(x, check_settings(*(getattr(layer, key) for key in keys)))
    return y, JumpoutStatistics(*sampled.unbind(1))


def test_the_rate_follows_the_shifted_half_normal_law():
    n, a, b, sigma = 200_000, 0.05, 0.4, 0.15
    p = rates(n, sigma=sigma, p_min=a, p_max=b)
    t = (b - a) / sigma
    for x in torch.linspace(a + 0.01, b - 0.01, 12).tolist():
        expected = math.erf((x - a) / (sigma * math.sqrt(2)))
        assert abs((p <= x).double().mean().item() - expected) < SIX * math.sqrt(expected * (1 - expected) / n)
    atom = math.erfc(t / math.sqrt(2))
    assert abs((p == b).double().mean().item() - atom) < SIX * math.sqrt(atom * (1 - atom) / n)
    mean = a + sigma * math.sqrt(2 / math.pi) * (1 - math.exp(-t * t / 2)) + (b - a) * atom
    square = sigma**2 * (math.erf(t / math.sqrt(2)) - t * math.sqrt(2 / math.pi) * math.exp(-t * t / 2))
    variance = square + (b - a) ** 2 * atom - (mean - a) ** 2
    assert abs(p.mean().item() - mean) < SIX * math.sqrt(variance / n)
    assert abs(p.var().item() - variance) < SIX * variance * math.sqrt(2 / n)


def test_the_rate_follows_the_clipped_half_normal_law():
    n, a, b, sigma = 100_000, 0.05, 0.2, 0.15
    p = rates(n, sigma=sigma, p_min=a, p_max=b, truncation="clip")
    law = stats.halfnorm(scale=sigma)
    for atom, value in ((law.cdf(a), a), (law.sf(b), b)):
        assert abs((p == value).double().mean().item() - atom) < SIX * math.sqrt(atom * (1 - atom) / n)
    below = law.cdf(0.12)
    assert abs((p <= 0.12).double().mean().item() - below) < SIX * math.sqrt(below * (1 - below) / n)


def test_the_cap_binds_as_often_as_the_law_says():
    n, q, a, sigma, cap = 100_000, 0.25, 0.01, 0.1, 0.6
    x = torch.tensor([1.0, -1.0, -1.0, -1.0]).repeat(n, 1)
    sampled = sampled_by(x, sigma=sigma, rate_cap=cap, normalize="sample")[1]
    expected = math.erfc((cap * q - a) / (sigma * math.sqrt(2)))
    assert abs(sampled.capped.mean().item() - expected) < SIX * math.sqrt(expected * (1 - expected) / n)
    assert sampled.p_prime.max().item() == pytest.approx(cap, abs=2**-16)


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.1, 0.5, 0.9, 0.95])
def test_the_keep_rate_is_p_prime(rate):
    n = 4_000_000
    x = torch.ones(n)
    y = jumpout(x, p=rate, normalize="none", alpha=1.0)
    quantised = round(rate * 65536) / 65536
    dropped = int((y == 0).sum())
    assert abs(dropped - n * quantised) < SIX * math.sqrt(n * quantised * (1 - quantised))
    # E y = x holds exactly for the quantised rate: the scale is computed from it.
    assert y.max().item() == pytest.approx(1 / (1 - quantised), rel=1e-7)


def test_zeros_among_active_units_are_binomial_given_the_rate():
    samples, units = 4000, 256
    x = torch.randn(samples, units)
    y, sampled = sampled_by(x, p=0.2, normalize="sample")
    active = x > 0
    expected = sampled.p_prime
    count = active.sum(1)
    z = ((y == 0) & active).sum(1) - count * expected
    z /= (count * expected * (1 - expected)).sqrt()
    assert abs(z.mean().item()) < SIX / math.sqrt(samples)
    assert abs(z.var().item() - 1) < SIX * math.sqrt(2 / samples)
    # Dropped-active over all is what jumpout holds constant: p, whatever the fraction of active units.
    share = ((y == 0) & active).sum().item() / x.numel()
    assert abs(share - 0.2) < SIX * math.sqrt(0.2 * 0.8 / x.numel())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0, 2.0])
def test_mean_and_variance_given_the_rate(alpha):
    n = 2_000_000
    y = jumpout(torch.full((n,), 3.0), p=0.25, normalize="none", alpha=alpha)
    keep = 0.75
    mean, variance = keep ** (1 - alpha) * 3, keep ** (1 - 2 * alpha) * 0.25 * 9
    assert abs(y.mean().item() - mean) < SIX * math.sqrt(variance / n)
    assert abs(y.double().var().item() - variance) < SIX * variance * math.sqrt(2 / n)


def test_the_unconditional_mean_is_the_integral_over_the_rate():
    samples, units, sigma, a, b = 20_000, 64, 0.1, 0.01, 0.6
    x = torch.ones(samples, units)
    y = jumpout(x, sigma=sigma, normalize="sample").mean(1)  # q = 1, so p' = p
    law = stats.halfnorm(scale=sigma)
    atom = law.sf(b - a)
    mean = integrate.quad(lambda r: (1 - a - r) ** 0.25 * law.pdf(r), 0, b - a)[0] + (1 - b) ** 0.25 * atom
    assert abs(y.mean().item() - mean) < SIX * y.std().item() / math.sqrt(samples)


def test_the_second_moment_of_the_mask_is_the_integral_over_the_rate():
    sigma, a, b, q = 0.1, 0.01, 0.6, 0.5
    law = stats.halfnorm(scale=sigma)
    cap_at = 0.95 * q
    integral = integrate.quad(
        lambda r: (1 - min((a + r) / q, 0.95)) ** -0.5 * law.pdf(r), 0, b - a, points=[cap_at - a]
    )[0]
    expected = integral + 0.05**-0.5 * law.sf(b - a)
    assert second_moment(sigma=sigma, active_fraction=q) == pytest.approx(expected, rel=1e-3)
    assert second_moment(p=0.5, alpha=1.0, active_fraction=1.0) == pytest.approx(2.0)  # dropout: 1 / keep rate


def test_plain_dropout_has_the_law_of_torch_dropout():
    n, p = 2_000_000, 0.3
    ours = jumpout(torch.full((n,), 2.0), p=p, normalize="none", alpha=1.0).double()
    theirs = torch.nn.functional.dropout(torch.full((n,), 2.0), p).double()
    error = math.sqrt(2 * (p / (1 - p)) * 4 / n)
    assert abs(ours.mean().item() - theirs.mean().item()) < SIX * error
    assert torch.unique(ours).tolist() == pytest.approx(torch.unique(theirs).tolist(), rel=1e-4)


def test_a_zero_rate_is_the_identity_in_train_mode():
    x = torch.randn(1000)
    assert torch.equal(jumpout(x, p=0.0), x)
    assert torch.equal(jumpout(x, sigma=0.0, p_min=0.0), x)


def test_a_constant_rate_above_the_cap_stays_when_nothing_divides_it():
    layer = Jumpout(p=0.97, normalize="none")
    layer(torch.ones(8))
    assert layer.statistics.p_prime.item() == pytest.approx(0.97, abs=2**-16)
    assert layer.statistics.capped.item() == 0


def test_with_no_active_unit_the_input_comes_back():
    x = -torch.rand(100)
    layer = Jumpout(sigma=0.2)
    assert torch.equal(layer(x), x)
    assert layer.statistics.p_prime.item() == 0
    assert layer.statistics.scale.item() == 1


@pytest.mark.parametrize("exponent", [-20, 3, 40])
def test_scaling_by_a_power_of_two_commutes_bit_for_bit(exponent):
    x = torch.randn(5000)
    seed = torch.tensor(8)
    assert torch.equal(jumpout(x * 2.0**exponent, seed=seed), jumpout(x, seed=seed) * 2.0**exponent)


def test_relu_and_jumpout_commute_bit_for_bit():
    x = torch.randn(5000)
    seed = torch.tensor(8)
    expected = jumpout(torch.relu(x), seed=seed)
    assert torch.equal(torch.relu(jumpout(x, seed=seed)), expected)
    assert torch.equal(jumpout(x, seed=seed, relu=True), expected)


def test_per_sample_mode_depends_on_no_other_sample_and_batch_mode_does():
    x = torch.randn(4, 300)
    changed = torch.cat([x[:3], -x[3:].abs()])
    seed = torch.tensor(1)
    for normalize, same in (("sample", True), ("batch", False)):
        first = jumpout(x, seed=seed, normalize=normalize)[:3]
        assert torch.equal(first, jumpout(changed, seed=seed, normalize=normalize)[:3]) is same


def test_masks_of_different_calls_are_independent():
    n = 1_000_000
    x = torch.ones(n)
    torch.manual_seed(0)
    first, second = (jumpout(x, p=0.5, normalize="none") == 0 for _ in range(2))
    assert abs((first & second).double().mean().item() - 0.25) < SIX * math.sqrt(0.25 * 0.75 / n)
    for lag in (1, 7, 8, 16, 64):  # and so are the positions of one mask
        both = (first[lag:] & first[:-lag]).double().mean().item()
        assert abs(both - 0.25) < SIX * math.sqrt(0.25 * 0.75 / (n - lag))


def test_torch_manual_seed_repeats_the_mask_and_a_seed_makes_it_pure():
    x = torch.randn(100)
    torch.manual_seed(3)
    first, second = jumpout(x), jumpout(x)
    torch.manual_seed(3)
    assert torch.equal(jumpout(x), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    assert torch.equal(jumpout(x, seed=torch.tensor(1)), jumpout(x, seed=torch.tensor(1)))
    assert torch.equal(torch.get_rng_state(), state)
