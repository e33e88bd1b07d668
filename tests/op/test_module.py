"""The layer: eval mode, checkpoints, copies, statistics."""

import copy
import pickle

import pytest
import torch
from torch import nn

from jumpout_export import Jumpout, jumpout


def test_eval_mode_returns_the_input_object_and_draws_nothing():
    layer = Jumpout().eval()
    x = torch.randn(5, requires_grad=True)
    state = torch.get_rng_state()
    assert layer(x) is x
    assert jumpout(x, training=False) is x
    assert torch.equal(torch.get_rng_state(), state)
    assert all(field.isnan() for field in layer.statistics)


def test_eval_mode_with_relu_is_relu_and_nothing_else():
    x = torch.randn(50)
    assert torch.equal(Jumpout(relu=True).eval()(x), torch.relu(x))
    assert torch.equal(jumpout(x, training=False, relu=True), torch.relu(x))
    y = x.clone()
    assert jumpout(y, training=False, relu=True, inplace=True) is y
    assert torch.equal(y, torch.relu(x))


def test_it_has_no_state_so_checkpoints_load_with_and_without_it():
    with_jumpout = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Jumpout())
    with_dropout = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout())
    without = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with_jumpout(torch.randn(3, 4))  # statistics must not become state
    assert not list(with_jumpout[2].parameters()) + list(with_jumpout[2].buffers())
    for other in (with_dropout, without):
        other.load_state_dict(with_jumpout.state_dict())
        with_jumpout.load_state_dict(other.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_have_the_same_settings(copied):
    layer = Jumpout(p=0.3, normalize="sample", alpha=0.9, relu=True)
    layer(torch.randn(3, 4))
    twin = copied(layer)
    x = torch.randn(6, 7)
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)
    assert torch.equal(twin(x), expected)
    assert repr(twin) == repr(layer) == "Jumpout(p=0.3, normalize='sample', alpha=0.9, relu=True)"


def test_repr_names_the_rate():
    assert repr(Jumpout()) == "Jumpout(sigma=0.1, p_min=0.01, p_max=0.6)"


def test_statistics_hold_what_the_last_call_did():
    layer = Jumpout(sigma=0.1, alpha=1.0)
    x = torch.randn(1000)
    y = layer(x)
    sampled = layer.statistics
    assert sampled.q.item() == (x > 0).double().mean().item()
    assert 0.01 <= sampled.p.item() <= 0.6
    assert sampled.p_prime.item() == pytest.approx(sampled.p.item() / sampled.q.item(), abs=2**-16)
    kept = y != 0
    assert sampled.scale.item() == pytest.approx((y[kept] / x[kept]).mean().item(), rel=1e-6)
    layer(x)
    assert layer.statistics.p.item() != sampled.p.item()


def test_per_sample_statistics_are_means_over_the_samples():
    layer = Jumpout(normalize="sample", p=0.1)
    x = torch.randn(7, 10)
    layer(x)
    assert all(field.shape == () and field.dtype == torch.float64 for field in layer.statistics)
    assert layer.statistics.q.item() == pytest.approx((x > 0).double().mean().item())


def test_statistics_taken_earlier_do_not_change():
    layer = Jumpout()
    layer(torch.randn(100))
    first = layer.statistics.p
    value = first.item()
    layer(torch.randn(100))
    assert first.item() == value


def test_statistics_are_no_state_and_follow_the_device():
    layer = Jumpout()
    layer(torch.randn(10))
    assert not layer.state_dict()
    assert layer.half().statistics.p.dtype == torch.float64
    assert layer.to("meta").statistics.p.device.type == "meta"


def test_a_schedule_may_set_the_attributes():
    layer = Jumpout(sigma=0.1)
    layer.sigma, layer.p_min = 0.0, 0.25
    layer(torch.ones(4))
    assert layer.statistics.p.item() == 0.25
