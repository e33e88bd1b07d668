"""What a layer sees is what reaches batch_norm, whatever its module does before: subclasses, slices, bare buffers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.measure.calls import Calls
from jumpout_export.batchnorm.measure.collect import collect, collect_states
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.batchnorm.measure.states import RENORMALISED, SERVING, TRAINING
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.model.randomness import same_bits

CHANNELS = 6


class Tokens(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class SyncTokens(nn.SyncBatchNorm):
    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class InstanceTokens(nn.InstanceNorm1d):
    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Flat(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x.flatten(0, 1)).view_as(x)


class Padded(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(F.pad(x.transpose(1, 2), (0, 1)))[..., :-1].transpose(1, 2)


class Slices(nn.BatchNorm1d):
    """One call per half of the channels, each with its part of the buffers."""

    def forward(self, x):
        parts = []
        for at in (slice(0, 2), slice(2, None)):
            stored = (self.running_mean[at], self.running_var[at], self.weight[at], self.bias[at])
            parts.append(F.batch_norm(x.transpose(1, 2)[:, at], *stored, self.training, self.momentum, self.eps))
        return torch.cat(parts, 1).transpose(1, 2)


class Torchs(nn.BatchNorm1d):
    """Calls torch's own function, not that of torch.nn.functional."""

    def forward(self, x):
        stored = (self.weight, self.bias, self.running_mean, self.running_var, self.training, self.momentum, self.eps)
        return torch.batch_norm(x.transpose(1, 2), *stored, False).transpose(1, 2)


