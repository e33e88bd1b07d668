"""Other data told apart from stale averages, by samples of training; several sets of samples side by side."""

import math

import pytest
import torch
from support.attributed import edit, flat, healthy, network, samples
from support.moments import moments_of
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.judge.intervals import data_distance
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.batchnorm.sets import check_batchnorm_sets
from jumpout_export.errors import ArgumentError
from jumpout_export.render.writers.markdown import render_markdown
from jumpout_export.report import BatchNormReport

PARTS = ("stale", "stochastic", "propagated", "data")


def check(model: nn.Module, x: torch.Tensor, reference: torch.Tensor | None, **options: object) -> BatchNormReport:
    known = None if reference is None else list(reference.split(64))
    options = {"outputs": False, "stop_early": False} | options
    return check_batchnorm(model, list(x.split(64)), reference=known, **options)


def assert_adds_up(report: BatchNormReport) -> None:
    for layer in report.layers:
        for quantity in ("log_ratio", "delta"):
            parts = [getattr(layer.attribution, f"{quantity}_{part}") for part in PARTS]
            whole = torch.tensor(getattr(layer, quantity), dtype=torch.double)
            torch.testing.assert_close(torch.tensor(parts, dtype=torch.double).sum(0), whole, rtol=0, atol=1e-13)
        assert sum(getattr(layer, part) for part in PARTS) == pytest.approx(layer.median_log_ratio, abs=1e-12)


@pytest.mark.parametrize(
    "camera",
    [
        lambda x: 0.6 * x + 0.2,
        lambda x: x.roll(1, 1) * torch.tensor([2.0, 1.0, 0.5])[:, None, None],
        lambda x: x.relu(),
    ],
    ids=["contrast", "colours", "cut off"],
)
def test_another_camera_is_data_and_says_nothing_of_the_learning_rate(camera):
    model = healthy()
    report = check(model, camera(samples(seed=3)), samples(seed=4))
    assert (report.verdict, report.origin, report.reference_samples) == ("drift", "1", 512)
    assert report.layers[0].cause == "data"
    assert "is data: these samples have" in report.layers[0].note
    assert all("learning rate" not in layer.note for layer in report.layers)
    assert_adds_up(report)


def test_verdict_and_w_stay_those_of_the_samples_that_are_checked():
    model, x = healthy(), samples(seed=3) * 0.6
    alone, known = check(model, x, None), check(model, x, samples(seed=4))
    for one, two in zip(alone.layers, known.layers, strict=True):
        assert (one.verdict, one.w, one.w_low, one.w_high) == (two.verdict, two.w, two.w_low, two.w_high)


def test_a_stale_layer_stays_stale_on_the_data_of_training():
    model = healthy()
    edit(model[4], 0.4, 0.5)
    report = check(model, samples(seed=3), samples(seed=4))
    layer = next(layer for layer in report.layers if layer.name == "4")
    assert (report.origin, layer.cause) == ("4", "stale")
    assert layer.data == pytest.approx(0, abs=0.05)
    assert layer.stale == pytest.approx(-0.5, abs=0.05)
    assert "end training at a small learning rate" in layer.note
    assert_adds_up(report)


def test_stale_statistics_and_other_data_are_told_apart_in_one_layer():
    """At the first BatchNorm the truth is known: ln of the edit, and ln of the square of the contrast."""
    model = healthy()
    edit(model[1], 0.0, 0.3)
    layer = check(model, samples(seed=3) * 0.5, samples(seed=4)).layers[0]
    for part, truth in (("stale", -0.3), ("stochastic", 0.0), ("propagated", 0.0), ("data", 2 * math.log(0.5))):
        low, high = layer.part_intervals[part]
        assert getattr(layer, part) == pytest.approx(truth, abs=0.03)
        assert low - 0.01 <= truth <= high + 0.01
    assert layer.cause == "data"


def test_noise_is_measured_on_the_reference():
    model = healthy(nn.Dropout(0.5))
    report = check(model, samples(seed=3), samples(seed=4))
    stochastic = next(layer for layer in report.layers if layer.name == "7").stochastic
    alone = next(layer for layer in check(model, samples(seed=4), None).layers if layer.name == "7").stochastic
    assert stochastic == pytest.approx(alone, abs=0.06)


