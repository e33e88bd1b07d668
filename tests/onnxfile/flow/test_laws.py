"""Where a function of a size stops following one law."""

import numpy as np
import pytest

from jumpout_export.onnxfile.flow.laws import LARGEST, law


def found(function, **more):
    return law(lambda size: np.atleast_1d(np.asarray(function(size), np.float64)), **more)


@pytest.mark.parametrize(
    "function",
    [
        lambda n: 3,
        lambda n: 3 * n + 5,
        lambda n: n * (n + 1) // 2,
        lambda n: n**3 + n,
        lambda n: (n + 1) // 2,
        lambda n: -(-n // 32) * 4,
        lambda n: (-(-n // 14) * 7) ** 2,
        lambda n: np.float32(1 / n),
        lambda n: np.float32(n**0.5),
        lambda n: np.float32(n**-0.5),
        lambda n: np.float32(np.log(n)),
        lambda n: np.float32(n * 0.1),
        lambda n: [n, 2 * n, 7],
    ],
    ids=[
        *("constant", "line", "triangle", "cube", "half", "steps of 32", "windows", "reciprocal", "root"),
        *("reciprocal root", "logarithm", "a tenth", "vector"),
    ],
)
def test_what_shapes_do_follows_one_law(function):
    one = found(function)
    assert one.regular
    assert one.breaks == ()
    assert one.until == LARGEST


@pytest.mark.parametrize("size", [5, 7, 15, 16, 63, 64, 100, 101, 1000, 4097, 30000])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda n: 1, lambda n: 2),
        (lambda n: n, lambda n: n + 1),
        (lambda n: n * n, lambda n: 3 * n * n),
        (lambda n: np.float32(0.1 * n), lambda n: np.float32(0.2 * n)),
    ],
    ids=["a factor", "one more", "squares", "floats"],
)
def test_the_size_at_which_the_law_changes_is_found(before, after, size):
    assert size in found(lambda n: before(n) if n < size else after(n)).breaks


def test_a_bound_shows_where_it_begins_to_bind():
    """There both laws agree, so it is the one or the other side of it."""
    assert found(lambda n: min(n, 100)).breaks in ((100,), (101,))
    assert found(lambda n: max(n, 30)).breaks in ((30,), (31,))


def test_a_single_size_is_found_near_and_far():
    assert {16, 17} & set(found(lambda n: 1 + (n == 16)).breaks)
    assert 1000 in found(lambda n: 1 + (n == 1000), constants=[1000]).breaks
    assert 1000 in found(lambda n: 1 + (3 * n == 3000), between=lambda low, high: [1000]).breaks


def test_steps_of_a_remainder_are_told():
    one = found(lambda n: n % 16 == 15)
    assert one.breaks == ()
    assert one.period == 16
    assert one.steps[:2] == (15, 16)


def test_a_break_on_top_of_rounding_is_found():
    assert found(lambda n: -(-n // 8) * 4 + (n >= 90)).breaks == (90,)
    assert found(lambda n: (n + 1) // 2 + 3 * (n > 50)).breaks == (51,)


def test_what_has_a_value_of_its_own_for_every_size_follows_no_law():
    values = np.random.default_rng(0).standard_normal(200)
    assert not found(lambda n: np.float32(values[n % 200])).regular


def test_where_the_file_fails_there_is_a_break():
    assert law(lambda n: np.zeros(0) if n > 64 else np.array([n])).breaks == (65,)


def test_it_says_up_to_where_it_could_be_told():
    one = law(lambda n: None if n > 500 else np.array([n]))
    assert one.breaks == ()
    assert 140 < one.until <= 500
    assert law(lambda n: None).until == 0
