"""Weights that a right file holds joined, cut, or with the gates of a recurrent layer in ONNX's order."""

import numpy as np
import pytest
import torch
from torch import nn

from jumpout_export.verify.constants.pieces import Pieces
from jumpout_export.verify.constants.recurrent import recurrent_forms

Q, K = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
OUT = np.random.default_rng(1).standard_normal((8, 6)).astype(np.float32)


def taken(array):
    pieces = Pieces({"q": Q, "k": K, "out": OUT})
    return pieces.take(np.ascontiguousarray(array).reshape(-1), array.shape), pieces.whole()


def test_whole_weights_one_after_the_other_are_found_in_either_layout():
    joined = np.concatenate([K, Q])
    assert taken(joined) == (True, {"q", "k"})
    assert taken(joined.T) == (True, {"q", "k"})
    joined[2, 3] += 1
    assert taken(joined) == (False, set())


def test_a_weight_is_found_once_all_of_its_parts_are():
    pieces = Pieces({"out": OUT})
    for part in (OUT[:3], OUT[3:5].T):
        assert pieces.take(np.ascontiguousarray(part).reshape(-1), part.shape)
        assert pieces.whole() == set()
    assert pieces.take(OUT[4:].reshape(-1), (4, 6))
    assert pieces.whole() == {"out"}


def test_rows_in_other_places_few_values_and_one_value_throughout_are_no_pieces():
    assert taken(OUT[[1, 0, 2, 3, 4, 5, 6, 7]]) == (False, set())
    assert taken(OUT[:1, :4]) == (False, set())
    assert Pieces({"zeros": np.zeros((5, 6), np.float32)}).take(np.zeros(12, np.float32), (2, 6)) is False


@pytest.mark.parametrize(
    ("layer", "order"), [(nn.LSTM, "iofc"), (nn.GRU, "zrh"), (nn.RNN, "h")], ids=["LSTM", "GRU", "RNN"]
)
def test_gates_are_in_the_order_of_onnx_and_directions_stacked(layer, order):
    """Each gate's rows hold the letter by which ONNX calls the gate."""
    letters = {nn.LSTM: "ifco", nn.GRU: "rzh", nn.RNN: "h"}[layer]
    module = layer(2, 3, bidirectional=True)
    with torch.no_grad():
        for weight in module.parameters():
            for letter, rows in zip(letters, weight.chunk(len(letters)), strict=True):
                rows.fill_(ord(letter))
    forms = {form.shape: (form, names) for form, names in recurrent_forms(nn.Sequential(module))}
    gates = len(order)
    weights, names = forms[2, 3 * gates, 2]
    assert names == ("0.weight_ih_l0", "0.weight_ih_l0_reverse")
    assert weights[1, :, 0].tolist() == [ord(letter) for letter in order for _ in range(3)]
    biases, names = forms[2, 6 * gates]
    assert names == ("0.bias_ih_l0", "0.bias_hh_l0", "0.bias_ih_l0_reverse", "0.bias_hh_l0_reverse")
    assert biases[0].tolist() == [ord(letter) for letter in order * 2 for _ in range(3)]


def test_without_biases_and_with_projections():
    shapes = [form.shape for form, _ in recurrent_forms(nn.LSTM(2, 4, bias=False, proj_size=3))]
    assert shapes == [(16, 2), (16, 3), (3, 4)]
    assert list(recurrent_forms(nn.Linear(2, 2))) == []
