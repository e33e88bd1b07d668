"""Finding randomness by running: operator, module, file and line; and stochastic layers by name."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jumpout_export import Jumpout
from jumpout_export.model.randomness import random_calls, repeated, rng_restored, same_bits
from jumpout_export.model.stochastic import stochastic_layers


class Inner(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return self.draw(x)


GENERATOR = torch.Generator()
NUMPY = np.random.default_rng(0)
DRAWS = {
    "F.dropout": (lambda x: F.dropout(x, 0.5, training=True), "bernoulli_"),
    "rand_like": (lambda x: x + torch.rand_like(x), "rand_like"),
    "randn": (lambda x: x + torch.randn(x.shape), "randn"),
    "own generator": (lambda x: x + torch.rand(x.shape, generator=GENERATOR), "rand"),
    "multinomial": (lambda x: x + torch.multinomial(torch.ones(5), 1), "multinomial"),
    "numpy": (lambda x: x + np.random.rand(), "numpy.random"),
    "python": (lambda x: x + random.random(), "random (Python's)"),
    "attention": (lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5), ""),
    "gumbel": (lambda x: F.gumbel_softmax(x), "exponential"),
}


@pytest.mark.parametrize(("draw", "operator"), DRAWS.values(), ids=DRAWS.keys())
def test_a_random_call_is_found_with_its_module(draw, operator):
    model = nn.Sequential(nn.Identity(), Inner(draw)).eval()
    calls = random_calls(model, lambda: model(torch.ones(5, 5)))
    assert calls
    assert operator in calls[0].operator
    if "random" not in calls[0].operator:
        assert calls[0].module == "1"
        assert calls[0].file == __file__
        assert calls[0].line > 0


@pytest.mark.parametrize(
    "draw",
    [
        torch.relu,
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
        lambda x: x + torch.empty_like(x).fill_(1.0),
        Jumpout().eval(),
    ],
)
def test_a_deterministic_call_is_not(draw):
    model = Inner(draw).eval()
    assert random_calls(model, lambda: model(torch.ones(5, 5))) == []
    assert repeated(lambda: model(torch.ones(5, 5)), other_seed=True)[1]


def test_jumpout_in_train_mode_is_found():
    model = nn.Sequential(Jumpout())
    (call,) = random_calls(model, lambda: model(torch.ones(5)))
    assert call.module == "0"
    assert "in module `0`" in str(call)


def test_a_hidden_generator_shows_as_two_runs_that_differ():
    for other_seed in (True, False):
        assert not repeated(lambda: torch.ones(3) * NUMPY.random(), other_seed=other_seed)[1]


def test_looking_moves_no_generator_and_leaves_no_hook():
    model = Inner(lambda x: torch.rand_like(x) + np.random.rand() + random.random())
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    random_calls(model, lambda: model(torch.ones(5)))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_generators_and_hooks_are_restored_after_an_exception():
    model = Inner(lambda x: torch.rand_like(x) / 0 if False else (torch.rand_like(x), {}["missing"]))
    state = torch.get_rng_state()
    with pytest.raises(KeyError, match="missing"):
        random_calls(model, lambda: model(torch.ones(5)))
    assert torch.equal(state, torch.get_rng_state())
    assert not model._forward_hooks
    with pytest.raises(ZeroDivisionError), rng_restored():
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor(0.0), torch.tensor(-0.0), False),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), False),
        (torch.ones(2), torch.ones(1, 2), False),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, False),
        ((torch.ones(2), 3), (torch.ones(2), 3), True),
        ((torch.ones(2), 3), (torch.ones(2), 4), False),
        (torch.empty(0), torch.empty(0), True),
    ],
)
def test_same_bits(first, second, same):
    assert same_bits(first, second) is same


def test_stochastic_layers_are_known_by_name():
    class DropPath(nn.Module):  # as timm's
        pass

    model = nn.ModuleDict(
        {
            "a": nn.Dropout(0.1),
            "b": Jumpout(relu=True),
            "c": DropPath(),
            "d": nn.RReLU(),
            "e": nn.LSTM(2, 2, num_layers=2, dropout=0.5),
            "f": nn.LSTM(2, 2),
            "g": nn.Linear(2, 2),
        }
    )
    found = [(layer.path, layer.kind, layer.action) for layer in stochastic_layers(model)]
    assert found == [
        ("a", "Dropout", "identity"),
        ("b", "Jumpout", "relu"),
        ("c", "DropPath", "identity"),
        ("d", "RReLU", "keep"),
        ("e", "LSTM", "keep"),
    ]


@torch.library.custom_op("jumpout_export_tests::noise", mutates_args=())
def hidden_noise(x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand_like(x)


@hidden_noise.register_fake
def _(x):
    return torch.empty_like(x)


def test_noise_inside_a_custom_operator_is_found():
    model = nn.Sequential(nn.Identity(), Inner(torch.ops.jumpout_export_tests.noise)).eval()
    (call,) = random_calls(model, lambda: model(torch.ones(5)))
    assert (call.operator, call.module) == ("jumpout_export_tests.noise.default", "1")


def test_a_torch_generator_that_no_operator_moved_is_found():
    model = Inner(lambda x: x + 0 * torch.default_generator.manual_seed(len(x)).initial_seed())
    state = torch.get_rng_state()
    (call,) = random_calls(model, lambda: model(torch.ones(5)))
    assert call.operator == "torch generator"
    assert torch.equal(state, torch.get_rng_state())


def test_the_second_run_may_start_from_other_states():
    def run():
        return torch.rand(3), np.random.rand(), random.random()

    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert repeated(run, other_seed=False)[1]
    assert not repeated(run, other_seed=True)[1]
    assert not repeated(lambda: np.random.rand(), other_seed=True)[1]
    assert not repeated(lambda: random.random(), other_seed=True)[1]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_a_single_value_with_any_stride_has_its_bytes():
    column = torch.arange(6.0).reshape(2, 3)[:1, 1]
    assert same_bits(column.as_strided((1,), (3,)), column.clone())


@pytest.mark.integration
def test_torch_cond_is_looked_into_and_runs_afterwards():
    class Branch(nn.Module):
        def __init__(self, otherwise):
            super().__init__()
            self.linear, self.otherwise = nn.Linear(4, 3), otherwise

        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: self.linear(x), lambda x: self.otherwise(self.linear(x)), (x,))

    calm, noisy, x = Branch(torch.neg).eval(), Branch(lambda y: y + torch.rand_like(y)).eval(), -torch.ones(2, 4)
    with torch.no_grad():
        assert random_calls(calm, lambda: calm(x)) == []
        assert calm(x).shape == (2, 3)
        assert [call.operator for call in random_calls(noisy, lambda: noisy(x))] == ["cond"]
        assert noisy(x).shape == (2, 3)


def test_a_scripted_part_takes_no_hooks_and_what_it_draws_counts_for_the_module_around_it():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(Noise())
    model = nn.Sequential(nn.Identity(), nn.Sequential(scripted)).eval()
    (call,) = random_calls(model, lambda: model(torch.ones(5)))
    assert (call.operator, call.module) == ("aten.rand_like.default", "1")


def test_looking_leaves_the_output_of_the_model_as_it_is():
    model, outputs = nn.Sequential(nn.Identity()), []
    random_calls(model, lambda: outputs.append(model(torch.ones(5))))
    assert outputs[0].tolist() == [1.0] * 5
