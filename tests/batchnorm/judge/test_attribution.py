"""Why a layer drifts: parts that add up exactly, the right cause and origin for known edits, and closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.judge.attribute import Parts, attribute, origin
from jumpout_export.batchnorm.judge.estimate import Estimate
from jumpout_export.batchnorm.judge.explain import cause_sentences
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.nn.modules import Jumpout
from jumpout_export.report import BatchNormLayer, BatchNormReport

PARTS = ("stale", "stochastic", "propagated")


def images(count: int = 512, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def network(noise: nn.Module | None = None) -> nn.Sequential:
    """Four BatchNorms at 1, 4, 7, 10; `noise` is behind the second one's ReLU."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, width in ((3, 16), (16, 16), (16, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    layers[5] = nn.Sequential(layers[5], noise or nn.Identity())
    return nn.Sequential(*layers)


def healthy(noise: nn.Module | None = None) -> nn.Sequential:
    model = network(noise)
    recalibrate_batchnorm(model, images().split(64))
    return model


def trained(noise: nn.Module, steps: int = 60) -> nn.Sequential:
    """A network whose statistics training with `noise` has stored; its weights are not trained."""
    model = network(noise).train()
    x = images(1024, seed=2)
    with torch.no_grad():
        for step in range(steps):
            model(x[torch.randperm(1024, generator=torch.Generator().manual_seed(step))[:64]])
    return model


def check(model: nn.Module, x: torch.Tensor | None = None, size: int = 64, **options: object) -> BatchNormReport:
    options = {"outputs": False, "stop_early": False} | options
    return check_batchnorm(model, list((images() if x is None else x).split(size)), **options)


def row(report: BatchNormReport, name: str) -> BatchNormLayer:
    return next(layer for layer in report.layers if layer.name == name)


def edit(norm: nn.BatchNorm2d, d: float, c: float) -> None:
    tau = (norm.running_var + norm.eps).sqrt()
    norm.running_mean += d * tau
    norm.running_var.copy_(tau.square() * math.exp(c) - norm.eps)


def assert_adds_up(layer: BatchNormLayer, quantity: str) -> None:
    parts = [getattr(layer.attribution, f"{quantity}_{part}") for part in PARTS]
    whole = torch.tensor(getattr(layer, quantity), dtype=torch.double)
    torch.testing.assert_close(torch.tensor(parts, dtype=torch.double).sum(0), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("noise", [nn.Identity(), nn.Dropout(0.4), Jumpout(p=0.3)], ids=["none", "dropout", "jumpout"])
def test_the_parts_add_up_to_the_last_bits(noise):
    model = trained(noise)
    edit(model[4], 0.2, 0.3)
    for layer in check(model).layers:
        for quantity in ("log_ratio", "delta"):
            assert_adds_up(layer, quantity)
        assert layer.stale + layer.stochastic + layer.propagated == pytest.approx(layer.median_log_ratio, abs=1e-14)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 10, 33, 100])
def test_parts_of_the_median_add_up_for_any_number_of_channels_and_shares_to_one(channels):
    torch.manual_seed(channels)
    estimates = []
    for _ in range(3):
        sums = torch.rand(6, channels, dtype=torch.double)
        sums[0] = 1
        sums[2] = sums[1].square() + 0.1 + torch.rand(channels)
        estimates.append(Estimate(sums, torch.full((channels,), 1e-5), 1.0))
    parts = attribute(*estimates, torch.ones(channels, dtype=torch.bool))
    assert sum(parts.median) == pytest.approx(float(estimates[2].log_ratio.quantile(0.5)), abs=1e-14)
    assert sum(parts.shares) == pytest.approx(1, abs=1e-12)
    whole = (estimates[2].delta.square() + (estimates[2].r.sqrt() - 1).square()).sum()
    # Of the parts, the one that is all of the drift in delta has the share of delta in the sum of W^2.
    assert sum(parts.of_mean) == pytest.approx(float(estimates[2].delta.square().sum() / whole), abs=1e-12)


@pytest.mark.parametrize(("d", "c"), [(0.5, 0.0), (0.0, 0.6), (-0.3, -0.5)], ids=["mean", "variance", "both"])
def test_an_edited_layer_is_stale_and_the_origin_and_what_drifts_behind_it_is_propagated(d, c):
    model = healthy().double()
    x = images(seed=3).double()
    before = row(check(model, x), "4")
    edit(model[4], d, c)
    report = check(model, x)
    edited = row(report, "4")
    assert (report.origin, edited.verdict, edited.cause) == ("4", "drift", "stale")
    expected = (torch.tensor(before.delta) - d) * math.exp(-c / 2)
    torch.testing.assert_close(torch.tensor(edited.delta), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.tensor(edited.log_ratio), torch.tensor(before.log_ratio) - c, rtol=1e-6, atol=1e-6)
    behind = [layer for layer in report.layers[2:] if layer.verdict == "drift"]
    assert behind
    assert [layer.cause for layer in behind] == ["propagated"] * len(behind)
    assert row(report, "1").cause is None
    # Re-normalised by the batch, what comes behind sees nothing of the edit.
    for layer in report.layers[2:]:
        assert abs(layer.stale) < 0.03 > abs(layer.stochastic)


