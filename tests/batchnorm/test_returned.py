"""A network that returns whatever it likes is checked, and said to draw random numbers only if it does."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm


@dataclasses.dataclass
class Out:
    logits: torch.Tensor
    features: torch.Tensor


class Plain:
    def __init__(self, y):
        self.y = y


class Opaque:
    """No equality, nothing to look at."""


RETURNED = {
    "tensor": lambda y: y,
    "data class": lambda y: Out(y, y),
    "array": lambda y: y.numpy(),
    "object": Plain,
    "distribution": lambda y: torch.distributions.Categorical(logits=y),
    "with an opaque part": lambda y: (y, Opaque()),
    "opaque": lambda y: Opaque(),
}


class Net(nn.Module):
    def __init__(self, returned, noise=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
        self.returned, self.noise = returned, noise

    def forward(self, x):
        y = self.net(x)
        if self.noise is not None:
            y = y + torch.from_numpy(self.noise.normal(size=y.shape)).float()
        return self.returned(y)


def batches():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(64, 6, generator=generator) + 0.5, torch.randint(3, (64,), generator=generator)) for _ in range(8)
    ]


HIDDEN, UNKNOWN = (
    "Two forwards of the same batch in eval mode differ",
    "What the model returns holds Opaque, in which no",
)


@pytest.mark.parametrize("kind", RETURNED)
def test_a_network_that_repeats_itself_is_never_said_to_draw(kind):
    report = check_batchnorm(Net(RETURNED[kind]), batches())
    assert report.verdict == "drift"
    assert not any(HIDDEN in note for note in report.notes)
    assert any(UNKNOWN in note for note in report.notes) == ("opaque" in kind)
    if kind == "opaque":
        assert report.outputs is None
        assert any("output must hold a tensor, got Opaque" in note for note in report.notes)
        return
    expected = check_batchnorm(Net(RETURNED["tensor"]), batches())
    assert report.outputs.logit_shift > 0
    # A distribution holds normalised logits, which are another tensor of the same classes.
    assert report.outputs.nll_after == pytest.approx(expected.outputs.nll_after, rel=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in RETURNED if kind != "opaque"])
def test_one_that_draws_from_a_generator_of_its_own_is_found_whatever_it_returns(kind):
    report = check_batchnorm(Net(RETURNED[kind], np.random.default_rng(0)), batches())
    assert any(HIDDEN in note for note in report.notes)


def test_recalibrating_needs_no_tensor_unless_outputs_are_asked_for():
    model = Net(RETURNED["opaque"])
    undo = recalibrate_batchnorm(model, batches(), outputs=True)
    assert "output must hold a tensor, got Opaque" in undo.note
    assert check_batchnorm(model, batches(), outputs=False).layers[0].w < 1e-5
