"""What one pass collects: exact moments, the same for any split, from calls of every kind."""

import gc

import pytest
import torch
from support.collected import convolutional, one_layer, snapshot
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.measure.collect import collect, collect_states
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.forward_moments import ForwardMoments
from jumpout_export.batchnorm.measure.layers import Layer, batchnorm_layers
from jumpout_export.batchnorm.measure.moments import FOLDS, MOST_CALLS, WIDE_CHANNELS, WIDE_FOLDS, Moments
from jumpout_export.batchnorm.measure.states import RENORMALISED, SERVING, TRAINING
from jumpout_export.model.randomness import same_bits


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(3), (10, 3)),
        (nn.BatchNorm1d(3), (10, 3, 7)),
        (nn.BatchNorm2d(3), (10, 3, 5, 4)),
        (nn.BatchNorm3d(3), (10, 3, 2, 3, 4)),
        (nn.SyncBatchNorm(3), (10, 3, 5, 4)),
    ],
    ids=["1d (N,C)", "1d (N,C,L)", "2d", "3d", "sync on CPU"],
)
def test_sums_are_those_of_per_sample_means_in_stored_units(norm, shape):
    torch.manual_seed(1)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    x = 3 * torch.randn(shape) + 1
    moments = one_layer(norm, x)
    tau = (norm.running_var.double() + norm.eps).sqrt().view(1, -1, 1)
    z = (x.double().flatten(2) if x.ndim > 2 else x.double().unsqueeze(2)) - norm.running_mean.double().view(1, -1, 1)
    z = z / tau
    a, b = z.mean(2), z.square().mean(2)
    expected = torch.stack([torch.full_like(a, 1), a, b, a * a, b * b, a * b]).sum(1)
    torch.testing.assert_close(moments.total, expected, rtol=1e-6, atol=1e-6)
    assert moments.count == x.numel() // 3
    mean, var = moments.mean_and_variance()
    values = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, values.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var, values.var(1), rtol=1e-6, atol=1e-6)


def test_other_splits_into_batches_give_the_same_sums_in_every_fold():
    model = convolutional()
    x = torch.randn(67, 3, 8, 8)
    layers = batchnorm_layers(model)
    whole = collect(Feed(model, [x]), layers, SERVING, "test")
    for size in (1, 5, 32):
        split = collect(Feed(model, x.split(size)), layers, SERVING, "test")
        assert list(split.moments) == ["1", "4"]
        assert (split.samples, split.batches) == (67, -(-67 // size))
        for name, moments in split.moments.items():
            torch.testing.assert_close(moments.sums, whole.moments[name].sums, rtol=1e-6, atol=1e-6)
    counts = whole.moments["1"].sums[:, 0, 0]
    assert counts.tolist() == [3.0] * 3 + [2.0] * (FOLDS - 3)


def test_a_mean_a_thousand_deviations_off_does_not_cancel():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(2)
    x = 1000 + torch.randn(50, 2, 6, 6)
    _, var = one_layer(norm, x).mean_and_variance()
    torch.testing.assert_close(var, x.double().transpose(0, 1).flatten(1).var(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_upcast(dtype):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(2).to(dtype)
    x = (100 * torch.randn(40, 2, 30, 30)).to(dtype)  # x^2 summed in float16 would overflow
    mean, var = one_layer(norm, x).mean_and_variance()
    values = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, values.mean(1), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(var, values.var(1), rtol=1e-5, atol=0)


def test_several_calls_of_one_layer_are_pooled_into_the_same_samples():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(x) + self.bn(input=3 * x)

    torch.manual_seed(0)
    model = Twice()
    x = torch.randn(20, 2)
    moments = collect(Feed(model, [x[:8], x[8:]]), batchnorm_layers(model), SERVING, "test").moments["bn"]
    assert (moments.calls, moments.samples, moments.count) == (2, 20, 40)
    pooled = torch.cat([x, 3 * x]).double()
    mean, var = moments.mean_and_variance()
    torch.testing.assert_close(mean, pooled.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(var, pooled.var(0), rtol=1e-6, atol=1e-7)


def test_calls_with_other_numbers_of_samples_count_as_further_samples():
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.bn(x[:3]), self.bn(x[3:])])

    model = Halves()
    moments = collect(Feed(model, [torch.randn(10, 2)]), batchnorm_layers(model), SERVING, "test").moments["bn"]
    assert (moments.samples, moments.count) == (10, 10)


@pytest.mark.parametrize("state", [SERVING, RENORMALISED, TRAINING], ids=lambda state: state.name)
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_exactly_as_it_was(state, error):
    class Breaks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Breaks.calls += 1
            if error is not None and Breaks.calls == 3:
                raise error("stop")
            return F.dropout(x, 0.5)

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return x

    Breaks.calls = 0
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), Counts(), Breaks(), nn.BatchNorm1d(3))
    model.train()
    model[0].eval()
    model[0].weight.requires_grad_(False)
    feed = Feed(model, torch.randn(4, 8, 3).unbind())
    before = snapshot(model)
    if error is None:
        collect(feed, batchnorm_layers(model), state, "test")
    else:
        with pytest.raises(error, match="stop"):
            collect(feed, batchnorm_layers(model), state, "test")
        assert Breaks.calls == 3
    assert same_bits(before, snapshot(model))
    assert torch.is_grad_enabled()


def test_a_batch_of_one_value_cannot_be_renormalised():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"BatchNorm `1` got a batch with one value per channel.*method='exact'"):
        collect(Feed(model, [torch.randn(1, 3)]), batchnorm_layers(model), RENORMALISED, "test")


