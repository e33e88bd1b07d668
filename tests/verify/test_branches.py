"""Branches that no input takes."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx import helper as h
from torch import nn

from jumpout_export.verify.branches import left_open
from jumpout_export.verify.verify import verify_onnx


def the(report, name):
    return next(check for check in report.checks if check.name == name)


def branch(name, weight, nodes=()):
    """A subgraph that multiplies x, of the graph around it, with a weight."""
    nodes = [*nodes, h.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"])]
    output = h.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", 2])
    return h.make_graph(nodes, name, [], [output], [numpy_helper.from_array(weight, f"{name}_w")])


def write_switch(path, small, large, limit=100.0, nested=False):
    """A file that multiplies with `small` where no number is above `limit`, with `large` otherwise."""
    nodes = [
        h.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        h.make_node("Greater", ["most", "limit"], ["is_large"]),
    ]
    switch = h.make_node(
        "If",
        ["is_large"],
        ["out" if nested else "y"],
        name="switch",
        then_branch=branch("large", large),
        else_branch=branch("small", small),
    )
    constants = [numpy_helper.from_array(np.float32(limit), "limit"), numpy_helper.from_array(np.array(True), "true")]
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


@pytest.mark.integration
@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_a_branch_that_no_sample_takes_fails_until_one_does(tmp_path, nested):
    model, path = Product().eval(), tmp_path / "m.onnx"
    right = model.weight.detach().numpy()
    inside = " in then_branch of outer (If)" if nested else ""
    write_switch(path, right, right * 3, nested=nested)
    report = verify_onnx(path, model, torch.randn(4, 3))
    assert [check.name for check in report.checks if check.blocks] == ["branches"]
    assert the(report, "branches").note == (
        f"the then_branch of switch (If){inside} was never run; give inputs that take it, what is in it is not verified"
    )
    report = verify_onnx(path, model, [torch.randn(9, 3), torch.rand(9, 3) + 200])
    assert the(report, "branches").verdict == "pass"
    assert any(check.name.startswith("cpu/off/data") for check in report.checks if check.verdict == "fail")
    write_switch(path, right, right, nested=nested)
    report = verify_onnx(path, model, [torch.randn(9, 3), torch.rand(9, 3) + 200])
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
        h.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        h.make_node("Div", ["most", "many"], ["share"]),
        h.make_node("Cast", ["share"], ["rounds"], to=TensorProto.INT64),
        h.make_node("Loop", ["rounds", "", "product"], ["y"], name="rounds_of_many", body=body),
    ]
    x = h.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = h.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = h.make_graph(nodes, "g", [x], [y], [weight, numpy_helper.from_array(np.float32(60), "many")])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9), path)
    note = the(verify_onnx(path, model, torch.randn(4, 3)), "branches").note
    assert note.startswith("the body of rounds_of_many (Loop) was never run")


def test_weights_beside_the_file_are_looked_for_and_run(tmp_path):
    model, path = Product().eval(), tmp_path / "m.onnx"
    right = model.weight.detach().numpy()
    write_switch(path, right, right)
    whole = onnx.load(path)
    onnx.save(whole, path, save_as_external_data=True, location="m.data", size_threshold=0)
    report = verify_onnx(path, model, [torch.randn(9, 3), torch.rand(9, 3) + 200])
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
    """Only the sizes of its inputs are held to, and both sides are tried."""
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
    report = verify_onnx(path, model, torch.randn(4, 3))
    assert the(report, "branches").note == "2 of 2 were run"
    assert "batch=9" in the(report, "sizes").note
    assert the(report, "cpu/off/batch=9/worst error").verdict == "fail"
    assert the(report, "cpu/off/batch=3/worst error").verdict == "pass"


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
