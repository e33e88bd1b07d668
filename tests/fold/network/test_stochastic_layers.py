"""Every stochastic layer and call by name: what a fold makes of it, and where it says that none can be made."""

import importlib
import inspect
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from jumpout_export import export_onnx
from jumpout_export.errors import NotFoldableError
from jumpout_export.fold.network.folded import fold, fold_model

SAMPLES = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8)
TOKENS = torch.linspace(-1, 1, 2 * 5 * 4).reshape(2, 5, 4)
VOLUMES = torch.linspace(-1, 1, 2 * 4 * 4**3).reshape(2, 4, 4, 4, 4)


# Doubles of layers from other packages: their names, and a forward written from how they behave.


class DropPath(nn.Module):
    """Of timm and MONAI: drops whole samples."""

    def __init__(self, drop_prob=0.3):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)


class SwinDropPath(DropPath):
    """Of transformers, which has a copy per model."""


class DropBlock2d(nn.Module):
    """Of timm and torchvision: drops squares."""

    def forward(self, x):
        if not self.training:
            return x
        mask = 1 - F.max_pool2d((torch.rand_like(x) < 0.1).float(), 3, 1, 1)
        return x * mask * mask.numel() / mask.sum()


class DropBlock2D(DropBlock2d):
    """Of the package dropblock."""


class StochasticDepth(nn.Module):
    """Of torchvision: a residual branch or nothing."""

    def __init__(self):
        super().__init__()
        self.p, self.mode = 0.3, "row"

    def forward(self, x):
        return x * torch.empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(0.7) / 0.7 if self.training else x


class PatchDropout(nn.Module):
    """Of timm and vit-pytorch: keeps some tokens."""

    def forward(self, x):
        return x[:, torch.randperm(x.shape[1])[:3]] if self.training else x


class PatchDropoutWithIndices(nn.Module):
    """Of timm: returns a pair, so it cannot be the identity."""

    def forward(self, x):
        return (x[:, torch.randperm(x.shape[1])[:3]], torch.ones(3)) if self.training else (x, None)


class TakesFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = PatchDropoutWithIndices()

    def forward(self, x):
        return self.drop(x)[0]


class ConcreteDropout(nn.Module):
    """Gal et al. 2017: a learned rate; deterministic in eval in some packages."""

    def __init__(self, always):
        super().__init__()
        self.rate, self.always = nn.Parameter(torch.tensor(0.1)), always

    def forward(self, x):
        if not (self.training or self.always):
            return x
        noise = torch.rand_like(x)
        odds = torch.log(self.rate) - torch.log1p(-self.rate) + torch.log(noise) - torch.log1p(-noise)
        return x * (1 - torch.sigmoid(odds / 0.1)) / (1 - self.rate)


class WeightDrop(nn.Module):
    """Of AWD-LSTM: drops weights."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(x, F.dropout(self.linear.weight, 0.5, self.training), self.linear.bias)


class Rearranges(nn.Module):
    """Copies itself as einops' Rearrange does: by making a new layer, in train mode."""

    def __getstate__(self):
        return {}

    def __setstate__(self, state):
        self.__init__()

    def forward(self, x):
        return x.flatten(1)


class First(nn.Module):
    """A recurrent layer without its state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Translates(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(4, 2, 1, 1, 8, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.transformer(x, x)


class Calls(nn.Module):
    """One line of the user's code that draws, in a module of its own."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return self.draw(x, self)


def attend(x, p):
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=p)[:, 0]


