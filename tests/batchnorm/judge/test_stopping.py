"""When a check stops reading samples, and what it says of the ones it did not read."""

import math

import pytest
import torch
from support.checked import check, healthy, row, samples
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.judge.stopping import LabelRuns
from jumpout_export.report import BatchNormReport


def test_fewer_samples_than_asked_are_said():
    assert "Only 256 of 4096 samples were there; pass more for narrower error bars." in check(healthy()).notes
    assert not any(note.startswith("Only") for note in check(healthy(), samples=128).notes)
    assert check(healthy(), samples=100).samples == 128


@pytest.mark.integration
def test_a_decided_check_stops_early_and_says_so():
    model = healthy()
    report = check(model, samples(4096))
    assert (report.verdict, report.samples, report.stopped_early) == ("ok", 512, True)
    assert "Stopped after 512 of 4096 samples: every layer was decided." in report.notes
    assert not any(note.startswith("Only") for note in report.notes)
    assert all(layer.samples == 512 for layer in report.layers)
    whole = check(model, samples(4096), stop_early=False)
    assert (whole.samples, whole.stopped_early) == (4096, False)


def check_shuffled(model: nn.Module, x: torch.Tensor, **options: object) -> BatchNormReport:
    """A drift ends a check early only where the first samples are known to be drawn at random from all."""
    loader = DataLoader(TensorDataset(x), 64, shuffle=True, generator=torch.Generator().manual_seed(0))
    return check_batchnorm(model, loader, outputs=False, **options)


@pytest.mark.integration
def test_an_early_look_is_strict():
    model = healthy()
    model[7].running_mean += 0.3 * (model[7].running_var + 1e-5).sqrt()
    early, whole = (row(check_shuffled(model, samples(4096), stop_early=early), "7") for early in (True, False))
    assert (early.samples, whole.samples) == (512, 4096)
    # An eighth of the samples alone makes sqrt(8) = 2.8; the level 3e-8 instead of .05 makes 7.3 / 2.04 of that.
    assert early.w_high**2 - early.w_low**2 > 6 * (whole.w_high**2 - whole.w_low**2)


@pytest.mark.parametrize("size", [64, 100, 700])
def test_looks_are_taken_at_the_end_of_a_batch(size):
    report = check_batchnorm(healthy(), samples(4096).split(size), outputs=False)
    assert report.samples == -(-512 // size) * size


def drifting_by_the_margin(x: torch.Tensor) -> tuple[nn.Module, float]:
    """A model whose last layer has exactly the W returned, on all of `x`: too close to decide."""
    model = healthy()
    model[7].running_mean += 0.1 * (model[7].running_var + 1e-5).sqrt()
    return model, row(check(model, x, stop_early=False), "7").w


@pytest.mark.integration
def test_a_check_never_stops_before_512_samples_nor_for_undecided_layers():
    assert not check(healthy(), samples(448)).stopped_early
    model, w = drifting_by_the_margin(samples(2048))
    report = check(model, samples(2048), warn=w, samples=1500)
    assert (report.verdict, report.samples, report.stopped_early) == ("inconclusive", 1536, False)


@pytest.mark.integration
@pytest.mark.parametrize("count", [512, 1024, 2000])
def test_a_loader_read_to_its_end_was_not_stopped_early(count):
    model, w = drifting_by_the_margin(samples(count))
    for batches in (samples(count).split(64), iter_only(samples(count).split(64))):
        report = check_batchnorm(model, batches, outputs=False, warn=w)
        assert (report.samples, report.stopped_early) == (count, False)
    assert not check(healthy(), samples(512)).stopped_early


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
    assert check_shuffled(model, samples(4096)).samples == 512


def test_the_effect_on_the_outputs_is_measured_on_the_samples_of_a_check_that_stopped():
    model = healthy().append(nn.Flatten()).append(nn.Linear(288, 3))
    report = check_batchnorm(model, samples(4096).split(64))
    assert report.samples == report.outputs.samples == 512


@pytest.mark.parametrize("order", ["sorted", "one class", "shuffled", "none"])
def test_a_loader_sorted_by_class_is_said_and_read_to_the_end(order):
    x = samples(2048)
    labels = {"sorted": torch.arange(2048) // 205, "one class": torch.zeros(2048).long()}
    labels["shuffled"] = torch.arange(2048) % 10
    batches = list(zip(x.split(64), labels[order].split(64), strict=True)) if order in labels else x.split(64)
    model = healthy()
    report = check_batchnorm(model, batches, outputs=False)
    said = [note for note in report.notes if "sorted by class" in note]
    assert len(said) == (order in ("sorted", "one class"))
    assert report.samples == (2048 if said else 512)
    assert all("The labels of the 2048 samples come in runs or are all the same" in note for note in said)


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
