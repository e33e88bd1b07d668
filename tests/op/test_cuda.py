"""The CUDA path: the same masks as on the CPU, gradients, graphs, streams. The CPU path is the oracle."""

import pytest
import torch

from jumpout_export import Jumpout, jumpout, ops

pytestmark = pytest.mark.cuda

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SETTINGS = {
    "default": {},
    "constant": {"p": 0.3},
    "sample": {"normalize": "sample", "sigma": 0.2},
    "dropout": {"p": 0.4, "normalize": "none", "alpha": 1.0},
    "relu": {"relu": True},
    "relu sample": {"relu": True, "normalize": "sample"},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_result_and_gradient_equal_the_cpus_bit_for_bit(dtype, settings):
    for shape in [(0,), (1,), (7,), (129,), (1134,), (5, 7, 3), (64, 3, 17, 5), (70001,), (3_000_000,)]:
        x = torch.randn(shape).to(dtype).requires_grad_()
        there = x.detach().cuda().requires_grad_()
        seed, dy = torch.randint(-(2**63), 2**63 - 1, ()), torch.randn(shape).to(dtype)
        here, on_gpu = jumpout(x, seed=seed, **settings), jumpout(there, seed=seed.cuda(), **settings)
        assert torch.equal(on_gpu.cpu(), here)
        (dx,) = torch.autograd.grad(here, x, dy)
        (dx_gpu,) = torch.autograd.grad(on_gpu, there, dy.cuda())
        assert torch.equal(dx_gpu.cpu(), dx)


def test_unaligned_and_strided_inputs_equal_the_cpus():
    storage = torch.randn(3001)
    there = storage.cuda()
    for view in (
        lambda s: s[1:],
        lambda s: s[3::2],
        lambda s: s[:3000].view(50, 60).t(),
        lambda s: s[1:2401].view(4, 6, 10, 10),
    ):
        on_gpu = jumpout(view(there), seed=torch.tensor(1, device="cuda"))
        assert torch.equal(on_gpu.cpu(), jumpout(view(storage), seed=torch.tensor(1)))


def test_statistics_equal_the_cpus():
    x = torch.randn(100, 300)
    here, there = Jumpout(sigma=0.2), Jumpout(sigma=0.2).cuda()
    seeds = torch.tensor(5)
    settings = (None, 0.2, 0.01, 0.6, 0.75, 0.95, "batch", "shift", False)
    _, expected = ops.apply(x, seeds, settings)
    _, actual = ops.apply(x.cuda(), seeds.cuda(), settings)
    assert torch.equal(actual.cpu(), expected)
    assert here(x).shape == there(x.cuda()).shape


def test_a_cuda_graph_draws_a_fresh_mask_at_each_replay():
    layer = Jumpout(sigma=0.1, relu=True)
    x = torch.randn(1000, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        layer(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    graph.replay()
    first = y.clone()
    graph.replay()
    assert not torch.equal(first, y)


def test_nothing_waits_for_the_device():
    layer = Jumpout(sigma=0.1, relu=True)
    x = torch.randn(1000, device="cuda", requires_grad=True)
    layer(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_opcheck_and_compile():
    x, seed = torch.randn(3, 5, 7, device="cuda"), torch.tensor(3, device="cuda")
    settings = (None, 0.1, 0.01, 0.6, 0.75, 0.95, "batch", "shift", False)
    torch.library.opcheck(torch.ops.jumpout.forward, (x, seed, *settings))
    compiled = torch.compile(lambda x: jumpout(x, seed=seed, relu=True), fullgraph=True)
    assert torch.equal(compiled(x), jumpout(x, seed=seed, relu=True))


def test_a_seed_on_another_device_is_named():
    with pytest.raises(ValueError, match=r"seed must be on x's device cuda:0, got cpu"):
        jumpout(torch.ones(3, device="cuda"), seed=torch.tensor(1))
