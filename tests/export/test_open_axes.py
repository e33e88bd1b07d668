"""Open axes in the file: declared, compared at other sizes, and found if they are open in name only."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.networks import Convolutions, Table, trained
from support.onnx_files import shapes
from support.reports import found, note
from torch import nn

from jumpout_export import verify_onnx
from jumpout_export.export.convert import convert
from jumpout_export.export.publish import export_onnx
from jumpout_export.model.axes import Axes
from jumpout_export.model.signature import onnx_batch

pytestmark = pytest.mark.integration

SIZES = ("height=10 width=11", "height=8 width=7")
X = torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(1))
A, B, C = (torch.randn(4, size, generator=torch.Generator().manual_seed(size)) for size in (3, 2, 2))


def test_a_table_as_long_as_the_batch_is_exported_with_its_size_and_compared_as_it_is(tmp_path):
    report = export_onnx(Table(), tmp_path / "model.onnx", (A, A), golden=tmp_path)
    assert report, found(report)
    assert shapes(tmp_path / "model.onnx") == {"x": ["batch", 3], "table": [4, 3], "output": ["batch", 4]}
    table = numpy_helper.to_array(onnx.load_tensor(tmp_path / "test_data_set_0" / "input_1.pb"))
    assert np.array_equal(table, A.numpy())


def test_further_axes_are_open_and_compared_at_other_sizes(tmp_path):
    model = trained(Convolutions())
    axes = {"x": {2: "height", 3: "width"}}
    report = export_onnx(model, tmp_path / "model.onnx", X, dynamic_axes=axes, golden=tmp_path)
    assert report, found(report)
    assert shapes(tmp_path / "model.onnx")["x"] == ["batch", 1, "height", "width"]
    assert note(report, "dynamic axes") == "compared at batch=3 height=10 width=11, batch=3 height=8 width=7"
    names = {check.name for check in report.checks}
    moved = {f"cpu/{level}/sizes batch=3 {size}/worst error" for level in ("off", "all") for size in SIZES}
    assert moved <= names
    verified = verify_onnx(tmp_path / "model.onnx", model, torch.randn(2, 1, 12, 15))
    assert note(verified, "dynamic axes") == "compared at batch=3 height=13 width=17, batch=3 height=11 width=13"
    before = (tmp_path / "model.onnx").read_bytes()
    assert export_onnx(model, tmp_path / "model.onnx", X, dynamic_axes=axes, golden=tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == before


def test_a_sequence_model_may_take_time_first(tmp_path):
    """Axis 0 is the time, of which steps depend on one another; the batch is fixed and comes second."""

    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, x):
            return self.linear(x - x.mean(0, keepdim=True)).relu()

    torch.manual_seed(0)
    axes = {"x": {0: "time"}}
    x = torch.randn(6, 2, 4)
    report = export_onnx(Sequence(), tmp_path / "model.onnx", x, dynamic_batch=False, dynamic_axes=axes)
    assert report, found(report)
    assert "time=" in note(report, "dynamic axes")
    assert onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "time"


def test_a_file_that_is_right_at_the_size_of_the_example_only_fails(tmp_path):
    """What `Dim.AUTO` leaves: an axis that is declared open, in a graph for one size."""
    model = nn.AdaptiveAvgPool2d(1)
    batch = onnx_batch(X, model)
    convert(model.eval(), batch, tmp_path / "model.onnx", axes=Axes((True,), None, ({},)))
    proto = onnx.load(tmp_path / "model.onnx")
    (reduce,) = [node for node in proto.graph.node if node.op_type in ("ReduceMean", "GlobalAveragePool")]
    total = numpy_helper.from_array(np.array(1 / 81, np.float32), "one_by_81")
    proto.graph.initializer.append(total)
    inputs = [reduce.input[0], "axes"]
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    nodes = [
        onnx.helper.make_node("ReduceSum", inputs, ["sum"]),
        onnx.helper.make_node("Mul", ["sum", "one_by_81"], ["output"]),
    ]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, tmp_path / "model.onnx")
    assert verify_onnx(tmp_path / "model.onnx", model, X)
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size_{axis}"
    onnx.save(proto, tmp_path / "model.onnx")
    report = verify_onnx(tmp_path / "model.onnx", model, X)
    assert "cpu/off/sizes batch=3 size_2=10 size_3=11/worst error" in found(report)


def test_two_open_axes_of_which_the_file_ties_one_to_the_other_fail(tmp_path):
    class Square(nn.Module):
        def forward(self, x):
            return x.mT if x.shape[-1] == x.shape[-2] else x

    report = export_onnx(Square(), tmp_path / "model.onnx", X, dynamic_axes={"x": {2: "height", 3: "width"}})
    assert not report
    assert found(report)


def test_axes_that_pytorch_runs_at_no_other_size_fail_and_say_so(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(81, 2))
    report = export_onnx(model, tmp_path / "model.onnx", X, dynamic_axes={"input": {2: "height"}})
    text = " ".join(found(report).values())
    assert "height" in text
    assert "PyTorch runs no other size that was tried" in text or "the model fixes" in text
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ({"image": {2: "h"}}, ValueError, "dynamic_axes names no input of the model: 'image'; it has x"),
        ({"x": {4: "h"}}, ValueError, r"axis 4 of input `x` does not exist, its shape is \(4, 1, 9, 9\)"),
        ({"x": {-1: "h"}}, ValueError, "axis -1 of input `x` does not exist"),
        ({"x": {"2": "h"}}, ValueError, "axis '2' of input `x` does not exist"),
        ({"x": {2: "1 h"}}, ValueError, r"axis 2 of input `x` needs a name such as height .*, got '1 h'"),
        ({"x": {2: None}}, ValueError, "needs a name such as height"),
        ({"x": {2: "batch"}}, ValueError, "cannot be `batch`, which is the name of the first axis"),
        ({"x": {0: "n"}}, ValueError, "axis 0 of input `x` is the batch: it is named `batch`"),
        ({"x": {1: "channels"}}, ValueError, "has length 1 in the example, .* give an example of 2 or more"),
        ({"x": [2]}, TypeError, r"dynamic_axes must be \{input: \{axis: name\}\}, got"),
        (["x"], TypeError, r"dynamic_axes must be \{input: \{axis: name\}\}, got"),
    ],
)
def test_wrong_axes_are_named(axes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_onnx(Convolutions(), tmp_path / "model.onnx", X, dynamic_axes=axes)
    assert os.listdir(tmp_path) == []
