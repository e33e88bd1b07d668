"""How a network is run to be looked at: generators, inputs and the network itself are as they were before."""

import random

import numpy as np
import torch
from torch import nn

from jumpout_export.model.axes import resized
from jumpout_export.model.batches import Batch
from jumpout_export.model.randomness import generator_states, reseed, rng_restored, same_bits
from jumpout_export.model.run import call, cast, double_copy, run, run_copy


class Restless(nn.Module):
    """Works in place, counts its calls and draws from every generator."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, index=None):
        self.calls += 1
        x += torch.rand(()).to(x) + np.random.rand() + random.random()
        return {"y": self.linear(x), "more": (x, index)}


def batch(**kwargs):
    return Batch((torch.ones(4, 3),), kwargs)


def test_a_run_leaves_generators_and_inputs_and_a_run_of_a_copy_the_model():
    model, samples = Restless(), batch(index=torch.arange(4))
    before, own = generator_states(), samples.args[0].clone()
    result = run(model, samples)
    again = run_copy(model, samples)
    assert same_bits(generator_states(), before)
    assert torch.equal(samples.args[0], own)
    assert same_bits(result, again)
    assert not result["y"].requires_grad
    assert model.calls == 1


def test_a_call_shows_what_moves_and_gives_tensors_only():
    class Answer(dict):
        """As ModelOutput, which torch's pytree does not know."""

    class Net(nn.Module):
        def forward(self, x):
            return Answer(y=x + torch.rand(()), z=None)

    before = torch.get_rng_state()
    with rng_restored():
        result = call(Net(), batch())
        assert not torch.equal(torch.get_rng_state(), before)
    assert [type(value) for value in result] == [torch.Tensor]


def test_only_floating_point_inputs_are_cast():
    samples = batch(index=torch.arange(4))
    for dtype in (torch.float64, torch.float16):
        other = cast(samples, dtype)
        assert (other.args[0].dtype, other.kwargs["index"].dtype) == (dtype, torch.int64)
    assert samples.args[0].dtype == torch.float32


def test_a_double_copy_computes_in_float64_and_the_model_does_not():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    double = double_copy(model)
    result = run(double, cast(batch(), torch.float64))
    assert result.dtype == torch.float64
    assert torch.allclose(result, run(model, batch()).double())
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}


def test_equal_seeds_draw_alike_whatever_their_size():
    def drawn(seed):
        with rng_restored():
            reseed(seed)
            return torch.rand(()).item(), np.random.rand(), random.random()

    assert drawn(7) == drawn(7)
    assert all(one != two for one, two in zip(drawn(7), drawn(8), strict=True))
    assert drawn(2**33 + 7)[1] == drawn(7)[1]  # NumPy takes 32 bits


def test_inputs_take_other_sizes_along_open_axes_and_start_again_at_their_end():
    samples = Batch((torch.arange(6).reshape(2, 3), torch.arange(2)), {})
    other = resized(samples, ({0: "batch", 1: "width"}, {0: "batch"}), {"batch": 3, "width": 2})
    assert other.args[0].tolist() == [[0, 1], [3, 4], [0, 1]]
    assert other.args[1].tolist() == [0, 1, 0]
    assert resized(samples, ({}, {}), {}).args[0].tolist() == samples.args[0].tolist()
