"""Which nodes of a file only read shapes; `tests/replay/test_shapes_only.py` holds the C++ side to the same table."""

import pytest
from support.shape_cases import CASES, nodes_in

from jumpout_export.onnxfile.shapes import shape_computations


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_nodes_that_only_read_shapes_are_found(case):
    model = case.model()
    assert shape_computations(model) == set(nodes_in(model)) - case.refused(model)
