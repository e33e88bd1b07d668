"""What is not shown to be the model's, from files written out by hand: small tables, masks, renamed weights."""

import numpy as np
import pytest
import torch
from onnx import helper
from support.onnx_files import parsed, saved
from torch import nn

from jumpout_export.model.signature import onnx_batch
from jumpout_export.tolerances import UNSHOWN
from jumpout_export.verify.constants.proof import prove_constants

X = torch.ones(2, 4)


def verdict(model, values, tmp_path, x=X, unread=()):
    """The check of the weights on a file that holds these constants by name, and the notes."""
    proto = parsed("g (float[n,4] x) => (float[n,4] y) { y = Identity(x) }", values)
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in values if name not in unread)
    path = saved(proto, tmp_path / "m.onnx")
    found = prove_constants(path, model.eval(), onnx_batch(x, model), None)
    return next(check for check in found.checks if check.name == "weights"), found.notes


class Table(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, x):
        return x + self.table.reshape(-1)[:4]


TABLES = {
    "a small table of integers": torch.arange(20) * 3 % 20,
    "four classes": torch.tensor([2, 0, 3, 1]),
    "round numbers": torch.arange(12).reshape(3, 4) / 4,
    "a mask": torch.arange(40) % 3 == 0,
    "a mask of numbers": (torch.arange(40) % 3 == 0).float(),
    "ones throughout": torch.ones(20),
    "signs": torch.where(torch.arange(16) % 2 == 0, 1, -1),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_small_or_round_table_with_one_wrong_entry_fails(name, tmp_path):
    table = TABLES[name].numpy()
    check, notes = verdict(Table(TABLES[name]), {"c": table}, tmp_path)
    assert (check.verdict, check.note, notes) == ("pass", "1 of 1 weights are in the file bit for bit", [])
    wrong = table.copy()
    wrong.flat[0] = not wrong.flat[0] if wrong.dtype == bool else wrong.flat[0] + 1
    check, _ = verdict(Table(TABLES[name]), {"c": wrong}, tmp_path)
    assert check.verdict == "fail"
    assert f"`table` has 1 of {table.size} values wrong in the file, there `c`, the first at [0" in check.note


def test_a_table_of_integers_may_be_a_constant_of_floats(tmp_path):
    """As an exporter makes it where floats are added to the table."""
    table = TABLES["a small table of integers"]
    assert verdict(Table(table), {"c": table.float().numpy()}, tmp_path)[0].verdict == "pass"
    wrong = table.float().numpy()
    wrong[7] = 3.5
    assert verdict(Table(table), {"c": wrong}, tmp_path)[0].verdict == "fail"


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(4))

    def forward(self, x):
        return sum(expert(x) for expert in self.experts)


def renamed(model):
    return {f"w{place}": value.detach().numpy().copy() for place, value in enumerate(model.state_dict().values())}


def test_an_expert_of_another_checkpoint_is_not_shown(tmp_path):
    model = Experts()
    assert verdict(model, renamed(model), tmp_path)[0].verdict == "pass"
    values = renamed(model) | {"w2": torch.randn(4, 4).numpy()}
    check, notes = verdict(model, values, tmp_path)
    assert check.verdict == "not_run"
    assert check.note.startswith("not shown: 0.25 of all values that the forward reads, limit 0.001; 3 of 4 weights")
    (note,) = notes
    assert note.endswith("`experts.2.weight` (16 values, the file has `w2` of that size); `w2` of the file (16 values)")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_renamed_file_with_every_weight_slightly_off_fails(dtype, tmp_path):
    model = Experts().to(dtype)
    values = {name: (value * (1 + 1e-3)).astype(value.dtype) for name, value in renamed(model).items()}
    check, _ = verdict(model, values, tmp_path, X.to(dtype))
    assert (check.verdict, check.measured) == ("fail", 4)
    assert (
        "`experts.0.weight` is off by 0.001 of its size in the file, there `w0`" in check.note or "wrong" in check.note
    )


def test_a_right_copy_that_nothing_reads_shows_nothing(tmp_path):
    model = Experts()
    values = renamed(model) | {"w2": torch.randn(4, 4).numpy(), "experts.2.weight": renamed(model)["w2"]}
    assert verdict(model, values, tmp_path)[0].verdict == "pass"
    assert verdict(model, values, tmp_path, unread=["experts.2.weight"])[0].verdict == "not_run"


def test_a_renamed_table_of_which_a_twentieth_is_right_fails(tmp_path):
    model = nn.Sequential(nn.Embedding(100, 8), nn.Flatten(), nn.Linear(16, 2, bias=False)).eval()
    values = renamed(model)
    values["w0"][5:] = torch.randn(95, 8)
    words = torch.randint(5, (4, 2))
    check, _ = verdict(model, values, tmp_path, words)
    assert (check.verdict, check.note[:54]) == ("fail", "`0.weight` has 760 of 800 values wrong in the file, th")


