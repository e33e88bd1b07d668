"""The copies for the proof: one without noise but with all its masks and scales, one that shows what the noise does."""

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from support.onnx_files import parsed

from jumpout_export.fold.file.copies import neutral_copy, observed, observed_copy
from jumpout_export.fold.file.read import read_noise

HEAD = "g (float[n,4] x) => (float[n,4] y) <float r = {0.3}, float k = {0.7}, float one = {1}, bool on = {1}>"
X = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
NOISY = {
    "a Dropout": "d = Dropout(x, r, on) y = Neg(d)",
    "a Dropout without a rate": 'd = Dropout(x, "", on) y = Neg(d)',
    "a mask": "u = RandomUniformLike(x) b = Less(u, k) m = Cast<to = 1>(b) p = Mul(x, m) d = Div(p, k) y = Neg(d)",
    "the other side": """u = RandomUniformLike(x) b = Greater(u, r) m = Cast<to = 1>(b) p = Mul(x, m) d = Div(p, k)
        y = Neg(d)""",
    "Floor": "u = RandomUniformLike(x) a = Add(u, k) m = Floor(a) p = Mul(x, m) d = Div(p, k) y = Neg(d)",
    "a rate of the batch": """e = ReduceMax<keepdims = 0>(x) s = Sigmoid(e) q = Sub(one, s)
        u = RandomUniformLike(x) b = Less(u, q) m = Cast<to = 1>(b) p = Mul(x, m) d = Div(p, q) y = Neg(d)""",
}


def read(body):
    return read_noise(parsed(f"{HEAD} {{ {body} }}"))


@pytest.mark.parametrize("body", NOISY.values(), ids=NOISY.keys())
def test_with_its_rates_at_zero_a_model_is_the_network_without_noise(body):
    reading = read(body)
    assert len(reading.noise.sites) == 1
    neutral = neutral_copy(reading.graph, reading.noise)
    kinds = [node.op_type for node in neutral.graph.node]
    assert "RandomUniformLike" not in kinds
    assert len(kinds) > 1, "masks and scales are still there"
    (y,) = ReferenceEvaluator(neutral).run(None, {"x": X})
    np.testing.assert_array_equal(y, -X)


def test_a_dropout_of_an_old_opset_is_the_identity():
    text = '<ir_version: 9, opset_import: ["" : 6]> g (float[4] x) => (float[4] y) { d = Dropout(x) y = Neg(d) }'
    reading = read_noise(parsed(text))
    neutral = neutral_copy(reading.graph, reading.noise)
    assert [node.op_type for node in neutral.graph.node] == ["Identity", "Neg"]


def test_a_copy_shows_x_y_the_numbers_and_the_rates():
    reading = read(NOISY["a rate of the batch"])
    (site,) = reading.noise.sites
    shown = observed_copy(reading.typed, reading.noise.sites)
    names = [output.name for output in shown.graph.output]
    assert names == ["y", *observed(site).values()]
    assert set(names[1:]) == {"observed: x", "observed: d", "observed: u", "observed: s"}
    assert len(reading.typed.graph.output) == 1, "the model itself stays"
    assert len(ReferenceEvaluator(shown).run(None, {"x": X})) == 5
