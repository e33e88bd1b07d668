"""The static proof: every forbidden thing is found in a file built by hand, wherever it hides."""

import os
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from jumpout_export import verify_onnx
from jumpout_export.errors import LoadError
from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.onnxfile.walk import ABSOLUTE_PATH
from jumpout_export.verify.inspect import inspect_onnx

OPSET = [helper.make_opsetid("", 18)]
TRUE, FALSE = (numpy_helper.from_array(np.array(value), name) for value, name in ((True, "true"), (False, "false")))
RATIO = numpy_helper.from_array(np.array(0.5, dtype=np.float32), "ratio")
SCALE = [numpy_helper.from_array(np.ones(3, dtype=np.float32), name) for name in ("scale", "bias", "mean", "var")]


def value(name, kind=TensorProto.FLOAT, shape=(2, 3)):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes, initializers=(), inputs=(), opsets=OPSET, functions=(), shape=(2, 3)):
    graph = helper.make_graph(
        list(nodes), "graph", [value("x", shape=shape), *inputs], [value("y", shape=shape)], list(initializers)
    )
    return helper.make_model(graph, opset_imports=list(opsets), ir_version=10, functions=list(functions))


def in_a_subgraph(nodes, initializers=()):
    """The same nodes inside the then-branch of an If inside the body of a Loop."""
    branch = helper.make_graph(list(nodes), "then", [], [value("y")], list(initializers))
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "else", [], [value("y")])
    branching = helper.make_node("If", ["going"], ["z"], name="inner_if", then_branch=branch, else_branch=other)
    keep = helper.make_node("Identity", ["going"], ["still"])
    body = helper.make_graph(
        [branching, keep],
        "body",
        [value("i", TensorProto.INT64, ()), value("going", TensorProto.BOOL, ()), value("state")],
        [value("still", TensorProto.BOOL, ()), value("z")],
    )
    loop = helper.make_node("Loop", ["trips", "true", "x"], ["y"], name="outer_loop", body=body)
    trips = numpy_helper.from_array(np.array(2), "trips")
    return model_of([loop], [trips, TRUE])


def in_a_function(nodes, constants=()):
    given = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in constants]
    function = helper.make_function("local", "Block", ["x"], ["y"], [*given, *nodes], OPSET)
    call = helper.make_node("Block", ["x"], ["y"], domain="local", name="call")
    return model_of([call], opsets=[*OPSET, helper.make_opsetid("local", 1)], functions=[function])


def inspected(model, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return inspect_onnx(path)


def found(report):
    return {check.name.removeprefix("file/"): check for check in report.checks if check.verdict != "pass"}


def dropout(flag="true", op="Dropout"):
    return [helper.make_node(op, ["x", "ratio", flag] if flag else ["x", "ratio"], ["y"], name="drop")]


def noise(op="RandomNormalLike", **attributes):
    return [
        helper.make_node(op, ["x"] if op.endswith("Like") else [], ["n"], name="noise", **attributes),
        helper.make_node("Add", ["x", "n"], ["y"]),
    ]


def batchnorm(**attributes):
    outputs = ["y", "m", "v"] if attributes.get("training_mode") else ["y"]
    return [helper.make_node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], outputs, "bn", **attributes)]


def test_a_clean_file_passes(tmp_path):
    nodes = [
        helper.make_node("Dropout", ["x", "ratio", "false"], ["a"], name="off"),
        helper.make_node("Dropout", ["a"], ["b"], name="default"),
        helper.make_node("BatchNormalization", ["b", "scale", "bias", "mean", "var"], ["y"], training_mode=0),
    ]
    report = inspected(model_of(nodes, [RATIO, FALSE, *SCALE]), tmp_path)
    assert report
    assert report.kind == "inspect"
    assert found(report) == {}
    assert len(report.checks) == 12
    assert len(report.sha256) == 64
    assert report.notes == ["opset 18, IR version 10, 3 nodes"]