class Outside(nn.Module):
    """Uses the buffers of a BatchNorm that is never called itself."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(CHANNELS)

    def forward(self, x):
        bn = self.bn
        stored = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        return F.batch_norm(x.transpose(1, 2), *stored, self.training, bn.momentum, bn.eps).transpose(1, 2)


def instance_tokens(channels):
    return InstanceTokens(channels, affine=True, track_running_stats=True)


KINDS = {
    "tokens last": Tokens,
    "sync": SyncTokens,
    "instance": instance_tokens,
    "flattened": Flat,
    "padded": Padded,
    "slices": Slices,
    "torch.batch_norm": Torchs,
    "buffers alone": lambda _: Outside(),
}


def network(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, CHANNELS), KINDS[kind](CHANNELS), nn.Dropout(0.5), nn.Linear(CHANNELS, 3))


def data(count=128):
    """As many tokens as channels, each token with a variance of its own."""
    generator = torch.Generator().manual_seed(1)
    scale = 1 + torch.arange(CHANNELS).float()[:, None]
    return scale * torch.randn(count, CHANNELS, 4, generator=generator)


def stored(model):
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name}


def trained(kind):
    """What torch itself stores of all the data in one batch."""
    model = network(kind).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.momentum = 1.0
            if isinstance(module, nn.SyncBatchNorm):
                module.__class__ = Tokens  # which needs no process group
    with torch.no_grad():
        model(data())
    return stored(model)


@pytest.mark.parametrize("method", ["exact", "batch", "variance"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_what_torch_itself_would_store(kind, method):
    model, expected = network(kind), trained(kind)
    start = stored(model)
    recalibrate_batchnorm(model, data().split(32), method)
    for name, value in stored(model).items():
        kept = method == "variance" and name.endswith("mean")
        torch.testing.assert_close(value, start[name] if kept else expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_layer_is_ok_and_a_spoiled_one_drifts(kind):
    model, batches = network(kind), data(512).split(64)
    recalibrate_batchnorm(model, batches)
    report = check_batchnorm(model, batches)
    (layer,) = report.layers
    assert (report.verdict, layer.w, layer.samples) == ("ok", pytest.approx(0, abs=1e-5), 512)
    assert report.not_observed == []
    (moved,) = (value for name, value in model.named_buffers() if name.endswith("running_mean"))
    moved += 1
    (layer,) = check_batchnorm(model, batches).layers
    assert (layer.verdict, layer.cause) == ("drift", "stale")
    assert layer.stale is not None


@pytest.mark.parametrize("kind", ["tokens last", "sync", "slices", "buffers alone"])
def test_with_batch_statistics_the_call_itself_takes_the_batch(kind):
    model, x = network(kind).eval(), data(64)
    (drifting, _) = (nn.BatchNorm1d(CHANNELS) for _ in range(2))
    after = nn.Sequential(model, nn.Flatten(), nn.BatchNorm1d(3 * CHANNELS))
    after[0][2] = nn.Identity()
    layers = batchnorm_layers(after)
    seen, _ = collect_states(Feed(after, [x]), layers, [RENORMALISED, TRAINING], "test")
    with torch.no_grad():
        y = drifting.train()(model[0](x).transpose(1, 2)).transpose(1, 2)  # affine parameters are 1 and 0
        expected = model[3](y).flatten(1).double()
    mean, var = seen.moments["2"].mean_and_variance()
    torch.testing.assert_close(mean, expected.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(var, expected.var(0), rtol=1e-4, atol=1e-5)


def test_several_calls_of_a_subclass_are_pooled():
    class Groups(nn.BatchNorm1d):
        def forward(self, x):
            return torch.cat([super(Groups, self).forward(part) for part in x.chunk(2, dim=1)], 1)

    model, x = nn.Sequential(Groups(3)), torch.randn(40, 6)
    (moments,) = collect(Feed(model, x.split(8)), batchnorm_layers(model), SERVING, "test").moments.values()
    assert (moments.calls, moments.samples, moments.count) == (2, 40, 80)
    mean, var = moments.mean_and_variance()
    pooled = x.double().view(80, 3)
    torch.testing.assert_close(mean, pooled.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var, pooled.var(0), rtol=1e-5, atol=1e-6)


def test_flattened_tokens_are_one_sample():
    """Tokens that are all alike are no more evidence than one of them."""
    model = nn.Sequential(Flat(CHANNELS))
    x = torch.randn(512, 1, CHANNELS, generator=torch.Generator().manual_seed(0)).expand(-1, 16, -1)
    moments = {}
    for name, value in (("tokens", x), ("one", x[:, :1])):
        (moments[name],) = collect(Feed(model, value.split(64)), batchnorm_layers(model), SERVING, "t").moments.values()
    torch.testing.assert_close(moments["tokens"].sums, moments["one"].sums, rtol=1e-5, atol=1e-3)
    assert (moments["tokens"].samples, moments["tokens"].count) == (512, 512 * 16)


class OwnArithmetic(nn.BatchNorm1d):
    axis = 1

    def forward(self, x):
        shape = [1, 1, 1]
        shape[self.axis] = -1
        rest = [dim for dim in range(3) if dim != self.axis]
        by_batch = self.training or self.running_mean is None
        mean, var = (x.mean(rest), x.var(rest, correction=0)) if by_batch else (self.running_mean, self.running_var)
        y = (x - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()
        return y * self.weight.view(shape) + self.bias.view(shape)


class OwnArithmeticLast(OwnArithmetic):
    axis = 2


def test_arithmetic_of_its_own_is_followed_where_the_channels_cannot_be_mistaken():
    for shape in ((64, CHANNELS, 4), (64, CHANNELS, CHANNELS)):
        model, x = nn.Sequential(OwnArithmetic(CHANNELS)), torch.randn(shape) + 2
        model[0].running_mean[0] = 1  # so that axes differ
        recalibrate_batchnorm(model, x.split(16))
        torch.testing.assert_close(model[0].running_mean, x.mean((0, 2)))
        assert check_batchnorm(model, x.split(16)).not_observed == []


@pytest.mark.parametrize("tokens", [4, CHANNELS])
def test_arithmetic_of_its_own_on_other_axes_is_said_and_left_alone(tokens):
    model, batches = nn.Sequential(OwnArithmeticLast(CHANNELS), nn.BatchNorm1d(tokens)), data(64).split(16)
    batches = [nn.functional.pad(batch, (0, 2))[:, :tokens] for batch in batches]
    before = stored(model)
    report = check_batchnorm(model, batches)
    assert report.not_observed == ["0"]
    assert any("what `0` normalises could not be told" in note.lower() for note in report.notes)
    assert not any("did not reach" in note for note in report.notes)
    recalibrate_batchnorm(model, batches)
    assert same_bits(before["0.running_mean"], model[0].running_mean)
    assert not same_bits(before["1.running_mean"], model[1].running_mean)
    report = check_batchnorm(model, batches, samples=64, warn=0.5, fail=0.5)
    assert (report.verdict, report.layers[0].verdict) == ("inconclusive", "ok"), "a layer that runs was not measured"
    with pytest.raises(ValueError, match=r"what `0` normalises could not be told.*nothing was written"):
        recalibrate_batchnorm(model, batches, layers=["0", "1"])


def test_half_of_the_channels_is_no_measurement():
    class First(nn.BatchNorm1d):
        def forward(self, x):
            return F.batch_norm(x[:, :2], self.running_mean[:2], self.running_var[:2])

    model = nn.Sequential(First(CHANNELS))
    assert check_batchnorm(model, [torch.randn(40, CHANNELS)], outputs=False).not_observed == ["0"]


def test_torchs_own_batchnorms_are_watched_in_the_first_forward_only(monkeypatch):
    entered = []
    original = Calls._call
    monkeypatch.setattr(Calls, "_call", lambda self, call: entered.append(call) or original(self, call))
    plain = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    collect(Feed(plain, torch.randn(40, 3).split(8)), batchnorm_layers(plain), SERVING, "test")
    assert len(entered) == 2
    moving = nn.Sequential(Tokens(3))
    collect(Feed(moving, torch.randn(40, 3, 3).split(8)), batchnorm_layers(moving), SERVING, "test")
    assert len(entered) == 2 + 5


def test_a_second_look_undoes_a_fix_that_does_not_hold():
    """Two layers that share their buffers cannot both store what they see."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    batches = (3 * torch.randn(64, 3) + 1).split(16)
    for method in ("exact", "batch", "variance"):
        recalibrate_batchnorm(model, batches, method)  # the same two layers with buffers of their own
    model[2].running_mean, model[2].running_var = model[0].running_mean, model[0].running_var
    before = stored(model)
    for method in ("exact", "batch", "variance"):
        with pytest.raises(
            ValueError, match=r"`\d` should see what it stores, but a second look .*nothing was written"
        ):
            recalibrate_batchnorm(model, batches, method)
        assert same_bits(before, stored(model))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, Tokens], ids=["torch's own", "subclass"])
