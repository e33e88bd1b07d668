"""Samples of different sizes weigh the same, or by their pixels: sums by hand, coverage, and what is said."""

import math

import pytest
import torch
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.judge.estimate import estimate
from jumpout_export.batchnorm.measure.collect import collect
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.forward_moments import ForwardMoments
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.batchnorm.measure.states import SERVING
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm

SIZES = (4, 12, 7)


def batches(seed=0, count=40, each=8):
    """Large samples are brighter and have more contrast."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        side = SIZES[index % len(SIZES)]
        own = torch.randn(each, 2, 1, 1, generator=generator)
        made.append(side / 4 + side / 8 * (own + torch.randn(each, 2, side, side, generator=generator)))
    return made


def by_hand(data, weigh_by):
    samples = [sample.double().flatten(1) for batch in data for sample in batch]
    weights = torch.tensor([float(x.shape[1]) if weigh_by == "pixels" else 1.0 for x in samples]).double()
    share = (weights / weights.sum())[:, None]
    mean = (torch.stack([x.mean(1) for x in samples]) * share).sum(0)
    square = (torch.stack([x.square().mean(1) for x in samples]) * share).sum(0)
    values = sum(x.shape[1] for x in samples)
    return mean, (square - mean.square()) * values / (values - 1)


@pytest.mark.parametrize("method", ["exact", "batch"])
@pytest.mark.parametrize("weigh_by", ["samples", "pixels"])
def test_what_is_stored_is_the_mean_by_hand(weigh_by, method):
    model = nn.Sequential(nn.BatchNorm2d(2))
    recalibrate_batchnorm(model, batches(), method, weigh_by=weigh_by)
    mean, var = by_hand(batches(), weigh_by)
    torch.testing.assert_close(model[0].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[0].running_var.double(), var, rtol=1e-5, atol=1e-6)
    other = by_hand(batches(), "samples" if weigh_by == "pixels" else "pixels")[0]
    assert float((mean - other).abs().min()) > 0.1, "or the two could not be told apart"


def test_by_pixels_is_what_one_batch_of_all_pixels_stores():
    model, trained = nn.Sequential(nn.BatchNorm2d(2)), nn.BatchNorm1d(2, momentum=1.0)
    recalibrate_batchnorm(model, batches(), weigh_by="pixels")
    with torch.no_grad():
        trained(torch.cat([batch.transpose(0, 1).flatten(1) for batch in batches()], 1).T)
    torch.testing.assert_close(model[0].running_mean, trained.running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[0].running_var, trained.running_var, rtol=1e-5, atol=1e-5)


def test_samples_of_one_size_weigh_the_same_either_way():
    model, data = nn.Sequential(nn.BatchNorm2d(3)), torch.randn(128, 3, 5, 5).split(16)
    reports = [check_batchnorm(model, data, outputs=False, weigh_by=how) for how in ("samples", "pixels")]
    first, second = (report.layers[0] for report in reports)
    for name in ("w", "w_low", "w_high", "delta", "log_ratio", "delta_se", "log_ratio_se"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-9), name
    assert not any("different sizes" in note for report in reports for note in report.notes)


def moments_of(data, weigh_by="pixels", model=None):
    model = nn.Sequential(nn.BatchNorm2d(2)) if model is None else model
    return collect(Feed(model, data, weigh_by=weigh_by), batchnorm_layers(model), SERVING, "test")


def test_moments_by_pixels_do_not_depend_on_how_they_are_put_together():
    whole = moments_of(batches()).moments["0"]
    one, two = (moments_of(part).moments["0"] for part in (batches()[:17], batches()[17:]))
    one.merge(two)
    torch.testing.assert_close(one.total, whole.total)

    class Loop(nn.Module):
        """One call per sample."""

        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(2)

        def forward(self, x):
            return torch.stack([self.bn(sample[None]) for sample in x])

    looped = moments_of(batches(), model=Loop()).moments["bn"]
    torch.testing.assert_close(looped.total, whole.total)


def test_calls_at_several_scales_weigh_by_their_pixels():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(2)

        def forward(self, x):
            return self.bn(x).mean() + self.bn(3 * x[:, :, ::2, ::2]).mean()

    x = torch.randn(32, 2, 8, 8) + 1
    model = Scales()
    recalibrate_batchnorm(model, x.split(8), weigh_by="pixels")
    values = torch.cat([y.double().transpose(0, 1).flatten(1) for y in (x, 3 * x[:, :, ::2, ::2])], 1)
    torch.testing.assert_close(model.bn.running_mean.double(), values.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.bn.running_var.double(), values.var(1), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_error_bar_of_weighted_samples_is_their_spread():
    """The variance of 600 means, each of 30 samples of sizes drawn at random, against what they say of themselves."""
    generator, (layer,) = torch.Generator().manual_seed(0), batchnorm_layers(nn.BatchNorm2d(2))
    deltas, errors, naive = [], [], []
    for _ in range(600):
        forward = ForwardMoments([layer], by_pixels=True)
        for index in torch.randint(3, (30,), generator=generator).tolist():
            side = SIZES[index]
            x = (
                side / 4
                + torch.randn(1, 2, 1, 1, generator=generator)
                + torch.randn(1, 2, side, side, generator=generator)
            )
            forward.take("", x)
            forward.end_forward()
        found = estimate(forward.moments[""], 1e-5)
        deltas.append(found.delta)
        errors.append(found.delta_se2)
        naive.append(found.delta_se2 * found.n / 30)
    spread = torch.stack(deltas).var(0).mean()
    ratio, equal = (float(torch.stack(one).mean() / spread) for one in (errors, naive))
    tolerance = 6 * math.sqrt(2 / (600 * 2))  # of a variance of normal numbers
    assert abs(ratio - 1) < tolerance
    assert equal < 1 - tolerance, "counting samples of unequal weight fails"


@pytest.mark.parametrize(
    ("weigh_by", "words"),
    [
        ("samples", "and each weighs the same (weigh_by='samples', or else 'pixels')"),
        ("pixels", "and each weighs as many pixels as a layer sees of it (weigh_by='pixels', or else 'samples')"),
    ],
)
def test_different_sizes_are_said_with_what_they_weigh(weigh_by, words):
    report = check_batchnorm(nn.Sequential(nn.BatchNorm2d(2)), batches(), outputs=False, weigh_by=weigh_by)
    (note,) = (note for note in report.notes if "different sizes" in note)
    assert words in note


def test_another_weight_is_refused():
    for function in (check_batchnorm, recalibrate_batchnorm):
        with pytest.raises(ValueError, match="weigh_by must be 'samples' or 'pixels', got 'area'"):
            function(nn.Sequential(nn.BatchNorm2d(2)), batches(), weigh_by="area")
