"""What is said of a layer that is called several times: whether its calls differ, and what can help then."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.judge.calls import differing_calls
from jumpout_export.batchnorm.judge.score import stored_samples
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.report import BatchNormCall


class Branches(nn.Module):
    """Two inputs through one BatchNorm, or through one each."""

    def __init__(self, shift: float, norms: int = 1) -> None:
        super().__init__()
        self.shift = shift
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(norms))

    def forward(self, x):
        return self.norms[0](x) + self.norms[-1]((1 + self.shift) * x + self.shift)


def batches(seed: int = 0):
    return list(torch.randn(1024, 4, generator=torch.Generator().manual_seed(seed)).split(64))


def trained(model):
    with torch.no_grad():
        for batch in batches(1) * 4:
            model.train()(batch)
    return model.eval()


def notes(model):
    return [layer.note for layer in check_batchnorm(model, batches(), outputs=False).layers]


ADVICE = "Give each call a BatchNorm of its own"


def test_calls_on_different_inputs_get_advice_that_can_help():
    model = trained(Branches(2.0))
    (note,) = notes(model)
    assert "Its 2 calls get different inputs" in note
    assert ADVICE in note
    assert "learning rate" not in note
    recalibrate_batchnorm(model, batches())
    (note,) = notes(model)
    assert ADVICE in note, "recalibrating does not help, and the note says so still"
    apart = trained(Branches(2.0, norms=2))
    recalibrate_batchnorm(apart, batches())
    report = check_batchnorm(apart, batches(), outputs=False)
    assert report.verdict == "ok", "what was advised helps"
    assert not any(ADVICE in layer.note for layer in report.layers)


def test_calls_on_alike_inputs_need_no_advice():
    (note,) = notes(trained(Branches(0.0)))
    assert "Called 2 times per forward" in note
    assert ADVICE not in note


def test_what_is_listed_depends_on_how_many_calls_there_are():
    def calls(*distances):
        return [BatchNormCall(w=w, median_log_ratio=0.0, delta_rms=0.0) for w in distances]

    assert "are W = 0.200, 0.010." in differing_calls(calls(0.2, 0.01), 0.05)
    assert "are W = 0.010 to 0.200." in differing_calls(calls(0.01, 0.2, 0.1, 0.1, 0.1), 0.05)
    assert differing_calls(calls(0.04, 0.05), 0.05) == ""
    assert differing_calls(calls(0.2), 0.05) == ""
    assert differing_calls(calls(0.2, math.nan), 0.05) == ""


def test_a_layer_that_feeds_on_itself_is_not_told_to_fix_layers_before_it():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.bn(3 * torch.relu(self.bn(x)) + 1)

    (note,) = notes(trained(Twice()))
    assert ADVICE in note
    assert "layers that are within the margin" not in note


@pytest.mark.parametrize("attribution", [True, False])
def test_the_advice_does_not_depend_on_the_cause_being_measured(attribution):
    model = trained(Branches(2.0))
    model.norms[0].running_mean += 1
    (layer,) = check_batchnorm(model, batches(), attribution=attribution, outputs=False).layers
    assert layer.verdict == "drift"
    assert ADVICE in layer.note


class Outside(nn.Module):
    """Hands the buffers of its BatchNorm to F.batch_norm."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x):
        bn = self.bn
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training, bn.momentum, bn.eps)


def healthy(model, seed):
    with torch.no_grad():
        for batch in torch.randn(60 * 32, 4, generator=torch.Generator().manual_seed(seed)).split(32):
            model.train()(batch)
    return check_batchnorm(model.eval(), batches(100 + seed), outputs=False, training_batch_size=32)


def test_buffers_used_alone_are_as_noisy_as_those_of_a_module_that_is_called():
    """A healthy moving average over batches of 32 is W = .05 off by noise alone, also where no batches are counted."""
    for seed in range(8):
        alone, called = healthy(Outside(), seed), healthy(nn.Sequential(nn.BatchNorm1d(4)), seed)
        assert alone.verdict == called.verdict != "drift"
        for name in ("w", "w_low", "w_high"):
            assert getattr(alone.layers[0], name) == pytest.approx(getattr(called.layers[0], name), rel=1e-6, abs=1e-9)


def test_what_is_said_of_buffers_used_alone():
    report = healthy(Outside(), 0)
    assert "Not called itself: F.batch_norm is handed its buffers" in report.layers[0].note
    assert "Never trained" not in report.layers[0].note
    assert "Not called itself" not in healthy(nn.Sequential(nn.BatchNorm1d(4)), 0).layers[0].note


@pytest.mark.parametrize(
    ("momentum", "samples"), [(0.1, 32 * 19), (None, 32 * 19), (0.5, 32 * 3), (0.0, math.inf)], ids=str
)
def test_batches_that_are_not_counted_are_a_moving_average(momentum, samples):
    norm = nn.BatchNorm1d(4, momentum=momentum)
    assert stored_samples(norm, 32, counted=False) == pytest.approx(samples)
    assert stored_samples(norm, 32) == math.inf, "nothing was counted"
