"""Axes that stay fixed though the model takes other sizes are named, with the arguments that open them, which work."""

import ast
import re

import pytest
import torch
from support.reports import found
from torch import nn

from jumpout_export import export_onnx, verify_onnx
from jumpout_export.export.offers import fixed_rows, offer_batch_axes
from jumpout_export.model.axes import choose_axes
from jumpout_export.model.signature import onnx_batch


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


class Recurrent(nn.Module):
    """A state is (layers, N, H)."""

    def __init__(self, kind=nn.GRU):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.fc = kind(8, 6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x, h0):
        y, h = self.cell(x, h0)
        return self.fc(y[:, -1]), h


class Long(Recurrent):
    def __init__(self):
        super().__init__(nn.LSTM)

    def forward(self, x, h0, c0):
        return super().forward(x, (h0, c0))


class ByHand(nn.Module):
    def forward(self, x, scale):
        return x * scale.T


class Compares(nn.Module):
    """All images with all texts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(8, 4), nn.Embedding(30, 4)

    def forward(self, image, text):
        return self.image(image) @ self.text(text).mean(1).T


class ComparesMasked(Compares):
    def forward(self, image, text, mask):
        return self.image(image) @ (self.text(text) * mask[..., None]).mean(1).T


STATES = {
    "GRU": (Recurrent(), (drawn(4, 5, 8), drawn(2, 4, 6)), "{'x': {0: 'n'}, 'h0': {1: 'n'}}"),
    "LSTM": (
        Long(),
        (drawn(4, 5, 8), drawn(2, 4, 6), drawn(2, 4, 6)),
        "{'x': {0: 'n'}, 'h0': {1: 'n'}, 'c0': {1: 'n'}}",
    ),
    "by hand": (ByHand(), (drawn(3, 5), drawn(5, 3)), "{'x': {0: 'n'}, 'scale': {1: 'n'}}"),
}


@pytest.mark.integration
@pytest.mark.parametrize(("model", "example", "axes"), STATES.values(), ids=STATES.keys())
def test_a_batch_on_another_axis_is_offered_and_what_is_offered_works(model, example, axes, tmp_path):
    note = found(export_onnx(model, tmp_path / "model.onnx", example))["convert"]
    assert note.startswith("the batch is not the first axis of every input: PyTorch runs another size of axis 0 of `x`")
    assert f"open them with dynamic_batch=False, dynamic_axes={axes} (--static --dynamic x:0=n" in note
    offered = ast.literal_eval(re.search(r"dynamic_axes=(\{.*\}) \(", note)[1])
    report = export_onnx(model, tmp_path / "model.onnx", example, dynamic_batch=False, dynamic_axes=offered)
    assert report, found(report)
    report = verify_onnx(tmp_path / "model.onnx", model, example)
    assert report, found(report)
    assert "dynamic axes" in {check.name for check in report.checks}


def test_nothing_is_offered_where_nothing_works():
    class Fixed(nn.Module):
        def forward(self, x, h0):
            return x.reshape(4, 40) @ h0.reshape(40, 1)

    for model, example in (
        (Fixed(), (drawn(4, 5, 8), drawn(10, 4))),
        (nn.Linear(8, 3), drawn(4, 8)),
        (Compares(), (drawn(4, 8), torch.ones(3, 7, dtype=torch.int64))),
    ):
        batch = onnx_batch(example, model)
        assert offer_batch_axes(model, batch, choose_axes(model, batch, True)) == ""


def test_one_sample_needs_a_larger_example():
    model = Recurrent()
    batch = onnx_batch((drawn(1, 5, 8), drawn(2, 1, 6)), model)
    assert offer_batch_axes(model, batch, choose_axes(model, batch, True)).endswith("with an example of 2 or more")


TEXT, MASK = torch.arange(21).reshape(3, 7), torch.ones(3, 7)
ROWS = {
    "texts": (Compares(), (drawn(4, 8), TEXT), ["`text` is fixed at 3"]),
    "as many texts as images": (Compares(), (drawn(3, 8), TEXT), ["`text` is fixed at 3"]),
    "texts and their mask": (ComparesMasked(), (drawn(4, 8), TEXT, MASK), ["`text` and `mask` is fixed at 3"]),
    "a state": (Recurrent(), (drawn(4, 5, 8), drawn(2, 4, 6)), []),
    "one entry per sample": (ByHand(), (drawn(3, 5), drawn(5, 3)), []),
}


@pytest.mark.parametrize(("model", "example", "notes"), ROWS.values(), ids=ROWS.keys())
def test_rows_that_stay_fixed_without_need_are_named(model, example, notes):
    batch = onnx_batch(example, model)
    axes = choose_axes(model, batch, True)
    said = fixed_rows(model, batch, axes)
    assert len(said) == len(notes)
    for text, note in zip(said, notes, strict=True):
        assert f"the first axis of {note}, the example's, though the model takes other sizes; open " in text
    assert fixed_rows(model, batch, choose_axes(model, batch, False)) == []
    if notes:
        opened = ast.literal_eval(re.search(r"dynamic_axes=(\{.*\}) \(", said[0])[1])
        assert fixed_rows(model, batch, choose_axes(model, batch, True, opened)) == []


@pytest.mark.integration
def test_the_note_is_in_the_report_and_the_axis_can_be_opened(tmp_path):
    report = export_onnx(Compares(), tmp_path / "model.onnx", (drawn(4, 8), TEXT))
    assert report
    (note,) = [note for note in report.notes if "is fixed at" in note]
    assert note.endswith("open it with dynamic_axes={'text': {0: 'rows'}} (--dynamic text:0=rows)")
    report = export_onnx(Compares(), tmp_path / "model.onnx", (drawn(4, 8), TEXT), dynamic_axes={"text": {0: "rows"}})
    assert report, found(report)
    assert not [note for note in report.notes if "is fixed at" in note]
