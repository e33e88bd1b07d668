"""What no sample shows: weights that no input reaches, and branches that no input takes."""

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
from jumpout_export.verify.branches import left_open
from jumpout_export.verify.constants.weights import weights_check
from jumpout_export.verify.verify import verify_onnx


class Tokens(nn.Module):
    """Of 50 embedded words the samples below use 5."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.norm, self.head = nn.Embedding(50, 6), nn.LayerNorm(6), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.words(x)))


WORDS = torch.arange(20).reshape(4, 5) % 5


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
    return model, tmp_path / "m.onnx"


def test_a_wrong_row_that_no_image_reads_fails_and_is_named(tokens):
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
        model.words.weight[5:] *= 1.5  # most values are others, none that an image reads
    report = verify_onnx(path, model, WORDS)
    assert [check.name for check in report.checks if check.verdict != "pass"] == ["weights"]
    assert "`words.weight` has 270 of 300 values wrong in the file, the first at [5, 0]" in the(report, "weights").note


def test_a_weight_that_is_not_there_is_named_and_no_failure(tokens):
    model, path = tokens
    proto = onnx.load(path)
    for message in (*proto.graph.initializer, *(node for node in proto.graph.node)):
        if isinstance(message, onnx.NodeProto):
            message.input[:] = ["table" if name == "words.weight" else name for name in message.input]
        elif message.name == "words.weight":
            message.name = "table"
    onnx.save(proto, path)
    assert the(verify_onnx(path, model, WORDS), "weights").note == "4 of 4 weights are in the file bit for bit"
    with torch.no_grad():
        model.words.weight[5:].normal_()
    assert the(verify_onnx(path, model, WORDS), "weights").note == (
        "3 of 4 weights are in the file bit for bit; known by the outputs alone: `words.weight`"
    )


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
    assert re.search(rf"`{re.escape(largest.name)}`.* 1 of {np.prod(largest.dims)} values wrong", note), note


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
    model = nn.Linear(40, 30).eval()
    weight = model.weight.detach().numpy()
    node = h.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight.T if swap else weight, "inner"))
    graph = h.make_graph([node], "inner", [], [h.make_tensor_value_info("w", TensorProto.FLOAT, None)])
    output = h.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = h.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
    whole = h.make_graph([node], "g", [h.make_tensor_value_info("c", TensorProto.BOOL, [])], [output])
    onnx.save(h.make_model(whole), tmp_path / "m.onnx")
    assert weights_check(tmp_path / "m.onnx", model, onnx_batch(torch.randn(2, 40), model)).note == (
        "1 of 2 weights are in the file bit for bit; known by the outputs alone: `bias`"
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
    constants = [numpy_helper.from_array(one.numpy(), key) for key, one in others.items()]
    graph = h.make_graph([], "g", [], [h.make_tensor_value_info("a", TensorProto.FLOAT, [64])], constants)
    onnx.save(h.make_model(graph), tmp_path / "m.onnx")
    check = weights_check(tmp_path / "m.onnx", Masks(), onnx_batch(torch.randn(2, 64), Masks()))
    assert check.verdict == "pass"
    assert check.note.startswith("0 of 3 weights")


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
    note = "1 of 2 weights are in the file bit for bit; known by the outputs alone: `before.weight`"
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


def branch(name, weight, nodes=()):
    """A subgraph that multiplies x, of the graph around it, with a weight."""
    nodes = [*nodes, h.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"])]
    output = h.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", 2])
    return h.make_graph(nodes, name, [], [output], [numpy_helper.from_array(weight, f"{name}_w")])


def write_switch(path, small, large, limit=24, nested=False):
    """A file that multiplies with `small` up to `limit` numbers, with `large` above."""
    nodes = [h.make_node("Size", ["x"], ["size"]), h.make_node("Greater", ["size", "limit"], ["is_large"])]
    switch = h.make_node(
        "If",
        ["is_large"],
        ["out" if nested else "y"],
        name="switch",
        then_branch=branch("large", large),
        else_branch=branch("small", small),
    )
    constants = [numpy_helper.from_array(np.int64(limit), "limit"), numpy_helper.from_array(np.array(True), "true")]
    if nested:
        outer = h.make_graph([switch], "outer", [], [h.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 2])])
        switch = h.make_node("If", ["true"], ["y"], name="outer", then_branch=outer, else_branch=branch("dead", small))
    x = h.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = h.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = h.make_graph([*nodes, switch], "g", [x], [y], constants)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9), path)


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(3, 2))

    def forward(self, x):
        return {"y": x @ self.weight}


@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_a_branch_that_no_sample_takes_fails_until_one_does(tmp_path, nested):
    model, path = Product().eval(), tmp_path / "m.onnx"
    right = model.weight.detach().numpy()
    inside = " in then_branch of outer (If)" if nested else ""
    write_switch(path, right, right * 3, nested=nested)
    report = verify_onnx(path, model, torch.randn(4, 3))
    assert [check.name for check in report.checks if check.verdict != "pass"] == ["branches"]
    assert the(report, "branches").note == (
        f"the then_branch of switch (If){inside} was never run; give inputs that take it, what is in it is not verified"
    )
    report = verify_onnx(path, model, torch.randn(9, 3))
    assert the(report, "branches").verdict == "pass"
    assert any(check.name.startswith("cpu/off/data") for check in report.checks if check.verdict == "fail")
    write_switch(path, right, right, nested=nested)
    report = verify_onnx(path, model, torch.randn(9, 3))
    assert report, report.checks
    others = ", constants and sizes in the file rule the others out"
    assert the(report, "branches").note == (f"3 of 4 were run{others}" if nested else "2 of 2 were run")


def test_a_loop_that_never_goes_round_fails(tmp_path):
    model, path = Product().eval(), tmp_path / "m.onnx"
    weight = numpy_helper.from_array(model.weight.detach().numpy(), "w")
    body = h.make_graph(
        [h.make_node("Identity", ["c"], ["c_out"]), h.make_node("Neg", ["v"], ["v_out"])],
        "body",
        [
            h.make_tensor_value_info("i", TensorProto.INT64, []),
            h.make_tensor_value_info("c", TensorProto.BOOL, []),
            h.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            h.make_tensor_value_info("c_out", TensorProto.BOOL, []),
            h.make_tensor_value_info("v_out", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["product"]),
        h.make_node("Size", ["x"], ["size"]),
        h.make_node("Div", ["size", "many"], ["rounds"]),
        h.make_node("Loop", ["rounds", "", "product"], ["y"], name="rounds_of_many", body=body),
    ]
    x = h.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = h.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = h.make_graph(nodes, "g", [x], [y], [weight, numpy_helper.from_array(np.int64(60), "many")])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9), path)
    note = the(verify_onnx(path, model, torch.randn(4, 3)), "branches").note
    assert note.startswith("the body of rounds_of_many (Loop) was never run")


def test_weights_beside_the_file_are_looked_for_and_run(tmp_path):
    model, path = Product().eval(), tmp_path / "m.onnx"
    right = model.weight.detach().numpy()
    write_switch(path, right, right)
    whole = onnx.load(path)
    onnx.save(whole, path, save_as_external_data=True, location="m.data", size_threshold=0)
    report = verify_onnx(path, model, torch.randn(9, 3))
    assert report, report.checks
    assert the(report, "weights").note == "1 of 1 weights are in the file bit for bit"


def constant_condition(kind):
    """Nodes that make `c`, which is always true: x has three columns, which the file declares."""
    if kind == "constants":
        return [h.make_node("Not", ["false"], ["c"])]
    shape = [h.make_node("Shape", ["x"], ["shape"]), h.make_node("Gather", ["shape", "at"], ["columns"])]
    return [*shape, h.make_node("Equal", ["columns", "three"], ["c"])]


@pytest.mark.parametrize("kind", ["constants", "sizes"])
def test_a_branch_that_no_input_can_take_is_no_failure(tmp_path, kind):
    model, path = Product().eval(), tmp_path / "m.onnx"
    right = model.weight.detach().numpy()
    constants = {"false": np.array(False), "at": np.int64(1), "three": np.int64(3)}
    switch = h.make_node("If", ["c"], ["y"], then_branch=branch("right", right), else_branch=branch("dead", right * 2))
    x = h.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = h.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = h.make_graph([*constant_condition(kind), switch], "g", [x], [y], values)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9), path)
    report = verify_onnx(path, model, torch.randn(4, 3))
    assert the(report, "branches").note == "1 of 2 were run, constants and sizes in the file rule the others out"
    assert report, report.checks


def test_sizes_that_a_file_claims_inside_rule_nothing_out(tmp_path):
    """Only the sizes of its inputs are held to."""
    model, path = Product().eval(), tmp_path / "m.onnx"
    right = model.weight.detach().numpy()
    nodes = [h.make_node("Identity", ["x"], ["inner"]), h.make_node("Shape", ["inner"], ["shape"])]
    nodes += [h.make_node("Gather", ["shape", "at"], ["images"]), h.make_node("Less", ["images", "nine"], ["c"])]
    nodes += [h.make_node("If", ["c"], ["y"], then_branch=branch("a", right), else_branch=branch("b", right * 2))]
    values = [numpy_helper.from_array(np.int64(0), "at"), numpy_helper.from_array(np.int64(9), "nine")]
    x = h.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = h.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    lie = [h.make_tensor_value_info("inner", TensorProto.FLOAT, [4, 3])]
    graph = h.make_graph(nodes, "g", [x], [y], values, value_info=lie)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9), path)
    assert "was never run" in the(verify_onnx(path, model, torch.randn(4, 3)), "branches").note


def test_a_default_value_that_a_caller_may_change_rules_nothing_out():
    def with_condition(inputs):
        right = np.zeros((3, 2), np.float32)
        switch = h.make_node(
            "If", ["c"], ["y"], name="switch", then_branch=branch("a", right), else_branch=branch("b", right)
        )
        x = h.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
        y = h.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
        graph = h.make_graph([switch], "g", [x, *inputs], [y], [numpy_helper.from_array(np.array(True), "c")])
        return h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)

    assert "switch" not in left_open(with_condition([]))
    assert "switch" in left_open(with_condition([h.make_tensor_value_info("c", TensorProto.BOOL, [])]))