def test_the_layers_own_error_about_a_wrong_shape_comes_through():
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(RuntimeError, match="running_mean should contain 5 elements"):
        collect(Feed(model, [torch.randn(2, 5, 4, 4)]), batchnorm_layers(model), SERVING, "test")


STATES = (SERVING, RENORMALISED, TRAINING)


def test_moments_of_parts_merge_into_those_of_the_whole():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(x) + self.bn(2 * x)

    model, x = Twice(), torch.randn(70, 3, 4, 4)
    whole, one, two = (
        collect(Feed(model, part.split(8)), batchnorm_layers(model), SERVING, "test").moments["bn"]
        for part in (x, x[:30], x[30:])
    )
    one.merge(two)
    torch.testing.assert_close(one.total, whole.total)
    assert (one.samples, one.count, one.calls) == (whole.samples, whole.count, whole.calls) == (70, 2240, 2)
    for ours, theirs in zip(one.call_sums, whole.call_sums, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(one.mean_and_variance(), whole.mean_and_variance())


def test_every_call_has_sums_of_its_own_up_to_a_limit():
    class Often(nn.Module):
        def __init__(self, calls: int) -> None:
            super().__init__()
            self.bn, self.calls = nn.BatchNorm1d(2), calls

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.bn((1 + call) * x) for call in range(self.calls)]).sum(0)

    x = torch.randn(20, 2)
    for calls in (1, 3, MOST_CALLS + 1):
        model = Often(calls)
        moments = collect(Feed(model, [x[:8], x[8:]]), batchnorm_layers(model), SERVING, "test").moments["bn"]
        assert (moments.calls, moments.samples) == (calls, 20)
        assert len(moments.call_sums) == (calls if 1 < calls <= MOST_CALLS else 0)
        for call, sums in enumerate(moments.call_sums):
            expected = (1 + call) * x.double() / (1 + model.bn.eps) ** 0.5
            torch.testing.assert_close(sums[1], expected.sum(0), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(sums[3], expected.square().sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_large_activations_are_reduced_a_few_samples_at_a_time_to_the_same_numbers(memory_format):
    torch.manual_seed(0)
    x = (torch.randn(33, 16, 40, 40) + 5).to(memory_format=memory_format)  # 25,600 numbers per sample, ten at a time
    moments = one_layer(nn.BatchNorm2d(16), x)
    mean, var = moments.mean_and_variance()
    values = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, values.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(var, values.var(1), rtol=1e-5, atol=0)


def test_an_input_that_is_written_to_afterwards_was_measured_before():
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn(x)
            x.fill_(7)
            return y

    model, x = Overwrites(), torch.randn(30, 2)
    moments = collect(Feed(model, [x.clone()]), batchnorm_layers(model), SERVING, "test").moments["bn"]
    torch.testing.assert_close(moments.mean_and_variance()[0], x.double().mean(0))


@pytest.mark.integration
def test_memory_does_not_grow_with_samples_or_batches():
    model = convolutional()
    held = []
    # Tensors of earlier tests, held so that no new one gets the id of one of them.
    others = {id(value): value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)}

    def enough(step, seen) -> bool:
        tensors = [value for value in gc.get_objects() if type(value) is torch.Tensor and id(value) not in others]
        held.append(sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values()))
        return False

    class Made:
        def __iter__(self):
            return (torch.randn(16, 3, 8, 8) for _ in range(12))

    collect_states(Feed(model, Made()), batchnorm_layers(model), STATES, "test", enough=enough)
    assert len(held) == 12
    assert max(held[2:]) <= held[1]


