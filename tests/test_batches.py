"""What a loader yields becomes inputs and labels."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from jumpout_export.nn.batches import first_tensor, split_batch

X, Y = torch.randn(6, 3), torch.arange(6)


class One(nn.Module):
    def forward(self, x):
        return x


class Two(nn.Module):
    def forward(self, image, mask=None):
        return image


class Any(nn.Module):
    def forward(self, *inputs):
        return inputs


@pytest.mark.parametrize(
    ("batch", "model", "args", "kwargs", "has_labels"),
    [
        (X, One(), 1, [], False),
        ((X,), One(), 1, [], False),
        ((X, Y), One(), 1, [], True),
        ([X, Y], Two(), 1, [], True),
        ((X, X), Two(), 2, [], False),
        ((X, X, Y), Two(), 2, [], True),
        ((X, torch.randn(6)), One(), 1, [], False),  # a regression target is no input
        ((X, X, X), Any(), 3, [], False),
        ({"image": X, "labels": Y}, Two(), 0, ["image"], True),
        ({"inputs": X, "target": Y}, One(), 1, [], True),
        ({"image": X, "mask": X}, Two(), 0, ["image", "mask"], False),
    ],
)
def test_split_batch(batch, model, args, kwargs, has_labels):
    result = split_batch(batch, model)
    assert len(result.args) == args
    assert list(result.kwargs) == kwargs
    assert (result.labels is not None) is has_labels
    assert result.size == 6
    result(model)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("text", r"a batch must be a tensor, a tuple or list \(inputs, labels\) or a dict, got str"),
        ((1, 2), "a batch must hold at least one tensor as input, got tuple without one"),
        ({}, "a batch must hold at least one tensor as input, got dict without one"),
    ],
)
def test_a_batch_of_another_kind_is_named(batch, message):
    with pytest.raises(TypeError, match=message):
        split_batch(batch, One())


def test_a_batch_without_a_first_dimension_is_named():
    with pytest.raises(ValueError, match="at least one tensor with a batch dimension, got none"):
        _ = split_batch(torch.tensor(1.0), One()).size


def test_first_tensor():
    assert first_tensor(OrderedDict(out=[X, Y])) is X
    with pytest.raises(TypeError, match="the model's output must hold a tensor, got int"):
        first_tensor(3)
