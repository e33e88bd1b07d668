"""Files that change while they are looked at."""

import hashlib
import shutil

import onnx
import pytest
import torch
from support.verified import SAMPLES, found, shifted
from torch import nn

from jumpout_export.export.publish import export_onnx
from jumpout_export.verify import inspect
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration


def test_a_file_that_is_replaced_while_it_is_verified_fails_and_the_hash_is_of_the_first(good, tmp_path):
    model, path = good
    served, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    shutil.copy(path, served)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    proto = onnx.load(path)
    shifted(proto, "linear.bias", 1.0)
    other.write_bytes(proto.SerializeToString())

    def replace(what, done, total):
        if done == 1:
            other.replace(served)

    report = verify_onnx(served, model, SAMPLES[:4], progress=replace)
    assert found(report)["file/unchanged"].note.startswith("the file was changed while it was looked at")
    assert "model.onnx; run this again" in found(report)["file/unchanged"].note
    assert report.sha256 == before


def test_another_file_that_is_replaced_while_it_is_compared_with_fails(good, tmp_path):
    _, path = good
    old, changed = tmp_path / "old.onnx", tmp_path / "changed.onnx"
    shutil.copy(path, old)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    assert verify_onnx(path, old, SAMPLES[:4])
    proto = onnx.load(path)
    shifted(proto, "linear.bias", 1.0)
    changed.write_bytes(proto.SerializeToString())

    def replace(what, done, total):
        if done == 1:
            changed.replace(old)

    report = verify_onnx(path, old, SAMPLES[:4], progress=replace)
    assert not report
    assert "old.onnx; run this again" in found(report)["file/unchanged"].note
    assert f"compared with {old}, sha256 {before}" in report.notes


@pytest.mark.parametrize("gone", [False, True], ids=["changed", "deleted"])
def test_weights_beside_the_file_that_change_while_it_is_verified_fail(gone, tmp_path):
    model, x = nn.Linear(32, 32), torch.randn(3, 32)
    path = tmp_path / "model.onnx"
    assert export_onnx(model, path, x, external_data=True)
    data = next(tmp_path.glob("*.data"))
    content = data.read_bytes()

    def replace(what, done, total):
        if done == 1:
            data.unlink()
            if not gone:
                data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    report = verify_onnx(path, model, x, progress=replace)
    assert data.name in found(report)["file/unchanged"].note


def test_a_file_that_is_replaced_while_it_is_inspected_fails(good, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    shutil.copy(good[1], path)
    look = inspect.inspect_file

    def slow(*arguments):
        checks = look(*arguments)
        path.write_bytes(path.read_bytes() + b" ")
        return checks

    assert inspect.inspect_onnx(path)
    monkeypatch.setattr(inspect, "inspect_file", slow)
    assert found(inspect.inspect_onnx(path)).keys() == {"file/unchanged"}
