"""What is read of a file's rounding, against onnx's reference implementation, and the twin without it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.onnx_files import parsed, saved

from jumpout_export.quantized.about import about_quantized
from jumpout_export.quantized.floating import twin_of
from jumpout_export.quantized.read import quantized_operators, read_quantized
from jumpout_export.quantized.scales import form_check, scales_check

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def dequantized(integers, scale, zero, **attributes):
    """A file that makes floats of constant integers and adds them to its input."""
    node = helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], **attributes)
    graph = helper.make_graph(
        [node, helper.make_node("Add", ["x", "f"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, integers.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, integers.shape)],
        [numpy_helper.from_array(array, name) for name, array in (("w", integers), ("s", scale), ("z", zero))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("scales", "attributes"),
    [((), {}), ((4,), {"axis": 0}), ((6,), {"axis": -1}), ((4, 3), {"axis": 1, "block_size": 2})],
    ids=["one", "rows", "columns", "blocks"],
)
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_a_constant_is_what_the_operator_makes_of_it(scales, attributes, kind, tmp_path):
    generator = np.random.default_rng(0)
    integers = generator.integers(0, 100, (4, 6)).astype(kind)
    scale = generator.uniform(0.01, 0.1, scales).astype(np.float32)
    zero = generator.integers(0, 9, scales).astype(kind)
    model = dequantized(integers, np.asarray(scale), np.asarray(zero), **attributes)
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": np.zeros((4, 6), np.float32)})
    found = read_quantized(saved(model, tmp_path / "model.onnx"), model)
    assert found.problems == []
    np.testing.assert_allclose(found.weights[0].value(), wanted, rtol=1e-6)
    assert (found.weights[0].name, found.weights[0].reader) == ("w", "Add y")
    assert scales_check(found).verdict == "pass"


def test_a_weight_that_is_rounded_in_the_graph_is_a_weight(tmp_path):
    model = parsed(
        HEADER
        + """g (float[2] x) => (float[2] y)
        <float[2] w = {1.04, 300.0}, float s = {0.1}, int8 z = {0}>
        { q = QuantizeLinear(w, s, z) f = DequantizeLinear(q, s, z) y = Add(x, f) }"""
    )
    found = read_quantized(saved(model, tmp_path / "model.onnx"), model)
    assert [one.name for one in found.weights] == ["w"]
    np.testing.assert_allclose(found.weights[0].value(), [1.0, 12.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "operators", "said"),
    [
        ("y = Relu(x)", set(), "it is not quantized"),
        (
            "a, b, c = DynamicQuantizeLinear(x) y = DequantizeLinear(a, b, c)",
            {"DequantizeLinear", "DynamicQuantizeLinear"},
            "QuantFormat.QDQ",
        ),
        (
            "s = Abs(x) q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)",
            {"DequantizeLinear", "QuantizeLinear"},
            "its scale is no constant",
        ),
    ],
)
def test_what_cannot_be_judged_says_why(text, operators, said, tmp_path):
    model = parsed(f"{HEADER} g (float[2] x) => (float[2] y) {{ {text} }}", check=False)
    assert set(quantized_operators(model)) == operators
    assert bool(about_quantized(model)) is bool(operators)
    found = read_quantized(saved(model, tmp_path / "model.onnx"), model)
    check = form_check(found)
    assert check.verdict == "not_run"
    assert said in check.note


ROUNDED = """g (float[3] x) => (float[3] y)
    <float[3] w = {0.5, -1.5, 2.0}, float s = {%s}, uint8 z = {%d}, float t = {0.1}, uint8 u = {100}>
    { a = Add(x, w) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) b = Neg(d)
      r = QuantizeLinear(b, t, u) y = DequantizeLinear(r, t, u) }"""
X = np.array([-3.0, 1.0, 9.0], np.float32)
SHIFTED = X + np.array([0.5, -1.5, 2.0], np.float32)


@pytest.mark.parametrize(
    ("scale", "zero", "bounds", "wanted"),
    [
        (0.05, 0, (), np.maximum(SHIFTED, 0)),
        (6 / 255, 0, (6.0,), np.clip(SHIFTED, 0, 6)),
        (0.05, 0, (6.0,), np.maximum(SHIFTED, 0)),
        (0.05, 128, (6.0,), SHIFTED),
    ],
    ids=["cuts at zero", "and at a bound of the model", "a bound elsewhere", "cuts nowhere"],
)
def test_the_twin_has_no_rounding_and_keeps_what_a_rounding_cuts(scale, zero, bounds, wanted, tmp_path):
    model = parsed(HEADER + ROUNDED % (f"{scale:.9g}", zero))
    found = read_quantized(saved(model, tmp_path / "model.onnx"), model)
    twin = twin_of(found, [], bounds)
    onnx.checker.check_model(twin.model)
    assert not {node.op_type for node in twin.model.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    (y,) = ReferenceEvaluator(twin.model).run(None, {"x": X})
    np.testing.assert_allclose(y, -wanted, rtol=1e-6)
    assert twin.cut == (frozenset({"a"}) if zero == 0 else frozenset())
