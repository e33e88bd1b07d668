"""Every constant of a file, wherever it stands, with its name and whether anything reads its values."""

import numpy as np
import onnx
from support.onnx_files import parsed

from jumpout_export.onnxfile.tables import constants_in

BODY = """g (float[n,4] x, bool c) => (float[n,4] y, int64[3] z)
    <float[2] kept = {1, 2}, int64[2] shape = {-1, 4}, int64[3] both = {1, 2, 2}, float[2] unread = {0, 1}> {
    h = Reshape(x, shape)
    ints = Constant<value_ints = [4, 5, 6]>()
    named = Constant<value = float[2] {7, 8}>()
    three = Add(both, ints)
    a = Tile(kept, both)
    z = Add(three, a)
    dead = Identity(unread)
    y = If(c) <then_branch = g1 () => (float[n,4] t) <float[1] inner = {3}> { t = Mul(named, inner) },
               else_branch = g2 () => (float[n,4] e) { e = Identity(h) }>
}"""


def test_constants_are_found_at_any_depth_with_the_name_by_which_they_are_read():
    found = {one.name: one for one in constants_in(parsed(BODY, {}, check=False), "")}
    assert {name: one.values().tolist() for name, one in found.items()} == {
        "kept": [1, 2],
        "shape": [-1, 4],
        "both": [1, 2, 2],
        "ints": [4, 5, 6],
        "named": [7, 8],
        "inner": [3],
    }
    assert [name for name, one in found.items() if one.is_shape] == ["shape"]
    assert found["shape"].dims == (2,)


def test_what_numpy_has_no_type_for_is_given_as_float32():
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [2], [1.5, -2.0])
    text = onnx.helper.make_tensor("s", onnx.TensorProto.STRING, [1], [b"x"])
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in "ws"]
    graph = onnx.helper.make_graph([], "g", [], outputs, [tensor, text])
    (one,) = constants_in(onnx.helper.make_model(graph), "")
    assert one.values().dtype == np.float32
    assert one.values().tolist() == [1.5, -2.0]
