"""How large a value can become, as far as the file says it."""

import numpy as np
import onnx
import pytest
from support.onnx_files import parsed

from jumpout_export.onnxfile.sizes import MOST_ELEMENTS, impossible, inferred_values, large_values


@pytest.mark.parametrize(
    ("shape", "least", "found"),
    [
        ("N, 4", 1, []),
        ("1, 4", 1, []),
        ("0, 4", 1, ["x: [0, 4], allowed are axes from 1 and 268435456 elements"]),
        ("0, 4", 0, []),
        ("N, 65536, 65536", 1, ["x: [N, 65536, 65536], allowed are axes from 1 and 268435456 elements"]),
    ],
)
def test_a_size_that_nobody_can_mean(shape, least, found):
    assert (
        impossible(parsed(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Neg(x) }}").graph.input, least) == found
    )


# onnx passes no constant of the graph around on to a subgraph; what it does not see, the limits of a run are for.
GROWING = """g (bool c, float[2] x) => (float[K] y) {
    y = If(c) <then_branch = t () => (float[A] ty) <int64[1] big = {SIZE}> { s = ConstantOfShape(big) ty = Neg(s) },
               else_branch = e () => (float[B] ey) { ey = Neg(x) }> }"""


@pytest.mark.parametrize(("size", "large"), [(100, False), (MOST_ELEMENTS, False), (MOST_ELEMENTS + 1, True)])
def test_a_value_in_a_subgraph_that_no_machine_holds(size, large):
    assert bool(large_values(parsed(GROWING.replace("SIZE", str(size))))) is large


def test_what_is_inferred_leaves_the_model_and_its_weights():
    model = parsed("g (float[n,2000] x) => (float[n,m] y) { y = MatMul(x, w) }", {"w": np.ones((2000, 3), np.float32)})
    text = model.SerializeToString()
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred_values(model)}
    assert shapes["y"][1].dim_value == 3
    assert model.SerializeToString() == text


def test_a_graph_that_cannot_be_inferred_says_so(monkeypatch):
    def refuse(model, **options):
        raise onnx.shape_inference.InferenceError("no such thing\nand more")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", refuse)
    model = parsed("g (float x) => (float y) { y = Neg(x) }")
    assert large_values(model) == ["no sizes can be inferred (no such thing)"]
