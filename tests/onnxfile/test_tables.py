"""Every constant of a file, wherever it stands, with its name and whether anything reads its values."""

import re

import numpy as np
import onnx
import pytest
from support.onnx_files import parsed

from jumpout_export.onnxfile.computed import Reads
from jumpout_export.onnxfile.numbers import numbers_in
from jumpout_export.onnxfile.steps import steps_of
from jumpout_export.onnxfile.tables import constants_in

BODY = """g (float[n,4] x, bool c) => (float[n,4] y, int64[3] z)
    <float[2] kept = {1, 2}, int64[1] one = {1}, int64[2] shape = {-1, 4}, int64[3] both = {1, 2, 2},
     float[2] unread = {0, 1}> {
    h = Reshape(x, shape)
    ints = Constant<value_ints = [4, 5, 6]>()
    named = Constant<value = float[2] {7, 8}>()
    three = Add(both, ints)
    a = Tile(both, one)
    z = Add(three, a)
    big = Mul(kept, kept)
    dead = Identity(unread)
    y = If(c) <then_branch = g1 () => (float[n,4] t) <float[1] inner = {3}>
                   { u = Mul(big, inner) v = Add(u, named) t = Mul(x, v) },
               else_branch = g2 () => (float[n,4] e) { e = Identity(h) }>
}"""


def test_constants_are_found_at_any_depth_with_the_name_by_which_they_are_read():
    """As data meet them: not `both` and `ints`, which nothing reads but what makes `z` of them."""
    found = {one.name: one for one in constants_in(Reads(parsed(BODY, {}, check=False), ""), "")}
    assert {name: one.values().tolist() for name, one in found.items()} == {
        "shape": [-1, 4],
        "z": [6, 9, 10],
        "v": [10, 20],
    }
    assert [name for name, one in found.items() if one.is_shape] == ["shape"]
    assert found["shape"].dims == (2,)


def test_what_numpy_has_no_type_for_is_given_as_float32():
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [2], [1.5, -2.0])
    text = onnx.helper.make_tensor("s", onnx.TensorProto.STRING, [1], [b"x"])
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in "ws"]
    graph = onnx.helper.make_graph([], "g", [], outputs, [tensor, text])
    (one,) = constants_in(Reads(onnx.helper.make_model(graph), ""), "")
    assert one.values().dtype == np.float32
    assert one.values().tolist() == [1.5, -2.0]


def one_of(body, folder="", **weights):
    proto = parsed(f"g (float[n,4] x) => (float[n,m] y) {{ {body} }}", weights, check=False)
    return {constant.name: constant for constant in constants_in(Reads(proto, folder), folder)}


WEIGHT = np.arange(8, dtype=np.float32).reshape(2, 4)
WORKED_OUT = {
    "cut and padded": (
        "c = Slice (w, one, two, one) p = Pad (c, pads) y = MatMul (x, p)",
        np.pad(WEIGHT[:, 1:2], ((0, 0), (1, 2))),
    ),
    "bounded": ("p = Clip (w, lo, hi) y = MatMul (x, p)", WEIGHT.clip(1, 6)),
    "one of two results": ("a, p = Split <axis = 1, num_outputs = 2> (w) y = MatMul (x, p)", WEIGHT[:, 2:]),
    "turned": ("p = Transpose (w) y = MatMul (x, p)", WEIGHT.T),
    "like another constant": ("p = CastLike (w, lo) y = MatMul (x, p)", WEIGHT),
    "of a product": ("p = Gemm <transB = 1, alpha = 2.0> (w, w) y = MatMul (x, p)", 2 * WEIGHT @ WEIGHT.T),
    "of a sequence": (
        "q = SplitToSequence <axis = 1> (w, half) p = SequenceAt (q, at) y = MatMul (x, p)",
        WEIGHT[:, 2:],
    ),
}


@pytest.mark.parametrize("name", WORKED_OUT)
def test_what_is_made_of_constants_is_worked_out(name):
    body, expected = WORKED_OUT[name]
    found = one_of(
        body,
        w=WEIGHT,
        one=np.array([1]),
        two=np.array([2]),
        pads=np.array([0, 1, 0, 2]),
        lo=np.float32(1),
        hi=np.float32(6),
        at=np.int64(1),
        half=np.int64(2),
    )
    assert (found["p"].dims, found["p"].values().tolist()) == (expected.shape, expected.reshape(-1).tolist())
    assert "w" not in found


def test_of_what_a_constant_is_like_the_type_alone_is_read():
    assert set(one_of("p = CastLike (w, x) y = MatMul (x, p)", w=WEIGHT)) == {"w"}


def test_what_is_cut_by_a_size_is_read_whole():
    """How much of it data meet depends on them."""
    body = "s = Shape <start = 0, end = 1> (x) c = Slice (w, zero, s) y = MatMul (x, c)"
    assert set(one_of(body, w=WEIGHT, zero=np.array([0]))) == {"w", "zero"}


@pytest.mark.parametrize("node", ["other.Thing (w)", 'Einsum <equation = "ij->ji"> (w)', "RandomNormalLike (w)"])
def test_what_is_not_followed_is_not_known(node):
    found = one_of(f"p = {node} y = MatMul (x, p)", w=WEIGHT)
    if "Random" in node:  # no constant at all
        assert set(found) == {"w"}
    else:
        assert (list(found), found["p"].is_known) == (["p"], False)


def chain(first, node, count):
    return f"d0 = {first} " + " ".join(f"d{n} = {node.replace('%d', str(n - 1))}" for n in range(1, count + 1))


LONG = {
    "longer and longer": chain("Identity (w)", "Concat <axis = 0> (d%d, w)", 300),
    "of itself": chain("Identity (w)", "Concat <axis = 0> (d%d, d%d)", 60),
    "of itself and a size": "s = Size (x) z = Cast <to = 1> (s) " + chain("Add (w, z)", "Add (d%d, d%d)", 60),
    "many": chain("Identity (w)", "Identity (d%d)", 11_000),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", LONG)
def test_work_and_memory_are_bounded(name):
    last = max(re.findall(r"(d\d+) =", LONG[name]), key=lambda one: int(one[1:]))
    text = f"g (float[n,4] x) => (float[n,m] y) {{ {LONG[name]} y = MatMul (x, {last}) }}"
    proto = parsed(text, {"w": WEIGHT}, check=False)
    found = {constant.name: constant for constant in constants_in(Reads(proto, ""), "")}
    assert found.keys() == ({"w"} if "size" in name else {last})
    assert "size" in name or found[last].is_known == (name == "longer and longer")
    assert steps_of(Reads(proto, ""))
    assert numbers_in(Reads(proto, "")) == []
