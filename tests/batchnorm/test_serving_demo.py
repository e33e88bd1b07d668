"""Serving statistics on the demo's network and samples: near what serving sees in every epoch, and never worse."""

import copy
import functools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jumpout_export import Jumpout, ServingStatistics, check_batchnorm, demo

EPOCHS = 8


class Epoch(NamedTuple):
    """The largest W over layers, and (359,) negative log likelihood of each test sample, by whose statistics."""

    w: dict[str, float]
    nll: dict[str, Tensor]


class SlowAverage:
    """Averages the statistics of the network without noise over training, a hundredth of each batch at a time."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self.clean = model, copy.deepcopy(model)
        for module in self.clean.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.01

    @torch.no_grad()
    def step(self, x: Tensor) -> None:
        for own, other in zip(self.clean.parameters(), self._model.parameters(), strict=True):
            own.copy_(other)
        self.clean.train()
        for module in self.clean.modules():
            if isinstance(module, Jumpout):
                module.eval()
        self.clean(x)


@functools.cache
def epochs() -> list[Epoch]:
    samples = demo.load_digits(0)
    everything = demo.batches(samples.train, samples.train_labels) + demo.batches(samples.test, samples.test_labels)
    torch.manual_seed(0)
    model = demo.network()
    serving, slow = ServingStatistics(model, keep=8), SlowAverage(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)

    def w() -> float:
        report = check_batchnorm(model, everything, outputs=False, attribution=False, stop_early=False)
        return max(layer.w for layer in report.layers)

    @torch.no_grad()
    def nll(network: nn.Module) -> Tensor:
        return F.cross_entropy(network.eval()(samples.test), samples.test_labels, reduction="none")

    found = []
    for _ in range(EPOCHS):
        model.train()
        for chosen in torch.randperm(len(samples.train)).split(demo.BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(model(samples.train[chosen]), samples.train_labels[chosen]).backward()
            optimizer.step()
            serving.step(samples.train[chosen])
            slow.step(samples.train[chosen])
        plain = w(), nll(model)
        with serving():
            served = w(), nll(model)
        found.append(Epoch({"plain": plain[0], "served": served[0]}, {"plain": plain[1], "served": served[1]}))
        found[-1].nll["slow"] = nll(slow.clean)
    return found


def worse(epoch: Epoch, whose: str) -> bool:
    """Whether the mean NLL is above that of the plain statistics by more than its paired 95% error bar."""
    difference = epoch.nll[whose] - epoch.nll["plain"]
    return float(difference.mean()) > 1.96 * float(difference.std()) / len(difference) ** 0.5


@pytest.mark.slow
def test_w_is_small_in_every_epoch_in_which_the_running_statistics_are_far_off():
    far = [epoch.w for epoch in epochs() if epoch.w["plain"] > 0.15]
    assert len(far) >= 4
    assert max(w["served"] for w in far) < 0.06


@pytest.mark.slow
def test_the_likelihood_of_no_epoch_is_worse():
    assert [worse(epoch, "served") for epoch in epochs()] == [False] * EPOCHS
    gain = epochs()[0].nll["plain"] - epochs()[0].nll["served"]
    assert float(gain.mean()) > 6 * float(gain.std()) / len(gain) ** 0.5  # and the first is much better


@pytest.mark.slow
def test_a_slow_average_of_the_same_statistics_is_worse():
    assert worse(epochs()[0], "slow")
