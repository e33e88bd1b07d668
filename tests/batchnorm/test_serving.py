"""Serving statistics while training: what they are, that training does not feel them, and that buffers come back."""

import copy

import pytest
import torch
from support.monitored import network, samples
from support.serving import fed, noisy_linear, serving_moments, statistics, train
from torch import nn

from jumpout_export import ServingStatistics, recalibrate_batchnorm
from jumpout_export.batchnorm import swap
from jumpout_export.batchnorm.judge.rows import Judge
from jumpout_export.batchnorm.measure.collect import collect
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.batchnorm.measure.states import SERVING
from jumpout_export.model.randomness import same_bits


def test_behind_one_linear_layer_they_are_the_closed_form():
    model = noisy_linear()
    serving = ServingStatistics(model, keep=3)
    batches = [torch.randn(size, 6) * 2 + 1 for size in (20, 32, 7, 16)]
    for x in batches:
        model(x)
        serving.step(x)
    mean, var = serving_moments(model[1], torch.cat(batches[1:]))  # the last three
    norm = model[2]
    assert not torch.allclose(norm.running_var.double(), var, rtol=0.05)  # dropout .5 doubles what it stores
    with serving():
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=0)


def test_training_is_bitwise_the_same_with_them():
    plain = train(network(), lambda x: None)
    model = network()
    serving = ServingStatistics(model, keep=4)
    seen = []

    def validate(model: nn.Module) -> None:
        with serving():
            model.eval()
            seen.append(model(samples(32, seed=9)).detach())

    assert same_bits(train(model, serving.step, after_epoch=validate), plain)
    served = network()
    served.load_state_dict(model.state_dict())
    assert not torch.allclose(served.eval()(samples(32, seed=9)), seen[-1], atol=1e-2)  # they did serve others


def test_a_recalibration_that_stays_is_found_by_that_comparison():
    plain = train(network(), lambda x: None)

    def recalibrate(model: nn.Module) -> None:
        recalibrate_batchnorm(model, [samples(32)])

    assert not same_bits(train(network(), lambda x: None, after_epoch=recalibrate), plain)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_buffers_are_bitwise_back_after_an_exception_in_the_with(error):
    model, serving, _ = fed()
    before = statistics(model)
    with pytest.raises(error), serving():
        assert not same_bits(statistics(model), before)
        raise error
    assert same_bits(statistics(model), before)
    with serving():  # and it can be used again
        assert not same_bits(statistics(model), before)


def test_buffers_are_bitwise_back_after_ctrl_c_in_the_pass():
    def interrupted(model: nn.Module, x: torch.Tensor) -> None:
        model(x)
        raise KeyboardInterrupt

    model, serving, _ = fed(forward_fn=interrupted)
    before, flags = statistics(model), [module.training for module in model.modules()]
    with pytest.raises(KeyboardInterrupt) as caught, serving():
        pass
    assert "as before it" in caught.value.__notes__[0]
    assert same_bits(statistics(model), before)
    assert [module.training for module in model.modules()] == flags


def test_buffers_are_bitwise_back_after_ctrl_c_while_they_are_put_back(monkeypatch):
    model, serving, _ = fed()
    before = statistics(model)
    restore, calls = swap._Buffers.restore, []

    def interrupted(buffers: swap._Buffers) -> None:
        calls.append(buffers)
        if len(calls) == 2:
            raise KeyboardInterrupt
        restore(buffers)

    monkeypatch.setattr(swap._Buffers, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt), serving():
        pass
    assert same_bits(statistics(model), before)


def test_the_buffers_are_the_same_objects_afterwards():
    model, serving, _ = fed()
    before = {name: (buffer, buffer.data_ptr()) for name, buffer in model.named_buffers()}
    with serving():
        model.double()  # puts others in their place
    model.float()
    after = dict(model.named_buffers())
    assert all(after[name] is buffer and buffer.data_ptr() == place for name, (buffer, place) in before.items())


def test_write_is_for_good_and_can_be_undone():
    model, serving, _ = fed()
    before = statistics(model)
    with serving():
        swapped = {name: value.clone() for name, value in model.state_dict().items()}
    undo = serving.write()
    assert undo.layers == ["1", "4"]
    assert undo.passes == 2  # the second shows that the first is right
    assert same_bits(dict(model.state_dict()), swapped)
    undo()
    assert same_bits(statistics(model), before)


def test_they_are_those_of_a_batch_pass_over_what_was_kept():
    model, serving, trained = fed(keep=2)
    expected = copy.deepcopy(model)
    recalibrate_batchnorm(expected, trained[-2:], "batch")
    serving.write()
    assert same_bits(model.state_dict(), expected.state_dict())


@pytest.mark.parametrize("size", [2, 5])
def test_micro_batches_are_put_together(size):
    model, whole = network(), network()
    serving, at_once = ServingStatistics(model, keep=2), ServingStatistics(whole, keep=2)
    for x in samples(48).split(16):
        at_once.step((x, torch.zeros(16, dtype=torch.long)))
        for index, part in enumerate(x.split(size)):
            serving.step({"input": part, "labels": torch.zeros(len(part), dtype=torch.long)}, new_batch=index == 0)
    serving.write()
    at_once.write()
    assert same_bits(model.state_dict(), whole.state_dict())


def test_apart_micro_batches_would_give_noisy_statistics():
    model, apart = network(), network()
    serving, noisy = ServingStatistics(model, keep=3), ServingStatistics(apart, keep=24)
    for x in samples(48).split(16):
        serving.step(x)
        for part in x.split(2):
            noisy.step(part)
    serving.write()
    noisy.write()
    assert torch.allclose(model[1].running_var, apart[1].running_var)
    assert float((apart[4].running_var / model[4].running_var).log().abs().max()) > 0.05