class Cached(nn.Module):
    """Keeps what it has made once, as LeViT does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.kept = nn.Parameter(torch.randn(40)), {}

    def forward(self, x):
        self.kept.setdefault("rows", self.table.detach().clone()[torch.arange(36) * 7 % 40])
        return x * self.kept["rows"].sum()


def test_tensors_that_the_model_holds_besides_its_weights_are_known_too(tmp_path):
    model = Cached()
    model(X)
    rows = model.kept["rows"].numpy()
    assert verdict(model, {"lifted": rows, "table": model.table.detach().numpy()}, tmp_path)[1] == []
    wrong = rows.copy()
    wrong[7] = 3
    assert verdict(model, {"lifted": wrong}, tmp_path)[0].verdict == "fail"


class Unrecorded(Experts):
    def forward(self, x):
        raise RuntimeError("not like this")


def test_a_forward_that_cannot_be_recorded_shows_weights_and_excuses_none(tmp_path):
    model = Unrecorded()
    assert verdict(model, renamed(model), tmp_path)[0].verdict == "pass"
    values = renamed(model)
    values["w1"][0, 0] += 1  # may be what the forward makes of it
    check, _ = verdict(model, values, tmp_path)
    assert check.verdict == "not_run"
    assert "the forward could not be recorded: not like this; 3 of 4 weights" in check.note
    assert "`experts.1.weight` (16 values, the file has `w1` of that size)" in check.note


class Large(nn.Module):
    def __init__(self, small):
        super().__init__()
        torch.manual_seed(0)
        self.large, self.small = nn.Parameter(torch.randn(250, 4)), nn.Parameter(torch.randn(small) + 2)

    def forward(self, x):
        return x @ self.large.T * self.small.sum()


@pytest.mark.parametrize(("small", "expected"), [(1, "pass"), (2, "not_run")])
def test_so_much_may_be_nowhere_and_no_more(small, expected, tmp_path):
    assert 1 / 1001 <= UNSHOWN < 2 / 1002
    model = Large(small)
    check, notes = verdict(model, {"w": model.large.detach().numpy()}, tmp_path)
    assert check.verdict == expected
    assert any("`small` (" in note for note in notes)


def test_a_list_of_numbers_in_a_node_is_a_constant_too(tmp_path):
    model = Table(torch.tensor([5, 9, 2, 7, 11]))
    text = "g (float[n,4] x) => (float[n,4] y) { t = Constant<value_ints = [5, 9, 2, %d, 11]>() y = Add(x, t) }"
    for last, expected in ((7, "pass"), (8, "fail")):
        path = saved(text % last, tmp_path / "m.onnx")
        found = prove_constants(path, model, onnx_batch(X, model), None)
        assert found.checks[0].verdict == expected


def test_what_is_read_for_sizes_alone_is_no_table(tmp_path):
    text = "g (float[n,4] x) => (float[2,2,n] y) { y = Reshape(x, s) }"
    model = nn.Linear(4, 4)
    path = saved(parsed(text, {"s": np.array([2, 2, -1])}), tmp_path / "m.onnx")
    notes = prove_constants(path, model, onnx_batch(X, model), None).notes
    assert notes[0].endswith("alone: `weight` (16 values); `bias` (4 values)")


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.pairs = nn.Bilinear(4, 3, 5, bias=False)

    def forward(self, x):
        return self.pairs(x, x[:, :3])


def test_axes_may_be_in_any_order(tmp_path):
    model = Pairs()
    weight = model.pairs.weight.detach().numpy()
    assert verdict(model, {"w": weight.transpose(1, 2, 0)}, tmp_path)[0].verdict == "pass"
    assert verdict(model, {"w": weight.transpose(1, 2, 0).reshape(12, 5)}, tmp_path)[0].verdict == "pass"
    wrong = weight.transpose(1, 2, 0).copy()
    wrong[0, 0, 0] += 1
    assert verdict(model, {"w": wrong}, tmp_path)[0].verdict == "not_run"


def test_a_square_weight_with_other_axes_in_front_is_no_wrong_copy_of_itself(tmp_path):
    """Its diagonals stay where they are when two axes change places."""
    torch.manual_seed(0)
    model = nn.Bilinear(8, 8, 4, bias=False)
    weight = model.weight.detach().numpy()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.pairs = model

        def forward(self, x):
            return self.pairs(x, x)

    x = torch.ones(2, 8)
    for values in (weight.transpose(1, 2, 0), weight.transpose(0, 2, 1), weight.transpose(2, 1, 0)):
        check, _ = verdict(Twice(), {"w": np.ascontiguousarray(values)}, tmp_path, x)
        assert check.verdict == "pass", check.note


class Bounded(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, 8, max_norm=1.0)

    def forward(self, x):
        return self.words(x).sum(1)


def test_rows_that_a_forward_shortens_may_still_be_long_in_the_file(tmp_path):
    """The file was written before the model was run on other words."""
    model, words = Bounded().eval(), torch.tensor([[0, 1], [2, 3]])
    before = renamed(model)
    model(torch.tensor([[5, 6, 7], [8, 9, 10]]))
    assert not np.array_equal(model.words.weight.detach().numpy(), before["w0"])
    assert verdict(model, before, tmp_path, words)[0].verdict == "pass"
    before["w0"][15, 3] += 1
    check, _ = verdict(model, before, tmp_path, words)
    assert (check.verdict, check.note[:19]) == ("fail", "`words.weight` has ")
