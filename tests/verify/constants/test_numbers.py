"""Which numbers of a file the PyTorch program accounts for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jumpout_export.model.signature import onnx_batch
from jumpout_export.onnxfile.numbers import Number
from jumpout_export.verify.constants.known import Recorded
from jumpout_export.verify.constants.numbers import unexplained
from jumpout_export.verify.constants.proof import recorded_run

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def left(function, *values, x=X, **more):
    model = Function(function).eval()
    numbers = [Number(value, "Clip `c`", "a number", **more) for value in values]
    return [one.value for one in unexplained(numbers, recorded_run(model, onnx_batch(x, model)))]


KNOWN = {
    "a bound": (F.relu6, 6),
    "bounds": (lambda x: x.clamp(-0.25, 1.5), -0.25, 1.5),
    "a default": (F.leaky_relu, 0.01),
    "a default by name": (lambda x: F.softplus(x, threshold=15.0), 15),
    "an epsilon": (lambda x: F.layer_norm(x, (8,), eps=1e-6), 1e-6),
    "in float16": (lambda x: x.clamp(max=0.1), 0.0999756),
    "a threshold": (lambda x: torch.where(x > 0.3, x, 7.0), 0.3, 7),
    "a tensor": (lambda x: torch.minimum(x, torch.tensor(2.5)), 2.5),
    "of a definition": (F.hardswish, 3, 6),
    "of a search": (lambda x: torch.bucketize(x, torch.arange(3.0)), 2),
    "a number beside a tensor": (lambda x: x + 2.75, 2.75),
    "an infinity": (torch.relu, float("inf"), float("-inf"), 3.4028235e38),
    "zero": (torch.relu, 0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_the_program_has_is_accounted_for(name):
    function, *values = KNOWN[name]
    assert left(function, *values) == []


OTHERS = {
    "another bound": (F.relu6, 60),
    "another epsilon": (lambda x: F.layer_norm(x, (8,), eps=1e-6), 1e-5),
    "a size": (lambda x: x.reshape(-1, 4).reshape(-1, 8), 4),
    "an axis": (lambda x: x.unsqueeze(2).sum(2), 2),
    "a kernel": (lambda x: F.max_pool1d(x, 3, 1, 1), 3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_number_is_not(name):
    function, value = OTHERS[name]
    assert left(function, value) == [value]


def test_a_narrow_integer_is_one_that_the_program_makes():
    ids = torch.arange(16).reshape(2, 8)
    more = {"is_integer": True, "is_cast": True, "x": ids}
    assert left(lambda x: x.to(torch.uint8), 256, **more) == []
    assert left(lambda x: x.to(torch.int8), 256, **more) == [256]
    assert left(lambda x: x + 256, 256, **more) == [256]


def test_a_program_that_is_not_known_accounts_for_nothing():
    assert unexplained([Number(6, "Clip `c`", "a number")], Recorded(problem="why")) == []
