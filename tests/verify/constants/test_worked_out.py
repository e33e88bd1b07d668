"""What a file makes of weights alone before data come in has to be what the model makes of them, or the weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.onnx_files import parsed, saved
from torch import nn

from jumpout_export.model.signature import onnx_batch
from jumpout_export.verify.constants.proof import prove_constants

WORDS = torch.arange(6).reshape(2, 3)
MORE = {
    "zero": np.array([0]),
    "most": np.array([256]),
    "pads": np.array([0, 0, 44, 0]),
    "lo": np.float32(-2),
    "hi": np.float32(2),
    "rows": np.where(np.arange(300) < 256, 1, 0.5).astype(np.float32)[:, None],
    "none": np.float32(1),
    "columns": np.array([0, 1, 2, 3]),
    "axis": np.array([1]),
}


class Words(nn.Module):
    """Reads its table through a function of it."""

    def __init__(self, function=None):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.function = nn.Parameter(torch.randn(300, 4)), function or (lambda table: table)

    def forward(self, x):
        return F.embedding(x, self.function(self.table))


def checked(body, model, folder):
    """The check of a file that makes `t` of the table `w`."""
    values = {**MORE, "w": model.table.detach().numpy()}
    proto = parsed(f"g (int64[n,3] x) => (float[n,3,4] y) {{ {body} y = Gather (t, x) }}", values, check=False)
    result = prove_constants(saved(proto, folder / "m.onnx"), model, onnx_batch(WORDS, model), None)
    return result.checks[0]


WRONG = {
    "cut and padded": "c = Slice (w, zero, most, zero) t = Pad (c, pads)",
    "bounded": "t = Clip (w, lo, hi)",
    "smaller from some row on": "t = Mul (w, rows)",
    "bounded in a function of others": "t = other.Thing (w)",
    "bounded, and turned twice": "a = Transpose (w) b = Clip (a, lo, hi) t = Transpose (b)",
    "bounded behind a size": "s = Shape <start = 1, end = 2> (x) z = Sub (s, s) c = Clip (w, lo, hi) f = Shape (w) "
    "g = Slice (f, zero, zero) h = Add (z, most) t = Slice (c, z, h, zero)",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_table_that_the_file_changes_before_it_is_read_does_not_pass(name, tmp_path):
    model = Words()
    rows = checked("t = Identity (w)", model, tmp_path)
    assert (rows.verdict, rows.note) == ("pass", "1 of 1 weights are in the file bit for bit")
    check = checked(WRONG[name], model, tmp_path)
    assert check.verdict in ("fail", "not_run"), check.note
    assert "0 of 1 weights" in check.note


@pytest.mark.parametrize("name", ["bounded", "cut and padded", "smaller from some row on", "bounded, and turned twice"])
def test_the_first_row_that_is_wrong_is_named(name, tmp_path):
    check = checked(WRONG[name], Words(), tmp_path)
    assert check.verdict == "fail"
    assert check.note.startswith("`table` has "), check.note
    assert name.startswith("bounded") or "the first at [256, 0]" in check.note


RIGHT = {
    "turned twice": ("a = Transpose (w) t = Transpose (a)", None),
    "in columns": ("t = Gather <axis = 1> (w, columns)", None),
    "multiplied with 1": ("t = Mul (w, none)", None),
    "bounded in PyTorch too": ("t = Clip (w, lo, hi)", lambda table: table.clamp(-2, 2)),
    "of unit length": ("a = ReduceL2 <keepdims = 1> (w, axis) t = Div (w, a)", F.normalize),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_the_model_makes_of_it_too_passes(name, tmp_path):
    body, function = RIGHT[name]
    check = checked(body, Words(function), tmp_path)
    assert check.verdict == "pass", check.note


def test_a_bound_that_the_file_leaves_out_is_listed(tmp_path):
    """No word that was tried reads a row that it changes."""
    model = Words(lambda table: table.clamp(-3, 3)[:, [0, 1, 2, 3]])
    check = checked("t = Identity (w)", model, tmp_path)
    assert check.note.endswith("known by the outputs alone: that `table` is bounded (aten.clamp.default)"), check.note
    model = Words(lambda table: table.clamp(-2, 2)[:, [0, 1, 2, 3]])
    assert "bounded" not in checked("t = Clip (w, lo, hi)", model, tmp_path).note
