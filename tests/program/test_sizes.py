"""The sizes that a program was exported for: fixed, in a range, under conditions."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from support.programs import exported, trained
from torch import nn
from torch.export import Dim

from jumpout_export import export_onnx, fold_model
from jumpout_export.program.sizes import InputSizes

pytestmark = pytest.mark.integration

X = torch.linspace(-1, 2, 4 * 64).reshape(4, 1, 8, 8)


def test_a_program_of_one_batch_size_is_refused_with_an_open_one_and_says_what_to_do(tmp_path):
    model = trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
    program = exported(model, True, dynamic=False)
    report = export_onnx(program, tmp_path / "net.onnx", X)
    assert not report
    assert "pass dynamic_batch=False (--static)" in report.checks[-1].note
    assert export_onnx(program, tmp_path / "net.onnx", X, dynamic_batch=False)
    folded = fold_model(program, X)
    with pytest.raises(
        ValueError, match=r"axis 0 of input `input` is 2, the exported program takes 4; pass dynamic_batch"
    ):
        folded(X[:2])
    with pytest.raises(ValueError, match=r"axis 3 of input `input` is 7, .* the program was exported for that size"):
        folded(X[..., :7])


def test_sizes_beyond_a_range_of_the_program_are_refused():
    model = nn.Linear(8, 8)
    shapes = {"input": {0: Dim("samples", min=2, max=5)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (X[:, 0, 0],), dynamic_shapes=shapes)
    folded = fold_model(program, X[:, 0, 0])
    assert folded(X[:1, 0, 0]).shape == (1, 8)
    with pytest.raises(ValueError, match="is 8, the exported program takes 1 to 5"):
        folded(X[0, 0])


class Sixteens(nn.Module):
    def forward(self, x):
        return x if x.shape[0] % 16 else 2 * x


class Pyramid(nn.Module):
    def forward(self, x):
        return x - F.interpolate(F.max_pool2d(x, 2), scale_factor=2)


def test_a_program_with_conditions_on_its_batch_size_is_refused_with_an_open_one(tmp_path):
    x = X[:, 0, 0]
    shapes = ({0: Dim("samples", min=1, max=16)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limited = torch.export.export(nn.Linear(8, 8), (x,), dynamic_shapes=shapes)
    path = tmp_path / "net.onnx"
    for program, text in (
        (limited, "holds only where `L['input'].size()[0] <= 16`"),
        (exported(Sixteens(), False, x), "holds only where `(L['x'].size()[0] % 16) != 0`"),
    ):
        report = export_onnx(program, path, x)
        assert not report
        assert report.checks[-1].name == "convert"
        assert text in report.checks[-1].note
        assert "pass dynamic_batch=False (--static)" in report.checks[-1].note
        assert export_onnx(program, path, x, dynamic_batch=False)


def test_a_programs_conditions_on_a_named_axis_are_a_note_and_a_limit_is_refused(tmp_path):
    path, axes = tmp_path / "net.onnx", {"x": {2: "height"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Pyramid(), (X,), dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC},))
        limited = torch.export.export(nn.Tanh(), (X,), dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim("h", max=64)},))
    report = export_onnx(program, path, X, dynamic_axes=axes)
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert any(
        "sizes have to obey" in text and "the exported program was made for no other" in text for text in report.notes
    )
    report = export_onnx(limited, path, X, dynamic_axes={"input": {2: "height"}})
    assert not report
    assert "holds only where `L['input'].size()[2] <= 64`, so `height` is not open" in report.checks[-1].note


def test_a_program_whose_conditions_cannot_be_read_says_so(tmp_path, monkeypatch):
    program = exported(nn.Tanh(), False)
    monkeypatch.delattr(program, "_guards_code")
    sizes = InputSizes(program)
    limit, condition = sizes.restricted([{}])
    assert limit == ""
    assert condition.startswith("this version of torch does not say what the exported program takes for granted")
