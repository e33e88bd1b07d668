"""What a fold removes from the protobuf and what it leaves, bit for bit."""

import pytest
from onnx import TensorProto, helper
from support.onnx_files import parsed

from jumpout_export.fold.file.edit import correct_metadata, count_nodes, cut_paths, take_out
from jumpout_export.fold.file.read import read_noise
from jumpout_export.report import FoldedLayer

HEAD = "g (float[n,4] x, bool c) => (float[n,4] y) <float r = {0.3}, bool on = {1}, float[4] w = {1, 2, 3, 4}>"


def taken_out(body, head=HEAD, change=lambda model: None):
    model = parsed(f"{head} {{ {body} }}", check=False)
    change(model)
    reading = read_noise(model)
    take_out(reading.model, reading.graph.graph, reading.noise)
    return reading.model


def kinds(nodes):
    return [(node.op_type, list(node.input)) for node in nodes]


def names(messages):
    return [message.name for message in messages]


def test_a_dropout_goes_with_what_only_it_needed():
    model = taken_out("h = Relu(x) d = Dropout(h, r, on) y = Add(d, w)")
    assert kinds(model.graph.node) == [("Relu", ["x"]), ("Add", ["h", "w"])]
    assert names(model.graph.initializer) == ["w"]
    assert count_nodes(model) == 2


def test_an_output_keeps_its_name():
    model = taken_out("[a] h = Relu(x) [d] y = Dropout(h, r, on)")
    assert kinds(model.graph.node) == [("Relu", ["x"]), ("Identity", ["h"])]
    assert model.graph.node[1].name == "d"
    assert not model.graph.node[1].attribute


def test_dropout_after_dropout_becomes_what_was_before_both():
    model = taken_out("h = Relu(x) d = Dropout(h, r, on) e = Dropout(d, r, on) y = Neg(e)")
    assert kinds(model.graph.node) == [("Relu", ["x"]), ("Neg", ["h"])]


IF = """h = Relu(x) y = If(c) <
    then_branch = t () => (float[n,4] ty) <float[4] v = {1, 2, 3, 4}> {
        q = Dropout(h, r, on) s = Add(q, v) ty = Neg(s) },
    else_branch = e () => (float[n,4] ey) { p = Relu(h) ey = Dropout(p, r, on) }>"""


def test_branches_are_edited_and_what_only_they_needed_goes_from_the_graph_around():
    model = taken_out(IF)
    branches = {attribute.name: attribute.g for attribute in model.graph.node[1].attribute}
    assert kinds(branches["then_branch"].node) == [("Add", ["h", "v"]), ("Neg", ["s"])]
    assert kinds(branches["else_branch"].node) == [("Relu", ["h"]), ("Identity", ["p"])]
    assert names(branches["then_branch"].initializer) == ["v"]
    assert names(model.graph.initializer) == []


def test_a_name_that_a_branch_has_too_is_not_put_in_its_place():
    body = """h = Relu(x) d = Dropout(h, r, on) y = If(c) <
        then_branch = t () => (float[n,4] ty) { h = Neg(x) ty = Add(h, d) },
        else_branch = e () => (float[n,4] ey) { ey = Neg(d) }>"""
    model = taken_out(body)
    assert kinds(model.graph.node)[1] == ("Identity", ["h"]), "d stays, the inner h is another"


def test_everything_else_stays_as_it_was():
    """Sparse initializers, doc strings, unknown fields, annotations and types: onnx_ir would not keep all of them."""

    def add(model):
        model.doc_string, model.producer_name = "text", "me"
        model.graph.node[0].doc_string = "a relu"
        model.graph.node[0].metadata_props.add(key="k", value="v")
        model.graph.value_info.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("h", "d")
        )
        model.graph.quantization_annotation.add(tensor_name="h")
        model.graph.quantization_annotation.add(tensor_name="d")
        sparse = model.graph.sparse_initializer.add()
        sparse.values.CopyFrom(helper.make_tensor("s", TensorProto.FLOAT, [1], [2.0]))
        sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [0]))
        sparse.dims.append(4)
        model.MergeFromString(bytes([0xFA, 0x7F, 3]) + b"new")  # field 2047, of a later ONNX

    model = taken_out("h = Relu(x) d = Dropout(h, r, on) y = Add(d, w)", change=add)
    assert (model.doc_string, model.producer_name) == ("text", "me")
    assert model.graph.node[0].doc_string == "a relu"
    assert model.graph.node[0].metadata_props[0].value == "v"
    assert names(model.graph.value_info) == ["h"]
    assert [note.tensor_name for note in model.graph.quantization_annotation] == ["h"]
    assert model.graph.sparse_initializer[0].values.name == "s"
    assert model.SerializeToString().endswith(b"new")


FUNCTIONS = """<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
    g (float[n,4] x) => (float[n,4] y) <float r = {0.3}, bool on = {1}> {
        h = local.Kept(x) d = Dropout(h, r, on) y = Neg(d) }
    <domain: "local", opset_import: ["" : 18, "local" : 1]> Kept (a) => (b) { b = local.Inner(a) }
    <domain: "local", opset_import: ["" : 18]> Inner (a) => (b) { b = Relu(a) }
    <domain: "local", opset_import: ["" : 18]> Unused (a) => (b) { b = Neg(a) }"""


def test_functions_that_nobody_calls_any_more_go():
    reading = read_noise(parsed(FUNCTIONS))
    take_out(reading.model, reading.graph.graph, reading.noise)
    assert names(reading.model.functions) == ["Kept", "Inner"]


def test_paths_are_cut_in_every_text():
    model = parsed("g (float x) => (float y) { y = Neg(x) }")
    model.doc_string = "from /home/me/net.py"
    model.graph.node[0].metadata_props.add(key="/home/me/key.py", value="no path")
    assert cut_paths(model) == 2
    assert model.doc_string == "from net.py"
    assert model.graph.node[0].metadata_props[0].key == "key.py"
    assert cut_paths(model) == 0


LAYER = FoldedLayer(path="d", kind="Dropout", action="identity", settings="")


@pytest.mark.parametrize("layers", [[], [LAYER]], ids=["nothing was folded", "a layer was"])
def test_what_was_measured_with_the_noise_on_is_not_known_any_more(layers):
    model = parsed("g (float x) => (float y) { y = Neg(x) }")
    for key, value in (
        ("jumpout_export.random", "random on purpose"),
        ("jumpout_export.tolerance.y", "1e-3"),
        ("jumpout_export.batchnorm", "ok"),
        ("jumpout_export.folded", "none"),
        ("jumpout_export.torch", "2.13"),
        ("author", "me"),
    ):
        model.metadata_props.add(key=key, value=value)
    notes = correct_metadata(model, layers)
    left = {entry.key.removeprefix("jumpout_export."): entry.value for entry in model.metadata_props}
    assert "random" not in left
    assert (left["torch"], left["author"]) == ("2.13", "me")
    assert ("tolerance.y" in left) is not bool(layers)
    assert left["folded"] == ("d: Dropout() -> identity" if layers else "none")
    assert left["batchnorm"] == ("not checked since noise was taken out of the file" if layers else "ok")
    assert len(notes) == (3 if layers else 1)
