"""Every node is seen once with where it stands, and a name means what it means there."""

import pytest
from support.onnx_files import parsed

from jumpout_export.onnxfile.walk import (
    all_graphs,
    called,
    constants_of,
    default_opset,
    graphs_of,
    main_sites,
    messages,
    nodes_of,
    sites,
    tensors,
    texts,
)

NESTED = """
    <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
    g (bool c, float[4] x, float[4] given) => (float[4] y) <float[4] k = {1, 2, 3, 4}, float[4] given = {0, 0, 0, 0}> {
      [first] h = Relu(x)
      [branch] z = If(c) <
        then_branch = t () => (float[4] ty) { [inner] i = If(c) <
          then_branch = tt () => (float[4] tty) <float[4] k = {5, 6, 7, 8}> { [deep] tty = Add(x, k) },
          else_branch = inner () => (float[4] ey) { ey = Neg(x) }> ty = Identity(i) },
        else_branch = e () => (float[4] ey) { [other] ey = Add(h, k) }>
      [call] y = local.Block(z)
    }
    <domain: "local", opset_import: ["" : 17]>
    Block (a) => (b) { [in_function] c = Constant<value = float {2}>() b = Mul(a, c) }"""


@pytest.fixture(scope="module")
def model():
    return parsed(NESTED)


def test_every_node_is_named_where_it_stands_and_stands_before_what_is_in_it(model):
    branch, inner = "branch (If)", "inner (If) in then_branch of branch (If)"
    assert [site.where for site in sites(model)] == [
        "first (Relu)",
        branch,
        inner,
        f"deep (Add) in then_branch of {inner}",
        f"#0 (Neg) in else_branch of {inner}",
        f"#1 (Identity) in then_branch of {branch}",
        f"other (Add) in else_branch of {branch}",
        "call (Block)",
        "in_function (Constant) in function local::Block",
        "#1 (Mul) in function local::Block",
    ]


def test_the_nodes_of_the_main_graph_come_in_the_same_order(model):
    nodes = list(nodes_of(model.graph.node))
    assert [site.node for site in main_sites(model)] == nodes
    assert len(nodes) == 8
    assert called(nodes[-1]) == ("local", "Block")


def test_graphs_come_outermost_first(model):
    assert [graph.name for graph in all_graphs(model.graph)] == ["g", "t", "tt", "inner", "e"]
    assert [(name, graph.name) for name, graph in graphs_of(model.graph.node[1])] == [
        ("then_branch", "t"),
        ("else_branch", "e"),
    ]


def test_an_inner_constant_hides_the_outer_one_and_a_default_is_none(model):
    known = {site.where.split(" ")[0]: site.constants for site in sites(model)}
    assert list(known["other"]["k"].float_data) == [1, 2, 3, 4]
    assert list(known["deep"]["k"].float_data) == [5, 6, 7, 8]
    assert known["other"]["given"] is None
    assert known["other"]["h"] is None
    assert known["in_function"].get("k") is None
    assert list(known["in_function"]["c"].float_data) == [2]


def test_a_function_has_its_own_opset_or_that_of_the_file(model):
    opsets = {site.where: site.opset for site in sites(model)}
    assert (opsets["first (Relu)"], opsets["#1 (Mul) in function local::Block"]) == (18, 17)
    assert default_opset(
        parsed('<ir_version: 8, opset_import: ["ai.onnx" : 12]> g (float x) => (float y) {y = Neg(x)}')
    )


@pytest.mark.parametrize(
    ("body", "known"),
    [
        ("y = Add(x, k)", {"k"}),
        ("c = Constant<value = float {2}>() y = Add(x, c)", {"k", "c"}),
        ("c = Constant<value_float = 2.0>() y = Add(x, c)", {"k"}),
        ("k = Neg(x) y = Add(x, k)", set()),
        ("c = Constant<value = float {2}>() c = Neg(x) y = Add(x, c)", {"k"}),
    ],
    ids=["an initializer", "a Constant", "another form of one", "made again", "given twice"],
)
def test_what_is_constant_in_a_graph(body, known):
    graph = parsed(f"g (float[1] x) => (float[1] y) <float k = {{1}}> {{ {body} }}", check=False).graph
    assert {name for name, tensor in constants_of(graph).items() if tensor is not None} == known


def test_everything_with_text_or_data_is_reached(model):
    assert [tensor.dims for tensor in tensors(model)] == [[4], [4], [4], []]
    model = parsed(NESTED)
    inner = model.graph.node[1].attribute[0].g.node[0]
    inner.doc_string = "deep"
    model.metadata_props.add(key="key", value="value")
    assert set(texts(model)) == {"deep", "key", "value"}
    assert next(messages(model)) is model
