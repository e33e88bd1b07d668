"""What the served model does that its statistics cannot stand for: random numbers, and statistics of the batch."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.first_batch import MOST_CALLS, first_batch_notes
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.model.randomness import generator_states, moved_generators

HIDDEN = np.random.default_rng(0)


class Inner(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def notes(*functions, wrap=lambda model: model, **options):
    model = wrap(nn.Sequential(nn.BatchNorm2d(3), *map(Inner, functions)))
    feed = Feed(model, torch.randn(2, 8, 3, 4, 4).unbind(), **options)
    assert first_batch_notes(feed, batchnorm_layers(model)) == []  # nothing was seen yet
    with torch.no_grad():
        feed.replay("test", lambda step: len(step.run()))
    states = generator_states()
    found = first_batch_notes(feed, batchnorm_layers(model))
    assert moved_generators(states) == []
    assert model.training
    return found


@pytest.mark.parametrize(
    ("draw", "operator"),
    [
        (lambda x: F.dropout(x, 0.5), "aten.bernoulli_.float in module `1`"),
        (lambda x: x + torch.randn_like(x), "aten.randn_like.default in module `1`"),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), "in module `1`"),
        (lambda x: x * F.gumbel_softmax(x), "aten.exponential_.default in module `1`"),
        (lambda x: x + np.random.rand(), "numpy.random in the model's own forward"),
        (lambda x: x + random.random(), "random (Python's) in the model's own forward"),
        (nn.FractionalMaxPool2d(2, output_size=2), "in module `1.function`"),
    ],
    ids=["F.dropout", "randn_like", "attention", "gumbel_softmax", "numpy", "python", "FractionalMaxPool2d"],
)
def test_random_numbers_in_eval_mode_are_named(draw, operator):
    (note,) = notes(draw)
    assert note.startswith("The model draws random numbers in eval mode: ")
    assert operator in note
    assert note.endswith("What was measured is the network with this noise; no two answers of it agree.")
    if "aten" in operator:
        assert f" at {__file__}:" in note


def test_a_generator_that_nobody_sees_shows_as_two_forwards_that_differ():
    (note,) = notes(lambda x: x * HIDDEN.random())
    assert note.startswith("Two forwards of the same batch in eval mode differ, although no generator of torch, NumPy")
    assert "keeps state between calls, or uses a kernel that is not deterministic." in note


def test_statistics_of_the_batch_in_eval_mode_are_named():
    (note,) = notes(lambda x: F.batch_norm(x, None, None, training=True))
    assert note.startswith(
        "The model normalises by the statistics of the batch in eval mode, so its output depends on the batch it is "
        f"served in: batch_norm in module `1` at {__file__}:"
    )
    assert note.endswith("Pass training=False and running statistics there.")


def test_weights_that_are_standardised_by_batch_norm_depend_on_no_batch():
    weight = torch.randn(3, 3, 1, 1)

    def standardised(x):
        own = F.batch_norm(weight.reshape(1, 3, -1), None, None, training=True)
        return F.conv2d(x, own.reshape_as(weight))

    assert notes(standardised) == []


def test_stored_statistics_of_no_layer_are_named_and_those_of_a_layer_are_not():
    mean, var, norm = torch.zeros(3), torch.ones(3), nn.BatchNorm2d(3)
    (note,) = notes(lambda x: F.batch_norm(x, mean, var))
    assert note.startswith(
        "Stored statistics of no BatchNorm layer are used, and were not compared with anything: batch_norm in module "
        f"`1` at {__file__}:"
    )

    class Handed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return F.batch_norm(x[:, :2], norm.running_mean[:2], norm.running_var[:2])

    assert notes(Handed()) == []


def test_a_model_as_it_should_be_has_no_notes():
    assert notes(torch.relu, nn.Dropout(0.5), nn.BatchNorm2d(3, track_running_stats=False)) == []
    assert notes(nn.Flatten(1), nn.ReLU(inplace=True)) == []


def test_a_long_list_is_cut_short():
    (note,) = notes(*[lambda x: F.dropout(x, 0.5)] * (MOST_CALLS + 2))
    assert note.count("aten.bernoulli_") == MOST_CALLS
    assert "; 2 more. What was measured" in note


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")], ids=["DataParallel", "compiled"]
)
def test_modules_have_their_plain_names_in_wrapped_models(wrap):
    (note,) = notes(lambda x: F.dropout(x, 0.5), wrap=wrap)
    assert "aten.bernoulli_.float in module `1` at" in note


def test_forward_fn_is_looked_at_as_well():
    (note,) = notes(forward_fn=lambda model, batch: F.dropout(model(batch), 0.5))
    assert "aten.bernoulli_.float in the model's own forward at" in note
