"""Groups of samples as the unit: error bars that cover, in whatever batches and order, and entries that name them."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.errors import ArgumentError
from jumpout_export.report import BatchNormReport


def scenes(count: int, frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of scenes, shuffled, and the scene of each: mean 0, variance .64 + .36."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(count, 8, 1, generator=draw).repeat_interleave(frames, 0) * 0.8
    x = common + 0.6 * torch.randn(count * frames, 8, 16, generator=draw)
    order = torch.randperm(len(x), generator=draw)
    return x[order], torch.arange(count).repeat_interleave(frames)[order]


def off(by: float = 0.0) -> nn.Module:
    model = nn.BatchNorm1d(8, momentum=0.0)
    model.running_mean += by
    model.num_batches_tracked.fill_(1000)
    return model


def check(model: nn.Module, batches: list, **options: object) -> BatchNormReport:
    options = {"outputs": False, "attribution": False, "training_batch_size": 128} | options
    return check_batchnorm(model, batches, **options)


def dicts(x: torch.Tensor, scene: torch.Tensor, size: int = 64) -> list[dict[str, torch.Tensor]]:
    return [{"x": a, "scene": b} for a, b in zip(x.split(size), scene.split(size), strict=True)]


def covered(trials: int, *, grouped: bool) -> int:
    """How often the 95% interval of a channel's mean holds the truth, over all channels."""
    inside = 0
    for seed in range(trials):
        batches = dicts(*scenes(64, 8, seed))
        if not grouped:
            batches = [batch["x"] for batch in batches]
        (layer,) = check(off(), batches, groups="scene" if grouped else None).layers
        inside += sum(
            abs(delta) <= 2.0 * se
            for delta, se in zip(layer.delta, layer.delta_se, strict=True)  # t with 63 degrees
        )
    return inside


def test_error_bars_of_groups_cover_the_truth():
    trials, channels = 25, 8
    bound = 6 * math.sqrt(0.05 * 0.95 * trials * channels)
    assert covered(trials, grouped=True) >= 0.95 * trials * channels - bound


def test_the_standard_error_is_that_of_the_scenes_and_not_of_the_frames():
    """Of 64 scenes: sqrt((.64 + .36 / 128) / 64) = .1; of 512 independent frames .036."""
    (layer,) = check(off(), dicts(*scenes(64, 8)), groups="scene").layers
    assert sum(layer.delta_se) / 8 == pytest.approx(math.sqrt((0.64 + 0.36 / 128) / 64), rel=0.1)


@pytest.mark.parametrize("size", [7, 64, 512])
def test_groups_may_come_in_any_batch_and_order(size):
    x, scene = scenes(64, 8)
    whole = check(off(), dicts(x, scene), groups="scene", stop_early=False).layers[0]
    order = scene.argsort(stable=True)
    for one, two in ((x, scene), (x[order], scene[order])):
        layer = check(off(), dicts(one, two, size), groups="scene", stop_early=False).layers[0]
        assert layer.delta_se == pytest.approx(whole.delta_se, rel=1e-9)
        assert layer.w == pytest.approx(whole.w, rel=1e-9)


def test_groups_of_one_sample_are_samples():
    x, _ = scenes(512, 1)
    alone = check(off(), list(x.split(64)), stop_early=False).layers[0]
    one = check(off(), dicts(x, torch.arange(512)), groups="scene", stop_early=False).layers[0]
    assert one.delta_se == pytest.approx(alone.delta_se, rel=1e-9)
    assert (one.w, one.w_low, one.w_high) == pytest.approx((alone.w, alone.w_low, alone.w_high), rel=1e-9)


class Clip(NamedTuple):
    x: torch.Tensor
    labels: torch.Tensor
    scene: list[str]


def test_an_entry_is_named_by_key_place_or_function_and_is_no_label():
    x, scene = scenes(64, 8)
    names = [[f"clip {number}" for number in part.tolist()] for part in scene.split(64)]
    expected = check(off(), dicts(x, scene), groups="scene").layers[0].delta_se
    labels = torch.zeros(64, dtype=torch.long)
    ways = [
        ([Clip(a, labels, b) for a, b in zip(x.split(64), names, strict=True)], "scene"),
        (list(zip(x.split(64), scene.split(64), strict=True)), 1),
        (dicts(x, scene), lambda batch: batch["scene"]),
    ]
    ways[2] = ([batch["x"] for batch in dicts(x, scene)], None)
    parts = iter(scene.split(64))
    known = {part[0, 0, 0].item(): next(parts) for part in x.split(64)}
    ways[2] = (ways[2][0], lambda batch: known[batch[0, 0, 0].item()])
    for batches, groups in ways:
        report = check(off(), batches, groups=groups)
        assert report.layers[0].delta_se == pytest.approx(expected)
        assert report.groups == 64


def test_fewer_than_eight_groups_decide_nothing():
    report = check(off(3.0), dicts(*scenes(7, 64)), groups="scene")
    assert report.verdict == "inconclusive"
    assert report.layers[0].note.startswith(
        "Undecided: 7 groups of samples are too few for an error bar; pass at least 8"
    )
    assert check(off(3.0), dicts(*scenes(9, 64)), groups="scene").verdict == "drift"


def test_a_drift_within_the_noise_of_scenes_is_none_and_one_beyond_it_is():
    assert check(off(0.03), dicts(*scenes(64, 8)), groups="scene").verdict == "inconclusive"
    assert check(off(1.0), dicts(*scenes(64, 8)), groups="scene").verdict == "drift"


@pytest.mark.parametrize(
    ("batch", "groups", "text"),
    [
        ({"x": torch.ones(8, 8)}, "clip", "groups='clip' must be an entry of every batch, got 'x'"),
        ((torch.ones(8, 8),), 3, "groups=3 must be an entry of every batch, got a tuple"),
        (torch.ones(8, 8), lambda batch: None, "groups must be one value for each sample, got NoneType"),
        (torch.ones(8, 8), lambda batch: [1, 2, 3], "groups must be one value for each sample, got 3 for a batch of 8"),
    ],
    ids=["no such key", "no such place", "no values", "too few"],
)
def test_what_names_no_groups_is_an_error(batch, groups, text):
    with pytest.raises(ArgumentError, match=text):
        check(off(), [batch], groups=groups)


def test_groups_and_weights_of_pixels_do_not_go_together():
    with pytest.raises(ArgumentError, match="groups= and weigh_by='pixels' do not go together"):
        check(off(), dicts(*scenes(8, 8)), groups="scene", weigh_by="pixels")


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        (0, "numbers or strings"),
        (lambda _: [math.nan] * 64, "numbers or strings, got 'nan'"),
        (lambda _: [1, 2], "got 2 for a batch of 64"),
    ],
    ids=["the samples themselves", "nan", "two for 64 samples"],
)
def test_what_cannot_tell_groups_apart_is_refused(groups, text):
    x, scene = scenes(16, 8)
    batches = list(zip(x.split(64), scene.split(64), strict=True))
    with pytest.raises(ArgumentError, match=text):
        check(off(), batches, groups=groups)
    assert check(off(), batches, groups=1).groups == 16
