"""Training is bitwise the same with the monitor as without it, whatever happens in a look."""

import copy
import random

import numpy as np
import pytest
import torch
from support.monitored import Augmented, Training, by_look, held_out, labels, network, random_loader, samples
from support.ranks import run_ranks
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from jumpout_export import BatchNormMonitor, Jumpout
from jumpout_export.model.randomness import same_bits
from jumpout_export.nn.sampled import _PENDING


def test_training_is_bitwise_the_same_with_the_monitor():
    loader = random_loader()
    generator = loader.generator.get_state()
    plain = Training()
    watched = Training(watch=lambda model: BatchNormMonitor(model, loader, every=7, samples=40))
    assert watched.monitor.history.steps == [7, 14, 21, 28]
    assert same_bits(watched.traces, plain.traces)
    assert torch.equal(loader.generator.get_state(), generator)
    assert not same_bits(plain.losses[:1], plain.losses[1:2])  # it did train


class Meddler:
    """A monitor as it must not be."""

    def __init__(self, meddle) -> None:
        self.step = meddle


@pytest.mark.parametrize(
    "meddle",
    [
        lambda model: torch.rand(()),
        lambda model: np.random.rand(),
        lambda model: random.random(),
        lambda model: model[1].running_mean.mul_(1 + 1e-6),
        lambda model: model[4].eval(),
        lambda model: model[0].register_forward_hook(lambda *_: None),
    ],
    ids=["torch", "numpy", "python", "buffer", "flag", "hook"],
)
def test_the_comparison_above_finds_every_trace(meddle):
    watched = Training(watch=lambda model: Meddler(lambda: meddle(model)), steps=2)
    assert not same_bits(watched.traces, Training(steps=2).traces)


class Broken(Augmented):
    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 40:
            raise OSError("sample 40 cannot be read")
        return super().__getitem__(index)


def test_training_is_bitwise_the_same_if_the_looks_fail_in_the_middle():
    loader = DataLoader(Broken(), batch_size=16)
    watched = Training(watch=lambda model: BatchNormMonitor(model, loader, every=7), broken=True)
    assert same_bits(watched.traces, Training().traces)
    assert [type(error) for error in watched.errors] == [OSError] * 4
    assert "sample 40 cannot be read" in str(watched.errors[1])
    (note,) = watched.errors[1].__notes__
    assert note.startswith("This was the look of BatchNormMonitor at training step 14; the model and the generators")
    assert watched.monitor.history.steps == []


def test_an_interrupt_in_a_look_leaves_the_model_as_it_was():
    model = network()
    before = copy.deepcopy(model.state_dict())

    def interrupted(model: nn.Module, batch: torch.Tensor) -> None:
        model(batch)
        raise KeyboardInterrupt

    monitor = BatchNormMonitor(model, held_out(), every=1, forward_fn=interrupted)
    with pytest.raises(KeyboardInterrupt):
        monitor.step()
    assert same_bits(model.state_dict(), before)
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert monitor.history.steps == []


def compiled(model: nn.Module) -> nn.Module:
    torch.compiler.reset()
    return torch.compile(model, backend="aot_eager")


def compiled_in_place(model: nn.Module) -> nn.Module:
    torch.compiler.reset()
    model.compile(backend="aot_eager")
    return model


@pytest.mark.integration
@pytest.mark.parametrize("wrap", [compiled, compiled_in_place])
def test_a_compiled_model_trains_bitwise_the_same_and_compiles_nothing_anew(wrap):
    plain = Training(wrap, steps=12)
    watched = Training(wrap, lambda model: BatchNormMonitor(model, held_out(), every=5), steps=12)
    assert same_bits(watched.traces, plain.traces)
    history = watched.monitor.history
    assert list(history.w) == ["1", "4"]
    assert history.rate["2"] == pytest.approx([float(torch.stack(s)[:, 2].mean()) for s in by_look(watched, 5)])
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(5):  # a look at the third
            F.cross_entropy(watched.called(samples(16)), labels(samples(16))).backward()
            watched.monitor.step()
    assert history.steps == [5, 10, 15]


