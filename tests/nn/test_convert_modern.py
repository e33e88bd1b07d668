"""convert_dropout on networks that do not simply call their dropout layers one after the other."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jumpout_export import Jumpout, convert_dropout

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))


def attend(x, drop, training):
    return F.scaled_dot_product_attention(x, x, x, dropout_p=drop.p if training else 0.0)


class Attention(nn.Module):
    """As timm's and transformers' have it: the rate of `attn_drop` is read, `proj_drop` is called."""

    def __init__(self):
        super().__init__()
        self.attn_drop, self.proj, self.proj_drop = nn.Dropout(0.1), nn.Linear(8, 8), nn.Dropout(0.2)

    def forward(self, x):
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(F.relu(self.proj(x)))


class ByFunction(Attention):
    def forward(self, x):
        return self.proj_drop(F.relu(attend(x, self.attn_drop, self.training)))


class ByVariable(Attention):
    def forward(self, x):
        drop = self.attn_drop
        rate = drop.p if self.training else 0.0
        return self.proj_drop(F.relu(F.scaled_dot_product_attention(x, x, x, dropout_p=rate)))


def renamed(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


class Decorated(Attention):
    @renamed
    def forward(self, x):
        return super().forward(x)


class Overridden(Attention):
    def forward(self, x):
        return self.proj_drop(F.relu(self.attn_drop(x.softmax(-1) @ x.mT) @ x))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)


class FromOutside(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.blocks, self.last = Inner(), nn.ModuleList([Inner(), Inner()]), nn.Dropout(0.2)

    def forward(self, x):
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=self.inner.drop.p if self.training else 0.0)
        for block in self.blocks:
            x = F.scaled_dot_product_attention(x, x, x, dropout_p=block.drop.p if self.training else 0.0)
        return self.last(F.relu(x))


class ByIndex(nn.Module):
    def __init__(self):
        super().__init__()
        self.drops, self.last = nn.ModuleList([nn.Dropout(0.1)]), nn.Sequential(nn.ReLU(), nn.Dropout(0.2))

    def forward(self, x):
        rate = self.drops[0].p if self.training else 0.0
        return self.last(F.scaled_dot_product_attention(x, x, x, dropout_p=rate))


class ByGetattr(ByIndex):
    def forward(self, x):
        rate = getattr(self.drops[0], "p", 0.0) if self.training else 0.0
        return self.last(F.scaled_dot_product_attention(x, x, x, dropout_p=rate))


class Asks(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        x = F.relu(x)
        return self.drop(x) if self.drop.p > 0 else x


def by_path(swaps):
    return {swap.path: swap for swap in swaps}


@pytest.mark.parametrize("example", [None, X], ids=["from the code", "on an example"])
@pytest.mark.parametrize(
    ("network", "read"),
    [
        (Attention, {"attn_drop"}),
        (ByFunction, {"attn_drop"}),
        (ByVariable, {"attn_drop"}),
        (Decorated, {"attn_drop"}),
        (Overridden, set()),
        (FromOutside, {"inner.drop", "blocks.0.drop", "blocks.1.drop"}),
        (ByIndex, {"drops.0"}),
        (ByGetattr, {"drops.0"}),
        (Asks, {"drop"}),
    ],
)
def test_a_layer_whose_rate_is_read_is_left_alone(network, read, example):
    model = network().train()
    swaps = by_path(convert_dropout(model, p=0.1, normalize="none", example=example))
    assert {path for path, swap in swaps.items() if "its `p` is read" in swap.reason} == read
    for path in read:
        place = ".forward" if example is None else __file__
        assert place in swaps[path].reason
        assert type(model.get_submodule(path)) is nn.Dropout
    assert model(X).shape == X.shape


@pytest.mark.parametrize("example", [None, X])
def test_what_is_only_called_beside_it_is_swapped(example):
    model = Attention()
    assert by_path(convert_dropout(model, sigma=0.1, example=example))["proj_drop"].swapped
    assert isinstance(model.proj_drop, Jumpout)


@pytest.mark.parametrize("settings", [{"sigma": 0.1}, {"p": 0.3}, {}])
def test_a_layer_that_is_off_stays_off(settings):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.0), nn.Dropout(0.5))
    off, on = convert_dropout(model, **settings)
    assert (off.swapped, off.reason, on.swapped) == (False, "its rate is 0, so it is off", True)
    assert torch.equal(model[:3].train()(X), model[:2](X))


def double(module, inputs, output):
    return output * 2


@pytest.mark.parametrize(
    "hook",
    [
        lambda layer: layer.register_forward_hook(double),
        lambda layer: layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,)),
        lambda layer: layer.register_full_backward_hook(lambda module, before, after: None),
        lambda layer: layer.register_full_backward_pre_hook(lambda module, gradient: None),
        lambda layer: setattr(layer, "forward", lambda x: x * 2),
    ],
    ids=["forward", "before forward", "backward", "before backward", "another forward"],
)
def test_a_layer_with_hooks_is_left_alone(hook):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).eval()
    hook(model[1])
    before, layer = model(X), model[1]
    (swap,) = convert_dropout(model, sigma=0.1)
    assert not swap.swapped
    assert "would be lost" in swap.reason
    assert model[1] is layer
    assert torch.equal(before, model(X))


def test_a_layer_whose_hooks_were_removed_is_swapped():
    model = nn.Sequential(nn.Dropout(0.5))
    model[0].register_forward_hook(double).remove()
    assert convert_dropout(model, sigma=0.1)[0].swapped


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.shared = nn.Dropout(0.1), nn.Dropout(0.2), nn.Dropout(0.3)
        self.again = self.shared

    def forward(self, x):
        return self.again(self.used(F.relu(x)))


def test_what_the_example_never_calls_is_left_alone():
    model = Branches().eval()
    swaps = by_path(convert_dropout(model, sigma=0.1, example=X))
    assert [path for path, swap in swaps.items() if swap.swapped] == ["used", "shared", "again"]
    assert swaps["unused"].reason == "it was not called on the example"
    assert model.shared is model.again
    assert all(swap.swapped for swap in convert_dropout(Branches(), sigma=0.1))


class DropPath(nn.Module):
    def forward(self, x):
        return x * torch.bernoulli(torch.full((len(x), 1, 1), 0.9)) / 0.9 if self.training else x


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.path, self.rnn = DropPath(), nn.LSTM(8, 8, num_layers=2, dropout=0.1)

    def forward(self, x):
        return F.dropout(self.rnn(self.path(x))[0], 0.1, self.training)


@pytest.mark.parametrize(("example", "kind"), [(None, "dropout"), (X, "aten.bernoulli_.float")])
def test_noise_that_no_jumpout_replaces_is_listed(example, kind):
    model = nn.Sequential(Noisy())
    path, rnn, functional = convert_dropout(model, sigma=0.1, example=example)
    assert (path.path, path.kind, path.swapped) == ("0.path", "DropPath", False)
    assert "jumpout drops single units" in path.reason
    assert (rnn.path, rnn.kind) == ("0.rnn", "LSTM")
    assert (functional.path, functional.kind, functional.swapped) == ("0", kind, False)
    assert ("Noisy.forward" if example is None else __file__) in functional.reason
    assert "it is no layer, so that no module can replace it" in functional.reason


def test_a_network_without_noise_lists_nothing():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(6), nn.LSTM(8, 8))
    assert convert_dropout(model, sigma=0.1) == []
    assert convert_dropout(model[:3], sigma=0.1, example=X) == []


@pytest.mark.parametrize("before", [nn.Identity(), nn.GELU(), nn.LayerNorm(8), nn.LeakyReLU()])
def test_a_signed_input_is_warned_about(before):
    model = nn.Sequential(before, nn.Dropout(0.1))
    with pytest.warns(UserWarning, match=r"`1` \(4\d% of its input is below 0 and 5\d% above, so .* by [12].\d;"):
        (swap,) = convert_dropout(model, p=0.1, example=X)
    assert swap.swapped
    model.train()(X)
    assert float(model[1].statistics.p_prime) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("before", "settings"),
    [(nn.ReLU(), {}), (nn.Sigmoid(), {}), (nn.Softmax(-1), {}), (nn.Identity(), {"normalize": "none"})],
)
def test_an_input_without_signs_is_not(before, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (swap,) = convert_dropout(nn.Sequential(before, nn.Dropout(0.1)), sigma=0.1, example=X, **settings)
    assert (swap.swapped, swap.warning) == (True, "")


def test_the_example_leaves_model_and_generators_alone():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)).eval()
    before, state, example = copy.deepcopy(model.state_dict()), torch.get_rng_state(), X.clone()
    convert_dropout(model, sigma=0.1, example=example)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert torch.equal(example, X)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x, mask=None):
        return self.drop(F.relu(x)) * mask[..., None]


@pytest.mark.parametrize(
    "example", [(X, torch.ones(4, 6)), {"x": X, "mask": torch.ones(4, 6)}, (X, torch.ones(4, 6), torch.arange(4))]
)
def test_an_example_is_a_batch_as_elsewhere(example):
    assert convert_dropout(TwoInputs(), sigma=0.1, example=example)[0].swapped


def test_an_example_that_cannot_be_run_leaves_the_model_untouched():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1))
    with pytest.raises(ValueError, match="example: the model cannot be run on it in train mode, RuntimeError: mat1"):
        convert_dropout(model, sigma=0.1, example=X)
    with pytest.raises(TypeError, match="example: a batch must be a tensor"):
        convert_dropout(model, sigma=0.1, example="x")
    assert type(model[1]) is nn.Dropout


@pytest.mark.parametrize("wrap", [nn.DataParallel, functools.partial(torch.compile, backend="eager")])
def test_the_network_in_a_wrapper_is_converted(wrap):
    network = Branches()
    swaps = convert_dropout(wrap(network), sigma=0.1, example=X)
    assert [swap.path.rpartition(".")[2] for swap in swaps if swap.swapped] == ["used", "shared", "again"]
    assert isinstance(network.used, Jumpout)
