"""The CUDA path: the same masks as on the CPU, gradients, graphs, streams. The CPU path is the oracle."""

import subprocess
import sys

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


def test_forward_and_backward_inside_a_cuda_graph_equal_eager():
    x = torch.randn(1000, device="cuda", requires_grad=True)
    dy, seed = torch.randn(1000, device="cuda"), torch.tensor(7, device="cuda")

    def run():
        y = jumpout(x, seed=seed, relu=True)
        return y.detach(), *torch.autograd.grad(y, x, dy)

    expected = run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        x.mul_(0.5)
    graph.replay()
    for actual, wanted in zip(captured, run(), strict=True):
        assert torch.equal(actual, wanted)
    assert not torch.equal(captured[0], expected[0])


def test_a_side_stream_gives_the_same():
    x, seed = torch.randn(100_000, device="cuda"), torch.tensor(3, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = jumpout(x, seed=seed)
    stream.synchronize()
    assert torch.equal(y, jumpout(x, seed=seed))


def test_more_rows_than_thread_blocks_equal_the_cpus():
    x, seed = torch.randn(2**20 + 5, 3), torch.tensor(3)
    assert torch.equal(
        jumpout(x.cuda(), seed=seed.cuda(), normalize="sample").cpu(), jumpout(x, seed=seed, normalize="sample")
    )


@pytest.mark.parametrize("rows", [2, 8, 100, 5000])
def test_rows_counted_in_parts_and_whole_equal_the_cpus(rows):
    x, seed = torch.randn(rows, 4_000_003 // rows), torch.tensor(3)
    assert torch.equal(
        jumpout(x.cuda(), seed=seed.cuda(), normalize="sample").cpu(), jumpout(x, seed=seed, normalize="sample")
    )


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_layer_without_a_seed_draws_a_fresh_mask_at_each_call(mode):
    layer = torch.compile(Jumpout(p=0.3, normalize="none", alpha=1.0), fullgraph=True, mode=mode)
    x = torch.ones(100_000, device="cuda", requires_grad=True)
    masks = []
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        y = layer(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(dx, y)  # x is 1, so both are the scaled mask
        masks.append((y != 0).clone())
    assert not torch.equal(masks[-2], masks[-1])
    # Six standard errors of a mean of 100,000 draws with probability 0.7.
    assert masks[-1].double().mean().item() == pytest.approx(0.7, abs=6 * (0.21 / 100_000) ** 0.5)


needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@needs_two
def test_a_second_device_gives_the_same_and_the_current_one_stays():
    x, seed = torch.randn(100_000), torch.tensor(3)
    there = x.to("cuda:1").requires_grad_()
    y = jumpout(there, seed=seed.to("cuda:1"))
    y.sum().backward()
    assert torch.cuda.current_device() == 0
    assert torch.equal(y.cpu(), jumpout(x, seed=seed))
    assert torch.equal(there.grad.cpu() != 0, (y != 0).cpu())


@needs_two
def test_no_context_is_created_on_a_device_that_is_not_used():
    code = """if True:
        import torch
        from jumpout_export import jumpout
        x = torch.randn(1000, device="cuda:1", requires_grad=True)
        jumpout(x).sum().backward()
        assert torch._C._cuda_hasPrimaryContext(1)
        assert not torch._C._cuda_hasPrimaryContext(0)
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_failure_of_an_earlier_kernel_is_not_reported_as_ours():
    code = """if True:
        import time, torch
        from jumpout_export import jumpout
        x, seed = torch.randn(1000, device="cuda"), torch.tensor(1, device="cuda")
        empty, index = torch.zeros(1, device="cuda"), torch.tensor([5], device="cuda")
        jumpout(x, seed=seed)
        torch.cuda.synchronize()
        empty[index]
        time.sleep(1)
        jumpout(x, seed=seed)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "an earlier CUDA operation failed, not jumpout" in done.stderr


def test_a_seed_on_another_device_is_named():
    with pytest.raises(ValueError, match=r"seed must be on x's device cuda:0, got cpu"):
        jumpout(torch.ones(3, device="cuda"), seed=torch.tensor(1))
