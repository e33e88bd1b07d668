"""`inspect` and `fold` follow one rule of what trains, whatever the opset and however a function is given its flags."""

import numpy as np
import onnx
import onnxruntime
import pytest
from support.onnx_files import saved

from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.verify.inspect import inspect_onnx

CAN = "`jumpout-export fold` can take the noise out"


def in_function(opset, body, call="local.Block(x)", attributes="", inputs="a"):
    """A Relu in the main graph and what `body` makes of it in a function."""
    return f"""
        <ir_version: 9, opset_import: ["" : {opset}, "local" : 1]>
        g (float[N,4] x) => (float[N,4] y) {{
          r = Relu(x)
          y = {call.replace("(x", "(r")}
        }}
        <domain: "local", opset_import: ["" : {opset}]>
        Block {attributes} ({inputs}) => (b) {{ {body} }}"""


def in_graph(opset, body):
    return f"""
        <ir_version: 9, opset_import: ["" : {opset}]>
        g (float[N,4] x) => (float[N,4] b) {{
          a = Relu(x)
          {body}
        }}"""


def flagged(flag, more=""):
    return f"{more} p = Constant<value = float {{0.3}}>() t = Constant<value = bool {{{flag}}}>() b = Dropout(a, p, t)"


def kinds(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def run(path, x):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


NOISY = {
    "opset 6, in a function": in_function(6, "b = Dropout(a)"),
    "opset 6, in a function, with its ratio": in_function(6, "b = Dropout <ratio = 0.3> (a)"),
    "opset 6, in a function, is_test=0": in_function(6, "b = Dropout <is_test = 0> (a)"),
    "opset 6, in a function, is_test of the caller": in_function(
        6, "b = Dropout <is_test : int = @test> (a)", "local.Block <test = 0> (x)", "<test>"
    ),
    "opset 6, in a function, is_test by default": in_function(
        6, "b = Dropout <is_test : int = @test> (a)", attributes="<test : int = 0>"
    ),
    "opset 6, in the graph": in_graph(6, "b = Dropout(a)"),
    "opset 6, off, which ONNX Runtime has no operator for": in_function(
        6, "b = Dropout <is_test : int = @test> (a)", "local.Block <test = 1> (x)", "<test>"
    ),
    "opset 6, off by default": in_function(6, "b = Dropout <is_test : int = @test> (a)", attributes="<test : int = 1>"),
    "opset 12, in a function": in_function(12, flagged(1)),
    "opset 13, in a function": in_function(13, flagged(1)),
    "opset 13, in the graph": in_graph(13, flagged(1)),
    "opset 13, in a function, the caller's flag": in_function(
        13,
        "p = Constant<value = float {0.3}>() b = Dropout(a, p, t)",
        "local.Block(x, true)",
        inputs="a, t",
    ).replace("r = Relu(x)", "true = Constant<value = bool {1}>() r = Relu(x)"),
}
# `inspect` reads a function by itself; what its caller makes of it `fold` finds out by writing it out.
OFF_ONCE_WRITTEN_OUT = {
    "opset 13, the caller's flag": in_function(
        13, "p = Constant<value = float {0.3}>() b = Dropout(a, p, t)", "local.Block(x, false)", inputs="a, t"
    ).replace("r = Relu(x)", "false = Constant<value = bool {0}>() r = Relu(x)"),
    "opset 13, the caller leaves the flag out": in_function(
        13, "p = Constant<value = float {0.3}>() b = Dropout(a, p, t)", "local.Block(x)", inputs="a, t"
    ),
    "opset 14, training_mode by default": in_function(
        14,
        "o = Constant<value = float[4] {1, 1, 1, 1}>()"
        "b = BatchNormalization <training_mode : int = @mode> (a, o, o, o, o)",
        attributes="<mode : int = 0>",
    ),
    "never called": in_function(13, flagged(1), "Identity(x)"),
}
QUIET = {
    "opset 6, is_test=1, in a function": in_function(6, "b = Dropout <is_test = 1> (a)"),  # ONNX Runtime has none
    "opset 7, in a function": in_function(7, "b = Dropout <ratio = 0.3> (a)"),
    "opset 12, without a flag": in_function(12, "p = Constant<value = float {0.3}>() b = Dropout(a, p)"),
    "opset 12, flag off": in_function(12, flagged(0)),
    "opset 13, flag off": in_function(13, flagged(0)),
}


def noise(report):
    return {
        check.name: check.note
        for check in report.checks
        if check.verdict == "fail" and check.name in ("file/training dropout", "file/training batchnorm")
    }


@pytest.mark.parametrize("text", NOISY.values(), ids=NOISY.keys())
def test_what_inspect_says_fold_can_take_out_it_takes_out(text, tmp_path):
    path = saved(text, tmp_path / "in.onnx")
    report = inspect_onnx(path)
    assert noise(report).keys() == {"file/training dropout"}
    assert CAN in report.notes
    done = fold_onnx(path, tmp_path / "out.onnx")
    assert done, [check for check in done.checks if check.verdict != "pass"]
    assert [layer.kind for layer in done.folded] == ["Dropout"]
    assert "there is nothing to fold" not in done.notes
    assert inspect_onnx(tmp_path / "out.onnx")
    assert "Dropout" not in kinds(tmp_path / "out.onnx")
    x = np.array([[-1, 2, 3, -4]], np.float32)
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", x), np.maximum(x, 0))


@pytest.mark.parametrize("text", OFF_ONCE_WRITTEN_OUT.values(), ids=OFF_ONCE_WRITTEN_OUT.keys())
def test_a_function_whose_caller_turns_its_dropout_off_is_written_out(text, tmp_path):
    path = saved(text, tmp_path / "in.onnx")
    report = inspect_onnx(path)
    assert noise(report)
    assert CAN in report.notes
    done = fold_onnx(path, tmp_path / "out.onnx")
    assert done, [check for check in done.checks if check.verdict != "pass"]
    assert done.folded == []
    assert "function `Block` is written out where it is called" in done.notes
    assert "there is nothing to fold" not in done.notes


@pytest.mark.parametrize("text", QUIET.values(), ids=QUIET.keys())
def test_a_dropout_that_is_off_stays_where_it_is(text, tmp_path):
    path = saved(text, tmp_path / "in.onnx")
    report = inspect_onnx(path)
    assert noise(report) == {}
    assert CAN not in report.notes
    done = fold_onnx(path, tmp_path / "out.onnx")
    assert "there is nothing to fold" in done.notes
    if 'opset_import: ["" : 6' not in text:
        assert done
        assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_a_dropout_whose_flag_is_computed_to_be_off_is_taken_out(tmp_path):
    """`inspect` computes nothing; `fold` does, and leaves nothing that would have to be computed."""
    body = flagged(1).replace("b = Dropout(a, p, t)", "off = Not(t) b = Dropout(a, p, off)")
    path = saved(in_graph(13, body), tmp_path / "in.onnx")
    report = inspect_onnx(path)
    assert noise(report)
    assert CAN in report.notes
    assert fold_onnx(path, tmp_path / "out.onnx")
    assert kinds(tmp_path / "out.onnx") == ["Relu", "Identity"]  # the output keeps its name


def test_a_batchnorm_of_an_old_function_that_trains_is_refused_by_both(tmp_path):
    body = "o = Constant<value = float[4] {1, 1, 1, 1}>() b, m, v, sm, sv = BatchNormalization(a, o, o, o, o)"
    path = saved(in_function(9, body), tmp_path / "in.onnx")
    report = inspect_onnx(path)
    assert noise(report).keys() == {"file/training batchnorm"}
    assert "the noise cannot be taken out" in report.notes
    done = fold_onnx(path, tmp_path / "out.onnx")
    assert not done
    (check,) = [check for check in done.checks if check.verdict == "fail"]
    assert check.name == "fold/noise"
    assert "is in training mode" in check.note
    assert any("is in training mode" in note for note in report.notes)


def test_a_default_of_a_function_outlives_its_writing_out(tmp_path):
    """onnx's inliner forgets the defaults of a function's attributes (onnx 1.23)."""
    body = flagged(1, "c = LeakyRelu <alpha : float = @slope> (a)").replace("Dropout(a", "Dropout(c")
    text = in_function(13, body, attributes="<slope : float = 0.5>").replace("r = Relu(x)", "r = Neg(x)")
    path = saved(text, tmp_path / "in.onnx")
    assert fold_onnx(path, tmp_path / "out.onnx")
    x = np.array([[-1, 2, 3, -4]], np.float32)
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", x), np.where(x > 0, -x * 0.5, -x))


@pytest.mark.parametrize("test", [1, 2], ids=["is_test=1", "is_test=2"])
def test_a_dropout_of_opset_6_that_is_off_is_no_noise(test, tmp_path):
    path = saved(in_graph(6, f"b = Dropout <is_test = {test}> (a)"), tmp_path / "in.onnx")
    assert noise(inspect_onnx(path)) == {}
    done = fold_onnx(path, tmp_path / "out.onnx")
    assert "there is nothing to fold" in done.notes
    assert done.folded == []


def test_what_is_off_does_not_count_as_noise_where_it_goes(tmp_path):
    text = in_function(6, "b = Dropout <is_test : int = @test> (a)", "local.Block <test = 1> (x)", "<test>")
    done = fold_onnx(saved(text, tmp_path / "in.onnx"), tmp_path / "out.onnx")
    (check,) = [check for check in done.checks if check.name == "fold/noise"]
    assert check.note.startswith("Dropout nodes that are off")
    assert any(note.endswith("of them random or in training mode: 0") for note in done.notes)
