"""What is read is the same model, functions written out only where there may be noise in or below them."""

import pytest
from support.onnx_files import parsed

from jumpout_export.errors import NotVerifiableError
from jumpout_export.fold.file.read import read_noise

FUNCTIONS = """<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
    g (float[n,4] x) => (float[n,4] y) { h = local.Quiet(x) i = local.Above(h) y = local.Off(i) }
    <domain: "local", opset_import: ["" : 18]> Quiet (a) => (b) { b = Relu(a) }
    <domain: "local", opset_import: ["" : 18, "local" : 1]> Above (a) => (b) { b = local.Noisy(a) }
    <domain: "local", opset_import: ["" : 18]> Noisy (a) => (b) {
        r = Constant<value = float {0.5}>() t = Constant<value = bool {1}>() b = Dropout(a, r, t) }
    <domain: "local", opset_import: ["" : 18]> Off (a) => (b) {
        r = Constant<value = float {0.5}>() t = Constant<value = bool {0}>() b = Dropout(a, r, t) }"""


def test_only_functions_with_noise_in_or_below_them_are_written_out():
    model = parsed(FUNCTIONS)
    text = model.SerializeToString()
    reading = read_noise(model)
    assert reading.inlined == ["Above", "Noisy"]
    assert sorted(function.name for function in reading.model.functions) == ["Off", "Quiet"]
    assert [site.where for site in reading.noise.sites] == ["#3 (Dropout)"]
    assert reading.changes
    assert model.SerializeToString() == text


def test_a_model_without_noise_is_not_changed():
    model = parsed(FUNCTIONS.replace("i = local.Above(h)", "i = Neg(h)").replace("{1}", "{0}"))
    reading = read_noise(model)
    assert reading.model is model
    assert (reading.inlined, reading.changes) == ([], False)


def test_types_are_inferred_in_a_copy():
    reading = read_noise(parsed("g (float[2,4] x) => (float[n,m] y) { h = Relu(x) y = Neg(h) }"))
    assert [value.name for value in reading.typed.graph.value_info] == ["h"]
    assert not reading.model.graph.value_info


def test_what_cannot_be_read_is_one_line():
    model = parsed("g (float x) => (float y) <float w = {1}> { y = Mul(x, w) }")
    model.graph.initializer[0].data_type = 99
    with pytest.raises(NotVerifiableError, match="the graph cannot be read: ") as caught:
        read_noise(model)
    assert "\n" not in str(caught.value)
