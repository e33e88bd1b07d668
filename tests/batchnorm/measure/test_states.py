"""One pass in several states gives what a pass for each gives, and leaves model, loader and noise as they were."""

import random

import numpy as np
import pytest
import torch
from support.collected import convolutional, snapshot
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.measure.collect import collect, collect_states
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.batchnorm.measure.states import RENORMALISED, SERVING, TRAINING
from jumpout_export.model.randomness import generator_states, moved_generators, same_bits


def test_the_state_says_what_is_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    model[0].running_var.fill_(4.0)
    x = torch.randn(4000, 4)
    variance = {}
    for state in (SERVING, RENORMALISED, TRAINING):
        moments = collect(Feed(model, [x]), batchnorm_layers(model), state, "test").moments["2"]
        variance[state.name] = float(moments.mean_and_variance()[1].mean())
    # Running statistics divide by 4, batch statistics by 1, and dropout with p = 1/2 doubles a centred variance.
    # Six standard errors of a variance from 4 x 4000 normal values are 0.07 (0.12 for the dropped ones).
    assert variance["serving"] == pytest.approx(0.25, abs=0.02)
    assert variance["renormalised"] == pytest.approx(1, abs=1e-3)
    assert variance["training"] == pytest.approx(2, abs=0.2)


STATES = (SERVING, RENORMALISED, TRAINING)


class Loud(nn.Module):
    """Draws from every global generator, its own two, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.numpy = torch.Generator(), np.random.default_rng(3)
        self.last = torch.zeros(1)
        self.register_buffer("count", torch.zeros(1))
        self.seen: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(float(self.count))
        self.count += 1
        self.last = torch.randn(1, generator=self.own)
        return F.dropout(x, 0.5, self.training) + 0 * (
            self.last + self.numpy.random() + np.random.rand() + random.random()
        )


def loud() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Loud(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))


def test_one_pass_in_three_states_gives_what_three_passes_give():
    model = convolutional()
    model.insert(3, nn.Dropout(0.5))
    model[1].running_var.fill_(0.5)
    layers, batches = batchnorm_layers(model), torch.randn(70, 3, 8, 8).split(16)
    together = collect_states(Feed(model, batches), layers, STATES, "test")
    for state, seen in zip(STATES, together, strict=True):
        alone = collect(Feed(model, batches), layers, state, "test")
        assert (seen.samples, seen.batches, seen.failure, seen.skipped) == (70, 5, "", 0)
        for name, moments in seen.moments.items():
            assert torch.equal(moments.sums, alone.moments[name].sums)
    assert together[0].moments["1"].total.equal(together[2].moments["1"].total)
    assert not together[1].moments["5"].total.equal(together[2].moments["5"].total)


@pytest.mark.parametrize("failing", [None, *STATES], ids=lambda state: state.name if state else "none")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was_whichever_state_fails_in_the_middle_batch(failing, error):
    class Breaks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Breaks.calls += 1
            if failing is not None and Breaks.calls == 3 + STATES.index(failing) + 1:
                raise error("stop")
            return x

    Breaks.calls = 0
    model = loud().append(Breaks()).train()
    model[1].eval()
    feed = Feed(model, torch.randn(4, 8, 3, 9, 9).unbind())
    layers = batchnorm_layers(model)
    noise = model[2]
    before, last = snapshot(model), noise.last
    generators = noise.own.get_state(), noise.numpy.bit_generator.state, generator_states()
    if (error is KeyboardInterrupt and failing is not None) or failing is SERVING:
        with pytest.raises(error, match="stop"):
            collect_states(feed, layers, STATES, "test")
        assert Breaks.calls == 3 + STATES.index(failing) + 1  # in the second batch
    else:
        seen = collect_states(feed, layers, STATES, "test")
        assert [one.failure for one in seen] == ["RuntimeError: stop" if one is failing else "" for one in STATES]
        assert seen[0].samples == 32
    assert same_bits(before, snapshot(model))
    assert same_bits(generators[0], noise.own.get_state())
    assert generators[1] == noise.numpy.bit_generator.state
    assert moved_generators(generators[2]) == []
    assert noise.last is last


def test_every_forward_starts_from_the_buffers_as_they_were_found():
    model = loud()
    collect_states(Feed(model, torch.randn(4, 8, 3, 9, 9).unbind()), batchnorm_layers(model), STATES, "test")
    assert model[2].seen == [0.0] * 12


def test_the_loader_draws_what_it_would_draw_by_itself():
    class Draws:
        def __init__(self) -> None:
            self.drawn: list[float] = []

        def __iter__(self):
            for batch in torch.zeros(4, 8, 3, 9, 9):
                self.drawn.append(float(torch.rand(())) + np.random.rand() + random.random())
                yield batch + torch.randn(8, 3, 9, 9)

    loader, model = Draws(), loud()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    seen = collect_states(Feed(model, loader), batchnorm_layers(model), STATES, "test")
    alone = Draws()
    expected = torch.cat(list(alone))
    assert loader.drawn == alone.drawn
    mean = F.conv2d(expected, model[0].weight, model[0].bias).double().mean((0, 2, 3))
    for one in seen:
        torch.testing.assert_close(one.moments["1"].mean_and_variance()[0], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_noise_of_the_training_state_follows_the_users_seed(seed):
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))
    batches = torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0)).unbind()
    sums = []
    for start in (seed, seed, seed + 1):
        torch.manual_seed(start)
        sums.append(collect(Feed(model, batches), batchnorm_layers(model), TRAINING, "test").moments["1"].sums)
    assert torch.equal(sums[0], sums[1])
    assert not torch.equal(sums[0], sums[2])


def test_a_pass_ends_when_enough_was_seen():
    model = convolutional()
    feed, samples = Feed(model, torch.randn(80, 3, 8, 8).split(16)), []

    def enough(step, seen) -> bool:
        samples.append([one.samples for one in seen])
        return seen[0].samples >= 40

    seen = collect_states(feed, batchnorm_layers(model), STATES, "test", enough=enough)
    assert samples == [[16] * 3, [32] * 3, [48] * 3]
    assert [one.samples for one in seen] == [48] * 3
    assert not model[1]._forward_pre_hooks


def test_only_the_layers_named_normalise_by_the_batch():
    model = convolutional()
    model[1].running_var.fill_(4.0)
    layers, batches = batchnorm_layers(model), [torch.randn(64, 3, 8, 8)]
    variances = []
    for renormalised in (layers, layers[1:]):
        seen = collect_states(Feed(model, batches), layers, [RENORMALISED], "test", renormalised=renormalised)
        variances.append(seen[0].moments["4"].mean_and_variance()[1].mean())
    assert variances[1] < variances[0] / 2
