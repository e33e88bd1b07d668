"""A weight that a file reads in another way than the model is not shown by it: a table, by the rows looked up."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.onnx_files import parsed, saved
from torch import nn

from jumpout_export.model.signature import onnx_batch
from jumpout_export.verify.constants.proof import prove_constants

WORDS = torch.arange(6).reshape(2, 3)
NUMBERS = {"zero": np.float32(0), "from": np.array([0]), "most": np.array([256]), "pads": np.array([0, 0, 44, 0])}
NOTHING = "f = Cast <to = 1> (x) s = ReduceSum <keepdims = 0> (f) n = Mul (s, zero)"  # data reach it, no value does


class Words(nn.Module):
    """A table that is looked up, and a matrix that is multiplied with."""

    def __init__(self, *, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(300, 4))
        self.head = self.table if tied else nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return F.linear(torch.tanh(F.embedding(x, self.table)), self.head)


def not_shown(body, model, folder):
    """What the proof lists as not shown of a file with such nodes."""
    head = model.head.detach().numpy().T.copy()
    values = {**NUMBERS, "w": model.table.detach().numpy(), "h": head}
    proto = parsed(f"g (int64[n,3] x) => (float[n,3,{head.shape[1]}] y) {{ {body} }}", values, check=False)
    result = prove_constants(saved(proto, folder / "m.onnx"), model, onnx_batch(WORDS, model), None)
    assert result.checks[0].verdict == "pass", result.checks[0].note
    return [note for note in result.notes if note.startswith("not shown to be the model's")]


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_read_as_the_model_reads_it_is_not_listed(tied, tmp_path):
    assert not_shown("t = Gather (w, x) a = Tanh (t) y = MatMul (a, h)", Words(tied=tied), tmp_path) == []


@pytest.mark.parametrize(
    "more", ["t = Gather (m, x)", "c = Slice (m, from, most, from) p = Pad (c, pads) t = Gather (p, x)"]
)
def test_a_table_that_data_reach_before_it_is_looked_up_is_listed(more, tmp_path):
    found = not_shown(f"{NOTHING} m = Add (w, n) {more} a = Tanh (t) y = MatMul (a, h)", Words(), tmp_path)
    assert len(found) == 1
    assert "how `table` is read" in found[0]
    assert "`head`" not in found[0]


def test_a_matrix_that_data_reach_before_it_is_multiplied_is_listed(tmp_path):
    body = f"{NOTHING} t = Gather (w, x) a = Tanh (t) m = Add (h, n) y = MatMul (a, m)"
    found = not_shown(body, Words(), tmp_path)
    assert len(found) == 1
    assert "`head` is read" in found[0]
