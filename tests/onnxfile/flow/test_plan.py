"""How far sizes are followed in a file, what is listed beyond that, and which sizes are tried for the budget."""

import numpy as np
import pytest
from support.onnx_files import parsed
from support.size_graphs import CONSTANTS, FACTOR, SIZE, model, uses

from jumpout_export.onnxfile.flow.uses import size_uses, sizes_to_try


def test_what_cannot_be_followed_is_listed():
    proto = model(SIZE + "q = other.Thing (n)" + " f = Cast <to = 1> (q) y = Mul (x, f)")
    (use,) = uses(proto)
    assert not use.followed
    assert sizes_to_try([use], {"batch": 2}, "batch").left == [use]


def test_a_file_without_open_axes_has_none():
    assert size_uses(model(SIZE + "b = GreaterOrEqual (n, k)" + FACTOR), ({},), {}) == []


def test_an_invalid_graph_is_no_matter_of_sizes():
    assert uses(model("y = Add (x, missing)")) == []


def test_huge_results_are_not_computed():
    proto = model(SIZE + "r = Range (zero, huge, n) b0 = Greater (r, k) h = Cast <to = 6> (b0) "
                  "m = ReduceMax <keepdims = 0> (h) b = Cast <to = 9> (m)"
                  + FACTOR, huge=np.int64(1 << 60))  # fmt: skip
    assert all(not use.followed for use in uses(proto))


HUGE = SIZE + "h0 = Mul (n, huge) h = Unsqueeze (h0, first) "
LARGEST = "m = ReduceMax <keepdims = 0> (o) f = Cast <to = 1> (m) y = Mul (x, f)"
DOUBLED = [f"d{number} = Concat <axis = 0> (d{number - 1}, d{number - 1})" for number in range(1, 60)]
BOUNDED = {
    "parts": SIZE + "r = Range (zero, n, step) a, c = Split <num_outputs = 2000000000> (r) y = Add (x, one)",
    "doubled": SIZE + "d0 = Range (zero, n, step) " + " ".join(DOUBLED) + " o = Identity (d59) " + LARGEST,
    "zeros": HUGE + "o = ConstantOfShape (h) " + LARGEST,
    "tiles": HUGE + "o = Tile (h, h) " + LARGEST,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", BOUNDED)
def test_work_and_memory_are_bounded(name):
    found = uses(model(BOUNDED[name], huge=np.int64(1 << 33)))
    assert all(not use.followed or use.until < 1 << 16 for use in found)


def test_the_plan_keeps_to_its_budget():
    known = {"batch": 2}
    found = uses(model(SIZE + "b = GreaterOrEqual (n, k)" + FACTOR, k=np.int64(100)))
    assert sizes_to_try(found, known, "batch").sizes == [{"batch": 99}, {"batch": 100}, {"batch": 101}]
    assert sizes_to_try(found, known, "batch").left == []
    plan = sizes_to_try(found, known, "batch", budget=100)
    assert plan.sizes == [{"batch": 99}]
    assert plan.left == found


def test_what_was_worked_out_comes_before_what_was_not():
    known = {"batch": 2}
    body = (
        SIZE + "b = GreaterOrEqual (n, k) f = Where (b, two, one) z = Mul (x, f) g = Gather (z, twenty) y = Sub (z, g)"
    )
    found = uses(model(body, twenty=np.int64(5)))
    plan = sizes_to_try(found, known, "batch", most=3)
    assert plan.sizes == [{"batch": 15}, {"batch": 16}, {"batch": 17}]
    assert [use.followed for use in plan.left] == [False]


def test_larger_samples_cost_as_many_times_more():
    known = {"height": 10, "width": 10}
    proto = parsed(
        """g (float[n,3,h,w] x) => (float[n,3,h,w] y) {
            s = Shape (x)
            i = Constant <value_int = 2> ()
            h = Gather (s, i)
            b = Greater (h, k)
            f = Where (b, two, one)
            y = Mul (x, f)
        }""",
        {**CONSTANTS, "k": np.int64(99)},
        check=False,
    )
    found = size_uses(proto, ({2: "height", 3: "width"},), known)
    assert sizes_to_try(found, known, budget=15).sizes == [{"height": 99}]


def test_many_values_that_meet_data_are_bounded():
    body, before = SIZE, "x"
    for number in range(400):
        body += f"b{number} = Greater (n, c{number}) f{number} = Where (b{number}, two, one) "
        body += f"y{number} = Mul ({before}, f{number}) "
        before = f"y{number}"
    limits = {f"c{number}": np.int64(1000 + number) for number in range(400)}
    found = uses(model(f"{body} y = Identity ({before})", **limits))
    assert any("is not looked at" in use.what and not use.followed for use in found)
