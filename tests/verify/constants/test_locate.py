"""BatchNorms located in files that are written out by hand."""

import numpy as np
import pytest
import torch
from support.onnx_files import parsed
from torch import nn

from jumpout_export.model.operations import record
from jumpout_export.model.signature import onnx_batch
from jumpout_export.verify.constants.batchnorms import constants_check, locate_batchnorms

FOLDED = "g (float[n,3] x) => (float[n,4] y) { [fc] y = Gemm<transB = 1>(x, w, b) }"
ADDED = "g (float[n,3] x) => (float[n,4] y) { [fc] h = MatMul(x, wt) y = Add(h, b) }"
NODE = """g (float[n,3] x) => (float[n,4] y) {
    [fc] h = Gemm<transB = 1>(x, raw, zero)
    [norm] y = BatchNormalization<epsilon = 1e-5>(h, gamma, beta, mean, var)
}"""
SPLIT = "g (float[n,3] x) => (float[n,4] y) { h = MatMul(x, rawt) m = Mul(h, scale) y = Add(m, shift) }"


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)).eval()
    for tensor in (model[1].running_mean, model[1].running_var, model[1].weight.data, model[1].bias.data):
        tensor.uniform_(0.5, 2)
    return model


def constants(model):
    """By name, in float32, from the equation of a BatchNorm."""
    raw = model[0].weight.detach().double().numpy()
    gamma, beta, mean, var = (
        tensor.detach().double().numpy()
        for tensor in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var)
    )
    scale = gamma / np.sqrt(var + 1e-5)
    found = {"w": raw * scale[:, None], "wt": (raw * scale[:, None]).T, "b": beta - mean * scale, "raw": raw}
    found |= {"rawt": raw.T, "zero": np.zeros(4), "scale": scale, "shift": found["b"]}
    found |= {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    return {name: value.astype(np.float32) for name, value in found.items()}


def located(model, text, tmp_path, **changes):
    values = constants(model)
    for name, share in changes.items():
        values[name][2] *= share
    file = parsed(text, {name: value for name, value in values.items() if f"{name})" in text or f"{name}," in text})
    recording = record(model, onnx_batch(torch.ones(2, 3), model))
    return locate_batchnorms(recording, tmp_path / "model.onnx", file)


FORMS = {
    "folded": (FOLDED, "Gemm fc", "0", {"w": "weights", "b": "bias"}),
    "folded, with an Add": (ADDED, "MatMul fc", "0", {"b": "bias"}),
    "node": (NODE, "BatchNormalization norm", "1", {"gamma": "scale", "var": "scale", "mean": "shift"}),
    "Mul and Add": (SPLIT, "a Mul and an Add", "1", {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_right_constants_are_located_and_wrong_ones_named_with_their_channel(form, model, tmp_path):
    text, where, path, parts = FORMS[form]
    (right,) = located(model, text, tmp_path)
    assert (right.where, right.path, right.wrong) == (where, path, False)
    for name, what in parts.items():
        (wrong,) = located(model, text, tmp_path, **{name: 1.001})
        assert (wrong.where, wrong.channel, wrong.what, wrong.wrong) == (where, 2, what, True), name


def test_a_mul_and_an_add_that_are_wrong_are_not_located(model, tmp_path):
    (missing,) = located(model, SPLIT, tmp_path, scale=1.001)
    assert missing.where == ""
    check = constants_check(model, [missing])
    assert (check.verdict, check.note) == ("pass", "0 of 1 located; not located: `1`")


def test_a_layer_of_which_every_row_is_scaled_otherwise_is_still_the_one(model, tmp_path):
    """As after a recalibration, of whose file nothing has the right value any more."""
    later = nn.Sequential(*model)
    file = constants(later)
    with torch.no_grad():
        later[1].running_var.mul_(1.1)
    recording = record(later, onnx_batch(torch.ones(2, 3), later))
    proto = parsed(FOLDED, {"w": file["w"], "b": file["b"]})
    (wrong,) = locate_batchnorms(recording, tmp_path / "model.onnx", proto)
    assert (wrong.where, wrong.wrong) == ("Gemm fc", True)
    assert recording.operations[wrong.layer].name.startswith("aten.mm")
    assert wrong.error == pytest.approx(1.1**0.5 - 1, rel=1e-2)
    assert constants_check(later, [wrong]).note.startswith(f"`1` channel {wrong.channel}: weights off by 0.049")


@pytest.mark.parametrize(("others", "where"), [(1, "Gemm fc"), (2, ""), (4, "")])
def test_a_layer_is_its_own_if_most_of_the_rows_are_and_of_another_otherwise(others, where, model, tmp_path):
    values = constants(model)
    values["w"][:others] *= np.random.default_rng(0).uniform(0.5, 2, (others, 3)).astype(np.float32)
    recording = record(model, onnx_batch(torch.ones(2, 3), model))
    proto = parsed(FOLDED, {"w": values["w"], "b": values["b"]})
    (found,) = locate_batchnorms(recording, tmp_path / "model.onnx", proto)
    assert (found.where, found.wrong) == (where, bool(where))
