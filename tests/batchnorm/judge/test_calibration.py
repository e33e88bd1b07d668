"""Error rates, by simulation: intervals cover, healthy channels are not flagged, several looks err no more than one."""

import math

import pytest
import torch
from support.moments import moments_of
from torch import nn

from jumpout_export.batchnorm.judge.estimate import discoveries
from jumpout_export.batchnorm.judge.score import score_layer
from jumpout_export.batchnorm.judge.stopping import LEVEL, Looks
from jumpout_export.batchnorm.measure.forward_moments import ForwardMoments
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.moments import Moments

CHANNELS, PIXELS, SAMPLES, BATCH, MOMENTUM, TRIALS = 16, 8, 512, 32, 0.3, 300
# What an average of momentum m over batches of B holds: B (2 - m) / m samples.
HELD = BATCH * (2 - MOMENTUM) / MOMENTUM


def pictures(count: int) -> torch.Tensor:
    """Pixels that share an offset per sample: mean 0, variance 2, correlation 1/2."""
    offset = torch.randn(count, CHANNELS, 1, dtype=torch.double)
    return offset + torch.randn(count, CHANNELS, PIXELS, dtype=torch.double)


def trained() -> nn.BatchNorm1d:
    """A layer whose running averages have forgotten where they started, and nothing is wrong with it."""
    norm = nn.BatchNorm1d(CHANNELS, momentum=MOMENTUM).double()
    with torch.no_grad():
        for batch in pictures(20 * BATCH).split(BATCH):
            norm(batch)
    return norm


@pytest.fixture(scope="module")
def healthy() -> list[tuple[nn.BatchNorm1d, Moments]]:
    torch.manual_seed(0)
    norms = [trained() for _ in range(TRIALS)]
    return [(norm, moments_of(norm, pictures(SAMPLES))) for norm in norms]


def rate_is_at_most(rate: float, nominal: float, count: int) -> bool:
    """Within six standard errors of a rate counted over `count` independent trials."""
    return rate <= nominal + 6 * math.sqrt(nominal * (1 - nominal) / count)


def significant(healthy: list[tuple[nn.BatchNorm1d, Moments]], held: float) -> tuple[float, float]:
    """The fraction of channels with p < .05, and of layers with any discovery."""
    p_values = torch.stack([score_layer(moments, norm.eps, held).p_values for norm, moments in healthy])
    discovered = [bool(discoveries(row).any()) for row in p_values]
    return float((p_values < 0.05).double().mean()), sum(discovered) / TRIALS


@pytest.mark.integration
def test_healthy_channels_are_flagged_no_more_often_than_the_level_says(healthy):
    channels, layers = significant(healthy, HELD)
    assert rate_is_at_most(channels, 0.05, TRIALS * CHANNELS)
    # Nothing is wrong in any layer, where the false discovery rate is the rate of layers with a discovery.
    assert rate_is_at_most(layers, 0.05, TRIALS)
    assert channels > 0.02  # and not because the test has no power


@pytest.mark.integration
def test_without_the_noise_of_the_stored_average_the_same_channels_are_flagged(healthy):
    channels, layers = significant(healthy, math.inf)
    assert channels > 0.4
    assert layers > 0.9


@pytest.mark.integration
def test_healthy_layers_do_not_drift_and_their_w_is_zero_on_average(healthy):
    scores = [score_layer(moments, norm.eps, HELD) for norm, moments in healthy]
    assert rate_is_at_most(sum(score.low > 0 for score in scores) / TRIALS, 0.025, TRIALS)
    assert all(score.verdict(0.05, guessed=False) != "drift" for score in scores)
    # Squares are debiased, so that about as many are above zero as below, where W is 0.
    assert 0.3 < sum(score.w == 0 for score in scores) / TRIALS < 0.7


@pytest.fixture(scope="module")
def drifting() -> list[tuple[nn.BatchNorm1d, Moments]]:
    """Every channel off by .3 standard deviations and a factor 1.3 in the variance, beside the noise of training."""
    torch.manual_seed(1)
    made = []
    for _ in range(TRIALS):
        norm = trained()
        norm.running_mean += 0.3 * math.sqrt(2)
        norm.running_var *= 1.3
        made.append((norm, moments_of(norm, pictures(SAMPLES))))
    return made


