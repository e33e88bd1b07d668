"""The static proof: every forbidden thing is found in a file built by hand, wherever it hides."""

import pytest
from support.static_files import (
    FALSE,
    RATIO,
    SCALE,
    TRUE,
    batchnorm,
    dropout,
    found,
    in_a_function,
    in_a_subgraph,
    inspected,
    model_of,
    noise,
)

from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.onnxfile.walk import ABSOLUTE_PATH


def test_a_clean_file_passes(tmp_path):
    nodes = f"[off] a = Dropout(x, ratio, false) [default] b = Dropout(a) {batchnorm(0, 'b, scale, bias, mean, var')}"
    report = inspected(model_of(nodes, [RATIO, FALSE, *SCALE]), tmp_path)
    assert report
    assert report.kind == "inspect"
    assert found(report) == {}
    assert len(report.checks) == 13
    assert len(report.sha256) == 64
    assert report.notes[0] == "opset 18, IR version 10, 3 nodes"
    assert [note.split(" beside")[0] for note in report.notes[1:]] == ["there is no model.manifest.json"]


FORBIDDEN = {
    "dropout that trains": ("training dropout", dropout(), [RATIO, TRUE], "drop (Dropout)"),
    "normal noise": ("random nodes", noise(), [], "noise (RandomNormalLike)"),
    "uniform noise": ("random nodes", noise("RandomUniformLike"), [], "noise (RandomUniformLike)"),
    "shaped noise": ("random nodes", noise("RandomNormal", "<shape = [2, 3]>"), [], "noise (RandomNormal)"),
    "uniform shaped noise": ("random nodes", noise("RandomUniform", "<shape = [2, 3]>"), [], "noise (RandomUniform)"),
    "bernoulli": ("random nodes", "[b] y = Bernoulli(x)", [], "b (Bernoulli)"),
    "batchnorm that trains": ("training batchnorm", batchnorm(1), SCALE, "bn (BatchNormalization)"),
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
    nodes = "[draw] n = Multinomial<sample_size = 3>(x) y = Cast<to = 1>(n)"
    assert found(inspected(model_of(nodes), tmp_path)).keys() == {"random nodes"}


def test_an_operator_of_another_domain_is_found(tmp_path):
    model = model_of("[fused] y = com.microsoft.BiasDropout(x, x)", more=', "com.microsoft" : 1')
    report = inspected(model, tmp_path)
    assert found(report)["custom operators"].note == "fused (BiasDropout)"


@pytest.mark.parametrize("place", ["node", "graph", "model", "metadata", "node metadata", "function"])
@pytest.mark.parametrize("path", ["/home/me/net.py", r"C:\Users\me\net.py", "file:///tmp/x"])
def test_a_path_of_the_machine_is_found_wherever_text_may_be(place, path, tmp_path):
    text = f'File "{path}", line 3'
    model = in_a_function("y = Relu(x)")
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


def test_a_training_graph_in_the_file_is_found(tmp_path):
    model = model_of("y = Relu(x)")
    model.training_info.add().algorithm.node.append(model_of(noise()).graph.node[0])
    report = inspected(model, tmp_path)
    assert {"training graphs", "random nodes"} <= found(report).keys()
    assert "in training_info" in found(report)["random nodes"].note


def test_an_opset_that_onnxruntime_does_not_know_is_found(tmp_path):
    model = model_of("y = Relu(x)", opset=28)
    model.ir_version = 14
    report = inspected(model, tmp_path)
    assert found(report).keys() == {"onnxruntime"}
    assert found(report)["onnxruntime"].verdict == "fail"
    assert report.notes[0].startswith("opset 28, IR version 14")


def test_a_graph_that_the_checker_rejects_is_found(tmp_path):
    report = inspected(model_of("y = Relu(nowhere)"), tmp_path)
    assert "nowhere" in found(report)["onnx checker"].note


def test_the_notes_say_whether_fold_can_take_the_noise_out(tmp_path):
    report = inspected(model_of(dropout(), [RATIO, TRUE]), tmp_path)
    assert report.notes[1:-1] == ["`jumpout-export fold` can take the noise out"]
    report = inspected(in_a_function(dropout(), [RATIO, TRUE]), tmp_path)
    assert report.notes[1:-1] == ["`jumpout-export fold` can take the noise out"]
    report = inspected(model_of(noise()), tmp_path)
    assert report.notes[1] == "the noise cannot be taken out"
    assert report.notes[2].startswith("noise (RandomNormalLike) draws normal numbers that are added in #1 (Add)")
    report = inspected(model_of(batchnorm(1), SCALE), tmp_path)
    assert "it normalizes with the statistics of the batch it is given" in report.notes[2]


def test_a_cycle_is_found(tmp_path):
    model = model_of("a = Add(x, b) b = Relu(a) y = Identity(b)")
    assert "topologically sorted, however input 'b'" in found(inspected(model, tmp_path))["onnx checker"].note
    assert not fold_onnx(tmp_path / "model.onnx", tmp_path / "out.onnx")
