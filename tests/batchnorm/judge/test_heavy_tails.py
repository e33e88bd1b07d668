"""Layers whose variance a few samples carry: their share is named, and not the stored average blamed."""

import re

import pytest
import torch
from support.moments import moments_of
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.judge.score import score_layer


def outliers(count: int, rate: float, size: float, seed: int = 0) -> torch.Tensor:
    """Samples of which about a share `rate` is `size` times larger, in all channels."""
    draw = torch.Generator().manual_seed(seed)
    grown = torch.where(torch.rand(count, 1, 1, generator=draw) < rate, size, 1.0)
    return grown * torch.randn(count, 16, 9, generator=draw)


def trained(rate: float, size: float) -> nn.Module:
    model = nn.BatchNorm1d(16)
    with torch.no_grad():
        for batch in outliers(60 * 64, rate, size, seed=1).split(64):
            model(batch)
    return model.eval()


def note(rate: float, size: float) -> tuple[str, str]:
    batches = list(outliers(2048, rate, size).split(64))
    report = check_batchnorm(trained(rate, size), batches, outputs=False, training_batch_size=64, warn=0.02)
    return report.verdict, report.layers[0].note


@pytest.mark.parametrize(("rate", "size"), [(0.005, 40.0), (0.01, 100.0)], ids=["one of 200", "one of 100"])
def test_the_share_of_the_samples_that_carry_the_variance_is_named(rate, size):
    verdict, said = note(rate, size)
    assert verdict == "inconclusive"
    found = re.search(r"as few as (\d+) of 2,048 samples \((.*)%\) carry most of its variance", said)
    # Of as many equal ones, each with 9 pixels of a normal: 1 / (1 + 2 / 9).
    expected = int((outliers(2048, rate, size).abs().amax((1, 2)) > 6).sum()) / (1 + 2 / 9)
    assert int(found[1]) == pytest.approx(expected, rel=0.3)
    assert "What helps: " in said
    assert "noise in the stored average alone" not in said


@pytest.mark.parametrize(("rate", "size"), [(0.0, 1.0), (0.5, 3.0)], ids=["none", "half of them"])
def test_usual_samples_have_no_such_note(rate, size):
    assert "carry most of its variance" not in note(rate, size)[1]


def test_the_number_is_that_of_the_closed_form():
    """Normal values with one pixel: the fourth moment is 3, so n / 3 samples carry the variance; one alone: 1."""
    norm = nn.BatchNorm1d(4, eps=0.0).double()
    x = torch.randn(3000, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    assert score_layer(moments_of(norm, x), 0.0, 1e9).carrying == pytest.approx(1000, rel=0.1)
    alone = torch.full((3000, 4), 1e-6, dtype=torch.double)
    alone[7] = 1e3
    assert score_layer(moments_of(norm, alone), 0.0, 1e9).carrying == pytest.approx(1, abs=0.01)
