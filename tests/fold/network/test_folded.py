"""Folding: the copy has no stochastic layer and computes the same bits; the user's model stays as it was."""

import inspect
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jumpout_export import Jumpout, export_onnx
from jumpout_export.errors import NotFoldableError
from jumpout_export.fold.network.folded import fold, fold_model
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.stochastic import stochastic_layers


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = Jumpout(sigma=0.1, relu=True)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(144, 8), nn.Dropout(0.5)), nn.AlphaDropout(0.1)])
        self.again = self.drop

    def forward(self, x):
        x = self.again(self.drop(self.bn(self.conv(x)))).flatten(1)
        for block in self.blocks:
            x = block(x)
        return x


class NonInverted(nn.Dropout):
    """The dropout of the first papers: keeps while training, scales in eval."""

    def forward(self, x):
        return F.dropout(x, self.p, training=True) * (1 - self.p) if self.training else x * (1 - self.p)


class ReadsTheRate(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return F.dropout(x, self.drop.p, self.training)


class Noise(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x * self.draw(x)


X = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)


def state_of(model):
    """Everything of a model that folding and exporting must leave alone."""
    return (
        [(path, id(module), module.training) for path, module in model.named_modules()],
        [(name, id(value), value.requires_grad, value.detach().clone()) for name, value in model.named_parameters()],
        [(name, id(value), value.detach().clone()) for name, value in model.named_buffers()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )


def test_every_stochastic_layer_is_gone_and_the_bits_are_the_same():
    model = Net()
    folded = fold(model, X)
    assert list(stochastic_layers(folded.model)) == []
    assert isinstance(folded.model.drop, nn.ReLU)
    assert folded.model.again is folded.model.drop
    assert not any(module.training for module in folded.model.modules())
    assert [(layer.path, layer.kind, layer.action) for layer in folded.layers] == [
        ("drop", "Jumpout", "relu"),
        ("blocks.0.1", "Dropout", "identity"),
        ("blocks.1", "AlphaDropout", "identity"),
    ]
    assert "sigma=0.1" in folded.layers[0].settings
    assert torch.equal(folded.model(X), model.eval()(X))


def test_without_an_example_known_layers_are_folded_too():
    model = Net()
    assert list(stochastic_layers(fold_model(model))) == []
    assert torch.equal(fold_model(model)(X), model.eval()(X))


@pytest.mark.parametrize("example", [None, X], ids=["unproven", "proven"])
@pytest.mark.parametrize("train", [True, False])
def test_the_model_stays_as_it_was(example, train):
    model = Net().train(train)
    model.bn.eval()
    model.conv.weight.requires_grad_(False)
    before = state_of(model)
    fold_model(model, example)
    assert same_bits(before, state_of(model))


def test_the_state_check_above_can_fail():
    model = Net()
    before = state_of(model)
    model.bn.running_var[0] += 1e-6
    assert not same_bits(before, state_of(model))
    before = state_of(model)
    torch.rand(1)
    assert not same_bits(before, state_of(model))


def test_the_example_is_not_changed_by_a_model_that_works_in_place():
    x = torch.tensor([[-1.0, 1.0]])
    fold_model(nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5)), x)
    assert x.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("root", [nn.Dropout(0.5), Jumpout(), Jumpout(relu=True)], ids=repr)
def test_the_root_itself_may_be_stochastic(root):
    folded = fold_model(root, torch.tensor([[-1.0, 2.0]]))
    expected = nn.ReLU if getattr(root, "relu", False) else nn.Identity
    assert type(folded) is expected
    assert root.training


def test_a_trained_model_can_be_folded():
    model = Net()
    model(X).sum().backward()
    assert torch.equal(fold_model(model, X)(X), model.eval()(X))


@pytest.mark.parametrize("example", [None, torch.ones(2, 3)], ids=["unproven", "proven"])
def test_dropout_that_scales_in_eval_keeps_its_scale(example):
    folded = fold(nn.Sequential(nn.Dropout(0.1), NonInverted(0.25)), example)
    assert torch.equal(folded.model(torch.ones(2, 3)), torch.full((2, 3), 0.75))
    assert [layer.action for layer in folded.layers] == ["identity", "keep"]
    if example is not None:
        assert folded.notes == (
            "`1` (NonInverted) does more in eval mode than return its input; it stays, in eval mode",
        )


def test_rrelu_becomes_the_leaky_relu_it_is_in_eval_mode():
    model = nn.Sequential(nn.RReLU(0.1, 0.4))
    for example in (None, X):
        folded = fold(model, example)
        assert folded.layers[0].action == "leaky_relu"
        assert folded.model[0].negative_slope == 0.25
        assert torch.equal(folded.model(X), model.eval()(X))


def test_a_subclass_that_is_the_identity_is_folded_if_a_run_shows_it():
    class Mine(nn.Dropout):
        def forward(self, x):
            return super().forward(x)

    assert isinstance(fold_model(nn.Sequential(Mine(0.5)), X)[0], nn.Identity)
    assert isinstance(fold_model(nn.Sequential(Mine(0.5)))[0], Mine)