def test_before_the_first_batchnorm_nothing_is_propagated_to_the_last_bit():
    first = check(trained(nn.Dropout(0.5))).layers[0].attribution
    assert set(first.log_ratio_propagated) == set(first.delta_propagated) == {0.0}
    assert set(first.log_ratio_stochastic) == set(first.delta_stochastic) == {0.0}


@pytest.mark.parametrize("noise", [nn.Dropout(0.5), Jumpout(p=0.4, normalize="none", alpha=1.0)], ids=repr)
def test_dropout_before_a_layer_is_its_cause_and_makes_it_the_origin(noise):
    report = check(trained(noise))
    assert [layer.verdict for layer in report.layers[:2]] == ["ok", "ok"]
    layer = row(report, "7")
    assert (report.origin, layer.verdict, layer.cause) == ("7", "drift", "stochastic")
    assert layer.stochastic < -0.15
    assert abs(layer.stale) < 0.1 > abs(layer.propagated)


def test_functional_noise_that_depends_on_the_training_flag_is_stochastic():
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(x, 0.5, self.training)

    report = check(trained(Functional()))
    assert (report.origin, row(report, "7").cause) == ("7", "stochastic")


def test_a_part_of_a_training_model_that_is_in_eval_mode_stays_so():
    model = trained(nn.Dropout(0.5))
    model[5][1].eval()
    assert set(row(check(model), "7").attribution.log_ratio_stochastic) == {0.0}
    assert set(row(check(model.eval()), "7").attribution.log_ratio_stochastic) != {0.0}


def test_a_frozen_batchnorm_stores_what_it_normalises_by_in_every_state():
    model = healthy().train()
    edit(model[4], 0.0, 1.0)
    model[4].eval()
    report = check(model)
    # What is behind it was re-normalised by its own statistics in training, too: nothing comes from upstream.
    assert max(map(abs, row(report, "7").attribution.log_ratio_propagated)) < 0.02
    assert row(report, "7").cause == "stale"


# With keep rate k and scale s = k^-alpha (Wang, Zhou, Bilmes 2019; design of this package), for a linear layer behind
# independent masks: variance ratio k^(2 - 2 alpha) (1 + (1 - k) / k rho), mean ratio k^(1 - alpha).
@pytest.mark.parametrize(("p", "alpha"), [(0.3, 0.75), (0.5, 1.0), (0.2, 0.0)])
def test_jumpout_before_a_linear_layer_has_the_parts_of_the_closed_form(p, alpha):
    torch.manual_seed(0)
    x = torch.randn(4096, 40, dtype=torch.double).relu() * torch.rand(40, dtype=torch.double)
    model = nn.Sequential(Jumpout(p=p, normalize="none", alpha=alpha), nn.Linear(40, 32), nn.BatchNorm1d(32)).double()
    layer = check(model, x, size=128).layers[0]
    k = 1 - p
    w = model[1].weight
    u = x @ w.T
    rho = x.square().mean(0) @ w.T.square() / u.var(0)
    log_ratio = -((2 - 2 * alpha) * math.log(k) + torch.log1p((1 - k) / k * rho))
    mean = u.mean(0) * (1 - k ** (1 - alpha))
    tau = math.sqrt(1 + model[2].eps)
    # Two samples of 4096 numbers each, of which one is noisier: allow for the larger of their errors in both.
    assert_within(layer.attribution.log_ratio_stochastic, log_ratio, math.sqrt(2 * 2.5 / 4096))
    noisy = u.std(0) * torch.exp(log_ratio.abs() / 2) / tau
    assert_within(layer.attribution.delta_stochastic, mean / tau, noisy * math.sqrt(2 / 4096))


@pytest.mark.parametrize(("p", "alpha"), [(0.3, 0.75), (0.4, 0.5)])
def test_jumpout_directly_before_a_batchnorm_has_the_parts_of_the_closed_form(p, alpha):
    torch.manual_seed(0)
    center, k = torch.linspace(-2, 2, 32), 1 - p
    x = torch.randn(4096, 32) * 1.5 + center
    model = nn.Sequential(Jumpout(p=p, normalize="none", alpha=alpha), nn.BatchNorm1d(32))
    layer = check(model, x, size=128).layers[0]
    c, v = x.double().mean(0), x.double().var(0)
    trained = k ** (1 - 2 * alpha) * (c.square() + v) - k ** (2 - 2 * alpha) * c.square()
    assert_within(layer.attribution.log_ratio_stochastic, (v / trained).log(), math.sqrt(2 * 3 / 4096))
    error = (trained.sqrt() + v.sqrt()) / math.sqrt(4096)
    assert_within(layer.attribution.delta_stochastic, c * (1 - k ** (1 - alpha)), error)


def assert_within(measured: list[float], expected: torch.Tensor, error: torch.Tensor | float) -> None:
    """Each of 32 channels within four standard errors, and most within two."""
    z = (torch.tensor(measured) - expected.detach()).abs() / error
    assert z.max() < 4
    assert (z < 2).double().mean() > 0.8


