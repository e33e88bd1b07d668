"""The notes of the check advise what can be done, in the order in which it can be done."""

import signal

import pytest
import torch
from torch import nn

from jumpout_export import check_batchnorm, recalibrate_batchnorm
from jumpout_export.batchnorm.judge.stopping import Looks
from jumpout_export.loading import load_model
from jumpout_export.signals import Interrupted


def chain() -> nn.Sequential:
    return nn.Sequential(
        *[nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(3)], nn.Linear(8, 2)
    )


def healthy() -> tuple[nn.Sequential, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = chain().eval()
    batches = [torch.randn(512, 8) for _ in range(32)]
    recalibrate_batchnorm(model, batches)
    return model, batches


def test_nobody_is_sent_to_a_layer_that_comes_later():
    model, batches = healthy()
    model[0][1].running_var *= 1.3  # within the margin below, but the next layers see it
    model[2][1].running_var *= 4
    w = {layer.name: layer.w for layer in check_batchnorm(model, batches, samples=16384, outputs=False).layers}
    assert w["0.1"] < w["1.1"] < w["2.1"], "the case that this test is about"
    report = check_batchnorm(model, batches, warn=(w["0.1"] + w["1.1"]) / 2, fail=0.5, samples=16384, outputs=False)
    rows = {layer.name: layer for layer in report.layers}
    assert [row.verdict == "drift" for row in report.layers] == [False, True, True]
    assert (report.origin, rows["1.1"].cause) == ("2.1", "propagated")
    assert "`2.1`" not in rows["1.1"].note
    assert "it adds up from layers that are within the margin by themselves" in rows["1.1"].note


def test_a_model_that_is_only_served_is_not_frozen():
    model, batches = healthy()
    model.requires_grad_(False)
    model[0][1].running_var *= 4
    report = check_batchnorm(model, batches, outputs=False)
    assert [layer.cause for layer in report.layers] == ["stale", "propagated", "propagated"]
    assert "Frozen" not in report.layers[0].note
    recalibrate_batchnorm(model, batches)
    assert check_batchnorm(model, batches, outputs=False)


def test_a_frozen_layer_is_told_the_call_that_changes_it():
    model, batches = healthy()
    model[0][1].requires_grad_(False)
    model[0][1].running_var *= 4
    note = check_batchnorm(model, batches, outputs=False).layers[0].note
    assert "Recalibrate it with recalibrate_batchnorm(model, batches, layers=['0.1'])." in note
    assert "learning rate" not in note
    recalibrate_batchnorm(model, batches, layers=["0.1"])
    assert check_batchnorm(model, batches, outputs=False)


def test_a_signal_during_the_import_of_the_model_ends_the_process_like_any_other(tmp_path, monkeypatch):
    (tmp_path / "interrupted_factory.py").write_text(
        f"from jumpout_export.signals import interrupt\ninterrupt({int(signal.SIGTERM)})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Interrupted) as ending:
        load_model("interrupted_factory:network")
    assert ending.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("samples", [4096, 16384, 10**6])
def test_looks_too_early_to_decide_anything_are_left_out(samples):
    looks = Looks(samples, early=True)
    levels = [level for seen in range(128, samples, 128) if (level := looks.due(seen)) is not None]
    assert min(levels) >= 1e-9
    assert sum(levels) + looks.last == pytest.approx(0.05)
    assert looks.last > 0.04


@pytest.mark.parametrize("seed", range(4))
def test_as_many_samples_as_a_layer_is_said_to_need_do_decide(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.BatchNorm1d(16))
    model.eval()  # what it stores is right: mean 0, variance 1
    x = torch.randn(60000, 16)
    asked = 256
    first = check_batchnorm(model, [x[:asked]], samples=asked, outputs=False).layers[0]
    assert first.verdict == "inconclusive"
    assert asked < first.samples_needed <= len(x) // 2
    assert check_batchnorm(model, x[: 2 * first.samples_needed].split(512), samples=10**6, outputs=False)


@pytest.mark.integration
def test_an_undecided_layer_above_the_margin_is_told_the_rule_that_holds_it_back():
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(64, momentum=0.5)
    model = nn.Sequential(layer)
    model.train()
    for _ in range(40):
        model(torch.randn(32, 64))
    model.eval()
    layer.running_mean += 0.2
    batches = list(torch.randn(8192, 64).split(32))
    guessed = check_batchnorm(model, batches, samples=8192, outputs=False).layers[0]
    assert guessed.verdict == "inconclusive"
    assert guessed.w_low > 0.05
    assert "as the batch size of training is a guess, drift has to exceed 3 times that" in guessed.note
    known = check_batchnorm(model, batches, samples=8192, training_batch_size=32, outputs=False).layers[0]
    assert known.verdict == "drift"
