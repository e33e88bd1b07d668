"""What is a BatchNorm: every kind, the modules that look like one, and what is known of each."""

import pytest
import torch
from torch import nn
from torch.ao.nn.quantized import BatchNorm2d as QuantizedBatchNorm2d

from jumpout_export.model import norms


class FrozenBatchNorm2d(nn.Module):
    """As detectron2's; its copies may hold eps in the forward alone."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))


class Renamed(FrozenBatchNorm2d):
    pass


class FrozenBatchNormLike(nn.Module):
    """The name alone, without the buffers."""


class Averages(nn.Module):
    """Buffers alone, without a name that is known."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))


BATCH, INSTANCE, FIXED, NONE = "batch", "instance", "fixed", "none"
KINDS = {
    "1d": (nn.BatchNorm1d(3), BATCH),
    "2d": (nn.BatchNorm2d(3), BATCH),
    "sync": (nn.SyncBatchNorm(3), BATCH),
    "untracked": (nn.BatchNorm2d(3, track_running_stats=False), BATCH),
    "tracked instance": (nn.InstanceNorm2d(3, track_running_stats=True), INSTANCE),
    "frozen": (FrozenBatchNorm2d(3), FIXED),
    "subclass of frozen": (Renamed(3), FIXED),
    "instance": (nn.InstanceNorm2d(3), NONE),
    "quantized": (QuantizedBatchNorm2d(3), NONE),
    "name only": (FrozenBatchNormLike(), NONE),
    "buffers only": (Averages(), NONE),
    "group": (nn.GroupNorm(1, 3), NONE),
    "layer": (nn.LayerNorm(3), NONE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_it_is(kind):
    module, what = KINDS[kind]
    assert norms.serves_with_statistics(module) == (what != NONE)
    assert list(norms.named_norms(nn.Sequential(nn.ReLU(), module))) == ([("1", module)] if what != NONE else [])
    assert norms.is_fixed(module) == (what == FIXED)
    assert norms.is_batchnorm(module) == (what == BATCH or kind == "quantized")
    if what != NONE:
        assert norms.channels(module) == 3
        assert norms.is_instance_norm(module) == (what == INSTANCE)


def test_a_norm_that_is_used_twice_is_one():
    shared = nn.BatchNorm1d(4)
    assert [path for path, _ in norms.named_norms(nn.Sequential(shared, shared, nn.BatchNorm1d(2)))] == ["0", "2"]


def test_the_numbers_of_each():
    batch = nn.BatchNorm2d(3, eps=0.25, momentum=0.5)
    assert (norms.eps(batch), norms.momentum(batch), norms.batches_tracked(batch)) == (0.25, 0.5, 0)
    fixed = FrozenBatchNorm2d(3)
    assert (norms.eps(fixed), norms.momentum(fixed), norms.batches_tracked(fixed)) == (1e-5, 0.0, None)
    assert norms.momentum(nn.BatchNorm2d(3, momentum=None)) is None
    assert norms.batches_tracked(nn.BatchNorm2d(3, track_running_stats=False)) is None


@pytest.mark.parametrize("kind", ["1d", "2d", "sync", "untracked", "tracked instance", "frozen"])
def test_using_the_batch_writes_no_buffer(kind):
    module = KINDS[kind][0].eval()
    buffers = dict(module._buffers)
    saved = {name: value.clone() for name, value in buffers.items() if value is not None}
    training, tracking = module.training, getattr(module, "track_running_stats", None)
    x = torch.randn(8, 3, *([] if kind == "1d" else [2, 2])) * 5 + 3
    norms.use_batch(module)
    if kind != "frozen":
        y = module(x)
        over = (0, *range(2, x.ndim)) if kind != "tracked instance" else (2, 3)
        assert y.mean(over).abs().max() < 1e-4
        assert (y.var(over, unbiased=False) - 1).abs().max() < 1e-2
    module._buffers.update(buffers)
    module.training = training
    if tracking is not None:
        module.track_running_stats = tracking
    if kind != "tracked instance":  # torch's own always moves its buffers
        assert all(torch.equal(buffers[name], value) for name, value in saved.items())


def test_only_torchs_own_forward_can_be_handed_statistics():
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2

    patched = nn.BatchNorm2d(3)
    patched.forward = lambda x: x
    assert norms.is_plain(nn.BatchNorm1d(3))
    assert norms.is_plain(nn.SyncBatchNorm(3))
    assert not norms.is_plain(Own(3))
    assert not norms.is_plain(patched)
    assert not norms.is_plain(nn.InstanceNorm2d(3, track_running_stats=True))
    assert not norms.is_plain(FrozenBatchNorm2d(3))


def test_owners_of_statistics_are_known_without_their_classes():
    model = nn.Sequential(nn.Linear(3, 3), Averages(), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    assert norms.statistics_owners(model) == ["1", "2"]
    assert norms.statistics_owners(nn.BatchNorm1d(3)) == [""]
    assert [norms.stores_statistics(module) for module in model] == [False, True, True, True]
