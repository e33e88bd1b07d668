"""Layers exactly on the margin: how often they are called ok or drifting, each of which is wrong."""

import math

import pytest
import torch
from support.moments import moments_of
from torch import nn

from jumpout_export.batchnorm.judge.score import score_layer

MARGIN, CHANNELS, SAMPLES, HELD = 0.1, 16, 1024, 1216


def verdicts(trials: int, w: float, *, debiased: bool = True) -> dict[str, float]:
    """Shares of the verdicts on layers whose W is `w`, beside the noise of an average of 1,216 samples."""
    counts = {"ok": 0, "drift": 0, "inconclusive": 0}
    for trial in range(trials):
        draw = torch.Generator().manual_seed(trial)
        stored = torch.randn(HELD, CHANNELS, dtype=torch.double, generator=draw)
        norm = nn.BatchNorm1d(CHANNELS, eps=0.0).double()
        norm.running_mean.copy_(stored.mean(0) - w)
        norm.running_var.copy_(stored.var(0))
        moments = moments_of(norm, torch.randn(SAMPLES, CHANNELS, dtype=torch.double, generator=draw))
        score = score_layer(moments, 0.0, HELD if debiased else math.inf)
        counts[score.verdict(MARGIN, guessed=False)] += 1
    return {name: count / trials for name, count in counts.items()}


@pytest.mark.integration
def test_a_layer_on_the_margin_is_rarely_decided():
    trials = 400
    shares = verdicts(trials, MARGIN)
    # 2.5% to either side is nominal; six standard errors of a share.
    bound = 0.025 + 6 * math.sqrt(0.025 * 0.975 / trials)
    assert shares["ok"] <= bound
    assert shares["drift"] <= bound


@pytest.mark.integration
def test_layers_off_the_margin_are_decided():
    assert verdicts(50, MARGIN / 4)["ok"] > 0.9
    assert verdicts(50, MARGIN * 2)["drift"] > 0.9


@pytest.mark.integration
def test_without_the_noise_of_the_stored_average_a_layer_on_the_margin_is_called_drifting():
    assert verdicts(100, MARGIN, debiased=False)["drift"] > 0.15
