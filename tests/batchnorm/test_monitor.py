"""The monitor: what a look records of layers and rates, where it is written, and what is said at once."""

import importlib.util
import math

import pytest
import torch
from support.monitored import Recorder, Training, by_look, held_out, labels, network, samples
from torch import nn
from torch.utils.data import DataLoader

from jumpout_export import BatchNormMonitor, Jumpout, ServingStatistics, check_batchnorm
from jumpout_export.errors import ArgumentError
from jumpout_export.model.randomness import same_bits
from jumpout_export.nn.sampled import _PENDING, Sampled
from jumpout_export.report import MonitorHistory


@pytest.mark.parametrize("training_batch_size", [None, 4])
def test_records_what_check_batchnorm_reports(training_batch_size):
    model = network()
    model(samples(16))  # so that the stored averages carry noise
    options = {"samples": 64, "training_batch_size": training_batch_size}
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
    model(samples(16))
    looks = [BatchNormMonitor(model, held_out(), training_batch_size=size).look() for size in (64, 4)]
    widths = [look.w_high["4"] ** 2 - look.w_low["4"] ** 2 for look in looks]
    assert 0 < widths[0] < widths[1]


def test_a_known_shift_of_the_stored_mean_is_its_w():
    x = samples(256)
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=None), nn.Flatten(), nn.Linear(36, 2))
    model(x)
    monitor = BatchNormMonitor(model, [x], every=1)
    assert monitor.step().w["0"] < 0.01
    model[0].running_mean += 0.5 * (model[0].running_var + model[0].eps).sqrt()
    look = monitor.step()
    # Noise of 256 samples is taken off W, so it is a little below.
    assert look.w["0"] == pytest.approx(0.5, abs=0.02)
    assert look.w_low["0"] < 0.5 < look.w_high["0"]


@pytest.mark.integration
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


def test_dict_batches_and_a_forward_of_ones_own():
    model = network()
    batches = [{"image": x, "label": labels(x)} for x in held_out()]
    expected = BatchNormMonitor(model, held_out()).look()
    assert same_bits(BatchNormMonitor(model, batches).look().w, expected.w)
    own = BatchNormMonitor(model, batches, forward_fn=lambda model, batch: model(batch["image"]))
    assert same_bits(own.look().w, expected.w)


def test_a_look_ends_with_the_samples_asked_for():
    seen = []
    BatchNormMonitor(
        network(), held_out(128), samples=33, forward_fn=lambda model, batch: seen.append(len(model(batch)))
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


def test_a_writer_gets_every_value_of_a_look():
    writer = Recorder()
    monitor = BatchNormMonitor(network(), held_out(), every=3, writer=writer)
    for _ in range(3):
        monitor._model(samples(16))
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
    monitor._model(samples(16))
    monitor.step()
    path = monitor.save(tmp_path / "bn.json")
    read = MonitorHistory.model_validate_json(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "bn.json"
    assert math.isnan(read.rate["2"][0])
    assert same_bits(read.model_dump(exclude={"rate", "active_fraction", "capped"}), without_rates(monitor.history))
    assert read.rate["2"][1] == monitor.history.rate["2"][1]


def without_rates(history: MonitorHistory) -> dict:
    return history.model_dump(exclude={"rate", "active_fraction", "capped"})


@pytest.mark.integration
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
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
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


def test_records_w_with_the_serving_statistics_too():
    model = network()
    serving = ServingStatistics(model, keep=2)
    monitor = BatchNormMonitor(model, held_out(), every=10**6, training_batch_size=16, serving=serving)
    before = monitor.look()
    assert all(math.isnan(value) for value in before.w_serving.values())
    for x in samples(64).split(16):
        model(x)
        serving.step(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    look = monitor.look()
    assert same_bits(dict(model.state_dict()), state)
    with serving():
        report = check_batchnorm(model, held_out(), outputs=False, stop_early=False, training_batch_size=16)
    for layer in report.layers:
        assert (look.w_serving[layer.name], look.w_serving_low[layer.name], look.w_serving_high[layer.name]) == (
            pytest.approx(layer.w),
            pytest.approx(layer.w_low),
            pytest.approx(layer.w_high),
        )
    assert look.w["4"] > 0.3  # dropout and a short average
    assert look.w_serving["4"] < 0.5 * look.w["4"]
    history = MonitorHistory.model_validate_json(monitor.history.model_dump_json())
    assert history.w_serving["4"][1] == look.w_serving["4"]
    assert len(history.w_serving_high["1"]) == 2


def test_serving_statistics_of_another_model_are_refused():
    with pytest.raises(ArgumentError, match="serving must be the ServingStatistics of the model that is watched"):
        BatchNormMonitor(network(), held_out(), serving=ServingStatistics(network()))
