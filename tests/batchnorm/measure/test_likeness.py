"""Samples that are not independent: groups of like ones found in any order, data that come sorted, and healthy data."""

import pytest
import torch
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.measure.likeness import Likeness
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.report import BatchNormReport


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(count: int, frames: int, noise: float = 0.6, seed: int = 0) -> torch.Tensor:
    """Shuffled frames of scenes that have a mean in common."""
    draw = generator(seed)
    common = torch.randn(count, 8, 1, generator=draw).repeat_interleave(frames, 0) * 0.8
    x = common + noise * torch.randn(count * frames, 8, 16, generator=draw)
    return x[torch.randperm(len(x), generator=draw)]


def likeness_of(x: torch.Tensor) -> Likeness:
    likeness = Likeness()
    for batch in x.split(64):
        likeness.add(batch.mean(2), batch.var(2, correction=0))
    return likeness


@pytest.mark.parametrize(("count", "frames"), [(64, 8), (128, 4), (256, 2), (64, 16)])
def test_frames_of_scenes_are_found_in_any_order_and_how_many_are_alike(count, frames):
    assert likeness_of(scenes(count, frames)).group_size() == pytest.approx(frames, rel=0.15)


def test_one_sample_repeated_is_found_among_others_that_are_not():
    draw = generator()
    x = torch.cat([torch.randn(256, 8, 16, generator=draw), torch.randn(64, 8, 16, generator=draw).repeat(4, 1, 1)])
    assert likeness_of(x[torch.randperm(512, generator=draw)]).group_size() == pytest.approx(2.5, abs=0.1)


INDEPENDENT = {
    "one channel": lambda draw: torch.randn(512, 1, 16, generator=draw),
    "64 channels": lambda draw: torch.randn(512, 64, 1, generator=draw),
    "offsets": lambda draw: torch.randn(1024, 8, 1, generator=draw) + torch.randn(1024, 8, 9, generator=draw),
    "heavy tails": lambda draw: torch.randn(512, 8, 1, generator=draw).exp(),
    "ten kinds of sample": lambda draw: (
        3 * torch.randn(10, 16, 1, generator=draw)[torch.randint(10, (512,), generator=draw)]
        + 0.5 * torch.randn(512, 16, 4, generator=draw)
    ),
    "few": lambda draw: torch.randn(64, 3, 4, generator=draw),
}


@pytest.mark.parametrize("kind", INDEPENDENT)
def test_independent_samples_are_not_taken_for_groups_or_for_sorted(kind):
    for seed in range(10):
        likeness = likeness_of(INDEPENDENT[kind](generator(seed)))
        assert likeness.group_size() == 1
        assert not likeness.sorted


@pytest.mark.parametrize("by", ["brightness", "kind"])
def test_sorted_samples_are_found(by):
    x = INDEPENDENT["ten kinds of sample" if by == "kind" else "offsets"](generator())
    order = x.mean((1, 2)).argsort() if by == "brightness" else x[:, 0, 0].round().argsort()
    assert likeness_of(x[order]).sorted


def test_samples_that_do_not_vary_or_are_few_show_nothing():
    assert likeness_of(torch.ones(128, 3, 4)).group_size() == 1
    assert not likeness_of(torch.ones(128, 3, 4)).sorted
    assert likeness_of(scenes(8, 4)).group_size() == 1


def check(model: nn.Module, x: torch.Tensor, **options: object) -> BatchNormReport:
    return check_batchnorm(model, list(x.split(64)), outputs=False, attribution=False, **options)


def off(by: float) -> nn.Module:
    """What it stores is exact but for the mean."""
    model = nn.BatchNorm1d(8, momentum=0.0)
    model.running_mean += by
    model.running_var.fill_(0.64 + 0.36)
    model.num_batches_tracked.fill_(1000)
    return model


def test_like_samples_widen_the_intervals_and_the_note_says_why():
    verdicts = [check(off(0.03), scenes(64, 8, seed=seed), training_batch_size=128) for seed in range(8)]
    assert all(report.verdict == "inconclusive" for report in verdicts)
    assert any("about 8 at a time are alike" in note for note in verdicts[0].notes)
    # As many independent ones are no reason to be careful.
    alone = check(off(0.3), scenes(512, 1), training_batch_size=128)
    assert alone.verdict == "drift"
    assert not any("alike" in note for note in alone.notes)


def test_a_large_drift_is_one_in_like_samples_too():
    assert check(off(2.0), scenes(64, 8), training_batch_size=128).verdict == "drift"


@pytest.mark.parametrize("by", ["brightness", "one channel"])
def test_sorted_data_do_not_end_early_in_a_drift(by):
    x = INDEPENDENT["offsets"](generator()).repeat(1, 1, 1)
    x = torch.cat([x, INDEPENDENT["offsets"](generator(1))])
    x = x[(x.mean((1, 2)) if by == "brightness" else x[:, 0].mean(1)).argsort()]
    model = nn.BatchNorm1d(8)
    recalibrate_batchnorm(model, [x])
    report = check(model, x)
    assert (report.verdict, report.samples, report.stopped_early) == ("ok", 2048, False)
    assert any("come sorted, or in long runs" in note for note in report.notes)


def test_a_drift_ends_early_only_where_the_loader_draws_at_random():
    x = torch.randn(4096, 8, 4, generator=generator())
    data = torch.utils.data.TensorDataset(x)
    options = {"outputs": False, "attribution": False}
    for shuffle, samples in ((True, 512), (False, 4096)):
        loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=shuffle, generator=generator())
        report = check_batchnorm(off(2.0), loader, **options)
        assert (report.verdict, report.samples) == ("drift", samples)


def copies(samples: int, times: int, values: int = 16) -> torch.Tensor:
    """A few samples many times over, shuffled."""
    draw = generator()
    x = torch.randn(samples, 8, values, generator=draw).repeat(times, 1, 1)
    return x[torch.randperm(len(x), generator=draw)]


@pytest.mark.parametrize(("samples", "times"), [(1, 512), (4, 128), (12, 40), (64, 8)])
def test_copies_are_counted_however_few_samples_there_are(samples, times):
    assert likeness_of(copies(samples, times)).group_size() == pytest.approx(times, rel=0.02)


def test_rows_of_few_values_and_blank_samples_are_no_copies():
    assert likeness_of(copies(12, 40, values=1)).group_size() == 1  # as an embedding of a dozen words
    blank = torch.randn(512, 8, 16, generator=generator())
    blank[::3] = torch.randn(8, 16, generator=generator(1))
    assert likeness_of(blank).group_size() == 1


def test_one_sample_many_times_decides_nothing():
    torch.manual_seed(0)
    model = nn.BatchNorm1d(8, momentum=0.0).eval()
    report = check_batchnorm(model, list((3 + copies(1, 512)).split(64)), outputs=False)
    assert report.verdict == "inconclusive"
    assert "too alike for an error bar" in (report.layers[0].note or "")
    assert check_batchnorm(model, list((3 + torch.randn(512, 8, 16)).split(64)), outputs=False).verdict == "drift"
