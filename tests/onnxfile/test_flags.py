"""Whether a file trains hangs on a flag: what is not provably false, wherever its name is given, counts as true."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.static_files import (
    FALSE,
    OPSET,
    RATIO,
    SCALE,
    TRUE,
    batchnorm,
    dropout,
    found,
    in_a_subgraph,
    inspected,
    model_of,
    value,
)


@pytest.mark.parametrize(
    "model",
    [
        model_of(dropout("flag"), [RATIO], inputs=[value("flag", TensorProto.BOOL, ())]),
        # An initializer that is an input too is only its default value.
        model_of(dropout("true"), [RATIO, FALSE], inputs=[value("true", TensorProto.BOOL, ())]),
        model_of(dropout("false"), [RATIO, FALSE], inputs=[value("false", TensorProto.BOOL, ())]),
        model_of([helper.make_node("Not", ["true"], ["flag"]), *dropout("flag")], [RATIO, TRUE]),
    ],
    ids=["an input", "a default that is overridden", "an initializer with an input", "computed"],
)
def test_a_flag_that_is_not_provably_false_counts_as_true(model, tmp_path):
    assert "training dropout" in found(inspected(model, tmp_path))


def hidden_in_a_loop(nodes, body_inputs, body_outputs, extra=(), given=()):
    """`nodes` compute `out` from `state` in a Loop's body, the graph around has an initializer `false`."""
    keep = helper.make_node("Identity", ["going"], ["still"])
    body = helper.make_graph(
        [keep, *nodes],
        "body",
        [value("i", TensorProto.INT64, ()), value("going", TensorProto.BOOL, ()), value("state"), *body_inputs],
        [value("still", TensorProto.BOOL, ()), value("out"), *body_outputs],
        list(given),
    )
    loop = helper.make_node("Loop", ["trips", "true", "x", *(["true"] * bool(body_inputs))], ["y", *extra], body=body)
    return model_of([loop], [numpy_helper.from_array(np.array(2), "trips"), TRUE, FALSE, RATIO])


INSIDE = helper.make_node("Dropout", ["state", "ratio", "false"], ["out"], name="drop")


def test_an_input_of_a_subgraph_hides_the_constant_around_it(tmp_path):
    """ONNX Runtime runs this file, and drops."""
    flag = value("false", TensorProto.BOOL, ())
    again = helper.make_node("Identity", ["false"], ["next"])
    model = hidden_in_a_loop([INSIDE, again], [flag], [value("next", TensorProto.BOOL, ())], extra=["last"])
    report = inspected(model, tmp_path)
    assert found(report).keys() == {"training dropout"}
    assert found(inspected(hidden_in_a_loop([INSIDE], [], []), tmp_path)) == {}


@pytest.mark.parametrize(
    ("node", "safe"),
    [
        (helper.make_node("Identity", ["true"], ["false"]), False),
        (helper.make_node("Constant", [], ["false"], value=TRUE), False),
        (helper.make_node("Constant", [], ["false"], value_int=1), False),
        (helper.make_node("Constant", [], ["false"], value=FALSE), True),
    ],
    ids=["computed", "true", "another form", "false"],
)
def test_an_output_of_a_node_hides_the_constant_around_it(node, safe, tmp_path):
    for model in (hidden_in_a_loop([node, INSIDE], [], []), hidden_in_a_loop([INSIDE, node], [], [])):
        assert ("training dropout" in found(inspected(model, tmp_path))) is not safe


def test_an_initializer_of_a_subgraph_hides_the_constant_around_it(tmp_path):
    true = numpy_helper.from_array(np.array(True), "false")
    assert "training dropout" in found(inspected(hidden_in_a_loop([INSIDE], [], [], given=[true]), tmp_path))


def test_a_name_given_twice_is_not_known(tmp_path):
    twice = [helper.make_node("Constant", [], ["flag"], value=FALSE), helper.make_node("Not", ["false"], ["flag"])]
    for nodes in (twice, twice[::-1]):
        assert "training dropout" in found(inspected(model_of([*nodes, *dropout("flag")], [RATIO, FALSE]), tmp_path))
    computed = helper.make_node("Not", ["true"], ["false"])
    assert "training dropout" in found(
        inspected(model_of([computed, *dropout("false")], [RATIO, TRUE, FALSE]), tmp_path)
    )


def test_a_constant_that_the_caller_of_a_function_sets_is_not_known(tmp_path):
    constant = helper.make_node("Constant", [], ["flag"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, ref_attr_name="mode")
    ratio = helper.make_node("Constant", [], ["ratio"], value=RATIO)
    function = helper.make_function(
        "local", "Block", ["x"], ["y"], [constant, ratio, *dropout("flag")], OPSET, attributes=["mode"]
    )
    call = helper.make_node("Block", ["x"], ["y"], domain="local", mode=TRUE)
    model = model_of([call], opsets=[*OPSET, helper.make_opsetid("local", 1)], functions=[function])
    assert "training dropout" in found(inspected(model, tmp_path))


def test_a_flag_from_a_constant_node_is_known(tmp_path):
    constant = helper.make_node("Constant", [], ["false"], value=FALSE)
    assert inspected(model_of([constant, *dropout("false")], [RATIO]), tmp_path)


def test_a_flag_from_the_outer_graph_is_known_inside(tmp_path):
    assert found(inspected(in_a_subgraph(dropout("true"), [RATIO]), tmp_path)).keys() == {"training dropout"}


def test_a_training_mode_that_the_caller_of_a_function_sets_is_found(tmp_path):
    node = batchnorm()[0]
    reference = node.attribute.add(name="training_mode", type=onnx.AttributeProto.INT)
    reference.ref_attr_name = "mode"
    inputs = ["x", "scale", "bias", "mean", "var"]
    function = helper.make_function("local", "Block", inputs, ["y"], [node], OPSET, attributes=["mode"])
    call = helper.make_node("Block", inputs, ["y"], domain="local", mode=1)
    opsets = [*OPSET, helper.make_opsetid("local", 1)]
    assert "training batchnorm" in found(
        inspected(model_of([call], SCALE, opsets=opsets, functions=[function]), tmp_path)
    )


def test_old_opsets_say_training_in_other_ways(tmp_path):
    five_outputs = helper.make_node(
        "BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y", "m", "v", "sm", "sv"]
    )
    report = inspected(model_of([five_outputs], SCALE, opsets=[helper.make_opsetid("", 9)]), tmp_path)
    assert "training batchnorm" in found(report)
    for is_test, verdicts in ((0, {"training dropout"}), (1, set())):
        node = helper.make_node("Dropout", ["x"], ["y"], is_test=is_test)
        report = inspected(model_of([node], opsets=[helper.make_opsetid("", 6)]), tmp_path)
        assert found(report).keys() & {"training dropout"} == verdicts


def test_a_flag_without_data_is_not_false(tmp_path):
    broken = TensorProto(name="false", data_type=TensorProto.BOOL, dims=[2], raw_data=b"\0")
    assert "training dropout" in found(inspected(model_of(dropout("false"), [RATIO, broken]), tmp_path))