def test_very_wide_layers_have_fewer_folds():
    wide = Moments(Layer("wide", nn.BatchNorm1d(WIDE_CHANNELS + 1), frozen=False))
    assert wide.sums.shape == (WIDE_FOLDS, 6, WIDE_CHANNELS + 1)
    assert Moments(Layer("usual", nn.BatchNorm1d(2), frozen=False)).sums.shape == (FOLDS, 6, 2)


def test_layers_side_by_side_are_summed_like_layers_alone():
    torch.manual_seed(0)
    layers = [Layer(str(index), nn.BatchNorm1d(width), frozen=False) for index, width in enumerate((1, 5, 2))]
    together = ForwardMoments(layers)
    for count in (40, 7):
        inputs = [torch.randn(count, len(layer.module.running_mean), 3) for layer in layers]
        for layer, x in zip(layers, inputs, strict=True):
            together.take(layer.name, x)
        # The middle one is reached in the first forward only.
        if count == 7:
            together.discard()
            together.take("0", inputs[0])
            together.take("2", inputs[2])
        assert together.end_forward() == count
        if count == 40:
            first = inputs
    alone = ForwardMoments(layers)
    alone.take("1", first[1])
    alone.end_forward()
    assert torch.equal(together.moments["1"].sums, alone.moments["1"].sums)
    assert [moments.samples for moments in together.moments.values()] == [47, 40, 47]


@pytest.mark.parametrize("parts", [2, 20], ids=["halves", "one by one"])
def test_calls_on_parts_of_a_batch_are_of_different_samples(parts):
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.bn(part) for part in x.chunk(parts)])

    model, x = Parts(), torch.randn(40, 2)
    moments = collect(Feed(model, x.split(20)), batchnorm_layers(model), SERVING, "test").moments["bn"]
    whole = one_layer(nn.BatchNorm1d(2), x)
    torch.testing.assert_close(moments.sums, whole.sums)
    assert (moments.samples, moments.calls, moments.call_sums) == (40, parts, [])


def test_who_watches_a_pass_finds_what_the_model_stores_and_not_what_a_state_left_there():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    stored = [buffer.clone() for buffer in model[1].buffers()]
    found = []

    def watch(*_: object) -> bool:
        found.append(all(map(torch.equal, model[1].buffers(), stored)))
        return False

    feed = Feed(model, [torch.randn(16, 4) for _ in range(3)])
    collect_states(feed, batchnorm_layers(model), STATES, "looking", enough=watch)
    assert found == [True] * 3
