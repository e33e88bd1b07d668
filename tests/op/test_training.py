"""Whole training arrangements: AMP, compiled steps, DDP, FSDP2, threads, torch.export, the memory-budget hazard."""

import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jumpout_export import Jumpout, jumpout


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), Jumpout(sigma=0.1, relu=True), nn.Linear(32, 3))


X, Y = torch.randn(64, 12, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_with_a_grad_scaler_trains(dtype):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", dtype=dtype):
            loss = F.cross_entropy(model(X), Y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.integration
def test_a_compiled_training_step_equals_the_eager_one():
    torch._dynamo.reset()
    seed = torch.tensor(3)

    def loss(weight, x, seed):
        return F.cross_entropy(jumpout(x @ weight, seed=seed, relu=True), Y)

    weight = torch.randn(12, 3, requires_grad=True)
    expected = torch.autograd.grad(loss(weight, X, seed), weight)
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True)(weight, X, seed), weight)
    torch.testing.assert_close(actual, expected)


@pytest.mark.integration
def test_with_a_memory_budget_a_seed_given_as_input_keeps_the_gradient_right():
    """An in-graph seed may be drawn again in a recomputed backward (pytorch#190758); one from outside cannot."""
    torch._dynamo.reset()
    weights = [torch.randn(12, 12, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    seeds = torch.arange(4)
    x = X.double()

    def loss(weights, seeds):
        h = x
        for weight, seed in zip(weights, seeds.unbind(), strict=True):
            h = jumpout(h @ weight, p=0.4, relu=True, seed=seed)
        return h.square().mean()

    expected = torch.autograd.grad(loss(weights, seeds), weights)
    with torch._functorch.config.patch(activation_memory_budget=0.0):
        actual = torch.autograd.grad(torch.compile(loss, fullgraph=True)(weights, seeds), weights)
    torch.testing.assert_close(actual, expected)


def test_the_eval_network_exports_without_a_trace_of_jumpout():
    program = torch.export.export(network().eval(), (X,))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("jumpout" in target or "rand" in target for target in targets)
    torch.testing.assert_close(program.module()(X), network().eval()(X))


def test_threads_may_share_a_layer_and_the_op():
    layer = Jumpout(p=0.3, relu=True)
    seeds = [torch.tensor(index) for index in range(8)]
    x = torch.randn(200, 300)
    expected = [jumpout(x, p=0.3, relu=True, seed=seed) for seed in seeds]
    results = [None] * len(seeds)

    def work(index):
        for _ in range(5):
            layer(x)
            results[index] = jumpout(x, p=0.3, relu=True, seed=seeds[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(seeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


DISTRIBUTED = """
import os, sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from jumpout_export import Jumpout

kind, rank = sys.argv[1], int(os.environ["RANK"])
dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 32), Jumpout(p=0.3, relu=True), nn.Linear(32, 3))
torch.manual_seed(100 + rank)  # as data loading with a rank's own seed does
if kind == "ddp":
    model = nn.parallel.DistributedDataParallel(model)
    layer = model.module[1]
else:
    from torch.distributed.fsdp import fully_shard
    model = fully_shard(model)
    layer = model[1]
masks = []
layer.register_forward_hook(lambda module, inputs, output: masks.append((output != 0).float().flatten()))
x, y = torch.ones(16, 12), torch.arange(16) % 3
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
gathered = [torch.empty_like(masks[0]) for _ in range(2)]
dist.all_gather(gathered, masks[0])
assert not torch.equal(*gathered), "both ranks dropped the same units"
assert abs(float(layer.statistics.p) - 0.3) < 1e-12
weight = next(model.parameters())
weight = (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).detach()
weights = [torch.empty_like(weight) for _ in range(2)]
dist.all_gather(weights, weight)
assert torch.equal(*weights), "the ranks' weights differ"
dist.barrier()
print("rank", rank, "done", flush=True)
os._exit(0)  # gloo's threads sometimes abort in the destructors of a process that ends normally
"""


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_with_independent_masks(tmp_path, kind):
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), kind]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("done") == 2