@pytest.mark.parametrize("look", [check_batchnorm, recalibrate_batchnorm], ids=["check", "fix"])
def test_a_layer_without_statistics_is_named_before_torch_complains(norm, look):
    model = nn.Sequential(nn.BatchNorm1d(3), norm(3, track_running_stats=False))
    single = torch.randn(1, 3, 1) if norm is nn.BatchNorm1d else torch.randn(1, 3, 3)[:, :, :1]
    if norm is Tokens:
        model = nn.Sequential(nn.BatchNorm1d(1), norm(3, track_running_stats=False))
        single = single.transpose(1, 2)
    before = len(model[1]._forward_pre_hooks)
    with pytest.raises(
        ValueError, match=r"BatchNorm `1` has no running statistics .* one value per channel; pass larger"
    ):
        look(model, [single])
    assert len(model[1]._forward_pre_hooks) == before
    look(model, [single.expand(8, -1, -1) + torch.randn(8, 1, 1)])


def test_a_call_of_batch_norm_without_statistics_is_named_by_its_line():
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.bn(F.batch_norm(x, None, None, training=True))

    with pytest.raises(
        ValueError, match=r"batch_norm at .*test_calls.py:\d+ normalises by the batch, also in eval mode"
    ):
        check_batchnorm(Alone(), [torch.randn(1, 3)])
    check_batchnorm(Alone(), [torch.randn(8, 3)])
