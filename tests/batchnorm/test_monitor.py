"""The monitor: training is bitwise the same with it, and what it records is what was there."""

import copy
import importlib.util
import math
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, TensorDataset

from jumpout_export import BatchNormMonitor, Jumpout, check_batchnorm
from jumpout_export.model.randomness import same_bits
from jumpout_export.nn.sampled import _PENDING, Sampled
from jumpout_export.render.plots.monitor import plot_monitor
from jumpout_export.render.plots.style import themed
from jumpout_export.report import MonitorHistory


def images(count: int = 192, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def labels(x: torch.Tensor) -> torch.Tensor:
    return (x.mean(dim=(1, 2, 3)) > 0).long()


class Network(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """With a forward of its own, because torch compiles none of nn.Sequential where that is compiled in place."""
        for layer in self:
            x = layer(x)
        return x


def network() -> Network:
    torch.manual_seed(0)
    return Network(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        Jumpout(sigma=0.1, relu=True),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


def held_out(count: int = 64) -> list[torch.Tensor]:
    return list(images(count, seed=2).split(32))


class Augmented(Dataset):
    """Draws from every global generator for each image."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return images(64, seed=3)[index] + np.random.rand() + random.random() + torch.rand(())


def random_loader() -> DataLoader:
    return DataLoader(Augmented(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(5))


class Training:
    """Thirty steps, and afterwards everything that a monitor could have changed."""

    def __init__(self, wrap=lambda model: model, watch=lambda model: None, steps: int = 30, broken: bool = False):
        self.model = network()
        self.called = model = wrap(self.model)
        # The shuffling loader and the augmentation below draw from the generators that the looks draw from too.
        data = TensorDataset(images(), labels(images()))
        loader = DataLoader(data, batch_size=16, shuffle=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        self.monitor = watch(model)
        self.losses, self.sampled, self.errors = [], [], []
        while len(self.losses) < steps:
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x * np.random.uniform(0.9, 1.1) + random.gauss(0, 0.1)), y)
                loss.backward()
                optimizer.step()
                self.losses.append(loss.detach())
                self.sampled.append(torch.stack(self.model[2].statistics))
                if self.monitor is not None:
                    try:
                        self.monitor.step()
                    except Exception as error:
                        if not broken:
                            raise
                        self.errors.append(error)
                if len(self.losses) == steps:
                    break
        self.traces = (
            self.losses,
            {name: value.clone() for name, value in self.model.state_dict().items()},
            [parameter.grad for parameter in model.parameters()],
            [(module.training, getattr(module, "track_running_stats", None)) for module in self.model.modules()],
            [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in self.model.modules()],
            optimizer.state_dict()["state"],
            self.sampled,
            (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),
        )


def test_training_is_bitwise_the_same_with_the_monitor():
    loader = random_loader()
    generator = loader.generator.get_state()
    plain = Training()
    watched = Training(watch=lambda model: BatchNormMonitor(model, loader, every=7, images=40))
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
            raise OSError("image 40 cannot be read")
        return super().__getitem__(index)


def test_training_is_bitwise_the_same_if_the_looks_fail_in_the_middle():
    loader = DataLoader(Broken(), batch_size=16)
    watched = Training(watch=lambda model: BatchNormMonitor(model, loader, every=7), broken=True)
    assert same_bits(watched.traces, Training().traces)
    assert [type(error) for error in watched.errors] == [OSError] * 4
    assert "image 40 cannot be read" in str(watched.errors[1])
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
            F.cross_entropy(watched.called(images(16)), labels(images(16))).backward()
            watched.monitor.step()
    assert history.steps == [5, 10, 15]


def by_look(training: Training, every: int) -> list[list[torch.Tensor]]:
    """What the layer's `statistics` were after each step, one list per look."""
    looks = len(training.sampled) // every
    return [training.sampled[i * every : (i + 1) * every] for i in range(looks)]


def test_a_look_in_an_autocast_region_leaves_no_cast_weights_behind():
    x = images(16)

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


@pytest.mark.parametrize("training_batch_size", [None, 4])
def test_records_what_check_batchnorm_reports(training_batch_size):
    model = network()
    model(images(16))  # so that the stored averages carry noise
    options = {"images": 64, "training_batch_size": training_batch_size}
    monitor = BatchNormMonitor(model, held_out(), every=2, **options)
    assert monitor.step() is None
    look = monitor.step()
    report = check_batchnorm(model, held_out(), **options, outputs=False, stop_early=False)
    for layer in report.layers:
        assert (look.w[layer.name], look.w_low[layer.name], look.w_high[layer.name]) == pytest.approx(
            (layer.w, layer.w_low, layer.w_high)
        )
    assert [layer.name for layer in report.layers] == list(look.w) == ["1", "4"]


def test_small_training_batches_widen_the_intervals():
    model = network()
    model(images(16))
    looks = [BatchNormMonitor(model, held_out(), training_batch_size=size).look() for size in (64, 4)]
    widths = [look.w_high["4"] ** 2 - look.w_low["4"] ** 2 for look in looks]
    assert 0 < widths[0] < widths[1]


def test_a_known_shift_of_the_stored_mean_is_its_w():
    x = images(256)
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=None), nn.Flatten(), nn.Linear(36, 2))
    model(x)
    monitor = BatchNormMonitor(model, [x], every=1)
    assert monitor.step().w["0"] < 0.01
    model[0].running_mean += 0.5 * (model[0].running_var + model[0].eps).sqrt()
    look = monitor.step()
    # Noise of 256 images is taken off W, so it is a little below.
    assert look.w["0"] == pytest.approx(0.5, abs=0.02)
    assert look.w_low["0"] < 0.5 < look.w_high["0"]


@pytest.mark.parametrize("every", [7, _PENDING + 44])
def test_rates_are_means_over_the_steps_since_the_look_before(every):
    steps = 2 * every
    watched = Training(watch=lambda model: BatchNormMonitor(model, held_out(), every=every), steps=steps)
    expected = torch.stack([torch.stack(rows).mean(dim=0) for rows in by_look(watched, every)])
    history = watched.monitor.history
    assert history.steps == [every, steps]
    assert history.active_fraction == {"2": pytest.approx(expected[:, 0].tolist(), rel=1e-12)}
    assert history.rate == {"2": pytest.approx(expected[:, 2].tolist(), rel=1e-12), "6": [0.2, 0.2]}
    assert history.capped == {"2": pytest.approx(expected[:, 4].tolist(), abs=1e-12)}
    assert expected[:, 2].min() > 0.05


def test_counts_how_often_the_cap_bound():
    model = nn.Sequential(nn.BatchNorm1d(4), Jumpout(p=0.4, rate_cap=0.5))
    monitor = BatchNormMonitor(model, [torch.randn(16, 4)], every=4)
    for offset in (3.0, 3.0, -0.5, 3.0):  # p' = p / q reaches the cap only where few units are active
        nn.init.constant_(model[0].bias, offset)
        model(torch.randn(64, 4))
        look = monitor.step()
    assert look.capped == {"1": 0.25}
    assert 0.4 < look.rate["1"] < 0.5


def test_steps_without_a_call_and_eval_forwards_are_not_counted():
    model = nn.Sequential(nn.BatchNorm1d(4), Jumpout(p=0.4))
    monitor = BatchNormMonitor(model, [torch.randn(16, 4)], every=10**6)
    x = torch.randn(64, 4)
    assert all(math.isnan(value) for value in (monitor.look().rate["1"], monitor.look().capped["1"]))
    model(x)
    first = float(model[1].statistics.q)
    monitor.step()
    for _ in range(5):
        monitor.step()
        model.eval()(x)
        model.train()
    model(-x)
    second = float(model[1].statistics.q)
    monitor.step()
    assert monitor.look().active_fraction["1"] == pytest.approx((first + second) / 2, rel=1e-12)
    assert math.isnan(monitor.look().active_fraction["1"])  # counted once
    assert monitor.history.steps == [0, 0, 7, 7]


def test_sampling_per_sample_and_inference_mode_are_recorded():
    layer = Jumpout(p=0.1, normalize="sample")
    sampled = Sampled(layer)
    x = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1]])
    with torch.inference_mode():
        layer(x)
        sampled.take()
        sampled.take()
    layer(x.abs())
    sampled.take()
    means = sampled.means()
    assert float(means.q) == pytest.approx((0.75 + 1) / 2)
    assert float(means.p_prime) == pytest.approx((0.15 + 0.1) / 2, abs=1e-4)  # rates are multiples of 2^-16


