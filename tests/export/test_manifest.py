"""The manifest that an export and a fold publish, and what `inspect` and `verify` find with it."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.onnx_files import parsed
from torch import nn

import jumpout_export
from jumpout_export.export.publish import export_onnx
from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.onnxfile.manifest import VERSION, manifest_of
from jumpout_export.verify.inspect import inspect_onnx
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64))


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    """Two exports with weights beside them."""
    folders = [tmp_path_factory.mktemp(f"proven{seed}") for seed in range(2)]
    for seed, folder in enumerate(folders):
        assert export_onnx(network(seed), folder / "model.onnx", X, external_data=True, golden=folder)
    return folders


@pytest.fixture
def copy(proven, tmp_path):
    """One of them to break."""
    return shutil.copytree(proven[0], tmp_path / "copy")


def checked(path):
    """The check of the manifest, and the notes about it, of both commands, which must be the same."""
    found = []
    for report in (inspect_onnx(path), verify_onnx(path, network(0), X)):
        checks = [check for check in report.checks if check.name == "file/manifest"]
        assert all(not report for check in checks if check.verdict == "fail")
        notes = [note for note in report.notes if "manifest" in note or "golden" in note]
        found.append((checks[0].verdict if checks else "none", checks[0].note if checks else "", notes))
    assert found[0] == found[1]
    return found[0]


def test_it_names_everything_that_was_published(proven):
    folder = proven[0]
    document = json.loads((folder / "model.manifest.json").read_text())
    digest = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}
    (data,) = folder.glob("*.data")
    assert document == {
        "kind": "manifest",
        "manifest_version": VERSION,
        "model": digest["model.onnx"],
        "data": {data.name: digest[data.name]},
        "golden": {name: digest[name] for name in ("input_0.pb", "output_0.pb")},
        "versions": document["versions"],
        "verdicts": {"cpu": "pass", "batchnorm": "not_run"},
    }
    assert set(document["versions"]) == {"version", "torch", "onnx", "onnxscript", "onnxruntime"}
    assert document["versions"]["version"] == jumpout_export.__version__
    assert document["versions"]["torch"] == torch.__version__
    assert checked(folder / "model.onnx") == ("pass", "4 files are those that model.manifest.json names", [])


def test_changed_weights_are_named(copy):
    (data,) = copy.glob("*.data")
    data.write_bytes(data.read_bytes() + bytes(1))
    verdict, note, _ = checked(copy / "model.onnx")
    assert (verdict, note) == ("fail", f"{data.name} is not the file that was proven (its sha256 differs)")


def test_a_changed_constant_that_no_golden_data_reaches_is_named(copy):
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, "f4"), "nobody reads it"))
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    verdict, note, _ = checked(copy / "model.onnx")
    assert (verdict, note) == ("fail", "model.onnx is not the file that was proven (its sha256 differs)")


def test_golden_data_of_another_export_is_named(proven, copy):
    shutil.rmtree(copy / "test_data_set_0")
    shutil.copytree(proven[1] / "test_data_set_0", copy / "test_data_set_0")
    verdict, note, _ = checked(copy / "model.onnx")
    assert verdict == "fail"
    assert note == "test_data_set_0/output_0.pb is not the file that was proven (its sha256 differs)"
    shutil.copy(copy / "test_data_set_0" / "input_0.pb", copy / "test_data_set_0" / "input_1.pb")
    assert "test_data_set_0/input_1.pb is not in model.manifest.json" in checked(copy / "model.onnx")[1]
    (copy / "test_data_set_0" / "output_0.pb").unlink()
    assert "test_data_set_0/output_0.pb cannot be read" in checked(copy / "model.onnx")[1]
    shutil.rmtree(copy / "test_data_set_0")
    away = "its golden data does not lie in test_data_set_0 beside it and was not looked at"
    assert checked(copy / "model.onnx") == ("pass", "2 files are those that model.manifest.json names", [away])


def test_that_there_is_none_is_a_note(copy):
    (copy / "model.manifest.json").unlink()
    note = "there is no model.manifest.json beside it, so whether it was changed after its export is not known"
    assert checked(copy / "model.onnx") == ("none", "", [note])
    assert inspect_onnx(copy / "model.onnx")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda document: "{", "Expecting property name"),
        (lambda document: [], "it is no manifest"),
        (lambda document: '{"model": "", ' + json.dumps(document)[1:], "it says `model` twice"),
        (lambda document: {**document, "manifest_version": 2}, "its version is 2, this package reads 1"),
        (lambda document: {**document, "model": document["model"][1:]}, "a digest in it is no sha256"),
        (lambda document: {**document, "golden": []}, "its 'golden' is no table of digests"),
        (lambda document: {**document, "data": {"../x": document["model"]}}, "'../x' is no file name"),
        (lambda document: {**document, "more": "x" * (1 << 20)}, "it is larger than a manifest is"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_manifest_that_is_none_fails(copy, change, reason):
    file = copy / "model.manifest.json"
    changed = change(json.loads(file.read_text()))
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    (check,) = [check for check in inspect_onnx(copy / "model.onnx").checks if check.name == "file/manifest"]
    assert check.verdict == "fail"
    assert check.note.startswith("model.manifest.json cannot be read: ")
    assert reason in check.note


def test_weights_that_it_does_not_name_fail(copy):
    file = copy / "model.manifest.json"
    document = json.loads(file.read_text())
    (name,) = document["data"]
    file.write_text(json.dumps({**document, "data": {}}))
    (check,) = [check for check in inspect_onnx(copy / "model.onnx").checks if check.name == "file/manifest"]
    assert (check.verdict, check.note) == ("fail", f"{name} holds weights and is not in model.manifest.json")


def test_another_export_replaces_it_and_one_that_fails_leaves_it(copy):
    older = (copy / "model.manifest.json").read_text()
    assert not export_onnx(nn.Dropout(0.5), copy / "model.onnx", X, allow_constant=(), providers=("cuda",))
    assert (copy / "model.manifest.json").read_text() == older
    assert export_onnx(network(1), copy / "model.onnx", X)
    document = json.loads((copy / "model.manifest.json").read_text())
    assert (document["data"], document["golden"]) == ({}, {})
    assert inspect_onnx(copy / "model.onnx")


def test_a_fold_publishes_one_too(copy):
    noisy = parsed(
        """g (float[N, 4] x) => (float[N, 4] y) {
            r = RandomUniformLike(x)
            y = Identity(x)
        }"""
    )
    (copy / "noisy.onnx").write_bytes(noisy.SerializeToString())
    assert fold_onnx(copy / "noisy.onnx", copy / "model.onnx")
    document = json.loads(manifest_of(copy / "model.onnx").read_text())
    assert document["model"] == hashlib.sha256((copy / "model.onnx").read_bytes()).hexdigest()
    assert (document["data"], document["golden"]) == ({}, {})
    assert inspect_onnx(copy / "model.onnx")
