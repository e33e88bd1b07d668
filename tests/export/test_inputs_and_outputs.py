"""Inputs and outputs of every kind keep their names and values."""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.onnx_files import shapes
from support.reports import found
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.export.publish import export_onnx
from jumpout_export.model.signature import onnx_batch, outputs, tensors
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, image, index, *, mask, scale=None):
        y = self.drop(image) + self.embed(index) * mask
        return {"sum": y, "nothing": None, "pair": y[:, 0]} if scale is None else (y, (y * scale,))


def test_several_inputs_and_a_dict_of_outputs_keep_their_names(tmp_path):
    example = {
        "image": torch.randn(6, 3),
        "index": torch.arange(6),
        "mask": torch.tensor([True, False] * 3)[:, None].expand(6, 3),
    }
    assert export_onnx(Keywords(), tmp_path / "model.onnx", example, golden=tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [value.name for value in graph.input] == ["image", "index", "mask"]
    assert [value.name for value in graph.output] == ["sum", "pair"]
    assert len(os.listdir(tmp_path / "test_data_set_0")) == 5


def test_nested_outputs_are_numbered(tmp_path):
    example = {
        "image": torch.randn(6, 3),
        "index": torch.arange(6),
        "mask": torch.ones(6, 3),
        "scale": torch.ones(6, 1),
    }
    assert export_onnx(Keywords(), tmp_path / "model.onnx", example)
    assert [value.name for value in onnx.load(tmp_path / "model.onnx").graph.output] == ["output_0", "output_1"]


def test_an_index_as_last_positional_input_is_no_label(tmp_path):
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 3)

        def forward(self, x, index):
            return x + self.embed(index)

    assert export_onnx(Lookup(), tmp_path / "model.onnx", (torch.randn(6, 3), torch.arange(6)))


class Speech(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

    def forward(self, x, lengths=None):
        h = self.linear(x)
        if lengths is not None:
            h = h * (torch.arange(x.shape[1])[None] < lengths[:, None])[..., None]
        return self.norm(h.sum(1))


@pytest.mark.parametrize("labelled", [False, True])
def test_lengths_are_an_input_in_every_call(tmp_path, labelled):
    model, x, lengths = Speech(), torch.randn(64, 5, 3), torch.randint(1, 5, (64,))
    batch, named = (x, lengths), {"x": x, "lengths": lengths}
    if labelled:
        batch, named = (*batch, torch.randint(0, 2, (64,))), named | {"labels": torch.randint(0, 2, (64,))}
    recalibrate_batchnorm(model, [batch] * 2)
    one, other = (check_batchnorm(model, [each] * 2, outputs=False).layers[0].w for each in (batch, named))
    assert one == other < 1e-3
    assert export_onnx(model, tmp_path / "model.onnx", batch)
    assert [value.name for value in onnx.load(tmp_path / "model.onnx").graph.input] == ["x", "lengths"]
    assert verify_onnx(tmp_path / "model.onnx", model, named)


def test_an_entry_that_may_be_an_input_is_an_error_of_the_example(tmp_path):
    class Generator(nn.Module):
        def forward(self, z, y=None):
            return z if y is None else z + y[:, None]

    with pytest.raises(
        TypeError, match=r"example: a batch must say .* input `y` of forward, or no input; give \{'z': "
    ):
        export_onnx(Generator(), tmp_path / "model.onnx", (torch.randn(4, 3), torch.arange(4)))


class TakesDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, inputs: dict[str, torch.Tensor]):
        return self.linear(inputs["a"]) - inputs["b"]


class TakesUnnamedDict(TakesDict):
    def forward(self, inputs):
        return self.linear(inputs["a"]) - inputs["b"]


class TakesKeywords(nn.Module):
    def forward(self, a, *, b, c):
        return {"difference": a - 2 * b, "nothing": None, "sum": b + 3 * c}


class TakesNested(nn.Module):
    def forward(self, x, pair, more):
        return x + pair[0] - 2 * pair[1], (3 * more["a"], None)


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    twice: torch.Tensor | None = None


class ModelOutput(OrderedDict):
    """As Hugging Face's: a dict with attributes that torch's pytrees do not know."""


class ReturnsDataClass(nn.Module):
    def forward(self, x):
        return Result(x + 1, None, 2 * x)


class ReturnsModelOutput(nn.Module):
    def forward(self, x):
        result = ModelOutput()
        result["logits"], result["hidden"] = x + 1, (2 * x, 3 * x)
        return result


A, B, C = (torch.randn(4, size, generator=torch.Generator().manual_seed(size)) for size in (3, 2, 2))


@pytest.mark.parametrize(
    ("model", "example", "inputs", "results"),
    [
        (TakesDict(), {"a": A, "b": B}, ["a", "b"], ["output"]),
        (TakesUnnamedDict(), ({"a": A, "b": B},), ["a", "b"], ["output"]),
        (TakesUnnamedDict(), {"inputs": {"b": B, "a": A}}, ["b", "a"], ["output"]),
        (TakesKeywords(), {"c": C, "a": B, "b": C}, ["a", "b", "c"], ["difference", "sum"]),
        (TakesNested(), (B, (C, B), {"a": C}), ["x", "pair_0", "pair_1", "a"], ["output_0", "output_1"]),
        (ReturnsDataClass(), A, ["x"], ["logits", "twice"]),
        (ReturnsModelOutput(), A, ["x"], ["output_0", "output_1", "output_2"]),
    ],
    ids=["dict", "dict without annotation", "dict by name", "keywords", "nested", "data class", "ModelOutput"],
)
def test_inputs_and_outputs_of_any_kind_keep_their_names_and_values(model, example, inputs, results, tmp_path):
    report = export_onnx(model, tmp_path / "model.onnx", example, golden=tmp_path)
    assert report, found(report)
    assert list(shapes(tmp_path / "model.onnx")) == [*inputs, *results]
    assert all(shape[0] == "batch" for shape in shapes(tmp_path / "model.onnx").values())
    # Names say which is which: each value goes where its name says, not where its place happens to be.
    batch = onnx_batch(example, model)
    expected = [one.tensor.detach().numpy() for one in outputs(batch(model), inputs)]
    feeds = {name: value.numpy() for name, value in zip(inputs, tensors(batch), strict=True)}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for got, want in zip(session.run(results, feeds), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert len(os.listdir(tmp_path / "test_data_set_0")) == len(inputs) + len(results)
