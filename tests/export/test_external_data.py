"""Weights beside the file: named after their content, found if they are others, removed with it."""

from __future__ import annotations

import hashlib
import os
import time

import onnx
import pytest
import torch
from support.reports import found
from torch import nn

from jumpout_export import inspect_onnx, verify_onnx
from jumpout_export.export.publish import export_onnx
from jumpout_export.onnxfile.data import data_files

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Linear(300, 3)).eval()
    report = export_onnx(model, folder / "model.onnx", torch.randn(4, 9), external_data=True)
    assert report, found(report)
    return model, folder, report


def test_weights_beside_the_file_are_named_after_their_content(outside):
    model, folder, report = outside
    (data,) = data_files(folder, "model.onnx")
    assert sorted(os.listdir(folder)) == ["model.manifest.json", "model.onnx", data.name]
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert metadata["jumpout_export.data_sha256"] == digest
    assert data.name == f"model.onnx.{digest[:16]}.data"
    assert report.sha256 == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert inspect_onnx(folder / "model.onnx")
    assert verify_onnx(folder / "model.onnx", model, torch.randn(3, 9))


def test_the_bytes_of_both_files_are_the_same_again(outside, tmp_path):
    model, folder, _ = outside
    assert export_onnx(model, tmp_path / "model.onnx", torch.randn(4, 9), external_data=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_other_weights_in_the_data_file_are_found_before_anything_is_run(outside, tmp_path):
    model, folder, _ = outside
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (data,) = data_files(tmp_path, "model.onnx")
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    for report in (
        inspect_onnx(tmp_path / "model.onnx"),
        verify_onnx(tmp_path / "model.onnx", model, torch.randn(3, 9)),
    ):
        assert not report
        text = f"{data.name} does not hold the weights the file was written with (its sha256 differs)"
        assert found(report)["file/external data"] == text


def test_a_new_export_removes_the_weights_of_the_one_before(outside, tmp_path):
    other = nn.Linear(9, 300)
    assert export_onnx(other, tmp_path / "model.onnx", torch.randn(4, 9), external_data=True)
    (first,) = data_files(tmp_path, "model.onnx")
    mine = tmp_path / "model.onnx.data"
    mine.write_bytes(b"not ours")
    with torch.no_grad():
        other.weight.mul_(2)
    assert export_onnx(other, tmp_path / "model.onnx", torch.randn(4, 9), external_data=True)
    (second,) = data_files(tmp_path, "model.onnx")
    assert first != second
    assert export_onnx(other, tmp_path / "model.onnx", torch.randn(4, 9))
    assert sorted(os.listdir(tmp_path)) == ["model.manifest.json", "model.onnx", "model.onnx.data"]


def test_a_model_without_large_weights_has_no_data_file(tmp_path):
    assert export_onnx(nn.ReLU(), tmp_path / "model.onnx", torch.randn(4, 9), external_data=True)
    assert sorted(os.listdir(tmp_path)) == ["model.manifest.json", "model.onnx"]


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("JUMPOUT_LARGE") != "1", reason="needs 12 GiB of memory: set JUMPOUT_LARGE=1")
def test_a_model_of_more_than_two_gibibytes_is_exported(tmp_path):
    model = nn.Sequential(nn.Linear(16384, 33000), nn.ReLU(), nn.Linear(33000, 8))
    begin = time.monotonic()
    report = export_onnx(model, tmp_path / "model.onnx", torch.randn(2, 16384))
    assert report, found(report)
    (data,) = data_files(tmp_path, "model.onnx")
    assert data.stat().st_size > 2 * 2**30
    assert (tmp_path / "model.onnx").stat().st_size < 2**20
    print(f"{time.monotonic() - begin:.0f} s, {data.stat().st_size / 2**30:.2f} GiB")
