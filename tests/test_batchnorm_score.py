"""The estimator: error bars that cover, noise that is taken off, and a verdict with three values."""

import math

import pytest
import torch
from torch import nn

from jumpout_export.batchnorm.collect import Moments
from jumpout_export.batchnorm.layers import Layer
from jumpout_export.batchnorm.score import Score, _student, score_layer, stored_images

CHANNELS, IMAGES, PIXELS, TRIALS = 8, 200, 16, 200


def moments_of(norm: nn.BatchNorm1d, x: torch.Tensor) -> Moments:
    moments = Moments(Layer("bn", norm, frozen=False))
    moments.add(x)
    moments.end_forward()
    return moments


def correlated_images() -> torch.Tensor:
    """Pixels that share an offset per image: mean 0, variance 2, correlation 1/2."""
    offset = torch.randn(IMAGES, CHANNELS, 1, dtype=torch.double)
    return offset + torch.randn(IMAGES, CHANNELS, PIXELS, dtype=torch.double)


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
        x = correlated_images()
        score = score_layer(moments_of(norm, x), norm.eps, math.inf)
        naive_se = (x / tau).var(dim=(0, 2)).div(IMAGES * PIXELS).sqrt()
        hits["delta"] += float(((score.delta - delta).abs() < 1.96 * score.delta_se).double().mean())
        hits["log_ratio"] += float(((score.log_ratio - log_ratio).abs() < 1.96 * score.log_ratio_se).double().mean())
        hits["naive"] += float(((score.delta - delta).abs() < 1.96 * naive_se).double().mean())
        hits["layer"] += float(score.low <= w <= score.high)
    return {name: hit / TRIALS for name, hit in hits.items()}


# Six standard errors of a coverage of .95 counted over 200 x 8 channels are .033, over 200 layers .092.
def test_channel_intervals_cover_when_pixels_are_correlated(coverage):
    assert coverage["delta"] == pytest.approx(0.95, abs=0.033)
    assert coverage["log_ratio"] == pytest.approx(0.95, abs=0.033)


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
    debiased = score_layer(moments, norm.eps, stored_images(norm, 128))
    raw = score_layer(moments, norm.eps, math.inf)
    # The average holds 128 * 1.9 / 0.1 = 2432 images: Var(delta) + Var(ln r) / 4 = 1.5 / 2432 on top of 1.5 / 4096.
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
def test_images_held_by_the_stored_average(momentum, tracked, expected):
    norm = nn.BatchNorm1d(2, momentum=momentum)
    norm.num_batches_tracked.fill_(tracked)
    assert stored_images(norm, 128) == pytest.approx(expected)


def test_checking_in_tiny_batches_does_not_excuse_drift_as_training_noise():
    norm = nn.BatchNorm1d(2)
    norm.num_batches_tracked.fill_(1)
    assert stored_images(norm, 1) == pytest.approx(32 * 19)


def made_score(w: float, low: float, high: float, floor: float = 0.01) -> Score:
    nothing = torch.zeros(1)
    return Score(nothing, nothing, nothing, nothing, w, low, high, floor, nothing.bool())


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (made_score(0.02, 0.01, 0.03), "ok"),
        (made_score(0.2, 0.1, 0.3), "drift"),
        (made_score(0.05, 0.04, 0.06), "inconclusive"),
        (made_score(0.0, 0.0, 0.2), "inconclusive"),
        (made_score(0.1, 0.08, 0.12, floor=0.04), "inconclusive"),
        (made_score(math.nan, math.nan, math.nan), "inconclusive"),
    ],
    ids=["below", "above", "across", "wide", "not three times the noise", "nan"],
)
def test_the_verdict_has_three_values(score, verdict):
    assert score.verdict(0.05) == verdict


def test_images_needed_shrink_the_interval_to_the_margin():
    # Half as far from the margin as the interval is wide: twice as narrow takes four times the images.
    assert made_score(0.04, 0.02, 0.06).images_needed(0.05, 1000) == pytest.approx(4000, abs=1)
    assert made_score(0.06, 0.04, 0.08).images_needed(0.05, 1000) == pytest.approx(4000, abs=1)
    assert made_score(0.05, 0.04, 0.06).images_needed(0.05, 1000) is None
    assert made_score(0.04, 0.0, math.inf).images_needed(0.05, 5) is None
    assert made_score(0.0499, 0.0, 0.1).images_needed(0.05, 1000) is None


def test_the_error_of_the_variance_does_not_depend_on_the_stored_mean():
    torch.manual_seed(0)
    x = correlated_images().square()  # skewed, so that means and mean squares of images go together
    norm = nn.BatchNorm1d(CHANNELS).double()
    near = score_layer(moments_of(norm, x), norm.eps, math.inf)
    norm.running_mean.fill_(-20.0)
    far = score_layer(moments_of(norm, x), norm.eps, math.inf)
    torch.testing.assert_close(far.log_ratio, near.log_ratio)
    torch.testing.assert_close(far.log_ratio_se, near.log_ratio_se)


@pytest.mark.parametrize("images", [1, 2, 7])
def test_too_few_images_have_no_interval(images):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    score = score_layer(moments_of(norm, torch.randn(images, 3) + 1), norm.eps, math.inf)
    assert (score.low, score.high) == (0, math.inf)
    assert torch.isinf(score.delta_se).all() == (images == 1)


@pytest.mark.parametrize(("freedom", "quantile"), [(7, 2.3646), (15, 2.1314), (31, 2.0395)])
def test_students_quantile_matches_the_tables(freedom, quantile):
    assert _student(freedom) == pytest.approx(quantile, abs=2e-3)


def test_constant_channels_are_found():
    torch.manual_seed(0)
    x = torch.randn(50, 3, 4)
    x[:, 1] = 7.0
    norm = nn.BatchNorm1d(3)
    assert score_layer(moments_of(norm, x), norm.eps, math.inf).constant.tolist() == [False, True, False]