FORBIDDEN = {
    "dropout that trains": ("training dropout", dropout(), [RATIO, TRUE], "drop (Dropout)"),
    "normal noise": ("random nodes", noise(), [], "noise (RandomNormalLike)"),
    "uniform noise": ("random nodes", noise("RandomUniformLike"), [], "noise (RandomUniformLike)"),
    "shaped noise": ("random nodes", noise("RandomNormal", shape=[2, 3]), [], "noise (RandomNormal)"),
    "uniform shaped noise": ("random nodes", noise("RandomUniform", shape=[2, 3]), [], "noise (RandomUniform)"),
    "bernoulli": ("random nodes", [helper.make_node("Bernoulli", ["x"], ["y"], "b")], [], "b (Bernoulli)"),
    "batchnorm that trains": ("training batchnorm", batchnorm(training_mode=1), SCALE, "bn (BatchNormalization)"),
}


@pytest.mark.parametrize(("name", "nodes", "constants", "where"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_what_is_forbidden_is_found_in_the_graph_in_subgraphs_and_in_functions(name, nodes, constants, where, tmp_path):
    for model, place in (
        (model_of(nodes, constants), ""),
        (in_a_subgraph(nodes, constants), " in then_branch of inner_if (If) in body of outer_loop (Loop)"),
        (in_a_function(nodes, constants), " in function local::Block"),
    ):
        report = inspected(model, tmp_path)
        assert not report
        assert found(report).keys() == {name}
        assert (found(report)[name].measured, found(report)[name].limit) == (1, 0)
        assert found(report)[name].note == where + place


def test_multinomial_is_found(tmp_path):
    nodes = [
        helper.make_node("Multinomial", ["x"], ["n"], name="draw", sample_size=3),
        helper.make_node("Cast", ["n"], ["y"], to=TensorProto.FLOAT),
    ]
    assert found(inspected(model_of(nodes), tmp_path)).keys() == {"random nodes"}


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


def test_an_operator_of_another_domain_is_found(tmp_path):
    node = helper.make_node("BiasDropout", ["x", "x"], ["y"], domain="com.microsoft", name="fused")
    report = inspected(model_of([node], opsets=[*OPSET, helper.make_opsetid("com.microsoft", 1)]), tmp_path)
    assert found(report)["custom operators"].note == "fused (BiasDropout)"


@pytest.mark.parametrize("place", ["node", "graph", "model", "metadata", "node metadata", "function"])
@pytest.mark.parametrize("path", ["/home/me/net.py", r"C:\Users\me\net.py", "file:///tmp/x"])
def test_a_path_of_the_machine_is_found_wherever_text_may_be(place, path, tmp_path):
    text = f'File "{path}", line 3'
    model = in_a_function([helper.make_node("Relu", ["x"], ["y"])])
    if place == "node":
        model.graph.node[0].doc_string = text
    elif place == "graph":
        model.graph.doc_string = text
    elif place == "model":
        model.doc_string = text
    elif place == "metadata":
        model.metadata_props.add(key="source", value=text)
    elif place == "node metadata":
        model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value=text)
    else:
        model.functions[0].node[0].doc_string = text
    report = inspected(model, tmp_path)
    assert found(report).keys() == {"local paths"}
    assert found(report)["local paths"].measured == 1


@pytest.mark.parametrize(
    "text",
    ["https://onnx.ai/x/y", "mean and/or variance", ": __main__.Net/b1: aten.relu/relu", "a/b/c", "1 / 2 / 3", "N/A"],
)
def test_what_is_no_path_of_the_machine_is_let_through(text):
    assert ABSOLUTE_PATH.search(text) is None


OUTSIDE = "is outside of the model's folder"


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("../weights.bin", OUTSIDE),
        ("/etc/hostname", OUTSIDE),
        ("sub/../../weights.bin", OUTSIDE),
        ("sub/../own.bin", OUTSIDE),
        ("link.bin", OUTSIDE),
        ("inner.bin", "is reached through a symbolic link"),
        ("hard.bin", "has several hard links"),
        ("sub", "is no file"),
        ("pipe", "is no file"),
        ("missing.bin", "is no file"),
        ("", "is no file name"),
        ("a\0b", "is no file name"),
    ],
)
def test_external_data_that_is_no_plain_file_of_the_folder_is_found_and_not_opened(location, problem, tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(12))
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "own.bin").write_bytes(bytes(12))
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "inner.bin").symlink_to(folder / "own.bin")
    (folder / "hard.bin").hardlink_to(tmp_path / "weights.bin")
    os.mkfifo(folder / "pipe")
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [numpy_helper.from_array(np.ones(3, "f4"), "w")])
    external(model.graph.initializer[0], location)
    report = inspected(model, folder)
    shown = location if location.isprintable() and location else repr(location)
    assert found(report)["external data"].note == f"w: {shown} {problem}"
    assert found(report)["onnxruntime"].verdict == "not_run"
    assert found(report)["onnx checker"].verdict == "not_run"
    assert not report
    with pytest.raises(LoadError, match="no such file"):
        inspect_onnx(folder / "out.onnx")
    assert not fold_onnx(folder / "model.onnx", folder / "out.onnx")
    verified = verify_onnx(folder / "model.onnx", torch.nn.ReLU(), torch.ones(2, 3))
    assert verified.providers["cpu"].reason == "the file is not run"


