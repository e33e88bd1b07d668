"""What a report says of the file: limits in its own type, weights beside it, nothing of a file that is not there."""

import hashlib

import onnx
import pytest
import torch
from torch import nn

from jumpout_export import export_onnx, inspect_onnx, verify_onnx
from jumpout_export.fold.network.audit import audit_model
from jumpout_export.render.writers.document import build_document
from jumpout_export.report import BatchNormReport
from jumpout_export.tolerances import ceiling, describe_budget, relative_limits

pytestmark = pytest.mark.integration

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
FLOAT32 = "8 x torch's own error against float64 + 16 eps, at most 0.001 in float32, of the channel's size"
FLOAT16 = "8 x torch's own error against float64 + 2 eps, at most 0.05 in float16, of the channel's size"
FLOAT64 = "2000 eps, at most 1e-09 in float64, of the channel's size"


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 3)).eval()


def metadata(path):
    return {entry.key.removeprefix("jumpout_export."): entry.value for entry in onnx.load(path).metadata_props}


class NaN(nn.Module):
    def forward(self, x):
        return x * float("nan")


@pytest.mark.parametrize(
    ("dtype", "text"), [(torch.float32, FLOAT32), (torch.float16, FLOAT16), (torch.float64, FLOAT64)]
)
def test_the_limit_is_described_as_it_is_computed(dtype, text):
    assert describe_budget(dtype) == text
    eps = torch.finfo(dtype).eps
    constant, _ = text.split(" eps, at most ")
    assert relative_limits(torch.zeros(3), dtype, True)[0] == pytest.approx(float(constant.split()[-1]) * eps)
    assert ceiling(dtype) == float(text.split("at most ")[1].split()[0])


def test_without_a_float64_run_the_limit_says_so():
    text = "2000 eps, at most 0.001 in float32, of the channel's size (the model does not run in float64)"
    assert describe_budget(torch.float32, has_reference=False) == text


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["own", "float16"])
def test_notes_and_metadata_describe_the_limit_of_the_exported_type(dtype, tmp_path):
    text = FLOAT32 if dtype is None else FLOAT16
    report = export_onnx(network(), tmp_path / "model.onnx", X, dtype=dtype)
    assert report
    assert [note for note in report.notes if "error limit" in note] == [f"error limit per output: {text}"]
    assert metadata(tmp_path / "model.onnx")["tolerance"] == text


def test_a_model_in_float64_is_described_in_float64(tmp_path):
    report = export_onnx(network().double(), tmp_path / "model.onnx", X.double())
    assert report
    assert f"error limit per output: {FLOAT64}" in report.notes
    assert metadata(tmp_path / "model.onnx")["tolerance"] == FLOAT64


def test_weights_beside_the_file_are_named_wherever_the_file_is(tmp_path):
    path = tmp_path / "model.onnx"
    report = export_onnx(network(), path, X, external_data=True)
    assert report
    (data,) = tmp_path.glob("*.data")
    size = data.stat().st_size
    assert report.data_files == {data.name: size}
    assert f"ship both files, model.onnx and {data.name} ({size:,} bytes)" in report.notes
    for other in (report, inspect_onnx(path), verify_onnx(path, network(), X)):
        assert other
        assert other.data_files == report.data_files
        assert other.data_sha256 == {data.name: hashlib.sha256(data.read_bytes()).hexdigest()}
        (check,) = [check for check in other.checks if check.name == "file/external data"]
        assert check.note == f"weights lie in {data.name} ({size:,} bytes): ship all of these files"
    data.unlink()
    lost = inspect_onnx(path)
    assert lost.data_files == {}
    (check,) = [check for check in lost.checks if check.name == "file/external data"]
    assert f"{data.name} is no file" in check.note


def test_of_a_file_that_is_not_published_there_is_no_hash_and_no_weights(tmp_path):
    older = tmp_path / "model.onnx"
    older.write_bytes(b"older")
    report = export_onnx(nn.Sequential(network(), NaN()), older, X, external_data=True)
    assert not report
    assert (report.sha256, report.data_files, report.data_sha256) == ("", {}, {})
    assert not any("ship" in note for note in report.notes)
    document = build_document(report)
    assert document.sentence.endswith(" Nothing was written; an older file, if there is one, is unchanged.")
    assert older.read_bytes() == b"older"


def test_the_hash_of_a_published_file_is_there(tmp_path):
    report = export_onnx(network(), tmp_path / "model.onnx", X)
    assert report.sha256 == inspect_onnx(tmp_path / "model.onnx").sha256
    assert report.data_files == {}
    assert "ship" not in " ".join(report.notes)


def test_one_of_something_is_singular(tmp_path):
    notes = [check.note for check in audit_model(nn.BatchNorm1d(3, affine=False)).checks]
    assert notes == ["0 parameters, all finite", "1 BatchNorm layer, all with usable statistics"]
    checked = BatchNormReport(verdict="ok", samples=1)
    assert export_onnx(network(), tmp_path / "model.onnx", X, batchnorm=checked)
    assert metadata(tmp_path / "model.onnx")["batchnorm"] == "ok, largest W 0.0000 over 1 sample"