def test_a_look_in_an_autocast_region_leaves_no_cast_weights_behind():
    x = samples(16)

    def gradients(look) -> list[torch.Tensor]:
        model = network()
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            look(model)
            with torch.no_grad():
                model[0].weight.mul_(2)
            loss = model(x).float().square().mean()
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    def naive(model: nn.Module) -> None:
        with torch.no_grad():
            model.eval()(x)
        model.train()

    expected = gradients(lambda model: None)
    assert same_bits(gradients(lambda model: BatchNormMonitor(model, [x]).look()), expected)
    assert not same_bits(gradients(naive), expected)


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_between_the_looks_no_operator_runs_and_memory_is_bounded():
    model = nn.Sequential(nn.BatchNorm1d(4), Jumpout(sigma=0.1))
    monitor = BatchNormMonitor(model, held_out(), every=10**6)
    x = torch.randn(8, 4)
    operators = []
    for _ in range(_PENDING + 1):
        model(x)
        with Operators() as mode:
            monitor.step()
        operators.append(mode.seen)
    assert all(seen == [] for seen in (*operators[: _PENDING - 1], operators[-1]))
    added_up = operators[_PENDING - 1]
    assert "aten.cat.default" in added_up
    assert not any("item" in name or "_local_scalar" in name or "copy" in name for name in added_up)  # no waiting
    (sampled,) = monitor._jumpouts.values()
    assert len(sampled._pending) == 1


def test_nothing_is_attached_to_the_model():
    model = network()
    before = {id(module): dict(vars(module)) for module in model.modules()}
    with BatchNormMonitor(model, held_out(), every=1) as monitor:
        monitor.step()
        assert {id(module): dict(vars(module)) for module in model.modules()} == before
        copy.deepcopy(model)


DISTRIBUTED = """
import os, sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from jumpout_export import BatchNormMonitor, Jumpout
from jumpout_export.model.randomness import same_bits

from torch.distributed.algorithms.join import Join
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

WRAPPERS = {
    "ddp": nn.parallel.DistributedDataParallel,
    "fsdp1": lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True),
    "fsdp2": fully_shard,
}
kind, rank = sys.argv[1], int(os.environ["RANK"])
dist.init_process_group("gloo")

def train(watch, batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), Jumpout(p=0.3, relu=True), nn.Linear(32, 3))
    model = WRAPPERS[kind](model)
    torch.manual_seed(100 + rank)
    x, y = torch.randn(16, 12), torch.arange(16) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = BatchNormMonitor(model, [torch.ones(9, 12)] * batches, every=2) if watch else None
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if monitor is not None:
            monitor.step()
    if monitor is not None:
        assert monitor.history.steps == [2, 4, 6], monitor.history
        assert list(monitor.history.w) == ["1"] and list(monitor.history.rate) == ["2"], monitor.history
    shards = [getattr(value, "_local_tensor", value).detach().clone() for value in model.parameters()]
    return shards, [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()

plain = train(False, 2)
assert same_bits(train(True, 2), plain)
if kind == "ddp":
    assert same_bits(train(True, 2 + rank), plain)  # each rank looks at batches of its own
    inside = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4))
    model = nn.parallel.DistributedDataParallel(inside)
    with Join([model]):  # in it the wrapper's forward would wait for the other rank
        if rank == 0:
            assert list(BatchNormMonitor(model, [torch.ones(9, 12)]).look().w) == ["1"]
    assert same_bits(train(rank == 0, 2), plain)  # one rank looks: a collective would wait for the other for ever
dist.barrier()
print("rank", rank, "done", flush=True)
os._exit(0)  # gloo's threads sometimes abort in the destructors of a process that ends normally
"""


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("kind", ["ddp", "fsdp1", "fsdp2"])
def test_two_processes_train_bitwise_the_same(tmp_path, kind):
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    ranks = run_ranks(2, script, kind)
    assert [code for code, _, _ in ranks] == [0, 0], [err[-3000:] for _, _, err in ranks]
    assert [out for _, out, _ in ranks] == ["rank 0 done\n", "rank 1 done\n"]
