"""What a row of the report says of its layer: unreached, constant, called several times, its worst channels."""

import math

import pytest
import torch
from support.checked import Partial, check, healthy, row, samples, special
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm


def test_layers_the_forward_does_not_reach_are_listed():
    model = Partial()
    recalibrate_batchnorm(model, [samples()])
    report = check(model)
    assert report.verdict == "ok"
    assert report.not_observed == ["unused"]
    assert any("did not reach `unused`; what they store was not compared" in note for note in report.notes)
    model.unused.running_mean[0] = math.nan
    report = check(model)
    assert (report.verdict, report.origin) == ("drift", "unused")


def test_nothing_reached_is_inconclusive():
    class Nothing(Partial):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    report = check_batchnorm(Nothing(), [samples()])
    assert (report.verdict, report.layers, report.outputs) == ("inconclusive", [], None)
    assert not report


def test_a_layer_without_running_statistics_is_inconclusive_and_said():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    report = check(model)
    assert report.verdict == report.layers[0].verdict == "inconclusive"
    assert "`0` has no running statistics (track_running_stats=False)" in report.layers[0].note
    assert any("1 of 1 BatchNorm layers are undecided" in note for note in report.notes)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"num_batches_tracked": torch.tensor(0)}, "Never trained: num_batches_tracked is 0"),
        ({"momentum": 0.0}, "Momentum is 0, so training never updates its statistics."),
        ({"momentum": 1.0}, "Momentum is 1, so it stores the statistics of the last batch only."),
        ({"training": False}, "Frozen: training leaves its statistics alone"),
        ({"momentum": None}, "Momentum is None: it stores the plain average of all training batches"),
    ],
    ids=["never trained", "momentum 0", "momentum 1", "frozen", "momentum none"],
)
def test_special_settings_are_named_in_the_note(changes, note):
    layer = check(special(**changes)).layers[0]
    assert layer.verdict == "ok"
    assert note in layer.note
    if not note:
        assert layer.note.startswith("Agrees")
        assert layer.note.count(".") == 2


def test_a_layer_at_its_initial_statistics_drifts():
    report = check(nn.Sequential(nn.BatchNorm2d(3)), 3 * samples() + 5)
    assert report.verdict == "drift"
    assert "Never trained" in report.layers[0].note


def test_constant_channels_are_counted():
    x = samples()
    x[:, 1] = 4.0
    model = special()
    recalibrate_batchnorm(model, [x])
    layer = check(model, x).layers[0]
    assert layer.verdict == "ok"
    assert "1 of 3 channels have zero variance (dead or constant input)." in layer.note


def test_a_stored_variance_of_zero_where_the_input_varies_is_named():
    model = special()
    model[0].running_var[2] = 0
    layer = check(model).layers[0]
    assert (layer.verdict, layer.worst_channel) == ("drift", 2)
    assert "running_var is 0 in 1 channels whose input varies; they are amplified by 1 / sqrt(eps) = 316" in layer.note


def test_several_calls_per_forward_are_named_pooled_and_listed_one_by_one():
    class Twice(Partial):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) + self.used(3 * x.flip(0) + 1)

    model = Twice()
    recalibrate_batchnorm(model, [samples()])
    report = check(model)
    layer = report.layers[0]
    assert report.verdict == "ok"
    assert "Called 2 times per forward; the calls are pooled." in layer.note
    assert layer.samples == 256
    for call, x in zip(layer.calls, (samples(), 3 * samples() + 1), strict=True):
        values = x.double().transpose(0, 1).flatten(1)
        tau = (model.used.running_var.double() + model.used.eps).sqrt()
        delta, r = (values.mean(1) - model.used.running_mean) / tau, (values.var(1) + model.used.eps) / tau.square()
        assert call.median_log_ratio == pytest.approx(float(r.log().median()), abs=1e-4)
        assert call.delta_rms == pytest.approx(float(delta.square().mean().sqrt()), abs=1e-4)
        assert call.w == pytest.approx(float((delta.square() + (r.sqrt() - 1).square()).mean().sqrt()), abs=2e-3)


def test_the_numbers_of_a_layer_are_those_of_its_channels():
    model = healthy()
    edited = model[4]
    edited.running_mean += 0.3 * edited.running_var.sqrt()
    edited.running_var *= torch.linspace(0.5, 2, 8)
    layer = row(check(model), "4")
    delta, log_ratio = torch.tensor(layer.delta).double(), torch.tensor(layer.log_ratio).double()
    r = log_ratio.exp()
    # KL(N(m, v) || N(0, 1)) = (v + m^2 - 1 - ln v) / 2, and the other way round.
    kl = (r + delta.square() - 1 - r.log()) / 2 + ((1 + delta.square()) / r - 1 + r.log()) / 2
    assert layer.symmetric_kl == pytest.approx(float(kl.mean()), rel=1e-6)
    assert layer.median_log_ratio == pytest.approx(float(log_ratio.quantile(0.5)), rel=1e-6)
    assert layer.delta_p95 == pytest.approx(float(delta.abs().quantile(0.95)), rel=1e-6)
    assert layer.max_ratio == pytest.approx(float(torch.maximum(r, 1 / r).quantile(0.5)), rel=1e-6)


def test_channels_that_differ_are_flagged_the_worst_first():
    model = healthy()
    tau = (model[7].running_var + 1e-5).sqrt()
    model[7].running_mean[2] += 0.5 * tau[2]
    model[7].running_mean[5] += tau[5]
    layer = row(check(model, samples(seed=2)), "7")
    assert layer.flagged[:2] == [5, 2]
    assert layer.worst_channel == 5
    assert row(check(healthy(), samples()), "7").flagged == []
    model[7].running_var[1] = math.nan
    assert row(check(model, samples(seed=2)), "7").flagged[:3] == [1, 5, 2]


def test_downstream_drift_names_the_layer_before_it():
    model = healthy()
    model[1].running_var *= 9
    report = check(model)
    assert report.origin == "1"
    assert "Fix `1` first; recalibrate_batchnorm(model, batches) corrects them in that order." in row(report, "4").note
    plain = check(model, attribution=False)
    assert "`1` before it drifts too and may be the reason; recalibrate it with" in row(plain, "4").note
    assert any(note.startswith("3 of 3 BatchNorm layers drift; the origin is `1`.") for note in report.notes)
