"""The random inputs of the proof: sizes of batches and of other open axes, types, and what none can be made for."""

import numpy as np
import pytest
from support.onnx_files import parsed

from jumpout_export.errors import NotVerifiableError
from jumpout_export.fold.file.proof import draw_inputs, graph_inputs


def draws(head, run=lambda feeds: None):
    return draw_inputs(parsed(f"g ({head}) => (float y) {{ y = Missing(x) }}", check=False), run, 0)


def test_batches_of_several_sizes_are_drawn():
    made = draws("float[n,4] x, int64[n] i")
    assert [draw.label for draw in made] == ["batch=1", "batch=2", "batch=3"]
    assert [draw.feeds["x"].shape for draw in made] == [(1, 4), (2, 4), (3, 4)]
    assert made[0].feeds["i"].dtype == np.int64
    assert set(np.unique(made[2].feeds["i"])) <= {0, 1}


def test_a_fixed_size_is_drawn_with_other_numbers():
    made = draws("float16[2,4] x")
    assert [draw.feeds["x"].shape for draw in made] == [(2, 4)] * 3
    assert not np.array_equal(made[0].feeds["x"], made[1].feeds["x"])


def test_another_open_axis_takes_a_size_that_the_file_runs():
    def run(feeds):
        if feeds["x"].shape[1] != 16:
            raise RuntimeError("too small")

    assert [draw.label for draw in draws("float[n,h] x", run)] == [f"batch={n}, other axes 16" for n in (1, 2, 3)]


def test_a_default_value_is_no_input():
    model = parsed("g (float[4] x, float[4] w) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { y = Add(x, w) }")
    assert [value.name for value in graph_inputs(model.graph)] == ["x"]


def fails(feeds):
    raise RuntimeError("no kernel\nfor this")


@pytest.mark.parametrize(
    ("head", "run", "error", "says"),
    [
        (
            "float[n,4] x",
            fails,
            NotVerifiableError,
            "cannot be run on random inputs of any size that was tried: no kernel",
        ),
        ("string[n] x", lambda feeds: None, NotVerifiableError, "input `x` holds no numbers"),
        ("seq(float[n]) x", lambda feeds: None, NotVerifiableError, "input `x` is no tensor"),
        ("float[n,65536,65536] x", lambda feeds: None, ValueError, r"at most 268435456 are made"),
    ],
    ids=["does not run", "texts", "a sequence", "too large"],
)
def test_what_no_inputs_can_be_made_for_says_why(head, run, error, says):
    with pytest.raises(error, match=says):
        draws(head, run)