def test_a_hook_on_a_dropout_keeps_its_effect():
    model = nn.Sequential(nn.Dropout(0.5))
    model[0].register_forward_hook(lambda module, args, output: output * 3)
    for example in (None, X):
        assert torch.equal(fold_model(model, example)(X), X * 3)


def test_a_model_that_reads_the_layer_keeps_it_in_eval_mode():
    folded = fold(ReadsTheRate(), X)
    assert folded.layers[0].action == "keep"
    assert folded.notes[0].startswith("the stochastic layers stay, in eval mode, because without them the model fails")
    assert torch.equal(folded.model(X), X)


GENERATOR = np.random.default_rng(0)
RANDOM = {
    "functional dropout": Noise(lambda x: F.dropout(torch.ones_like(x), 0.5, training=True)),
    "rand_like mask": Noise(lambda x: (torch.rand_like(x) < 0.5).float()),
    "numpy": Noise(lambda x: torch.from_numpy(np.random.rand(*x.shape)).float()),
    "python": Noise(lambda x: random.random()),
    "private generator": Noise(lambda x: float(GENERATOR.random())),
}


@pytest.mark.parametrize("noise", RANDOM.values(), ids=RANDOM.keys())
def test_randomness_that_cannot_be_folded_names_module_file_and_line(noise):
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), noise))
    before = state_of(model)
    with pytest.raises(NotFoldableError, match="draws random numbers in eval mode") as error:
        fold_model(model, X)
    assert error.value.modules == ("1.1",)
    assert "in module `1.1`" in str(error.value)
    source = inspect.getsourcelines(noise.draw)[1], inspect.getsourcelines(Noise.forward)[1]
    assert any(f"{__file__}:{line}" in str(error.value) for line in source)
    assert same_bits(before, state_of(model))


def test_all_places_are_named():
    model = nn.Sequential(RANDOM["functional dropout"], nn.Linear(8, 8), RANDOM["rand_like mask"])
    with pytest.raises(NotFoldableError) as error:
        fold_model(model, X)
    assert error.value.modules == ("0", "2")
    assert "bernoulli" in str(error.value)
    assert "rand_like" in str(error.value)


def test_two_foreign_noises_of_a_parent_and_torch_noise_are_told_apart():
    model = nn.Sequential(RANDOM["rand_like mask"], nn.Linear(8, 8), RANDOM["numpy"])
    with pytest.raises(NotFoldableError) as error:
        fold_model(model, X)
    assert error.value.modules == ("0", "2")


def test_noise_drawn_between_two_children_belongs_to_the_parent():
    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.second(self.first(x) + np.random.rand())

    with pytest.raises(NotFoldableError) as error:
        fold_model(nn.Sequential(Parent()), X)
    assert error.value.modules == ("0",)


def test_allowed_randomness_stays_and_the_rest_is_folded():
    class MonteCarlo(nn.Dropout):
        def train(self, mode=True):
            return super().train(True)

    model = nn.Sequential(nn.Dropout(0.5), MonteCarlo(0.5))
    message = "`1` in train mode even after the model's eval\\(\\), so no deterministic graph equals it"
    for example in (None, X):
        with pytest.raises(NotFoldableError, match=message) as error:
            fold_model(model, example)
        assert error.value.modules == ("1",)
        folded = fold_model(model, example, allow="1")
        assert isinstance(folded[0], nn.Identity)
        assert isinstance(folded[1], MonteCarlo)
    with pytest.raises(ValueError, match="allow names no module of the model: 'mc'"):
        fold_model(model, X, allow=["mc"])


def test_a_model_that_cannot_be_copied_says_why():
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].lock = threading.Lock()
    with pytest.raises(TypeError, match=r"the model cannot be copied, and the export never changes yours: .* '_thread"):
        fold_model(model, X)


def test_wrong_arguments_are_named():
    with pytest.raises(
        TypeError, match=r"model must be a torch\.nn\.Module or torch\.export\.ExportedProgram, got int"
    ):
        fold_model(3, X)
    with pytest.raises(TypeError, match=r"example: a batch must be a tensor, a tuple or list .* got str"):
        fold_model(nn.Linear(8, 8), "x")
    with pytest.raises(ValueError, match="the model cannot run the example: RuntimeError: mat1 and mat2"):
        fold_model(nn.Linear(3, 8), X)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_model_and_one_without_values_are_refused_in_words(tmp_path):
    scripted = torch.jit.script(nn.Linear(3, 2))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(3, 2))
    for model, error, says in (
        (scripted, TypeError, r"is a TorchScript module, which torch\.export cannot trace; give the nn\.Module"),
        (
            empty,
            ValueError,
            r"the model's `0\.weight` has no values: they are on the meta device; load the weights first",
        ),
    ):
        with pytest.raises(error, match=says):
            fold_model(model)
        with pytest.raises(error, match=says):
            export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 3))
        with pytest.raises(error, match=says):
            export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 3), dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_a_compiled_model_is_folded_as_the_model_it_wraps():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    assert isinstance(fold_model(torch.compile(model), X)[1], nn.Identity)
