"""What an export makes of its BatchNorm check, and weights that appear together with the file or not at all."""

import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from jumpout_export.disk import private_folder
from jumpout_export.export.publish import export_onnx
from jumpout_export.export.replace import replace_export
from jumpout_export.export.statistics import staged_weights, statistics_check
from jumpout_export.report import BatchNormLayer, BatchNormReport

NET = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def report(verdict, w):
    layer = BatchNormLayer(name="1", channels=4, samples=9, verdict=verdict, w=w, w_low=w, w_high=w)
    return BatchNormReport(verdict=verdict, origin="1" if verdict == "drift" else None, samples=9, layers=[layer])


@pytest.mark.parametrize(
    ("verdict", "required", "expected", "blocks"),
    [
        ("ok", True, "pass", False),
        ("ok", False, "pass", False),
        ("drift", False, "warning", False),
        ("drift", True, "fail", True),
        ("inconclusive", False, "not_run", False),
        ("inconclusive", True, "not_run", True),
    ],
)
def test_drift_and_doubt_keep_a_file_back_only_where_that_is_asked_for(verdict, required, expected, blocks):
    (check,) = statistics_check(NET, report(verdict, 88_447.0), required)
    assert (check.name, check.verdict, check.blocks) == ("batchnorm statistics", expected, blocks)
    assert "8.845e+04 at `1`, the margin 0.05" in check.note


def test_a_required_check_has_to_be_given_for_a_model_with_batchnorm_only(tmp_path):
    assert statistics_check(NET, None, required=False) == []
    assert statistics_check(nn.Linear(4, 4), None, required=True) == []
    with pytest.raises(ValueError, match="require_batchnorm needs the check of the weights that are exported"):
        export_onnx(NET, tmp_path / "m.onnx", X, require_batchnorm=True)


@pytest.mark.integration
def test_weights_appear_with_the_file_and_with_its_permissions(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"older")
    (tmp_path / "m.onnx").chmod(0o600)
    assert export_onnx(NET, tmp_path / "m.onnx", X, save_weights=tmp_path / "w.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["m.manifest.json", "m.onnx", "w.safetensors"]
    kept = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in NET.state_dict().items())
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("older", [b"older", None])
def test_an_error_before_the_file_is_replaced_takes_the_weights_back(older, tmp_path):
    target, place = tmp_path / "m.onnx", tmp_path / "w.safetensors"
    target.mkdir()  # cannot be replaced by a file
    if older:
        place.write_bytes(older)
    with private_folder(target) as folder, staged_weights(NET, place) as staged:
        (folder / "m.onnx").write_bytes(b"new")
        with pytest.raises(OSError, match="directory"):
            replace_export(folder / "m.onnx", None, target, None, staged)
        assert (place.read_bytes() if place.exists() else None) == older
    assert sorted(os.listdir(tmp_path)) == sorted(["m.onnx", *(["w.safetensors"] if older else [])])


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("w.pt", ValueError, r"save_weights must end in \.safetensors, got 'w\.pt'"),
        ("no/w.safetensors", ValueError, "the folder of save_weights does not exist: 'no'"),
        (3, TypeError, "save_weights must be a str or path, got int"),
    ],
)
def test_a_wrong_place_is_said_before_any_work(path, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        export_onnx(NET, "m.onnx", X, save_weights=path)
    assert os.listdir(tmp_path) == []