def test_external_data_beside_the_file_is_fine(tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(12))
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [numpy_helper.from_array(np.ones(3, "f4"), "w")])
    external(model.graph.initializer[0], "weights.bin")
    assert inspected(model, tmp_path)


def external(tensor, location):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def test_a_training_graph_in_the_file_is_found(tmp_path):
    model = model_of([helper.make_node("Relu", ["x"], ["y"])])
    model.training_info.add().algorithm.node.append(noise()[0])
    report = inspected(model, tmp_path)
    assert {"training graphs", "random nodes"} <= found(report).keys()
    assert "in training_info" in found(report)["random nodes"].note


def test_an_opset_that_onnxruntime_does_not_know_is_found(tmp_path):
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], opsets=[helper.make_opsetid("", 28)])
    model.ir_version = 14
    report = inspected(model, tmp_path)
    assert found(report).keys() == {"onnxruntime"}
    assert found(report)["onnxruntime"].verdict == "fail"
    assert report.notes[0].startswith("opset 28, IR version 14")


def test_a_graph_that_the_checker_rejects_is_found(tmp_path):
    report = inspected(model_of([helper.make_node("Relu", ["nowhere"], ["y"])]), tmp_path)
    assert "nowhere" in found(report)["onnx checker"].note


def test_a_missing_file_a_folder_and_something_else_are_named(tmp_path):
    with pytest.raises(LoadError, match=r"missing.onnx: no such file"):
        inspect_onnx(tmp_path / "missing.onnx")
    with pytest.raises(LoadError, match="is not a file"):
        inspect_onnx(tmp_path)
    for name, content in (("empty", b""), ("text", b"this is no model"), ("zeros", bytes(64))):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(LoadError, match=f"{name}.onnx: not a readable ONNX model"):
            inspect_onnx(path)


def test_a_file_cut_off_anywhere_never_passes(tmp_path):
    weights = numpy_helper.from_array(np.ones((3, 3), dtype=np.float32), "w")
    whole = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [weights]).SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(LoadError, match=r"cut.onnx: not a readable ONNX model \(.+\)$"):
            inspect_onnx(path)
    path.write_bytes(whole)
    assert inspect_onnx(path)


def test_the_notes_say_whether_fold_can_take_the_noise_out(tmp_path):
    report = inspected(model_of(dropout(), [RATIO, TRUE]), tmp_path)
    assert report.notes[1:] == ["`jumpout-export fold` can take the noise out"]
    report = inspected(in_a_function(dropout(), [RATIO, TRUE]), tmp_path)
    assert report.notes[1:] == ["`jumpout-export fold` can take the noise out"]
    report = inspected(model_of(noise()), tmp_path)
    assert report.notes[1] == "the noise cannot be taken out"
    assert report.notes[2].startswith("noise (RandomNormalLike) draws normal numbers that are added in #1 (Add)")
    report = inspected(model_of(batchnorm(training_mode=1), SCALE), tmp_path)
    assert "it normalizes with the statistics of the batch it is given" in report.notes[2]


def test_weights_that_are_nan_are_noted(tmp_path):
    weights = np.ones((3, 3), dtype=np.float16)
    weights[1, 1:] = np.nan
    weights[0, 0] = -np.inf
    tensor = numpy_helper.from_array(weights, "w")
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    report = inspected(model_of(nodes, [tensor]), tmp_path)
    assert report
    assert report.notes[1:] == ["`w` holds 2 NaN"]


