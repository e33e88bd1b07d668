"""NaN and infinite values: in the file alone, and in PyTorch as well."""

import math
import re

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.verified import found, shifted
from torch import nn

from jumpout_export.export.publish import export_onnx
from jumpout_export.verify.verify import verify_onnx


@pytest.mark.integration
def test_nan_in_the_file_fails(corrupt):
    report = corrupt(lambda proto: shifted(proto, "linear.bias", math.nan))
    assert "output `output` has" in found(report)["cpu/off/finite"].note
    assert found(report)["cpu/off/data/worst error"].measured == math.inf


def test_nan_in_both_fails(tmp_path):
    class Root(nn.Module):
        def forward(self, x):
            return torch.sqrt(x)

    node = helper.make_node("Sqrt", ["x"], ["output"])
    both = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "output")]
    graph = helper.make_graph([node], "graph", both[:1], both[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "sqrt.onnx").write_bytes(model.SerializeToString())
    assert verify_onnx(tmp_path / "sqrt.onnx", Root(), torch.ones(3, 2) + torch.rand(3, 2))
    report = verify_onnx(tmp_path / "sqrt.onnx", Root(), torch.tensor([[-1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]))
    assert not report
    assert {"cpu/off/finite", "cpu/all/finite"} <= found(report).keys()


class Infinite(nn.Module):
    """Scores of which some are -inf on purpose."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        return self.linear(x).masked_fill(torch.tensor([False, True, False, False, True]), -math.inf)


@pytest.mark.integration
def test_infinite_values_that_pytorch_gives_too_fail_and_no_layer_is_blamed(tmp_path):
    report = export_onnx(Infinite(), tmp_path / "model.onnx", torch.randn(4, 6))
    assert found(report).keys() == {"cpu/off/finite", "cpu/all/finite", "made-up inputs"}
    assert (found(report)["made-up inputs"].verdict, found(report)["made-up inputs"].required) == ("not_run", False)
    note = found(report)["cpu/off/finite"].note
    assert re.fullmatch(r"output `output` has \d+ NaN or infinite values; PyTorch itself gives them", note)
    assert report.first_divergence is None
    assert not any("differ" in note for note in report.notes)


@pytest.mark.parametrize("other", [math.inf, math.nan, 3.0], ids=str)
def test_a_value_that_is_not_the_infinity_of_pytorch_is_the_files_fault(other, tmp_path):
    model = Infinite()
    values = [
        numpy_helper.from_array(model.linear.weight.detach().numpy(), "weight"),
        numpy_helper.from_array(model.linear.bias.detach().numpy(), "bias"),
        numpy_helper.from_array(np.array([False, True, False, False, True]), "mask"),
        numpy_helper.from_array(np.array([0, -math.inf, 0, 0, other], np.float32), "filled"),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "weight", "bias"], ["scores"], transB=1),
        helper.make_node("Where", ["mask", "filled", "scores"], ["output"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", 6), ("output", 5))
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "wrong", ends[:1], ends[1:], values),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    report = verify_onnx(tmp_path / "model.onnx", model, torch.randn(4, 6))
    assert "; PyTorch itself gives" in found(report)["cpu/off/finite"].note
    assert not found(report)["cpu/off/finite"].note.endswith("gives them")
    assert found(report)["cpu/off/data/worst error"].verdict == "fail"