def test_calls_are_told_apart_where_eager_and_compiled_ones_share_a_tensor():
    torch.compiler.reset()
    model = nn.Sequential(Jumpout(sigma=0.1), nn.Flatten())
    fast = torch.compile(model, backend="aot_eager")
    sampled, expected = Sampled(model[0]), []
    x = torch.rand(64, 8)
    model[0]._sampled = torch.full((1, 5), math.nan, dtype=torch.float64)  # as a move to another device leaves it
    sampled.take()
    for call in (fast, fast, fast, model, model, fast, fast):
        call(x * float(torch.rand(())) - 0.2)
        sampled.take()
        expected.append(model[0].statistics.q)
    # The fifth call's tensor is the one into which the sixth writes.
    del expected[4]
    assert float(sampled.means().q) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-12)


def test_a_layer_that_is_moved_before_its_first_call_has_not_sampled_yet():
    layer = Jumpout(sigma=0.1)
    sampled = Sampled(layer)
    layer._sampled = layer._sampled.clone()  # what a move to another device does: a new tensor, of NaN
    sampled.take()
    assert math.isnan(sampled.means().q)
    layer._sampled = layer._sampled.clone()
    sampled.take()
    layer(torch.randn(64, 8))
    sampled.take()
    assert float(sampled.means().q) == pytest.approx(float(layer.statistics.q), rel=1e-12)


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
from jumpout_export.nn.randomness import same_bits

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