@pytest.mark.parametrize(
    ("shape", "shown"),
    [((1 << 40, 3), "1099511627776, 3"), ((0, 3), "0, 3"), ((-2, 3), "-2, 3"), (("n", 1 << 40), "n, 1099511627776")],
)
def test_an_input_of_an_impossible_size_is_found_and_the_file_not_run(shape, shown, tmp_path):
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], shape=shape)
    report = inspected(model, tmp_path)
    assert found(report)["input sizes"].note == f"x: [{shown}], allowed are axes from 1 and 268435456 elements"
    assert not fold_onnx(tmp_path / "model.onnx", tmp_path / "out.onnx")
    verified = verify_onnx(tmp_path / "model.onnx", torch.nn.ReLU(), torch.ones(2, 3))
    assert not verified
    assert verified.providers["cpu"].reason == "the file is not run"


def test_a_value_of_an_impossible_size_is_not_computed(tmp_path):
    size = numpy_helper.from_array(np.array([1 << 40]), "size")
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["ones"], name="huge"),
        helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    path = tmp_path / "model.onnx"
    path.write_bytes(model_of(nodes, [size]).SerializeToString())
    report = fold_onnx(path, tmp_path / "out.onnx")
    assert report.checks[0].note.startswith("ones: [1099511627776], allowed are")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tensor: tensor.dims.append(2), "w has 12 bytes, its shape needs 24"),
        (lambda tensor: tensor.dims.append(-1), "w has a negative size"),
        (lambda tensor: tensor.dims.append(1 << 60), "w has 12 bytes, its shape needs 13835058055282163712"),
        (lambda tensor: tensor.ClearField("raw_data"), r"w cannot be read \("),
        (lambda tensor: setattr(tensor, "data_type", 99), r"w cannot be read \("),
    ],
    ids=["too short", "negative", "huge", "no data", "unknown type"],
)
def test_a_tensor_without_its_data_is_found(change, problem, tmp_path):
    tensor = numpy_helper.from_array(np.ones(3, dtype=np.float32), "w")
    change(tensor)
    report = inspected(model_of([helper.make_node("Add", ["x", "w"], ["y"])], [tensor]), tmp_path)
    assert re.match(problem, found(report)["tensors"].note)
    assert not fold_onnx(tmp_path / "model.onnx", tmp_path / "out.onnx")


def test_a_flag_without_data_is_not_false(tmp_path):
    broken = TensorProto(name="false", data_type=TensorProto.BOOL, dims=[2], raw_data=b"\0")
    assert "training dropout" in found(inspected(model_of(dropout("false"), [RATIO, broken]), tmp_path))


def test_a_cycle_is_found(tmp_path):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    model = model_of([*nodes, helper.make_node("Identity", ["b"], ["y"])])
    assert "topologically sorted, however input 'b'" in found(inspected(model, tmp_path))["onnx checker"].note
    calls = [helper.make_node("Loop", ["x"], ["y"], domain="local")]
    function = helper.make_function("local", "Loop", ["x"], ["y"], calls, [*OPSET, helper.make_opsetid("local", 1)])
    model = model_of(calls, opsets=[*OPSET, helper.make_opsetid("local", 1)], functions=[function])
    assert "must not be recursive" in found(inspected(model, tmp_path))["onnx checker"].note
    assert not fold_onnx(tmp_path / "model.onnx", tmp_path / "out.onnx")


def test_text_that_is_not_utf8_and_a_file_too_large_are_not_readable(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model_of([helper.make_node("Relu", ["x"], ["y"], name="node")]).SerializeToString())
    path.write_bytes(path.read_bytes().replace(b"node", b"\xff\xff\xff\xff"))
    with pytest.raises(LoadError, match="holds names or texts that are not UTF-8"):
        inspect_onnx(path)
    with path.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(LoadError, match="larger than 2 GiB"):
        inspect_onnx(path)


def test_nothing_is_printed_about_a_broken_file(tmp_path, capfd):
    tensor = numpy_helper.from_array(np.ones(3, dtype=np.float32), "w")
    tensor.dims.append(2)
    inspected(model_of([helper.make_node("Add", ["x", "w"], ["y"])], [tensor]), tmp_path)
    inspected(model_of([helper.make_node("Relu", ["x"], ["y"])], opsets=[helper.make_opsetid("", 28)]), tmp_path)
    assert capfd.readouterr() == ("", "")
