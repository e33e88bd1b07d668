"""The constants of a file come out as its layers: rows, biases and BatchNorms worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.onnx_files import parsed

from jumpout_export.onnxfile.constants import FileConstants, transposed_rows

W = np.arange(6, dtype=np.float32).reshape(2, 3)
ONES = np.ones(2, np.float32)


def of(body, weights, inputs="float[n,3] x"):
    return FileConstants(Path("m.onnx"), parsed(f"g ({inputs}) => (float[n,m] y) {{ {body} }}", weights, check=False))


def test_a_product_is_a_linear_layer_and_an_add_its_bias():
    (layer,) = of("[fc] h = MatMul(x, w) y = Add(h, b)", {"w": W.T, "b": ONES * 5}).layers("Linear", (2, 3))
    assert (layer.where, layer.kind, layer.value, layer.affine_follows) == ("MatMul fc", "Linear", "y", False)
    np.testing.assert_array_equal(layer.parts["weights"], W)
    np.testing.assert_array_equal(layer.parts["bias"], [5, 5])
    assert layer.eps == np.finfo(np.float32).eps


@pytest.mark.parametrize("transposed", [0, 1])
def test_alpha_and_beta_of_a_gemm_are_multiplied_in(transposed):
    weight = W if transposed else W.T
    (layer,) = of(
        f"y = Gemm <alpha = 2.0, beta = 0.5, transB = {transposed}> (x, w, b)", {"w": weight, "b": ONES}
    ).layers("Linear", (2, 3))
    np.testing.assert_array_equal(layer.parts["weights"], 2 * W)
    np.testing.assert_array_equal(layer.parts["bias"], ONES / 2)


def test_a_constant_behind_a_layer_is_noticed():
    (layer,) = of("h = MatMul(x, w) y = Mul(h, s)", {"w": W.T, "s": ONES}).layers("Linear", (2, 3))
    assert layer.affine_follows


def test_a_weight_that_the_caller_may_change_or_that_is_computed_is_no_constant():
    assert of("y = MatMul(x, w)", {"w": W.T}, "float[n,3] x, float[3,2] w").layers("Linear", (2, 3)) == []
    assert of("v = Neg(w) y = MatMul(x, v)", {"w": W.T}).layers("Linear", (2, 3)) == []


def test_a_batchnorm_is_a_scale_and_a_shift():
    constants = {"g": ONES * 3, "b": ONES, "m": ONES * 2, "v": ONES * 4}
    (found,) = of("y = BatchNormalization <epsilon = 0.0> (x, g, b, m, v)", constants, "float[n,2] x").batchnorms
    np.testing.assert_allclose(found.parts["scale"], [1.5, 1.5])
    np.testing.assert_allclose(found.parts["shift"], [-2, -2])
    assert (found.value, len(found.constants)) == ("x", 4)


def test_the_rows_of_a_transposed_convolution_are_those_of_its_outputs():
    """By torch: an output channel that is computed with all other rows set to zero does not change."""
    layer = torch.nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False)
    rows = transposed_rows(layer.weight.detach().numpy(), 2)
    assert rows.shape == (6, 2 * 4)
    weight = layer.weight.detach()
    for out in range(6):
        group, inside = divmod(out, 3)
        np.testing.assert_array_equal(rows[out], weight[2 * group : 2 * group + 2, inside].reshape(-1).numpy())


def test_constants_are_found_by_their_size():
    found = of("h = MatMul(x, w) y = Add(h, b)", {"w": W.T, "b": ONES, "i": np.arange(2)})
    assert [(name, array.tolist()) for name, array in found.arrays(2)] == [("b", [1, 1])]
    assert found.array("i") is None