GONE = {
    "Dropout": (nn.Dropout(0.5), TOKENS),
    "Dropout1d": (nn.Dropout1d(0.5), TOKENS),
    "Dropout2d": (nn.Dropout2d(0.5), SAMPLES),
    "Dropout3d": (nn.Dropout3d(0.5), VOLUMES),
    "AlphaDropout": (nn.AlphaDropout(0.5), TOKENS),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout(0.5), VOLUMES),
    "DropPath": (DropPath(), SAMPLES),
    "SwinDropPath": (SwinDropPath(), TOKENS),
    "DropBlock2d": (DropBlock2d(), SAMPLES),
    "DropBlock2D": (DropBlock2D(), SAMPLES),
    "StochasticDepth": (StochasticDepth(), SAMPLES),
    "PatchDropout": (PatchDropout(), TOKENS),
}
STAYS = {
    "MultiheadAttention": (Attends(), TOKENS),
    "TransformerEncoderLayer": (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True), TOKENS),
    "Transformer": (Translates(), TOKENS),
    "LSTM": (First(nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True)), TOKENS),
    "GRU": (First(nn.GRU(4, 4, 2, dropout=0.5, batch_first=True)), TOKENS),
    "RNN": (First(nn.RNN(4, 4, 2, dropout=0.5, batch_first=True)), TOKENS),
    "PatchDropoutWithIndices": (TakesFirst(), TOKENS),
    "ConcreteDropout": (ConcreteDropout(always=False), TOKENS),
    "WeightDrop": (WeightDrop(), TOKENS),
    "spectral norm": (parametrizations.spectral_norm(nn.Linear(4, 4)), TOKENS),
    "F.dropout in training": (Calls(lambda x, m: F.dropout(x, 0.5, m.training)), TOKENS),
    "attention in training": (Calls(lambda x, m: attend(x, 0.5 * m.training)), TOKENS),
    "noise in training": (Calls(lambda x, m: x + torch.randn_like(x) if m.training else x), TOKENS),
}


@pytest.mark.parametrize(("layer", "example"), GONE.values(), ids=GONE.keys())
def test_a_layer_that_is_the_identity_in_eval_is_gone(layer, example):
    model = nn.Sequential(layer, nn.ReLU()).train()
    runs = [model(example) for _ in range(20)]
    assert not all(torch.equal(runs[0], run) for run in runs)  # it is random while training
    folded = fold(model, example)
    assert [(row.path, row.kind, row.action) for row in folded.layers] == [("0", type(layer).__name__, "identity")]
    assert isinstance(folded.model[0], nn.Identity)
    assert torch.equal(folded.model(example), torch.relu(example))


@pytest.mark.parametrize(("layer", "example"), STAYS.values(), ids=STAYS.keys())
def test_a_layer_that_computes_in_eval_stays_and_is_deterministic(layer, example):
    model = nn.Sequential(layer).train()
    folded = fold_model(model, example)
    model.eval()
    with torch.no_grad():
        assert torch.equal(folded(example), model(example))
        assert torch.equal(folded(example), folded(example))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["Transformer", "LSTM", "WeightDrop", "attention in training", "DropPath"])
def test_such_a_network_is_published_without_a_random_node(name, tmp_path):
    layer, example = {**GONE, **STAYS}[name]
    torch.manual_seed(0)
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)).train()
    model(example)
    if name == "attention in training":
        example = example + 1  # uniform rows would make the softmax a mere mean
    report = export_onnx(model, tmp_path / "model.onnx", example)
    assert report, [check for check in report.checks if check.verdict != "pass"]