def test_a_missing_normalisation_is_named_with_the_map_that_fits():
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    raw = torch.rand(1024, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    normalised = (raw - mean[:, None, None]) / std[:, None, None]
    model = network()
    recalibrate_batchnorm(model, normalised[:512].split(64))
    report = check(model, raw[:512], normalised[512:])
    (note,) = [note for note in report.notes if note.startswith("The inputs have mean")]
    assert report.layers[0].cause == "data"
    shift, scale = (
        [float(value) for value in part.split("]")[0].split(",")] for part in note.split("(x - [")[1].split("/ [")
    )
    assert shift == pytest.approx(mean.tolist(), abs=0.01)
    assert scale == pytest.approx(std.tolist(), abs=0.005)


def test_data_that_differ_otherwise_get_no_map():
    x = samples(seed=3)
    signs = x.sign() * x.square().mean().sqrt()  # of the same mean and deviation
    smooth = nn.functional.avg_pool2d(x, 3, 1, 1)
    smooth = (smooth - smooth.mean()) / smooth.std() * x.std() + x.mean()
    report = check(healthy(), smooth, samples(seed=4))
    assert signs.std() == pytest.approx(float(x.std()), rel=0.01)
    assert report.layers[0].cause == "data"
    assert any("what differs is not a scale" in note for note in report.notes)


def test_without_a_reference_both_possibilities_are_named_and_how_to_tell():
    note = check(healthy(), samples(seed=3) * 0.6, None).layers[0].note
    assert "Either the average lags behind the weights or saw augmentation that serving lacks, or these samples" in note
    assert "check with reference=" in note
    assert "learning rate" not in note


def test_inputs_that_are_no_pictures_have_a_reference_too():
    model, x = flat(), torch.randn(1024, 5, generator=torch.Generator().manual_seed(0))
    recalibrate_batchnorm(model, x[:512].split(64))
    report = check(model, x[:512] * 2, x[512:])
    assert report.layers[0].cause == "data"
    assert not any("The inputs have mean" in note for note in report.notes)


def test_sets_stand_side_by_side_and_the_reference_is_measured_once():
    passes = []

    class Counted(list):
        def __iter__(self):
            passes.append(len(self))
            return super().__iter__()

    model = healthy()
    reference = Counted(samples(seed=4).split(64))
    sets = {"day": samples(seed=3).split(64), "night": (samples(seed=5) * 0.3).split(64)}
    report = check_batchnorm_sets(model, sets, reference=reference, outputs=False, stop_early=False)
    assert {name: check.verdict for name, check in report.sets.items()} == {"day": "ok", "night": "drift"}
    assert (report.verdict, bool(report), len(passes)) == ("drift", False, 1)
    alone = check_batchnorm(model, sets["night"], reference=list(reference), outputs=False, stop_early=False)
    assert report.sets["night"].layers[0].data == alone.layers[0].data
    page = render_markdown(report)
    assert "1 of 2 sets of samples, first night: " in page
    assert "| `day` | " in page


def test_no_set_is_an_error():
    with pytest.raises(ArgumentError, match="at least one set of batches by name"):
        check_batchnorm_sets(healthy(), {})


def test_the_model_is_left_as_it_was():
    model = healthy(nn.Dropout(0.3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check(model, samples(seed=3), samples(seed=4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def halves(trials: int, *, naive: bool = False) -> int:
    """How often two halves of one set are called other data, of a layer with 64 channels."""
    called = 0
    for trial in range(trials):
        generator = torch.Generator().manual_seed(trial)
        norm = nn.BatchNorm1d(64)
        offset = torch.randn(512, 64, 1, generator=generator)
        x = offset + torch.randn(512, 64, 8, generator=generator).exp()
        one, two = moments_of(norm, x[:256]), moments_of(norm, x[256:])
        apart = data_distance(one, two, norm.eps, torch.ones(64, dtype=torch.bool), 0.05)
        called += apart.w > 0 if naive else apart.low > 0
    return called


def test_half_splits_are_called_data_in_at_most_19_of_200_runs():
    assert halves(200) <= 19


def test_the_distance_alone_calls_about_half_of_them_data():
    assert halves(60, naive=True) > 15


def test_a_reference_that_cannot_be_read_is_told_from_the_batches():
    model, batches = nn.BatchNorm1d(4).eval(), [torch.randn(16, 4)]
    for wrong in (iter(batches), [], 3):
        with pytest.raises((ValueError, TypeError)) as caught:
            check_batchnorm(model, batches, reference=wrong)
        assert "the reference" in caught.value.__notes__[0]
    with pytest.raises(ValueError) as caught:
        check_batchnorm(model, [], reference=batches)
    assert not hasattr(caught.value, "__notes__")
