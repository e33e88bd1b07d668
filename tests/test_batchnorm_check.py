"""The check: known edits are measured exactly, healthy layers pass, and every special case is named."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.nn.modules import Jumpout
from jumpout_export.nn.randomness import same_bits
from jumpout_export.report import BatchNormReport


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
    )


def images(count: int = 256, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def healthy() -> nn.Sequential:
    model = network()
    recalibrate_batchnorm(model, [images()])
    return model


def check(model: nn.Module, x: torch.Tensor | None = None, **options: object) -> BatchNormReport:
    batches = list((images() if x is None else x).split(64))
    return check_batchnorm(model, batches, outputs=False, **options)


def row(report: BatchNormReport, name: str):
    return next(layer for layer in report.layers if layer.name == name)


def test_an_edit_of_the_stored_statistics_is_measured_exactly():
    model = healthy().double()
    x = images(seed=2).double()
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
    assert report.layers[0].note.startswith("Agrees: W is at most 0.0")


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
            for batch in images().split(64):
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
    x = images()
    x[3, 0, 0, 0] = math.nan
    report = check_batchnorm(healthy(), x.split(64))
    assert report.verdict == "inconclusive"
    assert "The input of `1` holds NaN or infinity; look at the data" in report.layers[0].note
    assert math.isnan(report.layers[0].w)
    assert report.outputs is None
    assert any("was not measured: the input of BatchNorm `1`" in note for note in report.notes)


class Partial(nn.Module):
    """The second layer is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def test_layers_the_forward_does_not_reach_are_listed():
    model = Partial()
    recalibrate_batchnorm(model, [images()])
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

    report = check_batchnorm(Nothing(), [images()])
    assert (report.verdict, report.layers, report.outputs) == ("inconclusive", [], None)
    assert not report


def test_a_layer_without_running_statistics_is_inconclusive_and_said():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    report = check(model)
    assert report.verdict == report.layers[0].verdict == "inconclusive"
    assert "`0` has no running statistics (track_running_stats=False)" in report.layers[0].note
    assert any("1 of 1 BatchNorm layers are undecided" in note for note in report.notes)


def special(**changes: object) -> nn.Sequential:
    """One healthy layer with attributes changed."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    recalibrate_batchnorm(model, [images()])
    model[0].num_batches_tracked.fill_(9)
    for name, value in changes.items():
        setattr(model[0], name, value)
    return model


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"num_batches_tracked": torch.tensor(0)}, "Never trained: num_batches_tracked is 0"),
        ({"momentum": 0.0}, "Momentum is 0, so training never updates its statistics."),
        ({"momentum": 1.0}, "Momentum is 1, so it stores the statistics of the last batch only."),
        ({"training": False}, "Frozen: training leaves its statistics alone"),
        ({"momentum": None}, ""),
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
    report = check(nn.Sequential(nn.BatchNorm2d(3)), 3 * images() + 5)
    assert report.verdict == "drift"
    assert "Never trained" in report.layers[0].note


def test_constant_channels_are_counted():
    x = images()
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


def test_several_calls_per_forward_are_named_and_pooled():
    class Twice(Partial):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) + self.used(x.flip(0))

    model = Twice()
    recalibrate_batchnorm(model, [images()])
    report = check(model)
    assert report.verdict == "ok"
    assert "Called 2 times per forward; the calls are pooled." in report.layers[0].note
    assert report.layers[0].images == 256


def test_downstream_drift_names_the_layer_before_it():
    model = healthy()
    model[1].running_var *= 9
    report = check(model)
    assert report.origin == "1"
    assert "`1` before it drifts too and may be the reason." in row(report, "4").note
    assert any(note.startswith("3 of 3 BatchNorm layers drift; `1` is the first.") for note in report.notes)


def test_fewer_images_than_asked_are_said():
    assert "Only 256 of 4096 images were there; pass more for narrower error bars." in check(healthy()).notes
    assert not any(note.startswith("Only") for note in check(healthy(), images=128).notes)
    assert check(healthy(), images=100).images == 128


def test_an_undecided_layer_says_how_many_more_images_would_decide():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4))
    x = torch.randn(200, 4)
    recalibrate_batchnorm(model, [x])
    model[0].running_mean += 0.1
    report = check_batchnorm(model, [x], outputs=False)
    assert report.verdict == "inconclusive"
    assert report.layers[0].note.startswith("Undecided: W lies between")
    assert "more images would decide." in report.layers[0].note
    assert report.notes[-1] == "1 of 1 BatchNorm layers are undecided."
    assert check_batchnorm(model, [x.repeat(20, 1)], outputs=False).verdict == "inconclusive"  # copies tell no more
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
    assert "noise alone makes 0.2" in note
    assert "train longer with a smaller momentum, or recalibrate it" in note


def test_a_layer_on_the_margin_is_undecided_and_said():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4))
    x = torch.randn(400, 4)
    recalibrate_batchnorm(model, [x])
    model[0].running_mean += 0.1
    exact = check_batchnorm(model, [x], outputs=False).layers[0].w
    note = check_batchnorm(model, [x], warn=exact * (1 + 1e-9), outputs=False).layers[0].note
    assert "W is so close to the margin that more images would hardly decide." in note


def test_very_few_images_are_undecided_and_said():
    note = check(healthy(), images(5)).layers[0].note
    assert "5 images are too few for an error bar; pass at least 8." in note


def test_margins_decide():
    model = healthy()
    model[7].running_mean += 0.1 * (model[7].running_var + 1e-5).sqrt()
    assert row(check(model), "7").verdict == "drift"
    assert row(check(model), "7").note.startswith("Drift")
    assert check(model, warn=0.3, fail=0.5).verdict == "ok"
    assert row(check(model, warn=0.01, fail=0.05), "7").note.startswith("Severe drift")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"warn": 0.0}, "0 < warn <= fail, got warn=0, fail=0.15"),
        ({"warn": 0.2}, "0 < warn <= fail, got warn=0.2, fail=0.15"),
        ({"images": 0}, "images must be at least 1, got 0"),
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
        check_batchnorm(healthy(), (batch for batch in images().split(64)))


@pytest.mark.parametrize("size", [1, 7, 256])
def test_other_batch_sizes_give_the_same_report(size):
    model = healthy()
    model[1].running_mean += 0.5
    expected = check(model)
    report = check_batchnorm(model, images().split(size), outputs=False)
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
    report = check(nn.BatchNorm2d(3), images() + 1)
    assert report.origin == ""
    assert "1 of 1 BatchNorm layers drift; the model itself is the first." in report.notes[-1]


def test_progress_names_every_step():
    calls = []
    check_batchnorm(healthy(), [images()], progress=lambda what, done, total: calls.append((what, done, total)))
    assert [what for what, _, _ in calls] == [
        "checking BatchNorm",
        "recalibrating BatchNorm",
        "recalibrating BatchNorm, pass 1",
        "comparing outputs",
    ]
    assert {(done, total) for _, done, total in calls} == {(256, 256)}
