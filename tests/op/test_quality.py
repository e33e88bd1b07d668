"""The keep decisions are uniform and independent; and the tests that say so would notice if they were not."""

import math

import pytest
import torch
from scipy import stats

from jumpout_export import Jumpout, jumpout
from jumpout_export.nn.reference import jumpout_reference

pytestmark = pytest.mark.integration

SIX_SIGMA = 2e-9  # two-sided tail of six standard errors


def dropped(seed, n, p=0.5):
    return jumpout(torch.ones(n), p=p, normalize="none", seed=torch.tensor(seed)) == 0


def chi_square(counts, expected):
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return stats.chi2.sf(statistic, counts.numel() - 1)


def patterns(mask, width):
    bits = mask[: mask.numel() // width * width].view(-1, width).long()
    return (bits << torch.arange(width)).sum(1).bincount(minlength=1 << width).double()


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, -(2**63), 2**63 - 1])
def test_bytes_of_decisions_are_uniform(seed):
    n = 1 << 20
    counts = patterns(dropped(seed, n), 8)  # the eight decisions of one Philox call
    assert chi_square(counts, n / 8 / 256) > SIX_SIGMA


def test_every_position_of_a_block_is_dropped_alike():
    n = 1 << 21
    per_lane = dropped(5, n, 0.3).view(-1, 8).sum(0).double()
    rate = round(0.3 * 65536) / 65536
    z = (per_lane - n / 8 * rate) / math.sqrt(n / 8 * rate * (1 - rate))
    assert z.abs().max() < 6


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 8, 9, 64, 128, 1024, 4096])
def test_decisions_at_a_distance_are_independent(lag):
    n = 1 << 20
    mask = dropped(7, n)
    pairs = (mask[lag:].long() * 2 + mask[:-lag].long()).bincount(minlength=4).double()
    assert chi_square(pairs, (n - lag) / 4) > SIX_SIGMA


@pytest.mark.parametrize("other", [1, 2, 1 << 31, 1 << 32, (1 << 32) + 1])
def test_neighbouring_seeds_are_independent(other):
    n = 1 << 20
    pairs = (dropped(0, n).long() * 2 + dropped(other, n).long()).bincount(minlength=4).double()
    assert chi_square(pairs, n / 4) > SIX_SIGMA


def test_layers_and_steps_of_one_manual_seed_are_independent():
    torch.manual_seed(0)
    layers = [Jumpout(p=0.5, normalize="none") for _ in range(4)]
    x = torch.ones(1 << 17)
    masks = torch.stack([layer(x) == 0 for _ in range(4) for layer in layers]).double() - 0.5
    correlation = masks @ masks.t() / x.numel() * 4
    off_diagonal = correlation - torch.eye(16, dtype=torch.float64) * correlation.diagonal()
    assert off_diagonal.abs().max() < 6 / math.sqrt(x.numel())


def test_the_sampled_rate_is_independent_of_the_mask():
    n = 4000
    layer = Jumpout(sigma=0.1, normalize="sample", p_max=0.5)
    torch.manual_seed(0)
    rates, first = [], []
    for _ in range(n):
        layer(torch.ones(1, 1))
        rates.append(layer.statistics.p)
        first.append(layer.statistics.p_prime)
    # The rates of consecutive seeds follow one law with no memory.
    rates = torch.stack(rates)
    assert abs(torch.corrcoef(torch.stack([rates[1:], rates[:-1]]))[0, 1].item()) < 6 / math.sqrt(n)
    assert torch.stack(first).sub(rates).abs().max() <= 2**-17


def test_these_tests_find_a_bad_generator():
    n = 1 << 20
    biased = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.51
    assert chi_square(patterns(biased, 8), n / 8 / 256) < SIX_SIGMA
    repeated = dropped(3, n // 8).repeat_interleave(8)
    assert chi_square(patterns(repeated, 8), n / 8 / 256) < SIX_SIGMA
    alternating = torch.arange(n) % 2 == 0
    pairs = (alternating[1:].long() * 2 + alternating[:-1].long()).bincount(minlength=4).double()
    assert chi_square(pairs, (n - 1) / 4) < SIX_SIGMA


@pytest.mark.parametrize("tamper", ["mask", "scale", "bit order"])
def test_a_tampered_op_differs_from_the_reference_and_its_gradient_from_its_forward(tamper):
    """Shows once that the comparisons used everywhere notice: one flipped bit, a scale off by 1e-6, swapped bits."""
    x, seed = torch.randn(800, dtype=torch.float32).abs() + 0.1, torch.tensor(3)
    y, bits, sampled = torch.ops.jumpout.forward(x, seed, 0.4, 0.0, 0.01, 0.6, 0.75, 0.95, "batch", "shift", False)
    assert torch.equal(y, jumpout_reference(x, seed, p=0.4)[0])
    if tamper == "mask":
        bits[17] ^= 1
    elif tamper == "scale":
        sampled[0, 3] *= 1 + 1e-6
    else:
        lanes = torch.arange(8)
        bits = ((bits[:, None].long() >> lanes & 1) << (7 - lanes)).sum(1).to(torch.uint8)
    dx = torch.ops.jumpout.backward(torch.ones_like(x), bits, sampled, [1])
    assert not torch.equal(dx * x, y)


@pytest.mark.slow
def test_a_tensor_of_more_than_two_to_the_31_elements():
    n = (1 << 31) + 129
    x = torch.ones(n, dtype=torch.bfloat16)
    seed = torch.tensor(3)
    jumpout(x, p=0.25, normalize="none", alpha=0.0, seed=seed, inplace=True)
    # Positions beyond 2^31 take decisions of their own, those of a small tensor's reference at the same counters.
    tail = x[-129 - 8 * 1000 :].float()
    assert abs(tail.mean().item() - 0.75) < 6 * math.sqrt(0.25 * 0.75 / tail.numel())
    assert not torch.equal(x[-129:], x[:129])
    assert abs(x[: 1 << 24].float().mean().item() - 0.75) < 6 * math.sqrt(0.25 * 0.75 / (1 << 24))
