"""The check: known edits are measured exactly, healthy layers pass, and every special case is named."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.judge.stopping import LabelRuns
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.model.randomness import same_bits
from jumpout_export.nn.modules import Jumpout
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
    assert drifting.cause == "stochastic"
    assert "of it is stochastic: without dropout or jumpout the input has a variance " in drifting.note
    assert "smaller than with it (median channel)" in drifting.note
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


def test_several_calls_per_forward_are_named_pooled_and_listed_one_by_one():
    class Twice(Partial):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) + self.used(3 * x.flip(0) + 1)

    model = Twice()
    recalibrate_batchnorm(model, [images()])
    report = check(model)
    layer = report.layers[0]
    assert report.verdict == "ok"
    assert "Called 2 times per forward; the calls are pooled." in layer.note
    assert layer.images == 256
    for call, x in zip(layer.calls, (images(), 3 * images() + 1), strict=True):
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
    layer = row(check(model, images(seed=2)), "7")
    assert layer.flagged[:2] == [5, 2]
    assert layer.worst_channel == 5
    assert row(check(healthy(), images()), "7").flagged == []
    model[7].running_var[1] = math.nan
    assert row(check(model, images(seed=2)), "7").flagged[:3] == [1, 5, 2]


def test_downstream_drift_names_the_layer_before_it():
    model = healthy()
    model[1].running_var *= 9
    report = check(model)
    assert report.origin == "1"
    assert "Fix `1` first; recalibrate_batchnorm(model, batches) corrects them in that order." in row(report, "4").note
    plain = check(model, attribution=False)
    assert "`1` before it drifts too and may be the reason; recalibrate it with" in row(plain, "4").note
    assert any(note.startswith("3 of 3 BatchNorm layers drift; the origin is `1`.") for note in report.notes)


def test_fewer_images_than_asked_are_said():
    assert "Only 256 of 4096 images were there; pass more for narrower error bars." in check(healthy()).notes
    assert not any(note.startswith("Only") for note in check(healthy(), images=128).notes)
    assert check(healthy(), images=100).images == 128


def test_a_decided_check_stops_early_and_says_so():
    model = healthy()
    report = check(model, images(4096))
    assert (report.verdict, report.images, report.stopped_early) == ("ok", 512, True)
    assert "Stopped after 512 of 4096 images: every layer was decided." in report.notes
    assert not any(note.startswith("Only") for note in report.notes)
    assert all(layer.images == 512 for layer in report.layers)
    whole = check(model, images(4096), stop_early=False)
    assert (whole.images, whole.stopped_early) == (4096, False)


def test_an_early_look_is_strict():
    model = healthy()
    model[7].running_mean += 0.3 * (model[7].running_var + 1e-5).sqrt()
    early, whole = (row(check(model, images(4096), stop_early=early), "7") for early in (True, False))
    assert (early.images, whole.images) == (512, 4096)
    # An eighth of the images alone makes sqrt(8) = 2.8; the level 3e-8 instead of .05 makes 7.3 / 2.04 of that.
    assert early.w_high**2 - early.w_low**2 > 6 * (whole.w_high**2 - whole.w_low**2)


@pytest.mark.parametrize("size", [64, 100, 700])
def test_looks_are_taken_at_the_end_of_a_batch(size):
    report = check_batchnorm(healthy(), images(4096).split(size), outputs=False)
    assert report.images == -(-512 // size) * size


def drifting_by_the_margin(x: torch.Tensor) -> tuple[nn.Module, float]:
    """A model whose last layer has exactly the W returned, on all of `x`: too close to decide."""
    model = healthy()
    model[7].running_mean += 0.1 * (model[7].running_var + 1e-5).sqrt()
    return model, row(check(model, x, stop_early=False), "7").w


def test_a_check_never_stops_before_512_images_nor_for_undecided_layers():
    assert not check(healthy(), images(448)).stopped_early
    model, w = drifting_by_the_margin(images(2048))
    report = check(model, images(2048), warn=w, images=1500)
    assert (report.verdict, report.images, report.stopped_early) == ("inconclusive", 1536, False)


@pytest.mark.parametrize("count", [512, 1024, 2000])
def test_a_loader_read_to_its_end_was_not_stopped_early(count):
    model, w = drifting_by_the_margin(images(count))
    for batches in (images(count).split(64), iter_only(images(count).split(64))):
        report = check_batchnorm(model, batches, outputs=False, warn=w)
        assert (report.images, report.stopped_early) == (count, False)
    assert not check(healthy(), images(512)).stopped_early


def iter_only(batches: tuple[torch.Tensor, ...]) -> object:
    """Batches that do not say how many they are."""

    class Batches:
        def __iter__(self):
            return iter(batches)

    return Batches()


def test_what_can_never_be_decided_does_not_keep_a_check_from_stopping():
    model = healthy()
    model[4].running_var[0] = math.nan
    model.append(nn.BatchNorm2d(8, track_running_stats=False))
    assert check(model, images(4096)).images == 512


def test_the_effect_on_the_outputs_is_measured_on_the_images_of_a_check_that_stopped():
    model = healthy().append(nn.Flatten()).append(nn.Linear(288, 3))
    report = check_batchnorm(model, images(4096).split(64))
    assert report.images == report.outputs.images == 512


@pytest.mark.parametrize("order", ["sorted", "one class", "shuffled", "none"])
def test_a_loader_sorted_by_class_is_said_and_read_to_the_end(order):
    x = images(2048)
    labels = {"sorted": torch.arange(2048) // 205, "one class": torch.zeros(2048).long()}
    labels["shuffled"] = torch.arange(2048) % 10
    batches = list(zip(x.split(64), labels[order].split(64), strict=True)) if order in labels else x.split(64)
    model = healthy()
    report = check_batchnorm(model, batches, outputs=False)
    said = [note for note in report.notes if "sorted by class" in note]
    assert len(said) == (order in ("sorted", "one class"))
    assert report.images == (2048 if said else 512)
    assert all("The labels of the 2048 images come in runs or are all the same" in note for note in said)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0] * 63, False),
        ([0] * 64, True),
        ([0] * 50 + [1] * 50, True),
        ([0, 1] * 50, False),
        ([0] * 7 + [1] * 7, False),
        ([0] * 499 + [1], False),
        ([], False),
    ],
    ids=["few of one class", "one class", "two runs", "in turn", "few", "hardly another class", "none"],
)
def test_runs_of_labels_are_found(labels, expected):
    runs = LabelRuns()
    for part in torch.tensor(labels, dtype=torch.int64).split(16):
        runs.add(part)
    runs.add(None)
    runs.add(torch.rand(100))
    assert runs.sorted == expected


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
    assert report.layers[0].images_needed > 200
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
    assert "the noise in the stored average alone makes 0.2" in note
    assert (
        "recalibrate it with recalibrate_batchnorm(model, batches), say training_batch_size= if training used" in note
    )
    assert note.endswith(
        "train longer with a smaller momentum. Momentum is 1, so it stores the statistics of the last batch only."
    )
    told = check_batchnorm(model, x.split(32), outputs=False, training_batch_size=1000)
    assert told.layers[0].verdict == "drift"


def after_training_in_batches_of(size: int) -> tuple[nn.Module, torch.Tensor]:
    """Nothing is wrong with it; what it stores is as noisy as such batches leave it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(64))
    with torch.no_grad():
        for _ in range(100):
            model(torch.randn(size, 64))
    return model, torch.randn(4096, 64)


