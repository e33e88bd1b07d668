"""Golden data: in ONNX's layout, replayed, and nothing is published without it."""

import copy
import os

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from jumpout_export.export.publish import export_onnx

pytestmark = pytest.mark.integration

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_file_in_the_place_of_golden_data_is_found_before_the_work(tmp_path):
    (tmp_path / "test_data_set_0").write_text("")
    with pytest.raises(ValueError, match="there is a file of that name"):
        export_onnx(nn.Linear(8, 2), tmp_path / "model.onnx", X, golden=tmp_path)
    assert not (tmp_path / "model.onnx").exists()


def test_golden_data_is_in_onnx_layout_and_replays(exported):
    model, folder, _ = exported

    def load(name):
        tensor = onnx.TensorProto.FromString((folder / "test_data_set_0" / name).read_bytes())
        return tensor.name, numpy_helper.to_array(tensor)

    assert sorted(os.listdir(folder / "test_data_set_0")) == ["input_0.pb", "output_0.pb"]
    assert load("input_0.pb")[0] == "x"
    assert np.array_equal(load("input_0.pb")[1], X.numpy())
    name, expected = load("output_0.pb")
    assert name == "output"
    with torch.no_grad():
        exact = copy.deepcopy(model).eval().double()(X.double()).float()
    assert np.array_equal(expected, exact.numpy())


class FailsOnEight(nn.Linear):
    def forward(self, x):
        if not torch.compiler.is_exporting() and len(x) == 8:
            raise RuntimeError("eight are too many")
        return super().forward(x)


def test_without_golden_data_nothing_is_published(tmp_path):
    report = export_onnx(FailsOnEight(8, 2), tmp_path / "model.onnx", torch.randn(12, 8), golden=tmp_path)
    (failed,) = [check for check in report.checks if check.verdict != "pass"]
    assert failed.name == "golden"
    assert failed.note == "PyTorch itself cannot run the first samples of the example: eight are too many"
    assert os.listdir(tmp_path) == []


class Smallest(nn.Linear):
    def forward(self, x):
        return super().forward(x).masked_fill(x[:, :2] > 0, torch.finfo(x.dtype).min)


def test_a_mask_of_the_smallest_number_stays_finite_in_golden_data(tmp_path):
    assert export_onnx(Smallest(8, 2), tmp_path / "model.onnx", torch.randn(8, 8), golden=tmp_path)
    golden = numpy_helper.to_array(onnx.load_tensor(tmp_path / "test_data_set_0" / "output_0.pb"))
    assert np.isfinite(golden).all()
    assert golden.min() == np.finfo(np.float32).min
