"""Files with a bound, a threshold or a narrow integer that PyTorch has not: tried on both sides, or listed."""

import numpy as np
import pytest
import torch
from support.onnx_files import parsed, saved
from support.verified import found
from torch import nn

from jumpout_export.verify.verify import verify_onnx

WORDS = torch.randint(50, (4, 6), generator=torch.Generator().manual_seed(0))
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
NUMBERS = {
    "zero": np.int64(0),
    "most": np.int64(255),
    "last": np.int64(299),
    "bits": np.uint64(255),
    "low": np.float32(0),
    "six": np.float32(6),
    "sixty": np.float32(60),
    "axis": np.array([1]),
}


class Words(nn.Module):
    def __init__(self, function=None, rows=300):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.function = nn.Embedding(rows, 8), function or (lambda x: x)

    def forward(self, x):
        return self.table(self.function(x)).sum(1)


def verified(folder, body, model, x, **more):
    """The report on a file with these nodes, before `y` is an output."""
    kind = "int64[n,6] x" if x.dtype == torch.int64 else "float[n,8] x"
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    weights = {name.replace(".", "_"): value for name, value in weights.items()}
    proto = parsed(f"g ({kind}) => (float[n,8] output) {{ {body} }}", {**NUMBERS, **weights})
    return verify_onnx(saved(proto, folder / "m.onnx"), model, x, **more)


IDS = {
    "bounded": "i = Clip (x, zero, most)",
    "in a narrow integer": "u = Cast <to = 2> (x) i = Cast <to = 7> (u)",
    "beyond a threshold": "b = Greater (x, most) i = Where (b, zero, x)",
    "by their bits": "u = Cast <to = 13> (x) v = BitwiseAnd (u, bits) i = Cast <to = 7> (v)",
    "less what is beyond": "a = Sub (x, most) b = Max (a, zero) i = Sub (x, b)",
    "by a remainder": "k = Sub (last, most) r = Add (most, k) q = Sub (r, k) i = Mod (x, q)",
}
READ = " t = Gather (table_weight, i) output = ReduceSum <keepdims = 0> (t, axis)"


@pytest.mark.parametrize("name", IDS)
def test_ids_beyond_a_number_of_the_file_are_tried(name, tmp_path):
    """No given word is beyond 49."""
    assert verified(tmp_path, "i = Identity (x)" + READ, Words(), WORDS)
    report = verified(tmp_path, IDS[name] + READ, Words(), WORDS)
    assert not report
    assert any(name.startswith("cpu/off/x=25") for name in found(report)), found(report)


HEALTHY = {
    "ids that PyTorch bounds too": (lambda x: x.clamp(0, 255), IDS["bounded"]),
    "ids that PyTorch makes narrow too": (lambda x: x.to(torch.uint8).long(), IDS["in a narrow integer"]),
    "ids that PyTorch replaces too": (lambda x: torch.where(x > 255, 0, x), IDS["beyond a threshold"]),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_the_program_does_too_is_not_mentioned(name, tmp_path):
    function, body = HEALTHY[name]
    report = verified(tmp_path, body + READ, Words(function), WORDS)
    assert report
    assert "numbers" not in {check.name for check in report.checks}


def test_a_bound_that_no_id_reaches_is_no_fault(tmp_path):
    """A file may guard its table: PyTorch refuses what lies beyond, and the report says what is not shown."""
    report = verified(tmp_path, "i = Clip (x, zero, last)" + READ, Words(), WORDS)
    assert report, found(report)
    (check,) = (check for check in report.checks if check.name == "numbers")
    assert check.note == "not in PyTorch's program, known by the outputs alone: 299, a number of Clip `i`"
    assert any(note.endswith("known by the outputs alone: 299, a number of Clip `i`") for note in report.notes)


def test_a_type_whose_end_lies_behind_the_table_is_no_fault(tmp_path):
    report = verified(tmp_path, "u = Cast <to = 4> (x) i = Cast <to = 7> (u)" + READ, Words(), WORDS)
    assert report, found(report)
    assert "65536, too large for the type of Cast `u`" in next(c.note for c in report.checks if c.name == "numbers")


def test_nothing_is_tried_where_nothing_is_to_be_made_up(tmp_path):
    report = verified(tmp_path, IDS["bounded"] + READ, Words(), WORDS, made_up=False)
    assert any("known by the outputs alone: 255" in check.note for check in report.checks), report.checks


class Bounded(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x).clamp(0, 6)


LAYER = "h = Gemm <transB = 1> (x, layer_weight, layer_bias) "


def test_a_bound_that_no_value_reaches_is_listed(tmp_path):
    assert verified(tmp_path, LAYER + "output = Clip (h, low, six)", Bounded(), X)
    report = verified(tmp_path, LAYER + "[clip] output = Clip (h, low, sixty)", Bounded(), X)
    (check,) = (check for check in report.checks if check.name == "numbers")
    assert check.note.endswith("known by the outputs alone: 60, a number of Clip `clip`")
    assert "digits are lost" not in found(report)["magnitudes"].note
