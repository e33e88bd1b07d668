"""Sizes that decide something in a file: found, with both sides of where it changes; and files in which none does."""

import numpy as np
import pytest
from onnx import numpy_helper
from support.onnx_files import parsed
from support.size_graphs import CONSTANTS, FACTOR, SIZE, model, tried, uses

from jumpout_export.onnxfile.flow.uses import size_uses

DECIDE = {
    "a comparison": SIZE + "b = GreaterOrEqual (n, k)" + FACTOR,
    "a size of more than one axis": "n = Size (x) k8 = Mul (k, eight) b = GreaterOrEqual (n, k8)" + FACTOR,
    "ones that are counted": "s = Shape <end = 1> (x) o = ConstantOfShape <value = int64[1] {1}> (s) "
    "n = ReduceSum <keepdims = 0> (o) b = GreaterOrEqual (n, k)" + FACTOR,
    "ones that are found": "s = Shape <end = 1> (x) o = ConstantOfShape <value = int64[1] {1}> (s) i = NonZero (o) "
    "c = Shape (i) n = Gather (c, step) b = GreaterOrEqual (n, k)" + FACTOR,
    "ones that are added up": "s = Shape <end = 1> (x) o = ConstantOfShape <value = float[1] {1}> (s) "
    "c = CumSum (o, zero) n = ArgMax <keepdims = 0> (c) b = GreaterOrEqual (n, k)" + FACTOR,
    "the largest place": SIZE + "r = Range (zero, n, step) m = ReduceMax <keepdims = 0> (r) b = GreaterOrEqual (m, k)"
    + FACTOR,
    "places": SIZE + "r = Range (zero, n, step) b0 = GreaterOrEqual (r, k) b = Unsqueeze (b0, last)" + FACTOR,
    "one place": SIZE + "r = Range (zero, n, step) b0 = Equal (r, k) b = Unsqueeze (b0, last)" + FACTOR,
    "one size": SIZE + "b = Equal (n, k)" + FACTOR,
    "a remainder": SIZE + "r = Mod (n, k) b = Equal (r, zero)" + FACTOR,
    "a quotient": SIZE + "r = Div (n, k) b = Greater (r, zero)" + FACTOR,
    "rounding of floats": SIZE + "a = Cast <to = 1> (n) c = Cast <to = 1> (k) d = Div (a, c) e = Floor (d) "
    "g = Min (e, one) f = Add (g, one) y = Mul (x, f)",
    "a steep function": SIZE + "a = Cast <to = 1> (n) c = Cast <to = 1> (k) d = Sub (a, c) h = Mul (d, steep) "
    "e = Sigmoid (h) f = Add (e, one) y = Mul (x, f)",
    "a bound": SIZE + "m = Min (n, k) o = Sub (n, m) a = Cast <to = 1> (o) f = Add (a, one) y = Mul (x, f)",
    "a clip": SIZE + "m = Clip (n, k) o = Sub (m, k) a = Cast <to = 1> (o) f = Add (a, one) y = Mul (x, f)",
    "a table": SIZE + "m = Min (n, most) f = Gather (table, m) y = Mul (x, f)",
    "a table of places": SIZE + "r = Range (zero, n, step) m = Min (r, most) f0 = Gather (table, m) "
    "f = Unsqueeze (f0, last) y = Mul (x, f)",
    "the shape of a result": "h = Relu (x) s = Shape (h) n = Gather (s, zero) b = GreaterOrEqual (n, k)" + FACTOR,
    "the shape of what is flattened": "h = Reshape (x, last) s = Shape (h) n = Gather (s, zero) "
    "k8 = Mul (k, eight) b = GreaterOrEqual (n, k8)" + FACTOR,
    "a condition": SIZE + "b = GreaterOrEqual (n, k) y = If (b) <then_branch = t () => (float[n,8] t) "
    "{ t = Mul (x, two) }, else_branch = e () => (float[n,8] e) { e = Identity (x) }>",
    "a size in a branch": "b = Cast <to = 9> (one) y = If (b) <then_branch = t () => (float[n,8] t) { s = Shape (x) "
    "n = Gather (s, zero) c = GreaterOrEqual (n, k) f = Where (c, two, one) t = Mul (x, f) }, "
    "else_branch = e () => (float[n,8] e) { e = Identity (x) }>",
    "a loop": SIZE + "t = Cast <to = 9> (one) v = Loop (n, t, one) <body = l (int64 i, bool c, float v0) => "
    "(bool c1, float v1) { c1 = Identity (c) b = GreaterOrEqual (i, k) v1 = Where (b, two, one) }> y = Mul (x, v)",
    "places that are cut": "ends = Reshape (k, last) a = Slice (x, first, ends) c = Slice (x, ends, most1) "
    "d = Mul (c, two) y = Concat <axis = 0> (a, d)",
    "a size in a branch of a branch": "b = Cast <to = 9> (one) y = If (b) <then_branch = t () => (float[n,8] t) { "
    "s = Shape (x) n = Gather (s, zero) c = GreaterOrEqual (n, k) t = If (c) <then_branch = t2 () => (float[n,8] t2) "
    "{ t2 = Mul (x, two) }, else_branch = e2 () => (float[n,8] e2) { e2 = Identity (x) } > }, "
    "else_branch = e () => (float[n,8] e) { e = Identity (x) }>",
    "a branch that gives a factor": SIZE + "c = GreaterOrEqual (n, k) f = If (c) <then_branch = t () => (float t) "
    "{ t = Identity (two) }, else_branch = e () => (float e) { e = Identity (one) } > y = Mul (x, f)",
    "a loop over samples": SIZE + "t = Cast <to = 9> (one) q, y = Loop (n, t, one) <body = l (int64 i, bool c, "
    "float v0) => (bool c1, float v1, float[8] r) { c1 = Identity (c) v1 = Identity (v0) g = Gather (x, i) "
    "b = GreaterOrEqual (i, k) f = Where (b, two, one) r = Mul (g, f) }>",
    "a scan over samples": "o = Identity (one) z, y = Scan <num_scan_inputs = 1, body = l (float c, float[8] r) => "
    "(float c1, float[8] r1) { c1 = Add (c, one) kf = Cast <to = 1> (k) b = Greater (c, kf) f = Where (b, two, one) "
    "r1 = Mul (r, f) }> (o, x)",
    "one place of the data": "g = Gather (x, k) y = Sub (x, g)",
    "one place of the data, by coordinates": "i = Reshape (k, last) g = GatherND (x, i) y = Sub (x, g)",
    "one place that is written": "i = Reshape (k, last) u = Unsqueeze (i, first) z = Slice (x, first, stop) "
    "y = ScatterND (x, u, z)",
    "the largest ones": "i = Reshape (k, last) v, w = TopK <axis = 0> (x, i) m = ReduceMin (v, first) y = Sub (x, m)",
    "parts of a size of its own": SIZE + "m = Min (n, k) r = Sub (n, m) mm = Unsqueeze (m, first) "
    "rr = Unsqueeze (r, first) p = Concat <axis = 0> (mm, rr) a, c = Split <axis = 0> (x, p) d = Mul (c, two) "
    "y = Concat <axis = 0> (a, d)",
    "a sequence": "q = SplitToSequence <axis = 0> (x) n = SequenceLength (q) b = GreaterOrEqual (n, k)" + FACTOR,
    "a product with ones": "a = Mul (x, nothing) o = Add (a, one) t = Transpose (o) c = MatMul (t, o) "
    "m = ReduceMax <keepdims = 0> (c) kf = Cast <to = 1> (k) b = Greater (m, kf)" + FACTOR,
    "a product by its equation": "a = Mul (x, nothing) o = Add (a, one) c = Einsum <equation = \"ij->j\"> (o) "
    "kf = Cast <to = 1> (k) b = Greater (c, kf)" + FACTOR,
    "a count that is no comparison": "a = Mul (x, nothing) o = Add (a, one) c = ReduceSum (o, first) "
    "kf = Cast <to = 1> (k) d = Sub (c, kf) h = Mul (d, steep) e = Sigmoid (h) f = Add (e, one) y = Mul (x, f)",
    "bits": SIZE + "u = Cast <to = 13> (n) w = Cast <to = 13> (four) v = BitShift <direction = \"RIGHT\"> (u, w) "
    "q = Cast <to = 1> (v) f = Add (q, one) y = Mul (x, f)",
    "an operator of others": SIZE + "b = other.Thing (n, k) f = Cast <to = 1> (b) y = Mul (x, f)",
    "data that is counted": "a = Mul (x, nothing) o = Add (a, one) c = CumSum (o, zero) kf = Cast <to = 1> (k) "
    "b = Greater (c, kf)" + FACTOR,
    "data that is added up": "a = Mul (x, nothing) o = Add (a, one) c = ReduceSum (o, first) kf = Cast <to = 1> (k) "
    "b = Greater (c, kf)" + FACTOR,
    "data that is found": "a = Mul (x, nothing) o = Equal (a, nothing) i = NonZero (o) s = Shape (i) "
    "n = Gather (s, step) k8 = Mul (k, eight) b = GreaterOrEqual (n, k8)" + FACTOR,
    "data beside a size": SIZE + "a = Mul (x, nothing) c = Cast <to = 7> (a) d = Add (c, k) b = GreaterOrEqual (n, d)"
    + FACTOR,
}  # fmt: skip
MORE = {
    "eight": np.int64(8),
    "steep": np.float32(50),
    "most": np.int64(19),
    "four": np.int64(4),
    "stop": np.array([1]),
    "most1": np.array([1 << 40]),
    "table": np.float32([1] * 16 + [2] * 4),
}


