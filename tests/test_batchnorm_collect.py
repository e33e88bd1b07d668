"""What one pass collects: exact moments, the same for every split into batches, and a model left as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.collect import FOLDS, Moments, collect
from jumpout_export.batchnorm.feed import Feed
from jumpout_export.batchnorm.layers import batchnorm_layers
from jumpout_export.batchnorm.states import RENORMALISED, SERVING, TRAINING
from jumpout_export.nn.randomness import same_bits


def one_layer(norm: nn.Module, x: torch.Tensor) -> Moments:
    collected = collect(Feed(norm, [x]), batchnorm_layers(norm), SERVING, "test")
    return collected.moments[""]


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))


def snapshot(model: nn.Module) -> tuple[object, ...]:
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    flags = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return state, flags, hooks, torch.get_rng_state(), [p.requires_grad for p in model.parameters()]


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
def test_sums_are_those_of_per_image_means_in_stored_units(norm, shape):
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
        assert (split.images, split.batches) == (67, -(-67 // size))
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


def test_several_calls_of_one_layer_are_pooled_into_the_same_images():
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
    assert (moments.calls, moments.images, moments.count) == (2, 20, 40)
    pooled = torch.cat([x, 3 * x]).double()
    mean, var = moments.mean_and_variance()
    torch.testing.assert_close(mean, pooled.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(var, pooled.var(0), rtol=1e-6, atol=1e-7)


def test_calls_with_other_numbers_of_images_count_as_further_images():
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.bn(x[:3]), self.bn(x[3:])])

    model = Halves()
    moments = collect(Feed(model, [torch.randn(10, 2)]), batchnorm_layers(model), SERVING, "test").moments["bn"]
    assert (moments.images, moments.count) == (10, 10)


def test_the_state_says_what_is_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    model[0].running_var.fill_(4.0)
    x = torch.randn(4000, 4)
    variance = {}
    for state in (SERVING, RENORMALISED, TRAINING):
        moments = collect(Feed(model, [x]), batchnorm_layers(model), state, "test").moments["2"]
        variance[state.name] = float(moments.mean_and_variance()[1].mean())
    # Running statistics divide by 4, batch statistics by 1, and dropout with p = 1/2 doubles a centred variance.
    # Six standard errors of a variance from 4 x 4000 normal values are 0.07 (0.12 for the dropped ones).
    assert variance["serving"] == pytest.approx(0.25, abs=0.02)
    assert variance["renormalised"] == pytest.approx(1, abs=1e-3)
    assert variance["training"] == pytest.approx(2, abs=0.2)


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