def test_what_is_measured_does_not_depend_on_whether_the_cause_is_measured_too():
    class Augmented:
        def __iter__(self):
            return (batch + 0.1 * torch.randn_like(batch) for batch in images().split(64))

    model = trained(nn.Dropout(0.5))
    torch.manual_seed(5)
    reports = [check_batchnorm(model, Augmented(), outputs=False, attribution=cause) for cause in (True, False)]
    for one, two in zip(reports[0].layers, reports[1].layers, strict=True):
        assert (one.delta, one.log_ratio, one.w) == (two.delta, two.log_ratio, two.w)
        assert two.attribution is two.stale is two.cause is None
    assert reports[0].layers[2].cause == "stochastic"
    assert "`1`" not in reports[1].layers[2].note


def test_augmentation_inside_the_forward_function_is_the_same_in_all_states():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(x + torch.randn_like(x))

    report = check(trained(nn.Dropout(0.5)), forward_fn=forward)
    assert set(report.layers[0].attribution.log_ratio_stochastic) == {0.0}


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


def test_noise_is_drawn_again_only_where_there_is_some_and_something_drifts():
    calls = []

    def passes(model: nn.Module, x: torch.Tensor) -> list[str]:
        calls.clear()
        batches = list(x.split(64))
        check_batchnorm(model, batches, outputs=False, progress=lambda what, done, total: calls.append(what))
        return [what for what in dict.fromkeys(calls) if "noise" in what]

    drifting = healthy()
    edit(drifting[4], 0.5, 0)
    assert passes(healthy(nn.Dropout(1e-6)), images()) == passes(drifting, images()) == []
    assert passes(trained(nn.Dropout(0.5)), images()) == ["checking BatchNorm, other noise"]


def test_a_rate_drawn_per_batch_is_measured_better_by_drawing_it_more_often(monkeypatch):
    model, x = trained(Jumpout(sigma=0.3, p_min=0.0)), images(384, seed=7)

    def spread() -> float:
        found = []
        for seed in range(6):
            torch.manual_seed(seed)
            found.append(row(check(model, x), "7").stochastic)
        return float(torch.tensor(found).std())

    often = spread()
    monkeypatch.setattr("jumpout_export.batchnorm.check.DRAWS", 1)
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


def flat() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 8), nn.BatchNorm1d(8))


def test_batches_of_one_value_per_channel_keep_the_verdict():
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    report = check(flat(), x, size=1)
    assert (report.verdict, report.images) == ("drift", 300)
    assert report.layers[0].attribution is None
    assert (
        "Why layers drift was not measured: in every batch a BatchNorm gets one value per channel, which cannot be "
        "normalised by itself; pass larger batches." in report.notes
    )


def test_a_last_batch_of_one_image_is_left_out_of_the_parts_only():
    x = torch.randn(301, 5, generator=torch.Generator().manual_seed(0))
    report = check(flat(), x, size=100)
    assert [layer.images for layer in report.layers] == [301, 301]
    for layer in report.layers:
        assert_adds_up(layer, "log_ratio")
    assert any(note.startswith("Why layers drift was measured without 1 images, in whose") for note in report.notes)


@pytest.mark.parametrize(
    ("size", "trained_on", "note"),
    [
        (4, None, "Batches of 4 images are small"),
        (64, 256, "pass batches of 256, as in training"),
        (64, 128, None),
        (64, None, None),
    ],
)
def test_batches_much_smaller_than_in_training_are_said(size, trained_on, note):
    notes = [text for text in check(healthy(), size=size, training_batch_size=trained_on).notes if "Batches of" in text]
    assert [note in text for text in notes] == ([] if note is None else [True])


def made_row(name: str, verdict: str) -> BatchNormLayer:
    return BatchNormLayer(name=name, verdict=verdict, w=0, w_low=0, w_high=0)


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
    batches = [batch.to(model[0].weight.dtype) for batch in images(256).split(64)]
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
                "Recalibrate it with recalibrate_batchnorm(model, batches); if it comes back, end training at a small "
                "learning rate so that the average catches up, look for augmentation that serving lacks, and say "
                "training_batch_size= if training used smaller batches."
            ),
        ),
        (
            made_parts([-0.1, 0.0, 0.4], [0.0, 0.0, 0.0]),
            (
                "All of it (133%, less what works against it) is propagated: the stored statistics of BatchNorms "
                "before it give it a variance 49% larger than batch statistics do (median channel)."
            ),
            "Fix `first` first; recalibrate_batchnorm(model, batches) corrects them in that order.",
        ),
        (
            made_parts([0.01, 0.0, 0.0], [0.0, 0.0, 0.0], spread=0.3),
            (
                "All of it is stale: what training sees now has larger variances in some channels and smaller ones in "
                "others, by 30% (RMS)."
            ),
            "Recalibrate it with",
        ),
    ],
    ids=["variance", "mean and a second cause", "against", "both ways"],
)
def test_the_sentences_say_how_much_of_it_is_what_and_what_to_do(parts, says, advises):
    cause, advice = cause_sentences(parts, "layer", "first")
    assert cause == says
    assert advice.startswith(advises)


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