@pytest.mark.parametrize("name", DECIDE)
def test_both_sides_of_16_are_tried(name):
    proto = model(DECIDE[name], **MORE)
    assert {15, 16} <= tried(proto) or {16, 17} <= tried(proto) or {17, 18} <= tried(proto), uses(proto)


def test_a_type_that_wraps_around_is_tried_at_its_end():
    body = SIZE + "u = Cast <to = 3> (n) v = Cast <to = 1> (u) f = Abs (v) y = Mul (x, f)"
    assert {127, 128} <= tried(model(body))


def test_a_single_size_is_found_through_arithmetic():
    body = SIZE + "m = Mul (n, three) b = Equal (m, far)" + FACTOR
    assert {1000, 1001} <= tried(model(body, three=np.int64(3), far=np.int64(3003)))


@pytest.mark.parametrize("name", ["places that are cut", "a loop", "data that is counted"])
def test_what_is_not_worked_out_is_tried_beyond_its_constant_too(name):
    """A bound of 16 matters from 17 on."""
    assert tried(model(DECIDE[name], **MORE)) >= {15, 16, 17}


def test_the_largest_index_is_one_less_than_the_size():
    """So it is larger than 16 from 18 samples on."""
    body = (
        "a = Mul (x, nothing) o = Equal (a, nothing) i = NonZero (o) r = Gather (i, zero) "
        "m = ReduceMax <keepdims = 0> (r) b = Greater (m, k)" + FACTOR
    )
    assert tried(model(body)) >= {17, 18}