def test_a_healthy_layer_trained_in_small_batches_is_ok_once_their_size_is_known():
    model, x = after_training_in_batches_of(16)
    assert check_batchnorm(model, x.split(128), outputs=False).verdict != "ok"
    report = check_batchnorm(model, x.split(128), outputs=False, training_batch_size=16)
    assert report.verdict == "ok"
    # Such averages hold 16 * 1.9 / 0.1 = 304 images: sqrt(1.5 / 304) = 0.07.
    assert "The noise left in the stored average makes W = 0.07" in report.layers[0].note
    assert "as in any training with such batches; recalibrating removes it." in report.layers[0].note


def test_noise_as_large_as_severe_drift_is_never_ok():
    model, x = after_training_in_batches_of(2)
    report = check_batchnorm(model, x.split(128), outputs=False, training_batch_size=2, warn=0.14, fail=0.15)
    assert report.verdict == "inconclusive"
    # Such averages hold 2 * 1.9 / 0.1 = 38 images: sqrt(1.5 / 38) = 0.199.
    assert "the noise in the stored average alone makes 0.199;" in report.layers[0].note
    assert "training_batch_size=" not in report.layers[0].note


def test_a_layer_on_the_margin_is_undecided_and_said():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4))
    x = torch.randn(400, 4)
    recalibrate_batchnorm(model, [x])
    model[0].running_mean += 0.1
    exact = check_batchnorm(model, [x], outputs=False).layers[0].w
    note = check_batchnorm(model, [x], warn=exact * (1 + 1e-9), outputs=False).layers[0].note
    assert "too close to the margin to say how many more would decide; try four times as many." in note


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
    assert "1 of 1 BatchNorm layers drift; the origin is the model itself." in report.notes[-1]


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