def test_batches_can_be_given_at_the_read():
    model, _, trained = fed()
    serving = ServingStatistics(model, keep=0)
    expected = copy.deepcopy(model)
    recalibrate_batchnorm(expected, trained, "batch")
    with serving(trained):
        assert same_bits(dict(model.state_dict()), dict(expected.state_dict()))


def test_nothing_is_copied_and_old_batches_are_let_go():
    model = network()
    serving = ServingStatistics(model, keep=2)
    kept = [samples(16, seed=seed) for seed in range(4)]
    for x in kept:
        serving.step(x)
    held = [batch.args[0] for batch in serving._kept]
    assert len(held) == 2
    assert all(one is other for one, other in zip(held, kept[-2:], strict=True))


def test_the_check_knows_how_many_samples_they_are_the_average_of():
    model, serving, _ = fed(keep=2)
    layers = batchnorm_layers(model)
    feed = Feed(model, list(samples(256, seed=5).split(64)))

    def held() -> list[float]:
        seen = collect(feed, layers, SERVING, "")
        scores = [Judge(0.05, 0.15).score(layer, seen.moments[layer.name], seen, 0.05) for layer in layers]
        return [score.stored_samples for score in scores]

    moving = [64 * 19] * 2  # what an average of momentum .1 is taken for
    assert held() == pytest.approx(moving)
    with serving():
        assert held() == [32, 32]
    assert held() == pytest.approx(moving)
    undo = serving.write()
    assert held() == [32, 32]
    model[1].running_mean += 1e-3
    assert held() == [pytest.approx(64 * 19), 32]
    undo()
    assert held() == pytest.approx(moving)


def test_the_pass_runs_under_the_autocast_of_the_step():
    dtypes = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            dtypes.append(y.dtype)
            return self.norm(y)

    model = Watching()
    serving = ServingStatistics(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        serving.step(torch.randn(8, 6))
    with serving():
        pass
    serving.step(torch.randn(8, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16), serving():
        assert torch.is_autocast_cache_enabled()
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_validation_without_gradients_may_stand_outside(mode):
    model, serving, _ = fed()
    before = statistics(model)
    expected = copy.deepcopy(model)
    serving_of_copy = ServingStatistics(expected, keep=0)
    serving_of_copy.write([batch.args[0] for batch in serving._kept])
    with mode(), serving():
        assert same_bits(dict(model.state_dict()), dict(expected.state_dict()))
    assert same_bits(statistics(model), before)
    model(samples(16)).sum().backward()


@pytest.mark.integration
def test_a_compiled_model_serves_with_them_and_trains_on():
    torch.compiler.reset()
    model, _, trained = fed()
    compiled = torch.compile(model, backend="aot_eager")
    serving = ServingStatistics(compiled, keep=2)
    for x in trained:
        compiled(x)
        serving.step(x)
    x = samples(16, seed=4)
    plain = compiled.eval()(x)
    with serving():
        served = compiled(x)
        expected = model(x)
    assert torch.allclose(served, expected, atol=1e-6)
    assert not torch.allclose(served, plain, atol=1e-2)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(compiled(x), plain)
        with serving():
            assert torch.equal(compiled(x), served)


def test_frozen_layers_keep_what_they_store_unless_named():
    model = network()
    model[1].eval()
    serving = ServingStatistics(model, keep=2)
    named = ServingStatistics(model, keep=2, layers=["1"])
    for x in samples(32).split(16):
        serving.step(x)
        named.step(x)
    before = statistics(model)
    model.eval()  # as validation does, and now no flag says what was frozen
    with serving():
        after = statistics(model)
        assert same_bits(after[:3], before[:3])
        assert not torch.equal(after[3], before[3])
    assert serving.left_out == {"1": "is frozen"}
    model.train()
    serving.step(samples(16))
    assert serving.left_out == {}  # it trains again
    with named():
        assert not torch.equal(model[1].running_mean, before[0])
        assert torch.equal(model[4].running_mean, before[3])


def test_what_is_frozen_is_seen_at_the_read_too_where_nothing_is_kept():
    model = network()
    serving = ServingStatistics(model, keep=0)
    model[4].eval()
    before = statistics(model)
    with serving([samples(16)]):
        assert same_bits(statistics(model)[3:], before[3:])
        assert not torch.equal(statistics(model)[0], before[0])
    assert serving.left_out == {"4": "is frozen"}


def test_a_sparse_input_is_kept_too():
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, x, adjacency):
            return self.norm(torch.sparse.mm(adjacency, self.linear(x)))

    model = Graph()
    serving = ServingStatistics(model)
    x, adjacency = torch.randn(6, 3), torch.eye(6).roll(1, 0).to_sparse()
    serving.step({"x": x, "adjacency": adjacency})
    expected = torch.sparse.mm(adjacency, model.linear(x)).mean(0)
    with serving():
        torch.testing.assert_close(model.norm.running_mean, expected.detach())


def test_a_tracking_instance_norm_is_left_out_unless_named():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    serving = ServingStatistics(model)
    assert serving.left_out == {"1": "is an InstanceNorm"}
    x = torch.randn(16, 3, 5, 5)
    model(x)
    serving.step(x)
    before = statistics(model)
    with serving():
        assert same_bits(statistics(model)[3:], before[3:])
    named = ServingStatistics(model, layers=["1"])
    named.step(x)
    with named():
        normalised = model[0].eval()(x)  # the BatchNorm, which is not named, by what it stores
        torch.testing.assert_close(model[1].running_var, normalised.var((2, 3)).mean(0), rtol=1e-4, atol=0)
    assert same_bits(statistics(model), before)
