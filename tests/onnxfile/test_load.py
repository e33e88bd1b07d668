"""Functions are written out with their defaults, and what cannot be read is refused in one line."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.onnx_files import parsed, saved

from jumpout_export.errors import LoadError
from jumpout_export.onnxfile.load import broken, inlined, load_onnx

CALLS = """
    <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
    g (float[4] x) => (float[4] y, float[4] z) { y = local.Outer(x) z = local.Leaky <slope = 0.5> (x) }
    <domain: "local", opset_import: ["" : 18, "local" : 1]>
    Outer (a) => (b) { b = local.Leaky(a) }
    <domain: "local", opset_import: ["" : 18]>
    Leaky <slope : float = 0.25> (a) => (b) { b = LeakyRelu <alpha : float = @slope> (a) }"""
X = np.array([-4, -1, 0, 2], np.float32)


def slopes(model):
    return [output[0] / X[0] for output in ReferenceEvaluator(model).run(None, {"x": X})]


def test_a_function_written_out_computes_what_it_did():
    model = parsed(CALLS)
    text = str(model)
    flat = inlined(model)
    assert not flat.functions
    assert slopes(flat) == [0.25, 0.5]
    assert str(model) == text, "the model itself stays"


def test_a_default_is_meant_where_a_function_hands_on_what_nobody_gave_it():
    """Outer's slope is left out, so Leaky has its own; ONNX Runtime agrees."""
    text = CALLS.replace(
        "Outer (a) => (b) { b = local.Leaky(a) }", "Outer <s> (a) => (b) { b = local.Leaky <slope : float = @s> (a) }"
    )
    assert slopes(inlined(parsed(text))) == [0.25, 0.5]
    session = onnxruntime.InferenceSession(parsed(text).SerializeToString(), providers=["CPUExecutionProvider"])
    assert [output[0] / X[0] for output in session.run(None, {"x": X})] == [0.25, 0.5]
    assert slopes(inlined(parsed(text.replace("local.Outer(x)", "local.Outer <s = 0.125> (x)")))) == [0.125, 0.5]


def test_onnx_forgets_the_default_which_is_why_calls_are_given_it():
    assert slopes(onnx.inliner.inline_local_functions(parsed(CALLS))) == pytest.approx([0.01, 0.5])


def test_some_functions_can_be_left():
    flat = inlined(parsed(CALLS), [("local", "Outer")])
    assert [function.name for function in flat.functions] == ["Leaky"]
    assert [node.op_type for node in flat.graph.node] == ["Leaky", "Leaky"]


def test_a_model_without_functions_is_given_back():
    model = parsed("g (float x) => (float y) { y = Neg(x) }")
    assert inlined(model) is model


@pytest.mark.parametrize("cut", ["ir_version", "opset_import", "output"])
def test_a_file_without_what_every_file_has_is_none(cut, tmp_path):
    model = parsed("g (float x) => (float y) { y = Neg(x) }")
    (model.graph if cut == "output" else model).ClearField(cut)
    with pytest.raises(LoadError, match=r"not a readable ONNX model .*is it cut off"):
        load_onnx(saved(model, tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"raw_data": bytes(3)}, "w has 3 bytes, its shape needs 8"),
        ({"dims": [-2]}, "w has a negative size"),
        ({"data_type": 99}, "w cannot be read"),
        ({"raw_data": b"", "data_location": TensorProto.EXTERNAL}, ""),
    ],
    ids=["whole", "short", "negative", "of no type", "elsewhere"],
)
def test_a_tensor_that_does_not_hold_what_its_shape_says(change, says):
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    for field, value in change.items():
        tensor.ClearField(field)
        if isinstance(value, list):
            tensor.dims.extend(value)
        else:
            setattr(tensor, field, value)
    assert broken(tensor).startswith(says)
    assert bool(broken(tensor)) == bool(says)
