"""The sentences about a drifting layer: its origin, how much of it is what, and what to do."""

import copy
import math
import re

import pytest
import torch
from support.attributed import check, made_row, trained
from support.checked import row
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.judge.attribute import Parts, origin
from jumpout_export.batchnorm.judge.explain import cause_sentences
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.report import BatchNormReport


@pytest.mark.parametrize(
    ("own", "expected"),
    [({"b": False, "c": True}, "c"), ({}, "b"), ({"b": True, "c": True}, "b")],
    ids=["the first by itself", "none by itself", "both"],
)
def test_the_origin_is_the_first_that_drifts_by_itself_and_there_is_always_one(own, expected):
    rows = [made_row("a", "ok"), made_row("b", "drift"), made_row("c", "drift")]
    assert origin(rows, own) == expected
    assert origin(rows[:1], {}) is None


def test_a_layer_that_drifts_by_what_comes_in_is_not_the_origin_even_if_it_is_first():
    # The edited layer itself stays within a margin that its successors, each with the whole of it, do not keep.
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Flatten(), nn.BatchNorm1d(4))
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    recalibrate_batchnorm(model, [x])
    model[0].weight.data.fill_(1.0)
    model[0].running_mean += 0.08
    model[2].running_var.mul_(0.5)
    model[2].running_mean.zero_()
    report = check(model, x, size=250, warn=0.1)
    assert [layer.verdict for layer in report.layers] == ["ok", "drift"]
    assert report.origin == "2"


def made_parts(log_ratio: list[float], delta: list[float], spread: float = 0.0) -> Parts:
    """Two channels, `spread` apart in the first part of ln r."""
    off = torch.tensor([[spread, -spread], [0, 0], [0, 0]])
    variance, mean = torch.tensor(log_ratio)[:, None] + off, torch.tensor(delta)[:, None].expand(3, 2)
    whole = torch.tensor([sum(log_ratio)]) + off.sum(0), torch.tensor([sum(delta)])
    squared = (whole[0].square() / 4 + whole[1].square()).sum()
    of_variance = ((variance * whole[0]).sum(1) / 4 / squared).tolist()
    of_mean = ((mean * whole[1]).sum(1) / squared).tolist()
    return Parts(variance, mean, tuple(log_ratio), tuple(of_variance), tuple(of_mean))


@pytest.mark.parametrize(
    ("parts", "says", "advises"),
    [
        (
            made_parts([0.0, -0.2, 0.0], [0.0, 0.0, 0.0]),
            (
                "All of it is stochastic: without dropout or jumpout the input has a variance 18% smaller than with it "
                "(median channel)."
            ),
            (
                "Recalibrate it with recalibrate_batchnorm(model, batches); to train without it, use another alpha, "
                "less noise, or noise only behind the last BatchNorm."
            ),
        ),
        (
            made_parts([0.0, 0.0, 0.0], [0.3, 0.1, 0.0]),
            (
                "75% of it is stale, 25% stochastic: what training sees now has another mean, by 0.30 stored standard "
                "deviations (RMS over channels)."
            ),
            (
                "Either the average lags behind the weights or saw augmentation that serving lacks, or these samples "
                "are others than those of training: check with reference=, some batches of training, to know which; "
                "the first is mended by recalibrating, recalibrate_batchnorm(model, batches), the second perhaps by "
                "preprocessing the samples as in training, and say training_batch_size= if training used smaller "
                "batches."
            ),
        ),
        (
            made_parts([-0.1, 0.0, 0.4], [0.0, 0.0, 0.0]),
            (
                "All of it is propagated: the stored statistics of BatchNorms before it give it a variance 49% larger "
                "than batch statistics do (median channel). Stale parts make it 25% smaller."
            ),
            "Fix `first` first; recalibrate_batchnorm(model, batches) corrects them in that order.",
        ),
        (
            made_parts([0.01, 0.0, 0.0], [0.0, 0.0, 0.0], spread=0.3),
            (
                "All of it is stale: what training sees now has larger variances in some channels and smaller ones in "
                "others, by 30% (RMS)."
            ),
            "Either the average lags",
        ),
    ],
    ids=["variance", "mean and a second cause", "against", "both ways"],
)
def test_the_sentences_say_how_much_of_it_is_what_and_what_to_do(parts, says, advises):
    *cause, advice = cause_sentences(parts, "layer", "first")
    assert " ".join(cause) == says
    assert advice.startswith(advises)


