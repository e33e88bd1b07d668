"""Whether the batch is open: baked in, fixed, or of one sample."""

import os

import onnx
import pytest
import torch
from support.reports import found
from torch import nn

from jumpout_export.export.publish import export_onnx
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Baked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, x):
        return self.linear(x.view(4, -1))


def test_a_baked_in_batch_size_fails_clearly_and_exports_static(tmp_path):
    report = export_onnx(Baked(), tmp_path / "model.onnx", X)
    assert found(report).keys() == {"convert"}
    assert "the model fixes its batch size" in found(report)["convert"]
    assert "pass dynamic_batch=False (--static)" in found(report)["convert"]
    assert os.listdir(tmp_path) == []
    report = export_onnx(Baked(), tmp_path / "model.onnx", X, dynamic_batch=False)
    assert report
    assert {check.name for check in report.checks} > {"cpu/off/made-up batch=4/worst error"}
    dim = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0]
    assert (dim.dim_value, dim.dim_param) == (4, "")


def test_a_batch_size_that_pytorch_itself_cannot_run_fails_clearly(older):
    class Pairs(nn.Module):
        def forward(self, x):
            return x[0::2] + x[1::2]

    report = export_onnx(Pairs(), older, X)
    notes = " ".join(found(report).values())
    assert "dynamic_batch=False" in notes
    assert not report


def test_the_batch_is_open_even_if_the_example_is_one_sample(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    assert export_onnx(model, tmp_path / "model.onnx", X[:1])
    proto = onnx.load(tmp_path / "model.onnx")
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert verify_onnx(tmp_path / "model.onnx", model, torch.randn(5, 1, 8, 8))
