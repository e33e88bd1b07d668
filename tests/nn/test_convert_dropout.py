"""convert_dropout: what it swaps, what it leaves alone and why."""

import pytest
import torch
from torch import nn

from jumpout_export import Jumpout, convert_dropout


class Odd(nn.Dropout):
    pass


def test_every_dropout_becomes_jumpout_and_the_list_says_so():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.1, inplace=True)))
    model[3].eval()
    swaps = convert_dropout(model, sigma=0.2, p_max=0.4)
    assert [(swap.path, swap.kind, swap.swapped) for swap in swaps] == [
        ("2", "Dropout", True),
        ("3.0", "Dropout", True),
    ]
    assert repr(model[2]) == "Jumpout(sigma=0.2, p_min=0.01, p_max=0.4)"
    assert model[2].training
    assert not model[3][0].training
    assert model[3][0].inplace
    model(torch.randn(2, 4))


def test_without_a_rate_each_layer_keeps_its_own():
    model = nn.Sequential(nn.Dropout(0.3), nn.Dropout(0.1))
    convert_dropout(model)
    assert [layer.p for layer in model] == [0.3, 0.1]


def test_a_shared_layer_becomes_one_jumpout_everywhere():
    shared = nn.Dropout(0.2)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared])})
    swaps = convert_dropout(model, sigma=0.1)
    assert [swap.path for swap in swaps] == ["a", "b.0"]
    assert model["a"] is model["b"][0]
    assert isinstance(model["a"], Jumpout)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Dropout2d(0.5), "drops whole channels"),
        (nn.AlphaDropout(0.5), "belongs to SELU networks"),
        (Odd(0.5), "a subclass of nn.Dropout"),
        (nn.LSTM(3, 3, num_layers=2, dropout=0.4), "its dropout of 0.4 is applied inside the layer"),
        (nn.MultiheadAttention(4, 2, dropout=0.3), "its dropout of 0.3 is applied inside the layer"),
    ],
)
def test_what_is_left_alone_is_listed_with_the_reason(layer, reason):
    model = nn.Sequential(layer)
    (swap,) = convert_dropout(model, sigma=0.1)
    assert not swap.swapped
    assert reason in swap.reason
    assert model[0] is layer


def test_a_model_that_is_a_dropout_cannot_be_swapped():
    with pytest.raises(ValueError, match="the model itself is a Dropout and cannot be replaced in place"):
        convert_dropout(nn.Dropout())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sigma": -1}, "sigma must be finite"), ({}, r"Dropout `1` has rate 1.0, which drops everything")],
)
def test_a_wrong_setting_leaves_the_model_untouched(settings, message):
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(1.0))
    before = list(model)
    with pytest.raises(ValueError, match=message):
        convert_dropout(model, **settings)
    assert list(model) == before


def test_checkpoints_keep_loading():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    state = model.state_dict()
    convert_dropout(model, sigma=0.1)
    model.load_state_dict(state)
    assert isinstance(model[1], Jumpout)
