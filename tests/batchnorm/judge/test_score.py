"""The estimator: error bars that cover, noise that is taken off, and a verdict with three values."""

import math

import pytest
import torch
from support.moments import moments_of
from torch import nn

from jumpout_export.batchnorm.judge.estimate import discoveries, estimate, student_quantile
from jumpout_export.batchnorm.judge.score import Score, score_layer, stored_samples

CHANNELS, SAMPLES, PIXELS, TRIALS = 8, 200, 16, 200


def correlated_samples() -> torch.Tensor:
    """Pixels that share an offset per sample: mean 0, variance 2, correlation 1/2."""
    offset = torch.randn(SAMPLES, CHANNELS, 1, dtype=torch.double)
    return offset + torch.randn(SAMPLES, CHANNELS, PIXELS, dtype=torch.double)


@pytest.fixture(scope="module")
def coverage() -> dict[str, float]:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(CHANNELS).double()
    norm.running_mean.fill_(0.2)
    norm.running_var.fill_(1.7)
    tau = math.sqrt(1.7 + norm.eps)
    delta, log_ratio = -0.2 / tau, math.log((2 + norm.eps) / (1.7 + norm.eps))
    w = math.hypot(delta, math.exp(log_ratio / 2) - 1)
    hits = dict.fromkeys(("delta", "log_ratio", "naive", "layer"), 0.0)
    for _ in range(TRIALS):
        x = correlated_samples()
        score = score_layer(moments_of(norm, x), norm.eps, math.inf)
        naive_se = (x / tau).var(dim=(0, 2)).div(SAMPLES * PIXELS).sqrt()
        hits["delta"] += float(((score.delta - delta).abs() < 1.96 * score.delta_se).double().mean())
        hits["log_ratio"] += float(((score.log_ratio - log_ratio).abs() < 1.96 * score.log_ratio_se).double().mean())
        hits["naive"] += float(((score.delta - delta).abs() < 1.96 * naive_se).double().mean())
        hits["layer"] += float(score.low <= w <= score.high)
    return {name: hit / TRIALS for name, hit in hits.items()}


# Six standard errors of a coverage of .95 counted over 200 x 8 channels are .033, over 200 layers .092.
@pytest.mark.integration
def test_channel_intervals_cover_when_pixels_are_correlated(coverage):
    assert coverage["delta"] == pytest.approx(0.95, abs=0.033)
    assert coverage["log_ratio"] == pytest.approx(0.95, abs=0.033)


@pytest.mark.integration
def test_error_bars_from_pixels_fail_the_same_test(coverage):
    assert coverage["naive"] < 0.6


def test_layer_intervals_cover(coverage):
    assert coverage["layer"] == pytest.approx(0.95, abs=0.092)


def test_w_is_the_closed_form_of_a_known_edit():
    torch.manual_seed(0)
    x = torch.randn(4000, CHANNELS, dtype=torch.double)
    norm = nn.BatchNorm1d(CHANNELS).double()
    norm.running_mean.copy_(x.mean(0) - 0.3)
    norm.running_var.copy_(x.var(0) * 2)
    score = score_layer(moments_of(norm, x), norm.eps, math.inf)
    tau = (2 * x.var(0) + norm.eps).sqrt()
    torch.testing.assert_close(score.delta, 0.3 / tau)
    torch.testing.assert_close(score.log_ratio, ((x.var(0) + norm.eps) / tau.square()).log())
    expected = (0.3 / tau).square() + ((x.var(0) + norm.eps).sqrt() / tau - 1).square()
    torch.testing.assert_close(score.channel_w, expected.sqrt())
    assert score.w == pytest.approx(float(expected.mean().sqrt()), rel=0.01)  # less what sampling noise added
    assert score.low < score.w < score.high


def test_the_noise_of_the_stored_average_is_taken_off_a_healthy_layer():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(512)
    for _ in range(150):
        norm(2 * torch.randn(128, 512) + 3)
    moments = moments_of(norm, 2 * torch.randn(4096, 512) + 3)
    debiased = score_layer(moments, norm.eps, stored_samples(norm, 128))
    raw = score_layer(moments, norm.eps, math.inf)
    # The average holds 128 * 1.9 / 0.1 = 2432 samples: Var(delta) + Var(ln r) / 4 = 1.5 / 2432 on top of 1.5 / 4096.
    assert debiased.floor == pytest.approx(math.sqrt(1.5 / 2432 + 1.5 / 4096), rel=0.05)
    assert raw.floor == pytest.approx(math.sqrt(1.5 / 4096), rel=0.05)
    # W^2 over 512 channels has a standard error of (1 / 2432 + 1 / 4096) sqrt(2.5 / 512) = 4.6e-5; allow six of them.
    assert raw.w > math.sqrt(1.5 / 2432 - 6 * 4.6e-5)
    assert debiased.w < math.sqrt(6 * 4.6e-5)
    assert debiased.verdict(0.05) == "ok"


