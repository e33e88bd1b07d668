"""An export that was published, and an older file where one is to be."""

import os

import pytest
import torch
from support.user_network import trained

from jumpout_export.export.publish import export_onnx
from jumpout_export.report import BatchNormLayer, BatchNormReport

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def older(tmp_path):
    """An older file of the same name; asserts afterwards that it is there, alone and unchanged."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older export")
    before = path.stat()
    yield path
    assert path.read_bytes() == b"an older export"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(tmp_path) == ["model.onnx"]


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A published export with golden data and a BatchNorm report: the model, the folder and the report."""
    folder = tmp_path_factory.mktemp("exported")
    model = trained()
    batchnorm = BatchNormReport(
        verdict="ok", samples=64, layers=[BatchNormLayer(name="bn", verdict="ok", w=0.0123, w_low=0.01, w_high=0.02)]
    )
    report = export_onnx(
        model,
        folder / "model.onnx",
        X,
        calibration=[X, X[:3]],
        batchnorm=batchnorm,
        golden=folder,
        keep_debug_info=False,
    )
    return model, folder, report
