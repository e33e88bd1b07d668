"""The layer is named by its constants where the values of a file do not tell it: a small gain behind it hides it."""

import re

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from jumpout_export.export.convert import convert
from jumpout_export.model.batches import Batch
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration


class Block(nn.Module):
    """As ConvNeXt's: what it adds is scaled by a millionth."""

    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.rand(width))

    def forward(self, x):
        return x + self.gamma * self.down(torch.relu(self.up(x)))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.Sequential(Block(6), Block(6)), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.blocks(x))


class ZeroGain(nn.Module):
    """As LeViT's: the gain of the last BatchNorm of a branch is nearly zero."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.last = nn.Sequential(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6))
        self.head = nn.Linear(6, 3)
        nn.init.constant_(self.last[1].weight, 1e-7)
        self.last[1].running_mean.normal_()

    def forward(self, x):
        return self.head(x + self.last(self.body(x)))


class Standardized(nn.Module):
    """As NF-ResNet's: weights are standardized, with a gain, and a branch that starts at nothing."""

    def __init__(self):
        super().__init__()
        self.inner, self.gain = nn.Linear(6, 6), nn.Parameter(torch.rand(6, 1) + 0.5)
        self.skip, self.head = nn.Parameter(torch.tensor(1e-7)), nn.Linear(6, 3)

    def forward(self, x):
        weight = self.inner.weight
        weight = (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True) * self.gain
        return self.head(x + self.skip * nn.functional.linear(x, weight, self.inner.bias))


class Window(nn.Module):
    """As Swin's: a table of relative positions, of which the file holds one row for each pair."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 2))
        self.register_buffer("places", torch.randint(9, (16,)))

    def forward(self, x):
        bias = self.table[self.places].view(4, 4, 2).permute(2, 0, 1)
        return (x @ x.mT).unsqueeze(1).add(bias).softmax(-1).mean(1) @ x


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = Window(), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.attention(x))


def with_one_changed(path, pick, amount):
    """Changes one value of the largest constant that `pick` accepts."""
    proto = onnx.load(path)
    tensor = max((one for one in proto.graph.initializer if pick(one)), key=lambda one: int(np.prod(one.dims)))
    array = numpy_helper.to_array(tensor).copy()
    array.flat[1] += amount
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)


def named(name):
    return lambda one: re.fullmatch(name, one.name)


def shaped(*shape):
    return lambda one: tuple(size for size in one.dims if size > 1) == shape


CASES = {
    "layer scale": (Scaled, (6,), named("blocks.0.down.weight"), 0.5, "blocks.0.down", "`blocks.0.down.weight` has 1"),
    "gain of nearly zero": (ZeroGain, (6,), named("last.0.weight"), 1e-8, "last.0", ""),
    "standardized weights": (
        Standardized,
        (6,),
        shaped(6, 6),
        0.5,
        ".",
        "what is made of `gain`, `inner.weight` has 1",
    ),
    "relative positions": (
        Windows,
        (4, 6),
        shaped(2, 4, 4),
        1e-3,
        "attention",
        "what is made of `attention.table`, `attention.places` has 1",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_changed_constant_names_its_module_and_its_parameter(case, tmp_path):
    network, shape, pick, amount, layer, text = CASES[case]
    torch.manual_seed(0)
    model, samples, path = network().eval(), torch.randn(8, *shape), tmp_path / "model.onnx"
    convert(model, Batch((samples,), {}), path)
    assert verify_onnx(path, model, samples).first_divergence is None
    with_one_changed(path, pick, amount)
    report = verify_onnx(path, model, samples)
    assert not report
    assert report.first_divergence == layer
    assert report.notes[0].startswith(f"`{layer}` ")
    assert text in report.notes[0]