@pytest.mark.parametrize(
    ("momentum", "tracked", "expected"),
    [(0.1, 50, 128 * 19), (1.0, 50, 128), (None, 50, 128 * 50), (0, 50, math.inf), (0.1, 0, math.inf)],
)
def test_samples_held_by_the_stored_average(momentum, tracked, expected):
    norm = nn.BatchNorm1d(2, momentum=momentum)
    norm.num_batches_tracked.fill_(tracked)
    assert stored_samples(norm, 128) == pytest.approx(expected)


def test_checking_in_tiny_batches_does_not_excuse_drift_as_training_noise():
    norm = nn.BatchNorm1d(2)
    norm.num_batches_tracked.fill_(1)
    assert stored_samples(norm, 1) == pytest.approx(32 * 19)
    assert stored_samples(norm, 8, guessed=False) == pytest.approx(8 * 19)


def test_a_layer_called_several_times_averages_over_fewer_batches():
    norm = nn.BatchNorm1d(2)
    norm.num_batches_tracked.fill_(100)
    assert stored_samples(norm, 64, calls=2) == pytest.approx(64 * 19 / 2)
    assert stored_samples(norm, 64, calls=100) == 64  # never less than the last batch


def made_score(w: float, low: float, high: float, noise: float = 0.0, held: float = math.inf) -> Score:
    nothing = torch.zeros(1)
    return Score(nothing, nothing, nothing, nothing, nothing, w, low, high, w, noise, noise, held, nothing.bool())


@pytest.mark.parametrize(
    ("score", "guessed", "verdict"),
    [
        (made_score(0.02, 0.01, 0.03), True, "ok"),
        (made_score(0.2, 0.1, 0.3), True, "drift"),
        (made_score(0.05, 0.04, 0.06), True, "inconclusive"),
        (made_score(0.0, 0.0, 0.2), True, "inconclusive"),
        (made_score(0.1, 0.08, 0.12, noise=0.04), True, "inconclusive"),
        (made_score(0.1, 0.08, 0.12, noise=0.04), False, "drift"),
        (made_score(0.02, 0.01, 0.03, noise=0.1), True, "ok"),
        (made_score(0.02, 0.01, 0.03, noise=0.2), False, "inconclusive"),
        (made_score(math.nan, math.nan, math.nan), True, "inconclusive"),
    ],
    ids=["below", "above", "across", "wide", "not 3 guessed noises", "known noise", "noisy", "severely noisy", "nan"],
)
def test_the_verdict_has_three_values(score, guessed, verdict):
    assert score.verdict(0.05, 0.15, guessed=guessed) == verdict


def test_samples_needed_shrink_the_interval_to_the_margin():
    def made_square(w2, half, **settings):
        return made_score(math.sqrt(w2), math.sqrt(max(w2 - half, 0)), math.sqrt(w2 + half), **settings)

    # In W^2 half as far from the margin as the interval is wide: twice as narrow takes four times the samples.
    below, above = made_square(0.0015, 0.002), made_square(0.0035, 0.002)
    assert below.samples_needed(0.05, 1000) == pytest.approx(4000, abs=1)
    assert above.samples_needed(0.05, 1000) == pytest.approx(4000, abs=1)
    assert made_score(0.05, 0.04, 0.06).samples_needed(0.05, 1000) is None
    assert made_score(0.04, 0.0, math.inf).samples_needed(0.05, 5) is None
    assert made_score(0.0499, 0.0, 0.1).samples_needed(0.05, 1000) is None
    # 1/n + 1/8000 has to be a quarter of 1/1000 + 1/8000; of 1/1000 + 1/3000 it cannot be.
    assert made_square(0.0015, 0.002, held=8000).samples_needed(0.05, 1000) == pytest.approx(6400, abs=1)
    assert made_square(0.0015, 0.002, held=3000).samples_needed(0.05, 1000) is None


def test_the_error_of_the_variance_does_not_depend_on_the_stored_mean():
    torch.manual_seed(0)
    x = correlated_samples().square()  # skewed, so that means and mean squares of samples go together
    norm = nn.BatchNorm1d(CHANNELS).double()
    near = score_layer(moments_of(norm, x), norm.eps, math.inf)
    norm.running_mean.fill_(-20.0)
    far = score_layer(moments_of(norm, x), norm.eps, math.inf)
    torch.testing.assert_close(far.log_ratio, near.log_ratio)
    torch.testing.assert_close(far.log_ratio_se, near.log_ratio_se)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_too_few_samples_have_no_interval(samples):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    score = score_layer(moments_of(norm, torch.randn(samples, 3) + 1), norm.eps, math.inf)
    assert (score.low, score.high) == (0, math.inf)
    assert torch.isinf(score.delta_se).all() == (samples == 1)


