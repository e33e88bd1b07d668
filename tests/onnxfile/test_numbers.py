"""Numbers of a file that may decide nothing on what was tried: bounds, thresholds, epsilons, narrow integers."""

import numpy as np
import pytest
from support.onnx_files import parsed

from jumpout_export.onnxfile.computed import Reads
from jumpout_export.onnxfile.numbers import numbers_in

CONSTANTS = {
    "six": np.float32(6),
    "low": np.float32(0),
    "most": np.int64(255),
    "axis": np.array([1]),
    "table": np.ones(8, np.float32),
}


def numbers(body, out="float[n,8] y", functions=""):
    header = '<ir_version: 10, opset_import: ["": 18, "local": 1]>'
    proto = parsed(f"{header}\ng (float[n,8] x, int64[n,8] i) => ({out}) {{ {body} }}\n{functions}", CONSTANTS)
    return [str(one) for one in numbers_in(Reads(proto, ""))]


BRANCH = (
    "z = ReduceSum <keepdims = 0> (x) b = Cast <to = 9> (z) y = If (b) <then_branch = t () => (float[n,8] t) "
    "{ [c] t = Min (x, six) }, else_branch = e () => (float[n,8] e) { e = Identity (x) }>"
)
FOUND = {
    "the bounds of a Clip": ("[c] y = Clip (x, low, six)", ["0, a number of Clip `c`", "6, a number of Clip `c`"]),
    "a minimum": ("[c] y = Min (x, six)", ["6, a number of Min `c`"]),
    "a threshold": ("[c] b = Less (x, six) y = Cast <to = 1> (b)", ["6, a number of Less `c`"]),
    "a choice": ("b = Less (x, x) [c] y = Where (b, x, six)", ["6, a number of Where `c`"]),
    "a bound of integers": ("[c] j = Min (i, most) y = Cast <to = 1> (j)", ["255, a number of Min `c`"]),
    "a narrow integer": (
        "[c] j = Cast <to = 2> (i) y = Cast <to = 1> (j)",
        ["256, too large for the type of Cast `c`"],
    ),
    "a slope": ("[c] y = LeakyRelu <alpha = 0.25> (x)", ["0.25, the alpha of LeakyRelu `c`"]),
    "a slope that is not written": ("[c] y = LeakyRelu (x)", ["0.01, the alpha of LeakyRelu `c`"]),
    "a shift": ("[c] y = Sub (x, six)", ["6, a number of Sub `c`"]),
    "bits": ("[c] j = BitwiseAnd (i, most) y = Cast <to = 1> (j)", ["255, a number of BitwiseAnd `c`"]),
    "integers in float16": (
        "[c] j = Cast <to = 10> (i) y = Cast <to = 1> (j)",
        ["2048, too large for the type of Cast `c`"],
    ),
    "what sizes make of a table": (
        "s = Size (x) z = Cast <to = 1> (s) t = Add (table, z) [c] u = Min (t, six) y = Mul (x, u)",
        ["6, a number of Min `c`"],
    ),
    "in a branch": (BRANCH, ["6, a number of Min `c`"]),
    "worked out": ("m = Mul (six, six) [c] y = Min (x, m)", ["36, a number of Min `c`"]),
}


@pytest.mark.parametrize("name", FOUND)
def test_numbers_that_may_decide_nothing_are_found(name):
    body, expected = FOUND[name]
    assert numbers(body) == expected


def test_they_are_found_in_a_function():
    text = """<domain: "local", opset_import: ["": 18]>
    bound (a) => (b) { k = Constant <value_float = 3.0> () b = Min (a, k) }"""
    assert [one[:17] for one in numbers("y = local.bound (x)", functions=text)] == ["3, a number of Mi"]


@pytest.mark.parametrize(
    "body",
    [
        "m = Mul (x, six) y = Div (m, six)",
        "m = ReduceMax (x, axis) y = Sub (x, m)",
        "s = Shape (x) t = Min (s, most) c = Cast <to = 1> (t) d = ReduceSum <keepdims = 0> (c) y = Mul (x, d)",
        "m = Min (six, low) y = Mul (x, m)",
        "j = Cast <to = 6> (i) y = Cast <to = 1> (j)",
    ],
    ids=["factors", "axes", "of sizes", "of constants", "a wide integer"],
)
def test_what_shows_in_every_value_is_none(body):
    assert numbers(body) == []