def covered(drifting: list[tuple[nn.BatchNorm1d, Moments]], held: float) -> float:
    r = 1 / 1.3
    # W in units of a stored deviation that is itself noisy: its average square is larger by the variance of ln s2.
    truth = math.hypot(0.3 * math.sqrt(r), math.sqrt(r) - 1)
    scores = [score_layer(moments, norm.eps, held) for norm, moments in drifting]
    return sum(score.low <= truth <= score.high for score in scores) / TRIALS


@pytest.mark.integration
def test_intervals_of_w_cover_the_drift_beside_the_noise_of_training(drifting):
    assert covered(drifting, HELD) > 0.95 - 6 * math.sqrt(0.05 * 0.95 / TRIALS)


@pytest.mark.integration
def test_intervals_without_that_noise_fail_the_same_test(drifting):
    assert covered(drifting, math.inf) < 0.8


ON_THE_MARGIN, LOOKED_AT, WIDTH, SEQUENCES = 0.1, (512, 1024, 2048, 4096), 4, 800


@pytest.fixture(scope="module")
def wrong() -> dict[str, float]:
    """How often a layer exactly on the margin is decided at any of four looks; each decision is an error."""
    looks = Looks(LOOKED_AT[-1], early=True)
    levels = [level for level in map(looks.due, LOOKED_AT) if level is not None]
    schedules = {"ours": [*levels, looks.last], "95% each": [LEVEL] * len(LOOKED_AT)}
    torch.manual_seed(2)
    norm = nn.BatchNorm1d(WIDTH).double()
    norm.running_mean.fill_(-ON_THE_MARGIN)
    norm.running_var.fill_(1 - norm.eps)
    errors = dict.fromkeys(schedules, 0)
    for _ in range(SEQUENCES):
        forward = ForwardMoments([Layer("bn", norm, frozen=False)])
        decided = dict.fromkeys(schedules, False)
        seen = 0
        for look, until in enumerate(LOOKED_AT):
            forward.take("bn", torch.randn(until - seen, WIDTH, dtype=torch.double))
            forward.end_forward()
            seen = until
            for name, schedule in schedules.items():
                score = score_layer(forward.moments["bn"], norm.eps, math.inf, schedule[look])
                decided[name] |= not score.low <= ON_THE_MARGIN <= score.high
        for name, is_decided in decided.items():
            errors[name] += is_decided
    return {name: count / SEQUENCES for name, count in errors.items()}


@pytest.mark.integration
def test_several_looks_err_no_more_often_than_one(wrong):
    assert rate_is_at_most(wrong["ours"], LEVEL, SEQUENCES)


@pytest.mark.integration
def test_looks_at_95_percent_each_fail_the_same_test(wrong):
    assert not rate_is_at_most(wrong["95% each"], LEVEL, SEQUENCES)


def test_the_levels_of_the_looks_rise_and_add_up_to_five_percent():
    looks = Looks(4096, early=True)
    levels = [looks.due(samples) for samples in (512, 1024, 2048)]
    assert sum(levels) + looks.last == pytest.approx(LEVEL)
    assert levels == sorted(levels)
    assert looks.last > 0.04


def test_looks_are_due_at_512_and_its_doubles_and_never_at_the_end():
    looks = Looks(4096, early=True)
    due = [samples for samples in range(64, 4097, 64) if looks.due(samples) is not None]
    assert due == [512, 1024, 2048]
    assert [Looks(4096, early=False).due(samples) for samples in (512, 2048, 4096)] == [None] * 3
    assert Looks(512, early=True).due(512) is None
    assert Looks(4096, early=False).last == LEVEL


def test_a_batch_that_passes_two_looks_makes_one_of_them():
    looks, other = Looks(4096, early=True), Looks(4096, early=True)
    at_once = looks.due(1500)
    assert at_once == pytest.approx(other.due(600) + other.due(1030))
    assert at_once == pytest.approx(8.86e-5, rel=1e-2)  # 2 (1 - Phi(1.96 / sqrt(1/4)))
    assert looks.due(1600) is None