# Tables of Student's t; the levels of early looks are small. At 3e-8 and 7 degrees of freedom the series is 6% short.
@pytest.mark.parametrize(
    ("freedom", "level", "quantile", "within"),
    [
        (7, 0.05, 2.3646, 1e-4),
        (15, 0.05, 2.1314, 1e-4),
        (31, 0.05, 2.0395, 1e-4),
        (31, 0.001, 3.6335, 1e-4),
        (31, 1e-5, 5.2666, 1e-4),
        (31, 3e-8, 7.3290, 1e-3),
        (7, 1e-5, 11.2148, 0.02),
    ],
)
def test_students_quantile_matches_the_tables(freedom, level, quantile, within):
    assert student_quantile(freedom, level) == pytest.approx(quantile, rel=within)


def test_p_values_are_those_of_hotellings_test():
    torch.manual_seed(0)
    x = torch.randn(40, 3, dtype=torch.double) + torch.tensor([0.0, 0.3, 0.0])
    x[:, 2] *= 1.5
    norm = nn.BatchNorm1d(3).double()
    found = estimate(moments_of(norm, x), norm.eps)
    stats = pytest.importorskip("scipy.stats")
    for channel, p in enumerate(found.p_values(0.0).tolist()):
        a = x[:, channel].numpy() / math.sqrt(1 + norm.eps)
        psi = (a**2 - (a**2).mean()) - 2 * a.mean() * (a - a.mean())
        r = float(found.r[channel])
        covariance = torch.cov(torch.tensor([a.tolist(), (psi / r).tolist()], dtype=torch.double)) / 40
        z = torch.tensor([float(found.delta[channel]), math.log(r)], dtype=torch.double)
        t2 = float(z @ torch.linalg.solve(covariance, z))
        assert p == pytest.approx(stats.f.sf(t2 * 38 / (2 * 39), 2, 38), rel=1e-3)


def test_a_stored_average_of_few_samples_excuses_larger_deviations():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(1).double()
    found = estimate(moments_of(norm, torch.randn(1000, 1, dtype=torch.double) + 0.1), norm.eps)
    p_values = [float(found.p_values(noise)) for noise in (0, 1, 10)]
    assert p_values[0] < 0.02 < p_values[1] < p_values[2]


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        # Benjamini & Hochberg 1995, section 4: the first four of 15 are significant at .05.
        (
            [
                *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
                *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
            ],
            [0, 1, 2, 3],
        ),
        ([0.04, 0.03, 0.045], [0, 1, 2]),
        ([0.2, math.nan, 0.02], [2]),
        ([0.06, math.nan], []),
        ([math.nan], []),
    ],
    ids=["the paper's example", "all by the last", "nan is no test", "none", "nothing"],
)
def test_discoveries_are_those_of_benjamini_and_hochberg(p_values, expected):
    found = discoveries(torch.tensor(p_values, dtype=torch.double))
    assert torch.nonzero(found).flatten().tolist() == expected


def test_a_dead_channel_whose_average_has_nearly_died_out_is_no_discovery():
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(1e-30)
    norm.running_var.fill_(1e-30)
    moments = moments_of(norm, torch.zeros(300, 2))
    assert (estimate(moments, norm.eps).p_values(0.0) > 0.99).all()


def test_a_binary_channel_has_an_error_bar_although_its_mean_fixes_its_variance():
    torch.manual_seed(0)
    x = (torch.rand(2000, 1, dtype=torch.double) < 0.2).double()
    norm = nn.BatchNorm1d(1).double()
    norm.running_mean.fill_(0.2)
    norm.running_var.fill_(0.16)
    assert float(estimate(moments_of(norm, x), norm.eps).p_values(0.0)) > 0.05
    norm.running_mean.fill_(0.25)
    norm.running_var.fill_(0.1875)
    assert float(estimate(moments_of(norm, x), norm.eps).p_values(0.0)) < 1e-4


def test_constant_channels_are_found():
    torch.manual_seed(0)
    x = torch.randn(50, 3, 4)
    x[:, 1] = 7.0
    norm = nn.BatchNorm1d(3)
    assert score_layer(moments_of(norm, x), norm.eps, math.inf).constant.tolist() == [False, True, False]
