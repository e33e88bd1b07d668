"""Intervals of the parts cover what the noise of training draws: measured against the spread over many seeds."""

import math
import statistics

import pytest
import torch
from support.attributed import check, healthy, row_of, samples, trained
from torch import nn

from jumpout_export import Jumpout
from jumpout_export.batchnorm.judge.estimate import student95
from jumpout_export.batchnorm.measure import noise
from jumpout_export.batchnorm.measure.collect import collect_states
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.batchnorm.measure.states import RENORMALISED, TRAINING

SEEDS = 20
NOISY = "7"  # the BatchNorm behind the noise


def checked(model, x, size, seed, **options):
    torch.manual_seed(seed)
    return row_of(check(model, x, size, **options), NOISY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "size"),
    [(lambda: trained(Jumpout(sigma=0.3)), 64), (lambda: healthy(Jumpout(sigma=0.3)), 16)],
    ids=["few batches, drawn again and again", "a pass of 8 batches"],
)
def test_they_cover_what_other_seeds_give(monkeypatch, make, size):
    model, x = make(), samples(128, seed=5)
    rows = [checked(model, x, size, seed, warn=0.2, fail=0.4) for seed in range(SEEDS)]
    for part in ("stale", "stochastic"):
        values = [getattr(row, part) for row in rows]
        truth, spread = statistics.mean(values), statistics.stdev(values)
        covered = sum(row.part_intervals[part][0] <= truth <= row.part_intervals[part][1] for row in rows)
        # Six standard errors of the draws below 95%; they cover the sampling of the data too, which is the same here.
        assert covered >= SEEDS * 0.95 - 6 * math.sqrt(SEEDS * 0.95 * 0.05)
        halves = [(row.part_intervals[part][1] - row.part_intervals[part][0]) / 2 for row in rows]
        assert statistics.median(halves) > 1.6 * spread
    # Without the noise of the forwards they miss most of it.
    monkeypatch.setattr("jumpout_export.batchnorm.reference.is_noisy", lambda one, without: False)
    alone = [checked(model, x, size, seed, warn=0.2, fail=0.4) for seed in range(3)]
    halves = [row.part_intervals["stale"][1] - row.part_intervals["stale"][0] for row in alone]
    with_noise = [row.part_intervals["stale"][1] - row.part_intervals["stale"][0] for row in rows]
    assert max(halves) < statistics.median(with_noise)


def test_one_forward_says_nothing_of_its_noise():
    row = checked(healthy(nn.Dropout(0.2)), samples(64, seed=5), 64, 0, warn=3.0, fail=4.0)
    assert row.part_intervals.keys() == {"propagated"}
    # The BatchNorms before it see no noise.
    assert row_of(check(healthy(nn.Dropout(0.2)), samples(64, seed=5), 64), "4").part_intervals.keys() == {
        "stale",
        "stochastic",
        "propagated",
    }


def test_what_a_forward_adds_is_its_sums_with_the_noise_less_those_without():
    model, x = healthy(nn.Dropout(0.5)), samples(96, seed=5)
    layers = batchnorm_layers(model)
    feed = Feed(model, list(x.split(32)))
    without, noisy = collect_states(feed, layers, [RENORMALISED, TRAINING], "test")
    added = noise.noise_of_forwards(noisy.moments[NOISY], without.moments[NOISY])
    assert added.shape == (3, 6, 16)
    assert added[:, 0].eq(32).all()
    whole = noisy.moments[NOISY].total - without.moments[NOISY].total
    torch.testing.assert_close(added[:, 1:].sum(0), whole[1:], rtol=1e-9, atol=1e-9)
    one = collect_states(Feed(model, [x[:32]]), layers, [RENORMALISED], "test")[0].moments[NOISY].total
    torch.testing.assert_close(without.moments[NOISY].batches[0], one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (6, 2.447), (7, 2.365), (10, 2.228), (31, 2.040)])
def test_students_t_is_that_of_the_tables(freedom, t):
    assert student95(freedom) == pytest.approx(t, abs=0.006)