DRAWS = {
    "dropout by default": lambda x, _: F.dropout(x, 0.5),
    "dropout always": lambda x, _: F.dropout(x, 0.5, training=True),
    "dropout2d": lambda x, _: F.dropout2d(x[..., None], 0.5, training=True)[..., 0],
    "alpha_dropout": lambda x, _: F.alpha_dropout(x, 0.5, training=True),
    "feature_alpha_dropout": lambda x, _: F.feature_alpha_dropout(x, 0.5, training=True),
    "rrelu": lambda x, _: F.rrelu(x, training=True),
    "attention always": lambda x, _: attend(x, 0.5),
    "gumbel_softmax": lambda x, _: F.gumbel_softmax(x),
    "fractional_max_pool2d": lambda x, _: F.fractional_max_pool2d(x[:, None], 2, (2, 2)).flatten(1),
    "bernoulli": lambda x, _: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "rand": lambda x, _: x * torch.rand(x.shape),
    "normal": lambda x, _: x + torch.normal(0.0, 1.0, x.shape),
    "normal_": lambda x, _: x + torch.empty_like(x).normal_(),
    "randperm": lambda x, _: x[:, torch.randperm(5)],
    "multinomial": lambda x, _: x[:, torch.multinomial(torch.ones(5), 3)],
    "poisson": lambda x, _: torch.poisson(x.abs() * 9),
    "distributions": lambda x, _: torch.distributions.Normal(x, 1.0).sample(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_a_call_that_draws_in_eval_is_an_error_with_module_file_and_line(draw):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Calls(draw)))
    with pytest.raises(NotFoldableError, match="draws random numbers in eval mode") as error:
        fold_model(model, TOKENS)
    assert error.value.modules == ("1.1",)
    lines = (inspect.getsourcelines(draw)[1], inspect.getsourcelines(attend)[1] + 1)
    assert any(f"in module `1.1` at {__file__}:{line}" in str(error.value) for line in lines)


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        (nn.FractionalMaxPool2d(2, (4, 4)), ""),
        (ConcreteDropout(always=True), "noise = torch.rand_like"),
        (Calls(lambda x, _: x * float(np.random.rand())), "return self.draw"),
        (Calls(lambda x, _: x * random.random()), "return self.draw"),
    ],
    ids=["FractionalMaxPool2d", "ConcreteDropout", "numpy", "random"],
)
def test_a_layer_that_draws_in_eval_is_an_error_with_its_module(layer, source):
    with pytest.raises(NotFoldableError, match=r"in module `0\.1`") as error:
        fold_model(nn.Sequential(nn.Sequential(nn.ReLU(), layer)), SAMPLES)
    if source:
        assert f"{__file__}:" in str(error.value)


def test_layers_that_the_example_does_not_reach_are_one_note():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.first, self.second = DropPath(), DropPath(), StochasticDepth()
            self.lstm = nn.LSTM(4, 4, 2, dropout=0.5)

        def forward(self, x):
            return self.used(x)

    folded = fold(Skips(), TOKENS)
    assert folded.notes == (
        "stays, in eval mode, because the example does not reach it: `first` (DropPath); `second` (StochasticDepth)",
    )
    assert [row.action for row in folded.layers] == ["identity", "keep", "keep", "keep"]


def test_a_layer_that_copies_itself_in_train_mode_is_no_state_and_stays_in_eval():
    folded = fold(nn.Sequential(Rearranges(), nn.Dropout(0.5)), TOKENS)
    assert folded.notes == ()
    assert not any(module.training for module in folded.model.modules())


def test_an_output_that_is_no_tensor_is_named_and_not_taken_for_noise():
    class Cache:
        pass

    model = Calls(lambda x, _: {"logits": x, "cache": Cache()})
    with pytest.raises(TypeError, match=r"must return tensors, numbers and texts, .* got \S*Cache; wrap"):
        fold_model(model, TOKENS)


REAL = {
    "timm DropPath": ("timm.layers", "DropPath", (0.5,), SAMPLES),
    "timm DropBlock2d": ("timm.layers", "DropBlock2d", (0.5, 3), SAMPLES),
    "timm PatchDropout": ("timm.layers", "PatchDropout", (0.5,), TOKENS),
    "torchvision StochasticDepth": ("torchvision.ops", "StochasticDepth", (0.5, "row"), SAMPLES),
    "torchvision DropBlock2d": ("torchvision.ops", "DropBlock2d", (0.5, 3), SAMPLES),
    "monai DropPath": ("monai.networks.layers", "DropPath", (0.5,), SAMPLES),
}


@pytest.mark.parametrize(("module", "name", "arguments", "example"), REAL.values(), ids=REAL.keys())
def test_the_real_layer_is_gone(module, name, arguments, example):
    pytest.importorskip(module, exc_type=Exception)
    layer = getattr(importlib.import_module(module), name)(*arguments)
    assert isinstance(fold_model(nn.Sequential(layer), example)[0], nn.Identity)
