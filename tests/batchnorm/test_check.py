"""The check: known edits are measured exactly, the model stays as it was, and what cannot be checked is refused."""

import math

import pytest
import torch
from support.checked import check, healthy, network, row, samples
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.model.randomness import same_bits
from jumpout_export.nn.modules import Jumpout
from jumpout_export.report import BatchNormReport


def test_an_edit_of_the_stored_statistics_is_measured_exactly():
    model = healthy().double()
    x = samples(seed=2).double()
    before = row(check(model, x), "4")
    norm, d, c = model[4], 0.4, 0.5
    tau = (norm.running_var + norm.eps).sqrt()
    norm.running_mean += d * tau
    norm.running_var.copy_(tau.square() * math.exp(c) - norm.eps)
    report = check(model, x)
    edited = row(report, "4")
    expected = (torch.tensor(before.delta) - d) * math.exp(-c / 2)
    torch.testing.assert_close(torch.tensor(edited.delta), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.tensor(edited.log_ratio), torch.tensor(before.log_ratio) - c, rtol=1e-6, atol=1e-6)
    assert (report.verdict, report.origin, bool(report)) == ("drift", "4", False)
    assert row(report, "1").verdict == "ok"
    closed_form = math.hypot(d * math.exp(-c / 2), math.exp(-c / 2) - 1)
    assert edited.w == pytest.approx(closed_form, abs=0.05)
    assert edited.w_low < closed_form < edited.w_high


def test_the_layer_edited_last_is_the_only_one_that_drifts():
    model = healthy()
    model[7].running_mean += 1
    report = check(model)
    assert [layer.verdict for layer in report.layers] == ["ok", "ok", "drift"]
    assert report.origin == "7"


def test_a_healthy_model_is_ok_and_truthy():
    report = check(healthy())
    assert report.verdict == "ok"
    assert report
    assert report.origin is None
    assert [layer.name for layer in report.layers] == ["1", "4", "7"]
    assert all(layer.w < 1e-3 and layer.cause is None for layer in report.layers)
    assert report.layers[0].note.startswith("Agrees: a W of 0.000 was measured, and noise alone makes 0.0")


def test_gamma_times_w_is_the_change_of_the_layers_output():
    torch.manual_seed(3)
    model = nn.Sequential(nn.BatchNorm2d(4))
    nn.init.uniform_(model[0].weight, 0.5, 2)
    model[0].running_mean.normal_()
    model[0].running_var.uniform_(0.5, 2)
    x = 2 * torch.randn(64, 4, 5, 5) + 1
    layer = check_batchnorm(model, [x], outputs=False).layers[0]
    w = (torch.tensor(layer.delta).square() + ((torch.tensor(layer.log_ratio) / 2).exp() - 1).square()).sqrt()
    before = model.eval()(x)
    recalibrate_batchnorm(model, [x])
    change = (model(x) - before).square().mean(dim=(0, 2, 3)).sqrt()
    torch.testing.assert_close(change, model[0].weight.abs() * w, rtol=1e-3, atol=1e-5)


