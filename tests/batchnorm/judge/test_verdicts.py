"""Drifting, ok or undecided: margins, noise of training in small batches, and too few samples."""

import re

import pytest
import torch
from support.checked import check, healthy, row, samples
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm


def test_an_undecided_layer_says_how_many_more_samples_would_decide():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4))
    x = torch.randn(200, 4)
    recalibrate_batchnorm(model, [x])
    model[0].running_mean += 0.1
    report = check_batchnorm(model, [x], outputs=False)
    assert report.verdict == "inconclusive"
    assert report.layers[0].note.startswith("Undecided: W lies between")
    assert "more samples would decide." in report.layers[0].note
    assert report.notes[-1] == "1 of 1 BatchNorm layers are undecided."
    assert report.layers[0].samples_needed > 200
    nn.init.constant_(model[0].running_mean, 0.1)
    nn.init.ones_(model[0].running_var)
    assert check_batchnorm(model, [torch.randn(4000, 4)], outputs=False).verdict == "drift"


def test_a_layer_within_its_own_training_noise_is_undecided_and_said():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=1.0))
    x = torch.randn(4000, 4)
    recalibrate_batchnorm(model, [x])
    model[0].num_batches_tracked.fill_(5)
    model[0].running_mean += 0.25  # what is left of one batch of 32 has a standard error of 0.18
    note = check_batchnorm(model, x.split(32), outputs=False).layers[0].note
    assert "the noise in the stored average alone makes 0.2" in note
    assert (
        "recalibrate it with recalibrate_batchnorm(model, batches), say training_batch_size= if training used" in note
    )
    assert note.endswith(
        "train longer with a smaller momentum. Momentum is 1, so it stores the statistics of the last batch only."
    )
    told = check_batchnorm(model, x.split(32), outputs=False, training_batch_size=1000)
    assert told.layers[0].verdict == "drift"


def after_training_in_batches_of(size: int) -> tuple[nn.Module, torch.Tensor]:
    """Nothing is wrong with it; what it stores is as noisy as such batches leave it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(64))
    with torch.no_grad():
        for _ in range(100):
            model(torch.randn(size, 64))
    return model, torch.randn(4096, 64)


def test_a_healthy_layer_trained_in_small_batches_is_ok_once_their_size_is_known():
    model, x = after_training_in_batches_of(16)
    assert check_batchnorm(model, x.split(128), outputs=False).verdict != "ok"
    report = check_batchnorm(model, x.split(128), outputs=False, training_batch_size=16)
    assert report.verdict == "ok"
    # Such averages hold 16 * 1.9 / 0.1 = 304 samples: sqrt(1.5 / 304) = 0.07.
    assert "The noise left in the stored average makes W = 0.07" in report.layers[0].note
    assert "as in any training with such batches; recalibrating removes it." in report.layers[0].note


@pytest.mark.parametrize("size", [2, 4], ids=["batches of 2", "of 4"])
def test_the_noise_of_small_batches_is_said_to_explain_it_and_at_which_size(size):
    model, x = after_training_in_batches_of(size)
    report = check_batchnorm(model, x.split(128), outputs=False, training_batch_size=32)
    note = report.layers[0].note
    assert report.verdict == "drift"
    said = int(re.search(r"noise alone explains this if a training batch held at most (\d+) sample", note, re.I)[1])
    assert size <= said <= 2 * size
    assert "small learning rate" not in note
    assert check_batchnorm(model, x.split(128), outputs=False, training_batch_size=size).verdict != "drift"


def test_the_shortfall_of_small_batches_is_part_of_what_they_explain():
    """Within batches of 2 half of the variance between samples is missing: with many pixels that is no noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(64, momentum=None))
    with torch.no_grad():
        for _ in range(2000):
            model(torch.randn(2, 64, 1, 1) + torch.randn(2, 64, 8, 8))
    x = torch.randn(2048, 64, 1, 1) + torch.randn(2048, 64, 8, 8)
    # 2 / 1.5 times the stored variance: sqrt(4 / 3) - 1 = 0.155.
    layer = check_batchnorm(model, x.split(128), outputs=False, training_batch_size=32).layers[0]
    assert layer.w == pytest.approx(0.155, abs=0.02)
    assert "oise alone explains this if a training batch held at most 2 samples" in layer.note


def test_drift_that_no_batch_size_explains_is_not_blamed_on_small_batches():
    model, x = after_training_in_batches_of(128)
    model[0].running_mean += 2
    note = check_batchnorm(model, x.split(128), outputs=False, training_batch_size=128).layers[0].note
    assert "noise alone" not in note.lower()
    assert "Either the average lags behind the weights" in note


def test_noise_as_large_as_severe_drift_is_never_ok():
    model, x = after_training_in_batches_of(2)
    report = check_batchnorm(model, x.split(128), outputs=False, training_batch_size=2, warn=0.14, fail=0.15)
    assert report.verdict == "inconclusive"
    # Such averages hold 2 * 1.9 / 0.1 = 38 samples: sqrt(1.5 / 38) = 0.199.
    assert "the noise in the stored average alone makes 0.199;" in report.layers[0].note
    assert "say training_batch_size=" not in report.layers[0].note


def test_a_layer_on_the_margin_is_undecided_and_said():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4))
    x = torch.randn(400, 4)
    recalibrate_batchnorm(model, [x])
    model[0].running_mean += 0.1
    exact = check_batchnorm(model, [x], outputs=False).layers[0].w
    note = check_batchnorm(model, [x], warn=exact * (1 + 1e-9), outputs=False).layers[0].note
    assert "W is too close to the margin for more samples to decide; recalibrate it with" in note
    assert "four times" not in note


def test_very_few_samples_are_undecided_and_said():
    note = check(healthy(), samples(5)).layers[0].note
    assert "5 samples are too few for an error bar; pass at least 8." in note


def test_margins_decide():
    model = healthy()
    model[7].running_mean += 0.1 * (model[7].running_var + 1e-5).sqrt()
    assert row(check(model), "7").verdict == "drift"
    assert row(check(model), "7").note.startswith("Drift")
    assert check(model, warn=0.3, fail=0.5).verdict == "ok"
    assert row(check(model, warn=0.01, fail=0.05), "7").note.startswith("Severe drift")
