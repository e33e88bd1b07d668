"""Weights that no input reaches: every constant of a file against the model's weights."""

import re

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx import helper as h
from torch import nn

from jumpout_export import export_onnx
from jumpout_export.model.signature import onnx_batch
from jumpout_export.verify.constants.proof import prove_constants
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration


class Tokens(nn.Module):
    """Of 50 embedded words the samples below use 5."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.norm, self.head = nn.Embedding(50, 6), nn.LayerNorm(6), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.words(x)))


WORDS = torch.arange(20).reshape(4, 5) % 5


def weights_check(path, model, batch):
    return next(check for check in prove_constants(path, model, batch, None).checks if check.name == "weights")


def changed(path, constant, change):
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == constant)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, constant))
    onnx.save(model, path)


def the(report, name):
    return next(check for check in report.checks if check.name == name)


@pytest.fixture
def tokens(tmp_path):
    model = Tokens().eval()
    report = export_onnx(model, tmp_path / "m.onnx", WORDS)
    assert report, report.checks
    assert the(report, "weights").note == "4 of 4 weights are in the file bit for bit"
    (tmp_path / "m.manifest.json").unlink()  # of the file as it was exported; it is changed here
    return model, tmp_path / "m.onnx"


def test_a_wrong_row_that_no_sample_reads_fails_and_is_named(tokens):
    model, path = tokens

    def spoil(array):
        array[41, 2] = 7

    changed(path, "words.weight", spoil)
    report = verify_onnx(path, model, WORDS)
    failed = [check.name for check in report.checks if check.verdict != "pass"]
    assert not report
    assert failed == ["weights"]  # every value that was compared agrees
    value = float(model.words.weight.detach()[41, 2])
    assert the(report, "weights").note == (
        f"`words.weight` has 1 of 300 values wrong in the file, the first at [41, 2]: 7 instead of "
        f"{value:.9g}; 3 of 4 weights are in the file bit for bit"
    )


def test_a_constant_with_the_name_of_a_weight_has_to_be_that_weight(tokens):
    model, path = tokens
    with torch.no_grad():
        model.words.weight[5:] *= 1.5  # most values are others, none that a sample reads
    report = verify_onnx(path, model, WORDS)
    assert [check.name for check in report.checks if check.verdict != "pass"] == ["weights"]
    assert "`words.weight` has 270 of 300 values wrong in the file, the first at [5, 0]" in the(report, "weights").note


def test_a_renamed_weight_is_found_and_one_of_which_a_tenth_is_right_fails(tokens):
    model, path = tokens
    proto = onnx.load(path)
    for message in (*proto.graph.initializer, *(node for node in proto.graph.node)):
        if isinstance(message, onnx.NodeProto):
            message.input[:] = ["table" if name == "words.weight" else name for name in message.input]
        elif message.name == "words.weight":
            message.name = "table"
    onnx.save(proto, path)
    report = verify_onnx(path, model, WORDS)
    assert report
    assert the(report, "weights").note == "4 of 4 weights are in the file bit for bit"
    with torch.no_grad():
        model.words.weight[5:].normal_()
    report = verify_onnx(path, model, WORDS)
    assert not report
    assert report.first_divergence == "words"
    assert the(report, "weights").note.startswith(
        "`words.weight` has 270 of 300 values wrong in the file, there `table`"
    )


class Halves(nn.Module):
    """Halves its table; the file below holds it halved, which nothing but a look at the values can tell."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(50, 6), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.head(self.words(x) * 0.5)


def test_a_weight_that_is_nowhere_is_not_shown_and_the_file_does_not_pass(tmp_path):
    model, path = Halves().eval(), tmp_path / "m.onnx"
    assert export_onnx(model, path, WORDS)
    path.with_name("m.manifest.json").unlink()
    proto = onnx.load(path)
    table = next(tensor for tensor in proto.graph.initializer if tensor.name == "words.weight")
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table) / 2, "table"))
    for node in proto.graph.node:
        node.input[:] = ["table" if name == "words.weight" else name for name in node.input]
        if node.op_type == "Mul":
            node.op_type, node.input[1] = "Identity", ""
            del node.input[1:]
    onnx.save(proto, path)
    report = verify_onnx(path, model, WORDS)
    assert not report
    assert [check.name for check in report.checks if check.blocks] == ["weights"]
    unshown = "`words.weight` (300 values, the file has `table` of that size); `table` of the file (300 values)"
    assert the(report, "weights").verdict == "not_run"
    assert the(report, "weights").note == (
        "not shown: 0.94 of all values that the forward reads, limit 0.001; 1 of 2 weights are in the file bit for "
        f"bit; known by the outputs alone: {unshown}"
    )
    assert f"not shown to be the model's, known by the outputs alone: {unshown}" in report.notes


class WeightNorm(nn.Sequential):
    def __init__(self):
        super().__init__(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3))


class Clamped(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8) * 2)

    def forward(self, x):
        return x @ self.w.clamp(-3, 3)