@pytest.mark.parametrize("kind", ["ddp", "fsdp1", "fsdp2"])
def test_two_processes_train_bitwise_the_same(tmp_path, kind):
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), kind]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("done") == 2


def test_dict_batches_and_a_forward_of_ones_own():
    model = network()
    batches = [{"image": x, "label": labels(x)} for x in held_out()]
    expected = BatchNormMonitor(model, held_out()).look()
    assert same_bits(BatchNormMonitor(model, batches).look().w, expected.w)
    own = BatchNormMonitor(model, batches, forward_fn=lambda model, batch: model(batch["image"]))
    assert same_bits(own.look().w, expected.w)


def test_a_look_ends_with_the_images_asked_for():
    seen = []
    BatchNormMonitor(
        network(), held_out(128), images=33, forward_fn=lambda model, batch: seen.append(len(model(batch)))
    ).look()
    assert seen == [32, 32]


class Partly(nn.Module):
    """BatchNorms that cannot be measured, each for its own reason."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.poisoned = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.untracked, self.unused = nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3)
        self.fed_nan = nn.BatchNorm1d(3)
        self.poisoned.running_var[1] = math.inf

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.poisoned(x)
        self.fed_nan(x * math.nan)
        return self.untracked(self.good(x))


def test_layers_that_cannot_be_measured_are_recorded_with_a_reason_once():
    monitor = BatchNormMonitor(Partly(), [torch.randn(64, 3)], every=1)
    with pytest.warns(UserWarning, match="training step 1: BatchNorm") as caught:
        look = monitor.step()
    assert [str(warning.message).removeprefix("training step 1: BatchNorm ") for warning in caught] == [
        "`poisoned` stores statistics that are not finite or give no positive variance, so its W is recorded as inf",
        "`untracked` stores no running statistics (track_running_stats=False), so its W is recorded as nan",
        "`unused` was not reached by the forward pass, so its W is recorded as nan",
        "`fed_nan` got NaN or infinity as input, so its W is recorded as nan",
    ]
    assert {warning.filename for warning in caught} == {__file__}
    assert math.isfinite(look.w["good"])
    assert look.w["poisoned"] == look.w_high["poisoned"] == math.inf
    assert all(math.isnan(look.w[name]) for name in ("untracked", "unused", "fed_nan"))
    monitor.step()  # a second warning would fail the test
    assert all(len(values) == 2 for values in monitor.history.w.values())


class Recorder:
    """What torch.utils.tensorboard.SummaryWriter is called with."""

    def __init__(self) -> None:
        self.scalars = []

    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, new_style=False, double_precision=False):
        self.scalars.append((tag, scalar_value, global_step))


def test_a_writer_gets_every_value_of_a_look():
    writer = Recorder()
    monitor = BatchNormMonitor(network(), held_out(), every=3, writer=writer)
    for _ in range(3):
        monitor._model(images(16))
        look = monitor.step()
    assert writer.scalars == [
        ("batchnorm/W/1", look.w["1"], 3),
        ("batchnorm/W/4", look.w["4"], 3),
        ("batchnorm/W_low/1", look.w_low["1"], 3),
        ("batchnorm/W_low/4", look.w_low["4"], 3),
        ("batchnorm/W_high/1", look.w_high["1"], 3),
        ("batchnorm/W_high/4", look.w_high["4"], 3),
        ("jumpout/active_fraction/2", look.active_fraction["2"], 3),
        ("jumpout/rate/2", look.rate["2"], 3),
        ("jumpout/rate/6", 0.2, 3),
        ("jumpout/capped/2", look.capped["2"], 3),
    ]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_reads_back_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        monitor = BatchNormMonitor(network(), held_out(), every=2, writer=writer)
        for _ in range(4):
            monitor.step()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("batchnorm/W/4")]
    assert written == [(2, pytest.approx(monitor.history.w["4"][0])), (4, pytest.approx(monitor.history.w["4"][1]))]
    assert math.isnan(events.Scalars("jumpout/rate/2")[0].value)


def test_the_history_is_saved_and_read_back(tmp_path):
    monitor = BatchNormMonitor(network(), held_out(), every=1)
    monitor.step()
    monitor._model(images(16))
    monitor.step()
    path = monitor.save(tmp_path / "bn.json")
    read = MonitorHistory.model_validate_json(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "bn.json"
    assert math.isnan(read.rate["2"][0])
    assert same_bits(read.model_dump(exclude={"rate", "active_fraction", "capped"}), without_rates(monitor.history))
    assert read.rate["2"][1] == monitor.history.rate["2"][1]


def without_rates(history: MonitorHistory) -> dict:
    return history.model_dump(exclude={"rate", "active_fraction", "capped"})


def test_a_closed_monitor_keeps_its_history_and_lets_go_of_the_rest(tmp_path):
    with BatchNormMonitor(network(), held_out(), every=1, writer=Recorder()) as monitor:
        monitor.step()
    monitor.close()
    for use in (monitor.step, monitor.look):
        with pytest.raises(RuntimeError, match="this BatchNormMonitor is closed and watches no model any more"):
            use()
    assert monitor.history.steps == [1]
    assert monitor.save(tmp_path / "bn.json").exists()
    assert monitor.plot(tmp_path / "bn.svg").exists()
    assert not [value for value in vars(monitor).values() if isinstance(value, nn.Module | torch.Tensor | Recorder)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": nn.Linear(2, 2)}, ValueError, "Linear has no BatchNorm layer"),
        ({"every": 0}, ValueError, "every must be at least 1 step, got 0"),
        ({"images": 0}, ValueError, "images must be at least 1, got 0"),
        ({"training_batch_size": 0}, ValueError, "training_batch_size must be at least 1, got 0"),
        ({"batches": []}, ValueError, "batches is empty: there is nothing to look at; pass at least one held-out"),
        ({"batches": iter([])}, ValueError, "batches must be iterable more than once, got a one-shot list_iterator"),
        ({"batches": torch.rand(4, 1, 6, 6)}, TypeError, r"got one Tensor; pass \[batch\]"),
        ({"writer": print}, TypeError, r"writer must have a method add_scalar\(tag, value, step\), got builtin_func"),
    ],
)
def test_what_is_wrong_is_said_at_once(change, error, message):
    arguments = {"model": network(), "batches": held_out(), **change}
    with pytest.raises(error, match=message):
        BatchNormMonitor(arguments.pop("model"), arguments.pop("batches"), **arguments)


def test_a_loader_that_turns_out_empty_is_named_at_the_look():
    class Nothing(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(ValueError, match="batches is empty"):
        BatchNormMonitor(network(), DataLoader(Nothing())).look()


def history(layers: int = 2, looks: int = 5) -> MonitorHistory:
    steps = [200 * (i + 1) for i in range(looks)]

    def w(layer: int, factor: float) -> list[float]:
        return [factor * (0.02 + 0.05 * layer) / math.sqrt(i + 1) for i in range(looks)]

    names = [f"layer{i}.bn" for i in range(layers)]
    return MonitorHistory(
        steps=steps,
        w={name: w(i, 1) for i, name in enumerate(names)},
        w_low={name: w(i, 0.8) for i, name in enumerate(names)},
        w_high={name: w(i, 1.2) for i, name in enumerate(names)},
        active_fraction={"jump": [0.5] * looks},
        rate={"jump": [0.2] * looks, "drop": [0.1] * looks},
        capped={"jump": [0.0] * looks},
    )


def texts(svg: bytes) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())


def test_the_plot_names_layers_and_margins_and_is_the_same_for_the_same_history():
    svg = plot_monitor(history())
    shown = texts(svg)
    assert {"layer0.bn", "layer1.bn", "jump", "drop", "warn 0.05", "fail 0.15", "training step"} <= set(shown)
    assert {"200", "1000", "W, standard deviations"} <= set(shown)
    assert "rate_cap often binds" not in shown
    assert svg == plot_monitor(history())
    assert svg != plot_monitor(history(), warn=0.04)
    assert "warn 0.04" in texts(plot_monitor(history(), warn=0.04))
    assert "var(--c1)" in themed(svg.decode(), "monitor", "the monitor")


def test_the_plot_marks_where_the_cap_often_binds():
    capped = history()
    capped.capped["jump"] = [0.0, 0.05, 0.06, 1.0, math.nan]
    svg = plot_monitor(capped)
    assert "rate_cap often binds" in texts(svg)
    alone = history()
    alone.capped["jump"][3] = 1.0
    assert plot_monitor(alone).count(b"<use") == svg.count(b"<use") - 1


def test_the_plot_of_many_layers_names_the_highest():
    shown = texts(plot_monitor(history(layers=20)))
    assert "the 8 highest, 12 more in grey" in shown
    assert [name for name in shown if name.endswith(".bn")] == [f"layer{i}.bn" for i in range(12, 20)]


def test_gaps_and_infinite_values_are_drawn():
    odd = history()
    odd.w["layer0.bn"][1] = odd.w_low["layer0.bn"][1] = odd.w_high["layer0.bn"][1] = math.nan
    odd.w["layer1.bn"][2] = odd.w_low["layer1.bn"][2] = odd.w_high["layer1.bn"][2] = math.inf
    odd.w["layer1.bn"][3] = odd.w_low["layer1.bn"][3] = 0.0
    assert b"nan" not in plot_monitor(odd)
    assert b"inf" not in plot_monitor(odd)


def test_a_plot_without_looks_or_stochastic_layers_says_so():
    empty = MonitorHistory(w={"bn": []}, w_low={"bn": []}, w_high={"bn": []})
    shown = texts(plot_monitor(empty))
    assert "no look yet" in shown
    assert "bn" in shown
    assert not [text for text in shown if text.startswith("rate")]


def test_the_plot_is_written_as_its_name_says(tmp_path):
    monitor = BatchNormMonitor(network(), held_out(), every=1)
    monitor.step()
    assert monitor.plot(tmp_path / "bn.svg").read_bytes() == plot_monitor(monitor.history)
    assert monitor.plot(tmp_path / "bn.PNG").read_bytes().startswith(b"\x89PNG")
    assert monitor.plot(str(tmp_path / "bn.svg"), warn=0.1, fail=0.2).read_bytes() == plot_monitor(
        monitor.history, warn=0.1, fail=0.2
    )
    with pytest.raises(ValueError, match=r"the name of the plot must end in \.svg or \.png, got 'bn\.pdf'"):
        monitor.plot("bn.pdf")


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"the plot needs matplotlib.*pip install 'jumpout-export\[report\]'"):
        plot_monitor(history())
