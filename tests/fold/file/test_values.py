"""What is known of a value without running the graph: its one number, and whether it broadcasts into another."""

import math

import onnx
import onnx_ir as ir
import pytest
from support.onnx_files import parsed

from jumpout_export.fold.file.values import Values, attribute, made_by

HEADER = '<ir_version: 10, opset_import: ["" : 18, "other" : 1]>'


def read(
    body, head="g (float[n,4] x, float given) => (float[n,4] y)", constants="float[2] twos = {2, 2}, float a = {3}"
):
    model = onnx.shape_inference.infer_shapes(parsed(f"{HEADER} {head} <{constants}> {{ {body} }}", check=False))
    graph = ir.serde.deserialize_model(model).graph
    values = Values(set(graph.inputs))
    for node in graph:
        values.add(node)
    named = {value.name: value for node in graph for value in node.outputs}
    return values, named | {value.name: value for value in (*graph.inputs, *graph.initializers.values())}


NUMBERS = {
    "an initializer": ("v = Identity(a)", 3),
    "a filled one": ("v = Expand(twos, s)", 2),
    "a Constant": ("v = Constant<value = float[2] {5, 5}>()", 5),
    "a Constant in another form": ("v = Constant<value_float = 0.5>()", 0.5),
    "two numbers in one": ("v = Constant<value = float[2] {5, 6}>()", None),
    "ConstantOfShape": ("v = ConstantOfShape(s)", 0),
    "arithmetic": ("t = Mul(a, a) u = Sub(t, a) v = Div(u, twos)", 3),
    "a root": ("t = Mul(a, a) v = Sqrt(t)", 3),
    "a power": ("v = Pow(a, twos)", 9),
    "an inverse": ("v = Reciprocal(twos)", 0.5),
    "less than nothing": ("v = Neg(a)", -3),
    "no value": ("t = Sub(a, a) v = Reciprocal(t)", None),
    "a root of less than nothing": ("t = Neg(a) v = Sqrt(t)", None),
    "a cast": ("v = Cast<to = 7>(h)", 1),
    "a cast to a flag": ("v = Cast<to = 9>(h)", 1),
    "the opposite": ("t = Cast<to = 9>(a) v = Not(t)", 0),
    "integers have other arithmetic": ("t = Cast<to = 7>(a) v = Div(t, t)", None),
    "an input": ("v = Identity(given)", None),
    "computed of an input": ("v = Mul(given, a)", None),
    "an unknown operator": ("v = Erf(a)", None),
    "another domain": ("v = other.Identity(a)", None),
}


@pytest.mark.parametrize(("body", "number"), NUMBERS.values(), ids=NUMBERS.keys())
def test_the_one_number_of_a_value(body, number):
    constants = "float[2] twos = {2, 2}, float a = {3}, float h = {1.5}, int64[1] s = {2}"
    values, named = read(f"{body} y = Identity(x)", constants=constants)
    assert values.number(named["v"]) == (None if number is None else pytest.approx(number))


def test_a_default_that_the_caller_may_change_is_no_number():
    values, named = read("y = Mul(x, a)", head="g (float[n,4] x, float a) => (float[n,4] y)")
    assert values.number(named["a"]) is None
    assert values.number(None) is None


SHAPES = {
    "itself": ("v = Identity(x)", True),
    "a number": ("v = Identity(a)", True),
    "a row": ("v = Constant<value = float[4] {1, 2, 3, 4}>()", True),
    "a channel each": ("v = ReduceMean(x)", True),
    "drawn like it": ("v = RandomUniformLike(x)", True),
    "expanded to its shape": ("s = Shape(x) v = Expand(a, s)", True),
    "to a part of its shape": ("s = Shape<start = 1>(x) v = ConstantOfShape(s)", False),
    "elementwise of both": ("t = RandomUniformLike(x) b = Less(t, a) v = Cast<to = 1>(b)", True),
    "with an axis more": ("v = Constant<value = float[1,1,1] {1}>()", False),
    "another size": ("v = Constant<value = float[3] {1, 2, 3}>()", False),
    "another input": ("v = Identity(z)", False),
}


@pytest.mark.parametrize(("body", "fits"), SHAPES.values(), ids=SHAPES.keys())
def test_what_is_proven_to_broadcast_into_x(body, fits):
    values, named = read(f"{body} y = Identity(x)", head="g (float[n,4] x, float[m,4] z) => (float[n,4] y)")
    assert values.broadcasts_into(named["v"], named["x"]) is fits


def test_a_long_chain_is_not_followed():
    chain = " ".join(f"v{i + 1} = Abs(v{i})" for i in range(40)).replace("Abs", "Identity")
    values, named = read(f"v0 = other.Unknown(x) {chain} y = Identity(x)")
    assert not values.broadcasts_into(named["v40"], named["x"])


def test_nodes_and_their_attributes_are_asked_safely():
    _, named = read("c = Cast<to = 7>(x) v = other.Cast<to = 7>(x) y = Identity(x)")
    assert made_by(named["c"], "Cast", "Identity") is named["c"].producer()
    assert made_by(named["v"], "Cast") is None
    assert made_by(named["x"], "Cast") is None
    assert made_by(None, "Cast") is None
    assert attribute(named["c"].producer(), "to", 0) == 7
    assert attribute(named["c"].producer(), "saturate", math.pi) == math.pi
