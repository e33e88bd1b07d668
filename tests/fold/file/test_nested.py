"""Noise in subgraphs and in functions."""

import numpy as np
import onnx
import pytest
from onnx import helper
from support.noisy_files import BOOL, INT64, OPSET, dropout, folded, graph_model, mask, node, run, tensor, value


def branches(nodes, extra=()):
    """An If whose one branch is `nodes`, which compute z from r."""
    then = helper.make_graph(list(nodes), "then", [], [value("z")], list(extra))
    other = helper.make_graph([node("Identity", "r", "e")], "else", [], [value("e")])
    return [node("ReduceMean", "h", "q", keepdims=0), node("Greater", "q 0", "positive"),
            node("If", "positive", "z", then_branch=then, else_branch=other)]  # fmt: skip


def looped(nodes):
    """A Loop of two trips whose body is `nodes`, which compute z from state."""
    body = helper.make_graph(
        [*nodes, node("Identity", "going", "on")],
        "body",
        [value("i", (), INT64), value("going", (), BOOL), value("state")],
        [value("on", (), BOOL), value("out")],
    )
    return [helper.make_node("Loop", ["trips", "true", "r"], ["z"], name="loop", body=body)]


def scanned(nodes):
    body = helper.make_graph(list(nodes), "body", [value("row", (4,))], [value("out", (4,))])
    return [helper.make_node("Scan", ["r"], ["z"], name="scan", body=body, num_scan_inputs=1)]


def renamed(nodes, x, y):
    """The nodes that compute y from x instead of z from r."""
    changed = []
    for part in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(part)
        copy.input[:] = [x if name == "r" else name for name in part.input]
        copy.output[:] = [y if name == "z" else name for name in part.output]
        changed.append(copy)
    return changed


TRIPS = tensor(2, "trips", np.int64)
NESTED = {
    "If": (branches([dropout()]), "Dropout_z (Dropout) in then_branch of If_z (If)"),
    "If, a mask": (branches(mask()), "Div_z (Div) in then_branch of If_z (If)"),
    "Loop": (looped([dropout(x="state", y="out")]), "Dropout_out (Dropout) in body of loop (Loop)"),
    "Loop, a mask": (looped(renamed(mask(), "state", "out")), "Div_z (Div) in body of loop (Loop)"),
    "Scan": (scanned([dropout(x="row", y="out")]), "Dropout_out (Dropout) in body of scan (Scan)"),
    "If in a Loop": (looped([
        dropout(x="state", y="r2"), node("ReduceMean", "state", "q", keepdims=0), node("Greater", "q 0", "pos"),
        node("If", "pos", "out",
             then_branch=helper.make_graph([dropout(x="r2", y="t")], "then", [], [value("t")]),
             else_branch=helper.make_graph([node("Identity", "r2", "e")], "else", [], [value("e")]))]),
        "Dropout_t (Dropout) in then_branch of If_out (If) in body of loop (Loop)"),
    "the mask outside, its use inside": (
        [*mask()[:3], *branches([node("Mul", "r m", "rm"), node("Div", "rm 0.7", "z")])],
        "Div_z (Div) in then_branch of If_z (If)"),
    "followed by more inside": (branches([dropout(y="d"), node("Relu", "d", "z")]),
        "Dropout_d (Dropout) in then_branch of If_z (If)"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "where"), NESTED.values(), ids=NESTED.keys())
def test_noise_in_subgraphs_is_folded_and_named_with_its_path(nodes, where, tmp_path):
    report = folded(graph_model(nodes, constants=[TRIPS]), tmp_path)
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert where in [layer.path for layer in report.folded]
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", x)[0], np.maximum(x, 0))
    assert any("noise in subgraphs was not watched" in note for note in report.notes)


def test_a_mask_that_is_passed_into_a_subgraph_is_refused(tmp_path):
    body = helper.make_graph(
        [node("Mul", "r state", "rm"), node("Div", "rm 0.7", "out"), node("Identity", "going", "on")],
        "body",
        [value("i", (), INT64), value("going", (), BOOL), value("state")],
        [value("on", (), BOOL), value("out")],
    )
    loop = helper.make_node("Loop", ["trips", "true", "m"], ["z"], name="loop", body=body)
    report = folded(graph_model([*mask()[:3], loop], constants=[TRIPS]), tmp_path)
    assert "RandomUniformLike_u (RandomUniformLike) reaches loop (Loop) as a mask" in report.checks[0].note


LOCAL = helper.make_opsetid("local", 1)


def function(name, inputs, output, nodes, opsets=OPSET, **more):
    return helper.make_function("local", name, inputs, [output], nodes, opsets, **more)


def test_noise_in_functions_is_folded_where_they_are_called(tmp_path):
    rate = node("Constant", "", "p", value_float=0.3)
    inner = function("Drop", ["a", "flag"], "b", [rate, node("Dropout", "a p flag", "b")])
    outer = function("Block", ["a", "flag"], "c", [helper.make_node("Drop", ["a", "flag"], ["d"], domain="local"),
                                                    node("Relu", "d", "c")], [*OPSET, LOCAL])  # fmt: skip
    clean = function("Clean", ["a"], "b", [node("Relu", "a", "b")])
    unused = function("Unused", ["a"], "b", [node("RandomNormalLike", "a", "b")])
    nodes = [
        helper.make_node("Block", ["r", "true"], ["s"], domain="local", name="on"),
        helper.make_node("Block", ["s", "false"], ["t"], domain="local", name="off"),
        helper.make_node("Clean", ["t"], ["z"], domain="local", name="clean"),
    ]
    model = graph_model(nodes, functions=[inner, outer, clean, unused], more=[LOCAL])
    report = folded(model, tmp_path)
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert len(report.folded) == 1
    assert len([note for note in report.notes if note.endswith("is off and stays")]) == 1
    assert {
        "function `Block` is written out where it is called",
        "function `Drop` is written out where it is called",
    } <= set(report.notes)
    out = onnx.load(tmp_path / "out.onnx")
    assert [body.name for body in out.functions] == ["Clean"]
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", x)[0], np.maximum(x, 0))


def test_a_training_mode_that_a_function_takes_as_an_attribute_is_known_where_it_is_called(tmp_path):
    for mode, outputs in ((0, "b"), (1, "b mean var")):
        bn = node("BatchNormalization", "a ones ones ones ones", outputs)
        bn.attribute.add(name="training_mode", type=onnx.AttributeProto.INT).ref_attr_name = "mode"
        ones = node("Constant", "", "ones", value=tensor(np.ones(4), ""))
        block = function("Norm", ["a"], "b", [ones, bn], attributes=["mode"])
        call = helper.make_node("Norm", ["r"], ["s"], domain="local", mode=mode)
        report = folded(graph_model([call, dropout(x="s")], functions=[block], more=[LOCAL]), tmp_path)
        assert bool(report) is (mode == 0)
    assert "BatchNormalization_b__1 (BatchNormalization) is in training mode" in report.checks[0].note


def test_a_function_with_the_name_of_an_operator_is_refused(tmp_path):
    body = helper.make_function("", "Relu", ["a"], ["b"], [node("Neg", "a", "b")], OPSET)
    report = folded(graph_model([dropout()], functions=[body]), tmp_path)
    assert report.checks[-1].note.startswith("function `ai.onnx::Relu` may be an operator of a runtime's own")
