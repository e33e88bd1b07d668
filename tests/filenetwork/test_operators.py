"""Every operator gives what the test cases of ONNX itself say, and other nodes what onnx's implementation gives."""

import warnings

import numpy as np
import onnx
import pytest
import torch

from jumpout_export.filenetwork.network import FileNetwork
from jumpout_export.filenetwork.operators import OPERATORS

TYPES = ("float32", "float64", "int64", "int32", "bool")
# Of operators that run by onnx's reference implementation, a few that networks use.
OTHERS = ("Softmax", "Resize", "ReduceMean", "Slice", "Pad", "Split", "Where", "Clip", "HardSwish", "TopK", "Attention")


def cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflow where a case is made
        every = collect_testcases(None)  # of all operators; onnx 1.19 wants it said
    return [case for case in every if len(case.model.graph.node) == 1 and is_tried(case)]


def is_tried(case):
    if case.model.graph.node[0].op_type not in {*OPERATORS, *OTHERS}:
        return False
    values = [value for some in case.data_sets[0] for value in some]  # a list is a sequence, which networks have not
    return all(not isinstance(value, list) and str(np.asarray(value).dtype) in TYPES for value in values)


CASES = cases()


def test_each_operator_has_a_case():
    tried = {case.model.graph.node[0].op_type for case in CASES}
    assert tried >= {*OPERATORS, *OTHERS}
    assert len(CASES) > 200


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_node_gives_what_its_specification_says(case, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(case.model, path)
    network = FileNetwork(path)
    for inputs, outputs in case.data_sets:
        names = [value.name for value in case.model.graph.input]
        given = {name: torch.from_numpy(np.array(array)) for name, array in zip(names, inputs, strict=True)}
        found = network(given)
        assert list(found) == [value.name for value in case.model.graph.output]
        for have, want in zip(found.values(), outputs, strict=True):
            assert str(have.dtype).removeprefix("torch.") == str(want.dtype)
            np.testing.assert_allclose(have.numpy(), want, rtol=case.rtol, atol=max(case.atol, 1e-6))
