"""What fails leaves no file and an older one untouched, and says why."""

import os
import sys

import pytest
import torch
from support import noisy
from support.noisy import Block, Dropped, Masked, Numpy, line_of
from support.reports import found
from support.user_network import trained
from torch import nn

from jumpout_export.export.publish import export_onnx
from jumpout_export.verify.inspect import inspect_onnx

pytestmark = pytest.mark.integration

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("inside", "text"),
    [(Dropped(), "F.dropout"), (Masked(), "rand_like"), (Numpy(), None)],
    ids=["functional dropout", "rand_like mask", "numpy noise"],
)
def test_randomness_fails_and_names_module_file_and_line(inside, text, older):
    report = export_onnx(Block(inside), older, X)
    assert not report
    assert found(report).keys() == {"randomness"}
    note = found(report)["randomness"]
    assert f"in module `body.2` at {noisy.__file__}:{line_of(type(inside).forward, text)}" in note
    assert report.providers["cpu"].verdict == "not_run"
    assert (report.sha256, report.opset) == ("", 0)


def test_nan_in_a_running_variance_fails_and_names_the_layer(older):
    model = trained()
    model.second[1].running_var[2] = torch.nan
    report = export_onnx(model, older, X)
    assert not report
    assert found(report) == {"batchnorm": "`second.1` running_var has 1 non-finite of 4 values"}
    assert report.providers["cpu"].reason == "the model failed the audit"


def test_without_an_older_file_nothing_appears(tmp_path):
    assert not export_onnx(Block(Masked()), tmp_path / "model.onnx", X, golden=tmp_path)
    assert os.listdir(tmp_path) == []


def test_nan_in_the_output_of_both_fails_after_the_conversion(older):
    class Root(nn.Module):
        def forward(self, x):
            return torch.sqrt(-1 - x.abs())

    report = export_onnx(Root(), older, X)
    assert {"cpu/off/finite", "cpu/all/finite"} <= found(report).keys()
    assert report.providers["cpu"].verdict == "fail"


def test_an_interrupt_at_any_step_leaves_nothing_behind(older):
    steps = []

    def interrupt_at(step):
        def progress(what, done, total):
            steps.append(what)
            if what == step:
                raise KeyboardInterrupt

        return progress

    for step in ("export: fold", "export: inspect", "verify: batch"):
        with pytest.raises(KeyboardInterrupt):
            export_onnx(nn.Linear(8, 2), older, X, golden=older.parent, progress=interrupt_at(step))
    assert list(dict.fromkeys(steps)) == [
        *(f"export: {s}" for s in ("audit", "fold", "convert", "inspect", "verify")),
        "verify: batch",
    ]


def test_allowed_randomness_is_proven_absent_from_the_file_or_named_in_it(tmp_path):
    class Unused(nn.Module):
        def forward(self, x):
            torch.rand_like(x)
            return x * 2

    path = tmp_path / "model.onnx"
    assert found(export_onnx(Block(Unused()), path, X)).keys() == {"randomness"}
    assert export_onnx(Block(Unused()), path, X, allow=["body.2"])
    assert inspect_onnx(path)
    report = export_onnx(Block(Masked()), path, X, allow=["body"])
    assert report, found(report)
    assert any(note.startswith("NOT deterministic: random on purpose: 1 node") for note in report.notes)
    assert not inspect_onnx(path)


def test_an_operator_without_translation_is_a_failure_with_the_reason(older):
    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    note = found(export_onnx(Bessel(), older, X))["convert"]
    assert "torch.onnx.export failed with ConversionError" in note
    assert "bessel_j0" in note


def test_data_dependent_control_flow_is_a_failure_with_the_reason(older, capfd):
    class Branch(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum().item() > 0 else x

    assert "Could not guard on data-dependent expression" in found(export_onnx(Branch(), older, X))["convert"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "model.pt"}, ValueError, r"path must end in \.onnx, got 'model\.pt'"),
        ({"path": "no/such/model.onnx"}, ValueError, "the folder of path does not exist: 'no/such'"),
        ({"path": 3}, TypeError, "path must be a str or path, got int"),
        ({"path": "folder.onnx"}, ValueError, r"path is a folder, not a file: 'folder\.onnx'"),
        (
            {"golden": "no/where"},
            ValueError,
            "golden data needs a folder, or a name in an existing one, got 'no/where'",
        ),
        (
            {"opset": 17},
            ValueError,
            r"opset must be in \[18, \d+\], got 17; .* 18 the oldest that torch's converter wri",
        ),
        ({"opset": 999}, ValueError, r"opset must be in \[18, \d+\], got 999; \d+ is the newest that the installed ON"),
        ({"opset": "18"}, TypeError, "opset must be an int, got str"),
        ({"opset": True}, TypeError, "opset must be an int, got bool"),
        ({"providers": ["gpu"]}, ValueError, "providers must be of cpu, cuda, openvino, got 'gpu'"),
        (
            {"model": torch.relu},
            TypeError,
            r"model must be a torch\.nn\.Module or torch\.export\.ExportedProgram, got ",
        ),
        ({"example": "x"}, TypeError, "example: a batch must be a tensor"),
        (
            {"model": nn.Bilinear(3, 3, 2), "example": (torch.ones(2, 3), 3)},
            TypeError,
            "`input2` must be a tensor, got int",
        ),
        (
            {"example": torch.ones(2, 3, dtype=torch.complex64)},
            TypeError,
            "input `input` has dtype complex64, allowed are",
        ),
        ({"example": torch.ones(())}, ValueError, "at least one input must have a batch dimension, got only scalars"),
        ({"example": torch.ones(0, 3)}, ValueError, r"the batch must not be empty, got shape \(0, 3\)"),
        ({"example": torch.ones(2, 4)}, ValueError, "the model cannot run the example: RuntimeError"),
        ({"calibration": []}, ValueError, "nothing to compare: calibration is empty"),
        ({"calibration": 3}, TypeError, "calibration must be a batch or an iterable of batches, got int"),
        ({"allow": ["nowhere"]}, ValueError, "allow names no module of the model: 'nowhere'; it has none"),
        (
            {"model": nn.Sequential(nn.Linear(3, 2), nn.Dropout()), "allow": ["drop"]},
            ValueError,
            "allow names no module of the model: 'drop'; it has '0'; '1'",
        ),
        (
            {"model": nn.ModuleDict({"dropout": nn.Dropout(), "linear": nn.Linear(3, 2)}), "allow": ["dropuot"]},
            ValueError,
            r"allow names no module of the model: 'dropuot'; did you mean 'dropout'\?",
        ),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(arguments, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    given = {"model": nn.Linear(3, 2), "path": "model.onnx", "example": torch.ones(2, 3), **arguments}
    with pytest.raises(error, match=message):
        export_onnx(**given)
    assert os.listdir(tmp_path) == ["folder.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"{package} cannot be imported .* pip install 'jumpout-export\[onnx\]'"
    with pytest.raises(ImportError, match=message):
        export_onnx(nn.Linear(3, 2), tmp_path / "model.onnx", torch.ones(2, 3))


def test_cuda_that_cannot_be_used_publishes_nothing(older):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    report = export_onnx(nn.Linear(8, 2), older, X, providers=("cpu", "cuda"))
    assert {name: provider.verdict for name, provider in report.providers.items()} == {"cpu": "pass", "cuda": "not_run"}
    assert found(report).keys() == {"cuda"}
    assert not any(check.verdict == "fail" for check in report.checks)
    assert not report
