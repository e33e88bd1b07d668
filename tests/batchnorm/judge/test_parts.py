"""What can be said of the parts where a model fails in training mode, batches are small or noise is drawn again."""

import math

import pytest
import torch
from support.attributed import assert_adds_up, check, edit, flat, healthy, network, samples, trained
from support.checked import row
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.nn.modules import Jumpout


def test_every_batch_gets_noise_of_its_own():
    masks = []

    class Recorded(nn.Dropout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            if self.training:
                masks.append((y == 0).double().flatten())
            return y

    model = nn.Sequential(Recorded(0.5), nn.BatchNorm1d(50))
    check(model, torch.ones(256, 50))
    # Four batches, each as often as it takes to see 32 of them.
    assert len(masks) == 32
    for other in masks[1:]:
        # Independent masks agree in half of 3200 places, give or take six standard errors.
        assert float((masks[0] == other).double().mean()) == pytest.approx(0.5, abs=6 * 0.5 / math.sqrt(3200))


@pytest.mark.integration
def test_noise_is_drawn_again_only_where_there_is_some_and_something_drifts():
    calls = []

    def passes(model: nn.Module, x: torch.Tensor) -> list[str]:
        calls.clear()
        batches = list(x.split(64))
        check_batchnorm(model, batches, outputs=False, progress=lambda what, done, total: calls.append(what))
        return [what for what in dict.fromkeys(calls) if "noise" in what]

    drifting = healthy()
    edit(drifting[4], 0.5, 0)
    assert passes(healthy(nn.Dropout(1e-6)), samples()) == passes(drifting, samples()) == []
    assert passes(trained(nn.Dropout(0.5)), samples()) == ["checking BatchNorm, other noise"]


@pytest.mark.integration
def test_a_rate_drawn_per_batch_is_measured_better_by_drawing_it_more_often(monkeypatch):
    model, x = trained(Jumpout(sigma=0.3, p_min=0.0)), samples(384, seed=7)

    def spread() -> float:
        found = []
        for seed in range(6):
            torch.manual_seed(seed)
            found.append(row(check(model, x), "7").stochastic)
        return float(torch.tensor(found).std())

    often = spread()
    monkeypatch.setattr("jumpout_export.batchnorm.reference.DRAWS", 1)
    # Six batches once, or often enough to make 36: the error falls as the root of that, to 0.41 of it.
    assert often < 0.7 * spread()


def test_what_a_jumpout_layer_remembers_of_training_is_left_alone():
    model = trained(Jumpout(p=0.3))
    before = [value.item() for value in model[5][1].statistics]
    assert row(check(model), "7").attribution is not None
    assert [value.item() for value in model[5][1].statistics] == before


def test_a_model_that_fails_in_training_mode_keeps_its_verdict_and_its_origin():
    class NeedsTargets(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise AssertionError("targets should not be none when in training mode")
            return x

    model = healthy(NeedsTargets())
    edit(model[4], 0.0, 1.0)
    report = check(model)
    assert (report.verdict, report.origin) == ("drift", "4")
    assert all(layer.attribution is layer.cause is layer.stale is None for layer in report.layers)
    assert (
        "Why layers drift was not measured: in training mode the model fails with AssertionError: targets should not "
        "be none when in training mode" in report.notes
    )
    assert "`4` before it drifts too and may be the reason; recalibrate it with" in row(report, "7").note
    assert "Recalibrate it with recalibrate_batchnorm(model, batches)." in row(report, "4").note


def test_batches_of_one_value_per_channel_keep_the_verdict():
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    report = check(flat(), x, size=1)
    assert (report.verdict, report.samples) == ("drift", 300)
    assert report.layers[0].attribution is None
    assert (
        "Why layers drift was not measured: in every batch a BatchNorm gets one value per channel, which cannot be "
        "normalised by itself; pass larger batches." in report.notes
    )


def test_a_last_batch_of_one_sample_is_left_out_of_the_parts_only():
    x = torch.randn(301, 5, generator=torch.Generator().manual_seed(0))
    report = check(flat(), x, size=100)
    assert [layer.samples for layer in report.layers] == [301, 301]
    for layer in report.layers:
        assert_adds_up(layer, "log_ratio")
    assert any(note.startswith("Why layers drift was measured without 1 samples, in whose") for note in report.notes)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("size", "trained_on", "note"),
    [
        (4, None, "Batches of 4 samples are small"),
        (64, 256, "pass batches of 256, as in training"),
        (64, 128, None),
        (64, None, None),
    ],
)
def test_batches_much_smaller_than_in_training_are_said(size, trained_on, note):
    notes = [text for text in check(healthy(), size=size, training_batch_size=trained_on).notes if "Batches of" in text]
    assert [note in text for text in notes] == ([] if note is None else [True])


@pytest.mark.integration
def test_synchronised_batchnorm_talks_to_nobody_in_any_state():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(trained(nn.Dropout(0.5)))
    plain = check(trained(nn.Dropout(0.5)))
    for one, two in zip(check(model).layers, plain.layers, strict=True):
        assert one.attribution == two.attribution


@pytest.mark.parametrize(
    "convert",
    [
        lambda model: model,
        lambda model: model.to(torch.bfloat16),
        lambda model: replace_norms(model),
    ],
    ids=["float32", "half-precision buffers", "a subclass with a forward of its own"],
)
def test_batch_statistics_are_those_of_training_mode(convert):
    """P against a forward in training mode with all noise off, by hooks of this test's own."""
    model = convert(network())
    batches = [batch.to(model[0].weight.dtype) for batch in samples(256).split(64)]
    layer = row(check_batchnorm(model, batches, outputs=False), "7")
    seen = []
    handle = model[7].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double()))
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    x = torch.cat(seen).transpose(0, 1).flatten(1)
    renormalised = torch.tensor(layer.log_ratio) - torch.tensor(layer.attribution.log_ratio_propagated)
    # Stored are the initial statistics: mean 0, variance 1.
    torch.testing.assert_close(renormalised.double(), (x.var(1) + 1e-5).log(), rtol=1e-3, atol=1e-3)


def replace_norms(model: nn.Sequential) -> nn.Sequential:
    class Own(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    for index in (1, 4, 7, 10):
        model[index] = Own(16)
    return model