def test_no_share_is_more_than_all_of_it_whatever_works_against_the_drift():
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(300):
        log_ratio, delta = (torch.randn(3, generator=generator).tolist() for _ in range(2))
        text = " ".join(cause_sentences(made_parts(log_ratio, delta), "layer", "first"))
        shares = [int(share) for share in re.findall(r"(\d+)% (?:of it is|stale|stochastic|propagated)", text)]
        assert sum(shares) <= 100, text
        undone = [int(share) for share in re.findall(r"make it (\d+)% smaller", text)]
        assert all(share < 100 for share in undone), text
        seen |= {bool(undone), len(shares)}
    assert seen == {True, False, 2}


def test_the_interval_of_the_part_is_said():
    parts = made_parts([0.0, -0.2, 0.0], [0.0, 0.0, 0.0])
    said = cause_sentences(parts, "a", "a", intervals={"stochastic": [-0.25, -0.15]})[0]
    assert said.endswith("a variance 18% smaller than with it (median channel, 95% -22% to -14%).")


def test_the_advice_knows_what_is_known():
    propagated, stale = made_parts([0, 0, 1.0], [0, 0, 0]), made_parts([1.0, 0, 0], [0, 0, 0])
    assert "and all layers with it: it adds up from layers" in cause_sentences(propagated, "a", None)[1]
    assert "training_batch_size" not in cause_sentences(stale, "a", "a", guessed=False)[1]


def test_the_advice_on_alpha_stands_in_the_row_and_ends_the_explanation():
    report = check(trained(nn.Dropout(0.5)))
    layer = row(report, "7")
    assert layer.advice.path == "5.1"
    assert layer.advice.predicted == pytest.approx(layer.stochastic, abs=0.1)
    assert "`5.1`" in layer.note
    assert row(report, "1").advice is None


def test_a_dead_layer_without_eps_has_a_report():
    model = nn.Sequential(nn.BatchNorm1d(3, eps=0.0))
    report = check(model, torch.ones(300, 3))
    layer = report.layers[0]
    assert (layer.verdict, layer.median_log_ratio, layer.cause) == ("drift", None, None)
    assert "the variance it is served is 0.00 times the stored one" in layer.note
    assert BatchNormReport.model_validate_json(report.model_dump_json()).layers[0].log_ratio == [-math.inf] * 3


def test_a_negative_variance_is_not_laid_on_overflow_and_noise_not_on_one_channel():
    torch.manual_seed(0)
    batches = [torch.randn(64, 32) for _ in range(32)]
    model = nn.BatchNorm1d(32).train()
    for batch in batches:
        model(batch)
    model.eval()
    moved = copy.deepcopy(model)
    moved.running_mean[7] += 1
    (row,) = check_batchnorm(moved, batches, outputs=False).layers
    assert "Channel 7 of 32" in row.note
    assert "oise alone explains" not in row.note
    model.running_var[3] = -1
    (row,) = check_batchnorm(model, batches, outputs=False).layers
    assert "negative weights" in row.note
    assert "overflow" not in row.note
    model.running_var[3] = math.inf
    (row,) = check_batchnorm(model, batches, outputs=False).layers
    assert "overflow" in row.note
    assert "negative" not in row.note


def test_a_channel_that_varies_is_not_called_constant_however_large_the_stored_variance():
    torch.manual_seed(0)
    batches = [torch.randn(64, 8) for _ in range(16)]
    for batch in batches:
        batch[:, 5] = 2
    model = nn.BatchNorm1d(8).eval()
    (row,) = check_batchnorm(model, batches, outputs=False).layers
    assert "1 of 8 channels have zero variance" in row.note
    model.running_var[:] = 1e13
    (row,) = check_batchnorm(model, batches, outputs=False).layers
    assert "1 of 8 channels have zero variance" in row.note