def test_the_node_that_decides_is_named_and_where_it_meets_data():
    (use,) = uses(model(f"{SIZE} [cmp] b = GreaterOrEqual (n, k) f = Where (b, two, one) [mul] y = Mul (x, f)"))
    assert use.where == "cmp (GreaterOrEqual)"
    assert use.what == "meets data at mul (Mul)"
    assert str(use) == "cmp (GreaterOrEqual) meets data at mul (Mul) at 15; 16; 17 along batch"
    assert use.followed


def test_a_function_is_looked_into():
    text = """<domain: "local", opset_import: ["": 18]>
    twice (a) => (b) {
        s = Shape <end = 1> (a)
        k = Constant <value_ints = [64]> ()
        g = Greater (s, k)
        one = Constant <value_float = 1.0> ()
        two = Constant <value_float = 2.0> ()
        f = Where (g, two, one)
        b = Mul (a, f)
    }"""
    assert tried(model("y = local.twice (x)", functions=text)) == {64, 65, 66}


COUNTS = {
    "added up": "c = CumSum (o, two2) n = ReduceMax (c, all)",
    "summed": "n = ReduceSum (o, both)",
    "a mean of a mark": "p = Pad (o, pads) m = ReduceMean (p, both) n = Reciprocal (m)",
    "a softmax": "q = Softmax <axis = 2> (o) m = ReduceMax (q, all) n = Reciprocal (m)",
    "a product": "q = MatMul (o, t) n = ReduceMax (q, all)",
    "a pool": "p = Pad (o, pads) q = GlobalAveragePool (p) n = Reciprocal (q)",
    "subtracted": "n0 = ReduceSum (o, both) n1 = Sub (n0, k20) n2 = Relu (n1) n = Mul (n2, k20)",
    "found": "d = Cast <to = 9> (o) i = NonZero (d) r = Gather (i, two2) n0 = ReduceMax <keepdims = 0> (r) "
    "n = Cast <to = 1> (n0)",
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("conv", [False, True], ids=["of the input", "behind a convolution"])
def test_what_is_counted_along_height_or_width_is_tried(name, conv):
    made = "h = Conv <pads = [1, 1, 1, 1]> (x, w)" if conv else "h = Identity (x)"
    text = f"""g (float[n,1,h,w] x) => (float[n,1,a,b] y) {{
        {made}
        z = Mul (h, nothing)
        o = Add (z, one)
        t = Transpose <perm = [0, 1, 3, 2]> (o)
        {COUNTS[name]}
        b = Greater (n, k20)
        f = Where (b, two, one)
        y = Mul (h, f)
    }}"""
    more = {
        "w": np.ones((1, 1, 3, 3), np.float32),
        "two2": np.int64(2),
        "all": np.array([0, 1, 2, 3]),
        "both": np.array([2, 3]),
        "pads": np.array([0, 0, 0, 0, 0, 0, 1, 0]),
        "k20": np.float32(20),
    }
    proto = parsed(text, {**CONSTANTS, **more}, check=False)
    opened = ({0: "batch", 2: "height", 3: "width"},)
    found = size_uses(proto, opened, {"batch": 2, "height": 12, "width": 12}, "batch")
    tried = {axis: {size for use in found if use.axes == (axis,) for size in use.sizes} for axis in opened[0].values()}
    assert any(tried[axis] >= {20, 21, 22} for axis in ("height", "width")), found


def test_what_layers_make_of_a_mean_over_a_sample_is_no_count():
    """As in squeeze and excite, whose gate is bounded by 6."""
    text = """g (float[n,4,h,w] x) => (float[n,4,h,w] y) {
        m = ReduceMean (x, both)
        d = Conv (m, w)
        r = Clip (d, nothing, six)
        y = Mul (x, r)
    }"""
    more = {"w": np.ones((4, 4, 1, 1), np.float32), "both": np.array([2, 3]), "six": np.float32(6)}
    proto = parsed(text, {**CONSTANTS, **more}, check=False)
    opened = ({0: "batch", 2: "height", 3: "width"},)
    known = {"batch": 2, "height": 12, "width": 12}
    assert size_uses(proto, opened, known, "batch") == []
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w"))
    assert size_uses(proto, opened, known, "batch")


MERGED = {
    "all in one": ("h = Reshape (x, last)", "k128"),
    "rows of some": ("h = Reshape (x, four)", "k32"),
    "rows of one": ("h = Reshape (x, eight)", "k"),
    "flattened": ("h = Flatten <axis = 2> (x3)", "k32"),
}


@pytest.mark.parametrize("name", MERGED)
def test_what_is_counted_along_samples_and_others_is_tried_at_the_number_of_samples(name):
    body, constant = MERGED[name]
    text = f"""g (float[n,8] x) => (float[n,8] y) {{
        x3 = Reshape (x, three)
        {body}
        a = Mul (h, nothing)
        o = Add (a, one)
        c = ReduceSum (o, first)
        b0 = Greater (c, {constant})
        m = Cast <to = 1> (b0)
        v = ReduceMax <keepdims = 0> (m)
        f = Add (v, one)
        y = Mul (x, f)
    }}"""
    more = {"k128": np.float32(128), "k32": np.float32(32), "k": np.float32(16), "three": np.array([0, 2, 4])}
    more |= {"four": np.array([-1, 4]), "eight": np.array([-1, 8])}
    found = size_uses(parsed(text, {**CONSTANTS, **more}, check=False), ({0: "batch"},), {"batch": 2}, "batch")
    assert {16, 17} <= {size for use in found for size in use.sizes}, found


HARMLESS = {
    "a shape that is handed on": "s = Shape (x) p = Gather (s, first) "
    "t = Concat <axis = 0> (p, last) y = Reshape (x, t)",
    "what is expanded": "s = Shape (x) t = Expand (one, s) y = Add (x, t)",
    "a shape with a -1, as converters write it": "s = Shape (x) r = Shape (s) "
    "o = ConstantOfShape <value = int64[1] {-1}> (r) e = Equal (s, o) w = Where (e, s, s) "
    "t = Expand (one, w) y = Add (x, t)",
    "a small constant": SIZE + "b = GreaterOrEqual (n, step)" + FACTOR,
    "a threshold of the data": "b = Greater (x, six)" + FACTOR,
    "samples and others in one axis": "h = Reshape (x, last) b0 = Greater (h, six) b1 = Cast <to = 1> (b0) "
    "y = Reshape (b1, rows)",
    "a mean of a sample": "m = ReduceMean (x, step1) b = Greater (m, six)" + FACTOR,
    "the last of them": SIZE + "o = Sub (n, step) i = Unsqueeze (o, first) r = Gather (x, i) y = Sub (x, r)",
    "a mask of lengths": SIZE + "r = Range (zero, n, step) l = Cast <to = 7> (x) u = Unsqueeze (r, last) "
    "b = Less (u, l)" + FACTOR,
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_follows_sizes_is_not_reported(name):
    assert uses(model(HARMLESS[name], six=np.float32(6), rows=np.array([-1, 8]), step1=np.array([1]))) == []


@pytest.mark.parametrize(
    "body",
    [
        "a = Cast <to = 1> (n) m = ReduceSum (x, first) d = Div (m, a) y = Sub (x, d)",
        "a = Cast <to = 1> (n) r = Sqrt (a) y = Div (x, r)",
        "a = Cast <to = 1> (n) d = Mul (a, tiny) y = Add (x, d)",
        "r = Range (zero, n, step) a = Cast <to = 1> (r) u = Unsqueeze (a, last) d = Mul (u, tiny) y = Add (x, d)",
    ],
    ids=["a mean by hand", "a root", "a drift", "a drift by place"],
)
def test_a_size_that_is_part_of_the_values_is_tried_at_a_large_one_and_listed(body):
    """What drifts by a millionth per sample is within every limit for few of them."""
    found = uses(model(SIZE + body, tiny=np.float32(1e-6)))
    assert [(use.sizes, use.followed) for use in found] == [((128,), False)]


def test_positions_along_another_axis_are_part_of_many_networks():
    text = """g (float[n,t,4] x) => (float[n,t,4] y) {
        s = Shape (x)
        t = Gather (s, step)
        r = Range (zero, t, step)
        f = Cast <to = 1> (r)
        u = Unsqueeze (f, last)
        y = Add (x, u)
    }"""
    assert along_time(text) == []


MASKS = """g (float[n,t,t] x) => (float[n,t,t] y) {
    s = Shape (x)
    t = Gather (s, step)
    r = Range (zero, t, step)
    c = Unsqueeze (r, last)
    %s
    f = Where (m, nothing, low)
    y = Add (x, f)
}"""


def along_time(text, **more):
    proto = parsed(text, {**CONSTANTS, "low": np.float32(-1e9), **more}, check=False)
    return uses(proto, ({0: "batch", 1: "time", 2: "time"},), {"batch": 2, "time": 9})


@pytest.mark.parametrize("mask", ["m = GreaterOrEqual (c, r)", "d = Sub (c, r) a = Abs (d) m = Less (a, two64)"])
def test_a_causal_mask_and_a_band_are_regular(mask):
    assert along_time(MASKS % mask, two64=np.int64(2)) == []


def test_a_distance_that_is_bounded_is_tried_beyond_its_bound():
    (use,) = along_time(MASKS % "d = Sub (c, r) a = Abs (d) m = Less (a, k)")
    assert use.axes == ("time",)
    assert {16, 17} & set(use.sizes)


def test_a_table_of_positions_is_tried_at_its_length():
    text = """g (float[n,t,4] x) => (float[n,t,4] y) {
        s = Shape (x)
        t = Gather (s, step)
        r = Range (zero, t, step)
        p = Gather (table, r)
        y = Add (x, p)
    }"""
    table = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    (use,) = along_time(text, table=table)
    assert use.what == "reads a table of 64 places"
    assert use.sizes == (64,)
    assert use.followed


def test_two_axes_that_decide_together_are_tried_together():
    text = """g (float[n,3,h,w] x) => (float[n,3,h,w] y) {
        s = Shape <start = 2> (x)
        a = ReduceProd <keepdims = 0> (s)
        b = Greater (a, most)
        f = Where (b, two, one)
        y = Mul (x, f)
    }"""
    proto = parsed(text, {**CONSTANTS, "most": np.int64(10000)}, check=False)
    found = uses(proto, ({0: "batch", 2: "height", 3: "width"},), {"batch": 2, "height": 32, "width": 32})
    assert {(use.axes, use.sizes) for use in found} >= {
        (("height",), (312, 313, 314)),
        (("height", "width"), (100, 101, 102)),
    }


def test_sizes_of_a_strided_convolution_are_traced_back_to_the_input():
    text = """g (float[n,3,h,w] x) => (float[n,4,a,b] y) {
        c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w)
        s = Shape (c)
        i = Constant <value_int = 2> ()
        h = Gather (s, i)
        b = Greater (h, most)
        f = Where (b, two, one)
        y = Mul (c, f)
    }"""
    weights = {**CONSTANTS, "w": np.ones((4, 3, 3, 3), np.float32), "most": np.int64(50)}
    found = uses(
        parsed(text, weights, check=False),
        ({0: "batch", 2: "height", 3: "width"},),
        {"batch": 2, "height": 32, "width": 32},
    )
    assert [use.sizes for use in found] == [(100, 101, 102)]


def test_sizes_that_are_joined_to_constants_stay_what_they_are():
    """A Concat of a shape and numbers picks no entries of the shape."""
    body = (
        "s = Shape (x) j = Concat <axis = 0> (s, numbers) m = ReduceMax <keepdims = 0> (j) "
        "b = GreaterOrEqual (m, k)" + FACTOR
    )
    assert tried(model(body, numbers=np.array([1, 12]))) == {15, 16, 17}
