"""What serving statistics refuse, in words, each beside what they take."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support.monitored import network, samples
from support.serving import fed, statistics
from torch import nn

from jumpout_export import ServingStatistics
from jumpout_export.errors import ArgumentError
from jumpout_export.model.batches import Batch
from jumpout_export.model.randomness import same_bits


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.add_(1),
        lambda x: x[0].zero_(),
        lambda x: x.resize_(8, 1, 6, 6),
        lambda x: x.set_(torch.randn(16, 1, 6, 6)),
    ],
    ids=["add_", "a view", "resize_", "set_"],
)
def test_an_input_that_was_changed_in_place_is_refused(change):
    model, serving, _ = fed()
    x = samples(16, seed=8)
    serving.step(x)
    before = statistics(model)
    with serving():
        pass
    change(x)
    with (
        pytest.raises(RuntimeError, match=r"changed in place after ServingStatistics.step\(\) kept a reference"),
        serving(),
    ):
        pytest.fail("entered")
    assert same_bits(statistics(model), before)


def test_another_tensor_of_the_same_values_is_none_of_its_business():
    _, serving, _ = fed()
    x = samples(16, seed=8)
    serving.step(x)
    y = x.clone()
    y.add_(1)
    x = y  # the name is another's now, the tensor is what it was
    with serving():
        pass


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (lambda: {"input": np.zeros((4, 1, 6, 6)), "extra": torch.ones(4)}, "got ndarray, which can change"),
        (lambda: [torch.ones(4, 1, 6, 6), object()], "got object, which can change"),
        (lambda: inference(4), r"torch.inference_mode\(\) does not count its changes"),
    ],
    ids=["numpy", "object", "inference"],
)
def test_what_does_not_count_its_changes_is_refused(batch, said):
    serving = ServingStatistics(network(), forward_fn=lambda model, batch: model(batch["input"]))
    with pytest.raises(TypeError, match=said):
        serving.step(batch())
    with pytest.raises(RuntimeError, match="no batch was kept"), serving():
        pytest.fail("entered")


def inference(count: int) -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(count, 1, 6, 6)


def test_a_batch_that_the_forward_cannot_take_is_refused_at_the_step():
    serving = ServingStatistics(network())
    with pytest.raises(TypeError, match="a batch must be a tensor"):
        serving.step("samples")


def test_labels_are_not_kept_and_may_be_anything():
    @dataclass
    class Sample:
        input: torch.Tensor
        labels: torch.Tensor

    model = network()
    serving = ServingStatistics(model)
    y = torch.zeros(16, dtype=torch.long)
    serving.step(Sample(samples(16), y))
    y += 1  # no input
    with serving():
        pass


def test_a_training_step_in_the_with_is_refused():
    model, serving, trained = fed()
    before = statistics(model)
    with pytest.raises(RuntimeError, match="a training step inside `with serving"), serving():
        serving.step(trained[0])
    with pytest.raises(RuntimeError, match="statistics of `1`; `4` were changed inside `with serving"), serving():
        model.train()
        model(trained[0])
    assert same_bits(statistics(model), before)
    with serving():
        model.eval()
        model(trained[0])


def test_its_own_with_inside_of_it_is_refused():
    model, serving, _ = fed()
    before = statistics(model)
    with serving():
        with pytest.raises(RuntimeError, match="in the model already"), serving():
            pytest.fail("entered")
        with pytest.raises(RuntimeError, match="in the model already"):
            serving.write()
        assert not same_bits(statistics(model), before)
    assert same_bits(statistics(model), before)


def test_batches_of_one_value_per_channel_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    serving = ServingStatistics(model)
    serving.step(torch.randn(1, 3))
    before = statistics(model)
    with pytest.raises(ValueError, match="got a batch with one value per channel"), serving():
        pytest.fail("entered")
    serving.step(torch.randn(1, 3), new_batch=False)  # two of them put together can be normalised
    with serving():
        assert not same_bits(statistics(model), before)
    assert same_bits(statistics(model), before)


def test_micro_batches_that_do_not_fit_together_are_refused():
    serving = ServingStatistics(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    serving.step(torch.randn(4, 1, 8, 8))
    serving.step(torch.randn(4, 1, 9, 8), new_batch=False)
    said = r"micro-batches of other shapes or types cannot be put together, got \(4, 1, 8, 8\), \(4, 1, 9, 8\)"
    with pytest.raises(ArgumentError, match=said), serving():
        pytest.fail("entered")


def test_nan_in_the_inputs_is_refused_and_nothing_is_written():
    model, serving, trained = fed()
    before = statistics(model)
    serving.step(torch.full_like(trained[0], torch.nan))
    for use in (lambda: serving().__enter__(), serving.write):
        with pytest.raises(ValueError, match="holds NaN or infinity"):
            use()
    assert same_bits(statistics(model), before)


def test_a_named_layer_that_the_forward_does_not_reach_is_refused():
    model = network()
    model.add_module("unused", nn.BatchNorm1d(3))
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    for layers, refused in ((["unused"], True), (["1", "unused"], True), (["1"], False), (None, False)):
        serving = ServingStatistics(model, layers=layers)
        serving.step(Batch((samples(16),), {}))
        if refused:
            with pytest.raises(ValueError, match="the forward pass did not reach `unused`"):
                serving.write()
        else:
            serving.write()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ServingStatistics(network(), keep=-1), "keep must be at least 1 batch, or 0"),
        (lambda: ServingStatistics(network(), timeout=0), "timeout must be positive"),
        (lambda: ServingStatistics(network(), layers=["2"]), "layers must name BatchNorm layers"),
        (lambda: ServingStatistics(nn.Linear(2, 2)), "no BatchNorm layer"),
        (lambda: ServingStatistics(frozen()), "no BatchNorm layer is left to serve: `1` is frozen; `4` is frozen"),
        (
            lambda: ServingStatistics(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))),
            "no BatchNorm layer is left to serve: `0` stores no statistics",
        ),
        (lambda: ServingStatistics(network(), process_group="world"), "initialised torch.distributed"),
    ],
    ids=["keep", "timeout", "layers", "no BatchNorm", "frozen", "no statistics", "no processes"],
)
def test_arguments_that_are_out_of_range(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def frozen() -> nn.Module:
    model = network()
    for layer in (model[1], model[4]):
        layer.eval()
    return model


def test_with_keep_0_there_is_nothing_to_step():
    serving = ServingStatistics(network(), keep=0)
    with pytest.raises(RuntimeError, match="keep=0 keeps no batch"):
        serving.step(samples(16))
    with pytest.raises(ValueError, match="batches is empty"), serving([]):
        pytest.fail("entered")


@pytest.mark.parametrize("wrong", [{"keep": 1.5}, {"keep": "8"}, {"timeout": "1"}, {"timeout": math.nan}], ids=str)
def test_numbers_of_the_wrong_kind_are_named(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        ServingStatistics(nn.BatchNorm1d(4), **wrong)


def test_a_read_without_batches_says_that_none_are_kept_by_choice():
    with (
        pytest.raises(RuntimeError, match=r"keep=0 keeps no batch; give them"),
        ServingStatistics(nn.BatchNorm1d(4), keep=0)(),
    ):
        pass
