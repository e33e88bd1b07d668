"""The names of a model's inputs, and what outputs may be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jumpout_export.model.signature import input_names, onnx_batch, outputs

A, B, C = (torch.randn(4, size, generator=torch.Generator().manual_seed(size)) for size in (3, 2, 2))


def test_inputs_of_one_name_are_told_apart_by_the_parameters():
    class Two(nn.Module):
        def forward(self, first, second):
            return first["a"] + second["a"]

    assert input_names(Two(), onnx_batch(({"a": A}, {"a": A}), Two())) == ["first_a", "second_a"]


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (3, TypeError, "every output of the model must be a tensor, got int; wrap the model in a module"),
        ((None, {}), ValueError, "the model returns no tensor, so there is nothing to export"),
    ],
)
def test_an_output_that_cannot_be_exported_is_refused(result, error, message):
    with pytest.raises(error, match=message):
        outputs(result, ["x"])


@pytest.mark.parametrize(
    ("result", "inputs", "names"),
    [
        (torch.ones(1), ["x"], ["output"]),
        (torch.ones(1), ["output"], ["output_0"]),
        ((torch.ones(1), None, [torch.ones(1)]), ["x"], ["output_0", "output_1"]),
        ({"a": torch.ones(1), "b": None}, ["x"], ["a"]),
        ({"x": torch.ones(1)}, ["x"], ["output_0"]),
        ({"a": [torch.ones(1), torch.ones(1)]}, ["x"], ["output_0", "output_1"]),
    ],
)
def test_outputs_are_named(result, inputs, names):
    assert [output.name for output in outputs(result, inputs)] == names


def test_an_output_that_is_no_tensor_is_named():
    with pytest.raises(TypeError, match="every output of the model must be a tensor, got int"):
        outputs((torch.ones(1), 3), ["x"])
