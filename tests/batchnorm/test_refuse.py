"""`refuse_if_worse`: a fix that makes the outputs significantly worse is not written."""

import math
import re

import pytest
import torch
from support.recalibrated import bits
from torch import nn

from jumpout_export.batchnorm.outputs import worsening
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.errors import RecalibrationRefusedError
from jumpout_export.model.randomness import same_bits
from jumpout_export.report import OutputEffect


def soft_classifier(count: int = 400) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A model whose too large stored variance makes its outputs just as soft as the labels it was given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4, bias=False))
    nn.init.normal_(model[1].weight)
    model[0].running_var.fill_(9.0)
    x = torch.randn(count, 6)
    with torch.no_grad():
        labels = torch.multinomial(model.eval()(x).softmax(1), 1)[:, 0]
    return model, x, labels


def labelled_batches(x: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(x.split(64), labels.split(64), strict=True))


def test_a_fix_that_makes_the_likelihood_worse_is_refused_with_the_numbers():
    model, x, labels = soft_classifier()
    before = bits(model)
    with pytest.raises(RecalibrationRefusedError) as caught:
        recalibrate_batchnorm(model, labelled_batches(x, labels), refuse_if_worse=True)
    assert same_bits(before, bits(model))
    found = re.search(r"likelihood rises from (\S+) to (\S+) \(change \+(\S+), 95% interval \+", str(caught.value))
    done = recalibrate_batchnorm(model, labelled_batches(x, labels), outputs=True)
    assert float(found[1]) == pytest.approx(done.outputs.nll_before, abs=1e-4)
    assert float(found[2]) == pytest.approx(done.outputs.nll_after, abs=1e-4)
    assert float(found[2]) > 1.2 * float(found[1])
    assert "400 samples" in str(caught.value)
    assert "nothing was written" in str(caught.value)
    assert "accuracy" not in str(caught.value)


def test_a_fix_that_makes_the_accuracy_worse_is_refused():
    model, x, _ = soft_classifier()
    model[0].running_mean.fill_(1.0)
    with torch.no_grad():
        labels = model.eval()(x).argmax(1)
    with pytest.raises(RecalibrationRefusedError, match=r"accuracy falls from 100.00% to .* McNemar p = "):
        recalibrate_batchnorm(model, labelled_batches(x, labels), refuse_if_worse=True)


def test_a_fix_that_helps_or_changes_nothing_significant_is_not_refused():
    model, x, labels = soft_classifier()
    recalibrate_batchnorm(model, labelled_batches(x, labels))
    fixed = bits(model)
    recalibrate_batchnorm(model, labelled_batches(x, labels), refuse_if_worse=True)  # changes nothing
    with torch.no_grad():
        sharp = torch.multinomial(model.eval()(x).softmax(1), 1)[:, 0]
    model[0].running_var.fill_(9.0)
    done = recalibrate_batchnorm(model, labelled_batches(x, sharp), refuse_if_worse=True)
    assert done.outputs.nll_after < done.outputs.nll_before
    torch.testing.assert_close(bits(model), fixed)


def test_a_worse_likelihood_within_its_error_bar_is_not_refused():
    model, x, labels = soft_classifier()
    model[0].running_var.fill_(1.1)  # a little too large: the fix costs some thousandths
    done = recalibrate_batchnorm(model, labelled_batches(x[:60], labels[:60]), refuse_if_worse=True)
    assert done.outputs.nll_after != done.outputs.nll_before


def test_refusing_needs_labels_and_says_so_before_the_work():
    model, x, labels = soft_classifier()
    before, passes = bits(model), []
    with pytest.raises(
        ValueError, match=r"refuse_if_worse needs labels to judge by, got an output \(64, 4\) and no lab"
    ):
        recalibrate_batchnorm(model, x.split(64), refuse_if_worse=True, progress=lambda *call: passes.append(call))
    assert passes == []
    per_pixel = nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.BatchNorm2d(6))
    with pytest.raises(ValueError, match=r"output \(64, 6, 1, 1\) and labels \(64,\) of torch.int64; pass batches of"):
        recalibrate_batchnorm(per_pixel, labelled_batches(x, labels), refuse_if_worse=True)
    with pytest.raises(ValueError, match="needs at least two samples with a valid label, got 0"):
        recalibrate_batchnorm(model, labelled_batches(x, torch.full_like(labels, -1)), refuse_if_worse=True)
    assert same_bits(before, bits(model))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ""),
        ({"nll_after": math.nan, "nll_change_low": math.nan, "nll_change_high": math.nan}, "rises from 0.5000 to nan"),
        ({"nll_before": math.nan, "nll_change_low": math.nan, "nll_change_high": math.nan}, ""),
        ({"nll_change_low": -0.082, "nll_change_high": 0.102}, ""),  # 0.01 with a standard error of 0.047
        ({"nll_change_low": -0.001, "nll_change_high": 0.021}, "rises"),  # significant on one side only
        ({"top1_after": 0.8, "mcnemar_p": 0.06}, ""),
        ({"top1_after": 0.8, "mcnemar_p": 0.04}, "falls from 90.00% to 80.00%"),
        ({"top1_after": 0.95, "mcnemar_p": 0.01}, ""),
        ({"top1_after": 0.8, "mcnemar_p": None, "top1_change_high": 0.01}, ""),
        ({"top1_after": 0.8, "mcnemar_p": None, "top1_change_high": -0.01}, "falls"),
    ],
)
def test_what_counts_as_worse(changes, found):
    effect = OutputEffect(
        samples=100,
        logit_shift=0.1,
        top1_before=0.9,
        top1_after=0.9,
        nll_before=0.5,
        nll_after=0.51,
        nll_change_low=-0.1,
        nll_change_high=0.12,
        labelled=100,
        top1_change_low=-0.2,
        top1_change_high=0.1,
        mcnemar_p=1.0,
    )
    reason = worsening(effect.model_copy(update=changes))
    assert found in reason
    assert bool(reason) == bool(found)