class Biased(nn.Module):
    """An attention bias, and a causal mask: the converter adds them once and for all."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bias", -(torch.arange(64).reshape(8, 8) % 7).float())
        self.register_buffer("mask", torch.full((8, 8), -1e4).triu(1))

    def forward(self, x):
        return (x @ x.mT + (self.bias + self.mask)).softmax(-1)


class Grid(nn.Module):
    def __init__(self):
        super().__init__()
        weight = torch.randint(-20, 20, (16, 16)) / 8
        weight[:, ::3] += 0.01
        self.w = nn.Parameter(weight)

    def forward(self, x):
        return x @ ((self.w * 8).round() / 8)


MADE = {
    "weight_norm": (WeightNorm, (5, 8)),
    "clamp": (Clamped, (5, 8)),
    "mask": (Biased, (3, 8, 4)),
    "grid": (Grid, (5, 16)),
}


@pytest.mark.parametrize("name", MADE)
def test_what_the_model_makes_of_weights_is_no_wrong_weight_and_is_compared_too(name, tmp_path):
    make, shape = MADE[name]
    torch.manual_seed(0)
    model, path = make().eval(), tmp_path / "m.onnx"
    x = torch.randn(shape)
    report = export_onnx(model, path, x)
    assert report, report.checks
    largest = max(onnx.load(path).graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))

    def spoil(array):
        array.flat[5] += 3

    changed(path, largest.name, spoil)
    note = the(verify_onnx(path, model, x), "weights").note
    text = rf"what is made of .* has 1 of {np.prod(largest.dims)} values wrong in the file, there `{largest.name}`"
    assert re.search(text, note), note


def test_what_is_made_of_a_weight_and_equals_it_shows_what_else_it_is_made_of(tmp_path):
    """As made, g is |v| and the normalized weight is v, bit for bit in some rows."""
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(8, 4)), nn.ReLU(), norm(nn.Linear(4, 3))).eval()
    report = export_onnx(model, tmp_path / "m.onnx", torch.randn(4, 8))
    assert report, report.checks


def test_every_copy_of_a_weight_is_looked_at(tokens):
    """One right copy does not excuse a wrong one."""
    model, path = tokens
    proto = onnx.load(path)
    table = next(tensor for tensor in proto.graph.initializer if tensor.name == "words.weight")
    wrong = numpy_helper.to_array(table).copy()
    wrong[30] += 1
    proto.graph.initializer.append(numpy_helper.from_array(wrong, "second"))
    gather = next(node for node in proto.graph.node if "words.weight" in node.input)
    gather.input[:] = ["second" if name == "words.weight" else name for name in gather.input]
    onnx.save(proto, path)
    report = verify_onnx(path, model, WORDS)
    assert "`words.weight` has 6 of 300 values wrong in the file, there `second`" in the(report, "weights").note


def test_tables_of_integers_and_weights_beside_a_batchnorm_are_looked_at(tmp_path):
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("remap", torch.randperm(50, generator=torch.Generator().manual_seed(0)))
            self.w, self.table = nn.Parameter(torch.randn(6, 4, 1)), nn.Parameter(torch.randn(50, 4))
            self.bn = nn.BatchNorm1d(6)

        def forward(self, x):
            return self.bn(torch.conv1d(self.table[self.remap[x]].mT, self.w))

    model, path = Mapped().eval(), tmp_path / "m.onnx"
    assert the(export_onnx(model, path, WORDS), "weights").note == "2 of 2 weights are in the file bit for bit"

    def spoil(array):
        array[41] += 1

    names = {tuple(tensor.dims): tensor.name for tensor in onnx.load(path).graph.initializer}
    changed(path, names[50,], spoil)
    assert "`remap` has 1 of 50 values wrong" in the(verify_onnx(path, model, WORDS), "weights").note
    assert export_onnx(model, path, WORDS)
    changed(path, names[50, 4], spoil)
    assert "`table` has 4 of 200 values wrong" in the(verify_onnx(path, model, WORDS), "weights").note


@pytest.mark.parametrize("swap", [False, True], ids=["as it is", "swapped"])
def test_weights_are_found_in_both_layouts_and_in_subgraphs(tmp_path, swap):
    model = nn.Linear(40, 30, bias=False).eval()
    weight = model.weight.detach().numpy()
    node = h.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight.T if swap else weight, "inner"))
    graph = h.make_graph([node], "inner", [], [h.make_tensor_value_info("w", TensorProto.FLOAT, None)])
    output = h.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = h.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
    whole = h.make_graph([node], "g", [h.make_tensor_value_info("c", TensorProto.BOOL, [])], [output])
    onnx.save(h.make_model(whole), tmp_path / "m.onnx")
    assert weights_check(tmp_path / "m.onnx", model, onnx_batch(torch.randn(2, 40), model)).note == (
        "1 of 1 weights are in the file bit for bit"
    )


def test_constants_with_common_values_are_no_wrong_weights(tmp_path):
    """Zeros, ones and masks have most of their values in common, and are not one another."""

    class Masks(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(64))
            self.register_buffer("mask", (torch.arange(64) % 3 == 0).float())
            pruned = torch.zeros(64)
            pruned[[3, 17, 40]] = torch.tensor([0.1, 0.2, 0.3])
            self.pruned = nn.Parameter(pruned)

        def forward(self, x):
            return x * self.scale + self.mask + self.pruned

    others = {"a": torch.zeros(64), "b": (torch.arange(64) % 3 < 2).float(), "c": torch.rand(64)}
    others |= {"d": Masks().mask, "e": Masks().pruned.detach()}
    constants = [numpy_helper.from_array(one.numpy(), key) for key, one in others.items()]
    outputs = [h.make_tensor_value_info(key, TensorProto.FLOAT, [64]) for key in others]
    graph = h.make_graph([], "g", [], outputs, constants)
    onnx.save(h.make_model(graph), tmp_path / "m.onnx")
    check = weights_check(tmp_path / "m.onnx", Masks(), onnx_batch(torch.randn(2, 64), Masks()))
    assert check.verdict == "pass"
    assert check.note == (
        "2 of 3 weights are in the file bit for bit; known by the outputs alone: `a` of the file (64 values); "
        "`b` of the file (64 values); `c` of the file (64 values)"
    )


def test_a_weight_that_resembles_another_is_not_taken_for_a_wrong_copy_of_it(tmp_path):
    """A fine-tuned copy that is kept in the module and not used; the file holds the other one, and holds it right."""

    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.used = nn.Linear(40, 30, bias=False), nn.Linear(40, 30, bias=False)
            with torch.no_grad():
                self.before.weight.copy_(self.used.weight)
                self.before.weight[3] += 1

        def forward(self, x):
            return self.used(x)

    model, x = Kept().eval(), torch.randn(4, 40)
    report = export_onnx(model, tmp_path / "m.onnx", x)
    assert report, report.checks
    note = "1 of 2 weights are in the file bit for bit; not read by the forward: `before.weight`"
    assert the(report, "weights").note == note

    def spoil(array):
        array[7, 7] += 1

    name = onnx.load(tmp_path / "m.onnx").graph.initializer[0].name
    changed(tmp_path / "m.onnx", name, spoil)
    assert "`used.weight` has 1 of 1200 values wrong" in the(verify_onnx(tmp_path / "m.onnx", model, x), "weights").note


def test_a_weight_without_an_axis_is_looked_for_too(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.tensor(1.37)), nn.Parameter(torch.tensor([0.25]))

        def forward(self, x):
            return x * self.scale + self.shift

    report = export_onnx(Scaled(), tmp_path / "m.onnx", torch.randn(4, 3))
    assert report, report.checks
    assert the(report, "weights").note == "2 of 2 weights are in the file bit for bit"


def test_an_unreadable_constant_fails(tmp_path):
    output = h.make_tensor_value_info("w", TensorProto.FLOAT, [6])
    broken = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[6], raw_data=b"123")
    onnx.save(h.make_model(h.make_graph([], "g", [], [output], [broken])), tmp_path / "m.onnx")
    check = weights_check(tmp_path / "m.onnx", nn.Linear(6, 1), onnx_batch(torch.randn(2, 6), nn.Linear(6, 1)))
    assert check.verdict == "fail"
    assert check.note.startswith("the weights could not be looked for in the file: ")


class Scaled(nn.Module):
    """A weight that is one value throughout, behind a gain so small that no output shows it."""

    def __init__(self, value):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.fc = nn.LayerNorm(8), nn.Linear(8, 3)
        self.norm = nn.LayerNorm(8)
        nn.init.constant_(self.norm.weight, value)

    def forward(self, x):
        return self.fc(self.first(x)) + 1e-9 * self.norm(x).sum(1, keepdim=True)


@pytest.mark.parametrize(("value", "listed"), [(1.2, True), (1.0, False)])
def test_a_weight_of_one_value_that_the_file_does_not_hold_is_listed(value, listed, tmp_path):
    path, x = tmp_path / "m.onnx", torch.randn(5, 8)
    assert export_onnx(Scaled(1.0).eval(), path, x)
    note = the(verify_onnx(path, Scaled(value).eval(), x), "weights").note
    assert ("`norm.weight` (8 values)" in note) == listed, note


def test_two_weights_that_swapped_their_values_behind_a_zero_gain_are_named(tmp_path):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.fc(x) + self.gain * self.two(self.one(x).relu())

    model, path, x = Gated().eval(), tmp_path / "m.onnx", torch.randn(5, 8)
    assert export_onnx(model, path, x)
    proto = onnx.load(path)
    one, two = (next(t for t in proto.graph.initializer if t.name == f"{name}.weight") for name in ("one", "two"))
    one.raw_data, two.raw_data = two.raw_data, one.raw_data
    onnx.save(proto, path)
    check = the(verify_onnx(path, model, x), "weights")
    assert check.verdict == "fail"
    assert "they are those of `two.weight`" in check.note
    assert "they are those of `one.weight`" in check.note