def trained(*noise: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    """A few hundred steps at a rate that falls to zero, so that the moving averages have caught up with the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), *noise, nn.Linear(32, 32), nn.BatchNorm1d(32)
    )
    model.append(nn.ReLU()).append(nn.Linear(32, 3))
    x = torch.randn(2048, 12)
    labels = (x @ torch.randn(12, 3)).argmax(1)
    steps = 160
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(0, len(x), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return model, x


def test_training_with_dropout_before_batchnorm_drifts_and_without_it_is_ok():
    model, x = trained()
    report = check_batchnorm(model, x.split(128), outputs=False)
    assert report.verdict == "ok", report.notes
    model, x = trained(nn.Dropout(0.5))
    report = check_batchnorm(model, x.split(128))
    assert (report.verdict, report.origin) == ("drift", "5")
    assert [layer.verdict for layer in report.layers] == ["ok", "drift"]
    drifting = report.layers[1]
    assert sorted(drifting.log_ratio)[16] < -0.2  # dropout stored more variance than serving sees
    assert drifting.note.startswith("Severe drift: the variance it is served is 0.")
    assert drifting.cause == "stochastic"
    assert "of it is stochastic: without dropout or jumpout the input has a variance " in drifting.note
    assert "smaller than with it (median channel, 95% -" in drifting.note
    assert "to train without it, use another alpha, less noise, or noise only behind the last" in drifting.note
    assert report.outputs.logit_shift > 0.05


def test_jumpout_before_batchnorm_is_measured_with_the_jumpout_off():
    model = nn.Sequential(nn.BatchNorm1d(4), Jumpout(p=0.5, normalize="none", relu=True), nn.BatchNorm1d(4)).train()
    torch.manual_seed(0)
    x = torch.randn(500, 4)
    recalibrate_batchnorm(model, [x])
    serving = F.relu((x - x.mean(0)) / (x.var(0) + 1e-5).sqrt())
    torch.testing.assert_close(model[2].running_mean, serving.mean(0), rtol=1e-4, atol=1e-5)
    assert check_batchnorm(model, [x], outputs=False)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_exactly_as_it_was(error):
    class Loader:
        def __init__(self) -> None:
            self.seen = 0

        def __iter__(self):
            for batch in samples().split(64):
                self.seen += 1
                if error is not None and self.seen == 11:  # in batch 3 of the third pass
                    raise error("stop")
                yield batch

    model = network().train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    model[4].running_mean += 1
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [
        (m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None)) for m in model.modules()
    ]
    rng = torch.get_rng_state()
    if error is None:
        assert check_batchnorm(model, Loader()).outputs is not None
    else:
        with pytest.raises(error, match="stop"):
            check_batchnorm(model, Loader())
    assert same_bits(state, dict(model.state_dict()))
    assert flags == [
        (m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None)) for m in model.modules()
    ]
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [p.requires_grad for p in model[4].parameters()] == [False, True]
    assert torch.equal(rng, torch.get_rng_state())


def test_the_report_survives_json_with_nan_and_infinity():
    model = healthy()
    model[4].running_var[3] = math.nan
    report = check(model)
    again = BatchNormReport.model_validate_json(report.model_dump_json())
    assert again.model_dump_json() == report.model_dump_json()
    assert again.layers[1].w == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0], ids=["nan", "infinity", "negative"])
def test_unusable_statistics_are_drift_and_named_and_so_is_what_they_poison(bad):
    model = healthy()
    model[4].running_var[3] = bad
    report = check(model)
    poisoned = row(report, "4")
    assert (report.verdict, report.origin) == ("drift", "4")
    assert (poisoned.w, poisoned.w_low, poisoned.worst_channel) == (math.inf, math.inf, 3)
    assert "BatchNorm `4` stores unusable statistics in 1 of 8 channels (channel 3: mean" in poisoned.note
    assert math.isnan(poisoned.delta[3])
    assert all(math.isfinite(value) for value in poisoned.delta[:3] + poisoned.delta[4:])
    if not math.isinf(bad):  # an infinite variance still gives finite outputs, all of them beta
        assert row(report, "7").verdict == "inconclusive"
        assert "because of `4` before it; fix that" in row(report, "7").note


def test_nan_in_the_data_is_inconclusive_and_said():
    x = samples()
    x[3, 0, 0, 0] = math.nan
    report = check_batchnorm(healthy(), x.split(64))
    assert report.verdict == "inconclusive"
    assert "The input of `1` holds NaN or infinity; look at the data" in report.layers[0].note
    assert math.isnan(report.layers[0].w)
    assert report.outputs is None
    assert any("was not measured: the input of BatchNorm `1`" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"warn": 0.0}, "0 < warn <= fail, got warn=0, fail=0.15"),
        ({"warn": 0.2}, "0 < warn <= fail, got warn=0.2, fail=0.15"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"training_batch_size": 0}, "training_batch_size must be at least 1, got 0; pass None if unknown"),
    ],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        check(healthy(), **options)


def test_models_and_batches_with_nothing_to_check_are_refused():
    with pytest.raises(ValueError, match="Linear has no BatchNorm layer"):
        check_batchnorm(nn.Linear(3, 3), [torch.zeros(2, 3)])
    with pytest.raises(ValueError, match="batches is empty"):
        check_batchnorm(healthy(), [])
    with pytest.raises(ValueError, match="got a one-shot generator; pass a list or a DataLoader"):
        check_batchnorm(healthy(), (batch for batch in samples().split(64)))


@pytest.mark.integration
@pytest.mark.parametrize("size", [1, 7, 256])
def test_other_batch_sizes_give_the_same_report(size):
    model = healthy()
    model[1].running_mean += 0.5
    expected = check(model)
    report = check_batchnorm(model, samples().split(size), outputs=False)
    for one, two in zip(expected.layers, report.layers, strict=True):
        assert two.delta == pytest.approx(one.delta, rel=1e-5, abs=1e-5)
        assert two.log_ratio == pytest.approx(one.log_ratio, rel=1e-5, abs=1e-5)
        assert two.w == pytest.approx(one.w, rel=1e-4, abs=1e-4)


def test_synchronised_batchnorm_is_checked_on_cpu():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(healthy())
    report = check(model)
    assert report.verdict == "ok"
    assert {layer.kind for layer in report.layers} == {"SyncBatchNorm"}


def test_a_model_that_is_a_batchnorm_is_named_so():
    report = check(nn.BatchNorm2d(3), samples() + 1)
    assert report.origin == ""
    assert "1 of 1 BatchNorm layers drift; the origin is the model itself." in report.notes[-1]


def test_progress_names_every_step():
    calls = []
    check_batchnorm(healthy(), [samples()], progress=lambda what, done, total: calls.append((what, done, total)))
    assert [what for what, _, _ in calls] == [
        "checking BatchNorm",
        "recalibrating BatchNorm",
        "recalibrating BatchNorm, pass 1 of at most 10",
        "comparing outputs",
    ]
    assert {(done, total) for _, done, total in calls} == {(256, 256)}
