"""A model that takes another path at other sizes is refused; sizes that it refuses itself are a note."""

from __future__ import annotations

import os
import re
import warnings

import pytest
import torch
from support.networks import Pyramid, Sixteens
from support.reports import found
from torch import nn

from jumpout_export.errors import ConversionError
from jumpout_export.export.convert import convert
from jumpout_export.export.publish import export_onnx
from jumpout_export.export.size_guards import check_sizes
from jumpout_export.model.axes import Axes
from jumpout_export.model.signature import onnx_batch

pytestmark = pytest.mark.integration

A, B, C = (torch.randn(4, size, generator=torch.Generator().manual_seed(size)) for size in (3, 2, 2))


class Chunks(nn.Linear):
    """Runs 32 samples at a time."""

    def forward(self, x):
        return torch.cat([super(Chunks, self).forward(part) for part in x.split(32)])


class LargeBatch(nn.Module):
    def forward(self, x):
        return x.tanh() * 2 if x.shape[0] > 16 else x.tanh()


class LongRows(nn.Module):
    def forward(self, x):
        return x.tanh() * 2 if x.shape[1] > 100 else x.tanh()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Chunks(3, 3),
            r"at batch=33 \(it gives \(33, 3\), what was traced gives \(32, 3\)\): .* `batch <= 32`; pass dyn",
        ),
        (LargeBatch(), r"another path at batch=17 \(what was traced gives other values there\): .* `batch <= 16`"),
        (Sixteens(), r"another path at batch=16 .* `Ne\(Mod\(batch, 16\), 0\)`; pass dynamic_batch=False \(--static\)"),
    ],
    ids=["chunks", "large batch", "sixteens"],
)
def test_a_model_that_takes_another_path_at_a_batch_size_is_refused_with_an_open_one(model, message, tmp_path):
    report = export_onnx(model, tmp_path / "model.onnx", A)
    assert re.search(message, found(report)["convert"])
    assert os.listdir(tmp_path) == []
    assert export_onnx(model, tmp_path / "model.onnx", A, dynamic_batch=False)


def test_a_model_that_takes_another_path_at_the_size_of_a_named_axis_is_refused(tmp_path):
    report = export_onnx(LongRows(), tmp_path / "model.onnx", A, dynamic_axes={"x": {1: "width"}})
    text = found(report)["convert"]
    assert "at width=101" in text
    assert text.endswith("right only where `width <= 100`; leave `width` out of dynamic_axes (--dynamic)")
    assert export_onnx(LongRows(), tmp_path / "model.onnx", A)


def test_sizes_that_the_model_itself_refuses_are_a_note(tmp_path):
    example = torch.randn(4, 1, 8, 12)
    axes = {"x": {2: "height", 3: "width"}}
    report = export_onnx(Pyramid(), tmp_path / "model.onnx", example, dynamic_axes=axes)
    assert report, found(report)
    (text,) = [text for text in report.notes if "sizes have to obey" in text]
    assert "`Eq(4*((height//4)), height)`" in text
    assert text.endswith("the model runs at no other that was tried")
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        Pyramid()(example[:, :, :6])


def test_where_conditions_are_kept_as_text_other_sizes_are_run():
    """What torch.export does by itself, and torch.onnx may do in other versions."""

    def checked(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model.eval(), (A,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            program._guards_code.append("L['x'].size()[0] != 0")
            return check_sizes(program, model, onnx_batch(A, model), Axes((True,), None, ({},)), {"batch": "advice"})

    with pytest.raises(
        ConversionError, match=r"another path at batch=16 .* only where `batch is as in the example`; advi"
    ):
        checked(Sixteens())
    assert checked(nn.Linear(3, 3)) == []


def test_a_limit_beyond_what_can_be_tried_is_refused(tmp_path):
    class Huge(nn.Module):
        def forward(self, x):
            return x.tanh() * 2 if x.shape[0] > 20000 else x.tanh()

    with pytest.raises(
        ConversionError, match="where not `batch <= 20000`, and inputs of that size are too large to try"
    ):
        convert(Huge().eval(), onnx_batch(torch.randn(2, 4000), Huge()), tmp_path / "model.onnx")


def test_the_export_function_of_torch_is_itself_again_after_an_error(tmp_path):
    before = torch.export.export
    with pytest.raises(ConversionError, match="another path"):
        convert(Sixteens().eval(), onnx_batch(A, Sixteens()), tmp_path / "model.onnx")
    assert torch.export.export is before
