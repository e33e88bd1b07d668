"""Everything PyTorch does to an op: autograd twice, compile, checkpointing, and what is saved for backward."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from jumpout_export import Jumpout, jumpout
from jumpout_export.nn.functional import check_settings

SETTINGS = check_settings(None, 0.01, 0.6, None, "batch", 0.75, 0.95, "shift", False)
SAMPLE = check_settings(0.2, 0.01, 0.6, None, "sample", 0.75, 0.95, "clip", True)


@pytest.mark.parametrize("settings", [SETTINGS, SAMPLE], ids=["batch", "sample"])
@pytest.mark.parametrize("x", [torch.randn(3, 5, 7), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)])
def test_opcheck(settings, x):
    seed = torch.tensor(3)
    ops = torch.ops.jumpout
    torch.library.opcheck(ops.forward, (x, seed, *settings))
    torch.library.opcheck(ops.forward_, (x.clone(memory_format=torch.preserve_format), seed, *settings))
    _, bits, stats = ops.forward(x, seed, *settings)
    torch.library.opcheck(ops.backward, (x, bits, stats, x.stride()))


@pytest.mark.parametrize("settings", [{}, {"normalize": "sample"}, {"relu": True}, {"p": 0.3, "alpha": 1.0}])
def test_gradcheck_twice(settings):
    x = torch.randn(3, 11, dtype=torch.float64, requires_grad=True)

    def function(x):
        return jumpout(x, seed=torch.tensor(5), **settings)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_in_place_has_the_same_gradient():
    x = torch.randn(40, requires_grad=True)
    grads = []
    for inplace in (False, True):
        hidden = x * 2
        y = jumpout(hidden, seed=torch.tensor(5), inplace=inplace)
        grads += torch.autograd.grad(y.square().sum(), x)
        assert (y is hidden) is inplace
    assert torch.equal(*grads)


def test_in_place_on_a_leaf_that_needs_its_gradient_is_refused_by_torch():
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        jumpout(torch.randn(4, requires_grad=True), inplace=True)


def test_one_bit_per_element_is_saved_for_backward():
    saved = []
    x = torch.randn(64, 1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        jumpout(x, relu=True)
    assert sum(t.numel() * t.element_size() for t in saved) == 64_000 // 8 + 5 * 8


def network():
    return nn.Sequential(
        nn.Linear(16, 64), Jumpout(sigma=0.1, relu=True), nn.Linear(64, 8), Jumpout(p=0.2), nn.Linear(8, 2)
    )


@pytest.mark.integration
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph_with_the_same_gradients(dynamic):
    torch._dynamo.reset()
    seed = torch.tensor(7)

    def function(x, w):
        return jumpout(x @ w, seed=seed, relu=True).square().sum()

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    for rows in (5, 9):
        x, w = torch.randn(rows, 6), torch.randn(6, 10, requires_grad=True)
        expected, actual = function(x, w), compiled(x, w)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(torch.autograd.grad(actual, w), torch.autograd.grad(expected, w))


@pytest.mark.integration
def test_a_compiled_module_draws_fresh_masks_and_records_statistics():
    torch._dynamo.reset()
    model = network()
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(32, 16)
    assert not torch.equal(compiled(x), compiled(x))
    assert 0 < model[1].statistics.p_prime.item() < 0.95
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    compiled.eval()
    assert torch.equal(compiled(x), compiled(x))


@pytest.mark.integration
def test_in_place_compiles():
    torch._dynamo.reset()
    x = torch.randn(6, 7)

    def function(x):
        hidden = x * 2
        y = jumpout(hidden, seed=torch.tensor(5), inplace=True)
        return y + hidden

    grads = []
    for f in (function, torch.compile(function, fullgraph=True)):
        leaf = x.clone().requires_grad_()
        f(leaf).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.integration
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_activation_checkpointing_recomputes_the_same_mask(compiled):
    torch._dynamo.reset()
    model = network().double()
    x = torch.randn(12, 16, dtype=torch.float64)

    def recomputed(x):
        return checkpoint(model, x, use_reentrant=False).square().sum()

    function = torch.compile(recomputed, fullgraph=True) if compiled else recomputed
    torch.manual_seed(5)
    loss = function(x)
    loss.backward()
    actual = [parameter.grad.clone() for parameter in model.parameters()]
    # A recomputation with another mask would give another gradient than finite differences of the loss along it.
    direction = [g / torch.stack([a.norm() for a in actual]).norm() for g in actual]
    step, losses = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, d in zip(model.parameters(), direction, strict=True):
                parameter.add_(d, alpha=sign * step)
        torch.manual_seed(5)
        losses.append(function(x).item())  # with gradients: torch 2.15 compiles other random numbers without them
        with torch.no_grad():
            for parameter, d in zip(model.parameters(), direction, strict=True):
                parameter.sub_(d, alpha=sign * step)
    slope = (losses[0] - losses[1]) / (2 * step)
    assert slope == pytest.approx(torch.stack([a.norm() for a in actual]).norm().item(), rel=1e-5)


def test_torch_func_grad_works():
    x = torch.randn(20)
    seed = torch.tensor(1)
    actual = torch.func.grad(lambda x: jumpout(x, seed=seed).sum())(x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(jumpout(leaf, seed=seed).sum(), leaf)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_no_autograd_node_without_gradients(context):
    with context():
        assert jumpout(torch.randn(4)).grad_fn is None
    assert jumpout(torch.randn(4)).grad_fn is None


def test_autocast_runs_in_the_dtype_it_is_given():
    layer = nn.Sequential(nn.Linear(8, 8), Jumpout(relu=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(4, 8))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer[0].weight.grad.dtype == torch.float32
