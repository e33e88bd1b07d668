"""Whether a file trains hangs on a flag: what is not provably false, wherever its name is given, counts as true."""

import pytest
from onnx import TensorProto
from support.static_files import (
    FALSE,
    LOCAL,
    RATIO,
    SCALE,
    TRUE,
    block,
    dropout,
    found,
    in_a_subgraph,
    inspected,
    model_of,
)


@pytest.mark.parametrize(
    "model",
    [
        model_of(dropout("flag"), [RATIO], inputs=", bool flag"),
        # An initializer that is an input too is only its default value.
        model_of(dropout("true"), [RATIO, FALSE], inputs=", bool true"),
        model_of(dropout("false"), [RATIO, FALSE], inputs=", bool false"),
        model_of(f"flag = Not(true) {dropout('flag')}", [RATIO, TRUE]),
    ],
    ids=["an input", "a default that is overridden", "an initializer with an input", "computed"],
)
def test_a_flag_that_is_not_provably_false_counts_as_true(model, tmp_path):
    assert "training dropout" in found(inspected(model, tmp_path))


def hidden_in_a_loop(nodes, given="", *, flag=False):
    """`nodes` compute `out` from `state` in a Loop's body, the graph around has an initializer `false`.

    With `flag` the body takes an input `false` too, and gives `next` for the next round.
    """
    taken, got, first, last = (", bool false", ", bool next", ", true", ", last") if flag else ("", "", "", "")
    loop = f"""
        y{last} = Loop(trips, true, x{first}) <
            body = body (int64 i, bool going, float[2,3] state{taken}) => (bool still, float[2,3] out{got}) <{given}> {{
                still = Identity(going)
                {nodes}
            }}
        >"""
    return model_of(loop, ["int64 trips = {2}", TRUE, FALSE, RATIO])


INSIDE = "[drop] out = Dropout(state, ratio, false)"


def test_an_input_of_a_subgraph_hides_the_constant_around_it(tmp_path):
    """ONNX Runtime runs this file, and drops."""
    report = inspected(hidden_in_a_loop(f"{INSIDE} next = Identity(false)", flag=True), tmp_path)
    assert found(report).keys() == {"training dropout"}
    assert found(inspected(hidden_in_a_loop(INSIDE), tmp_path)) == {}


@pytest.mark.parametrize(
    ("node", "safe"),
    [
        ("false = Identity(true)", False),
        ("false = Constant<value = bool {1}>()", False),
        ("false = Constant<value_int = 1>()", False),
        ("false = Constant<value = bool {0}>()", True),
    ],
    ids=["computed", "true", "another form", "false"],
)
def test_an_output_of_a_node_hides_the_constant_around_it(node, safe, tmp_path):
    for model in (hidden_in_a_loop(f"{node} {INSIDE}"), hidden_in_a_loop(f"{INSIDE} {node}")):
        assert ("training dropout" in found(inspected(model, tmp_path))) is not safe


def test_an_initializer_of_a_subgraph_hides_the_constant_around_it(tmp_path):
    assert "training dropout" in found(inspected(hidden_in_a_loop(INSIDE, "bool false = {1}"), tmp_path))


def test_a_name_given_twice_is_not_known(tmp_path):
    once, again = "flag = Constant<value = bool {0}>()", "flag = Not(false)"
    for nodes in (f"{once} {again}", f"{again} {once}"):
        model = model_of(f"{nodes} {dropout('flag')}", [RATIO, FALSE])
        assert "training dropout" in found(inspected(model, tmp_path))
    model = model_of(f"false = Not(true) {dropout('false')}", [RATIO, TRUE, FALSE])
    assert "training dropout" in found(inspected(model, tmp_path))


def test_a_constant_that_the_caller_of_a_function_sets_is_not_known(tmp_path):
    constants = "flag = Constant<value: tensor = @mode>() ratio = Constant<value = float {0.5}>()"
    function = block(f"{constants} {dropout('flag')}", attributes="<mode>")
    model = model_of("y = local.Block<mode = bool {1}>(x)", more=LOCAL, functions=function)
    assert "training dropout" in found(inspected(model, tmp_path))


def test_a_flag_from_a_constant_node_is_known(tmp_path):
    assert inspected(model_of(f"false = Constant<value = bool {{0}}>() {dropout('false')}", [RATIO]), tmp_path)


def test_a_flag_from_the_outer_graph_is_known_inside(tmp_path):
    assert found(inspected(in_a_subgraph(dropout("true"), [RATIO]), tmp_path)).keys() == {"training dropout"}


def test_a_training_mode_that_the_caller_of_a_function_sets_is_found(tmp_path):
    inputs = "x, scale, bias, mean, var"
    function = block(f"[bn] y = BatchNormalization<training_mode: int = @mode>({inputs})", inputs, "<mode>")
    model = model_of(f"y = local.Block<mode = 1>({inputs})", SCALE, more=LOCAL, functions=function)
    assert "training batchnorm" in found(inspected(model, tmp_path))


def test_old_opsets_say_training_in_other_ways(tmp_path):
    five_outputs = "y, m, v, sm, sv = BatchNormalization(x, scale, bias, mean, var)"
    report = inspected(model_of(five_outputs, SCALE, opset=9), tmp_path)
    assert "training batchnorm" in found(report)
    for is_test, verdicts in ((0, {"training dropout"}), (1, set())):
        report = inspected(model_of(f"y = Dropout<is_test = {is_test}>(x)", opset=6), tmp_path)
        assert found(report).keys() & {"training dropout"} == verdicts


def test_a_flag_without_data_is_not_false(tmp_path):
    broken = TensorProto(name="false", data_type=TensorProto.BOOL, dims=[2], raw_data=b"\0")
    model = model_of(dropout("false"), [RATIO])
    model.graph.initializer.append(broken)
    assert "training dropout" in found(inspected(model, tmp_path))
