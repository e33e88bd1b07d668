"""Finding calls that normalise by the statistics of the batch: by module, file and line."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jumpout_export.model.batch_statistics import batch_statistics_calls

MEAN, VAR = torch.zeros(3), torch.ones(3)
NONE = (None, None, None, None)
aten = torch.ops.aten


class Inner(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: F.batch_norm(x, None, None, training=True), "batch_norm"),
        (lambda x: F.batch_norm(x, MEAN.clone(), VAR.clone(), None, None, True), "batch_norm"),
        (lambda x: torch.batch_norm(x, *NONE, True, 0.1, 1e-5, False), "batch_norm"),
        (lambda x: torch.native_batch_norm(x, *NONE, True, 0.1, 1e-5), "native_batch_norm"),
        (lambda x: aten.native_batch_norm(x, *NONE, True, 0.1, 1e-5), "native_batch_norm"),
        (lambda x: aten.native_batch_norm.default(x, *NONE, True, 0.1, 1e-5), "native_batch_norm.default"),
        (lambda x: aten._native_batch_norm_legit.no_stats(x, None, None, True, 0.1, 1e-5), "_native_batch_norm_legit"),
        (lambda x: aten._batch_norm_with_update(x, None, None, MEAN.clone(), VAR.clone(), 0.1, 1e-5), "with_update"),
    ],
)
def test_a_call_is_found_with_its_module_and_line(function, operator):
    model = nn.Sequential(nn.Identity(), Inner(function)).eval()
    (call,) = batch_statistics_calls(model, lambda: model(torch.randn(4, 3, 5, 5)))
    assert operator in call.operator
    assert (call.module, call.file) == ("1", __file__)
    assert f"in module `1` at {__file__}:{call.line}" in str(call)
    assert call.line > 0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.batch_norm(x, MEAN, VAR),
        lambda x: F.batch_norm(x, MEAN, VAR, training=False),
        lambda x: torch.batch_norm(x, None, None, MEAN, VAR, False, 0.1, 1e-5, False),
        lambda x: aten.native_batch_norm.default(x, None, None, MEAN, VAR, False, 0.1, 1e-5),
        F.instance_norm,
        lambda x: F.group_norm(x, 3),
        nn.BatchNorm2d(3).eval(),
        nn.InstanceNorm2d(3, track_running_stats=True).eval(),
    ],
)
def test_what_depends_on_no_batch_is_not(function):
    model = Inner(function).eval()
    x = torch.randn(4, 3, 5, 5)
    assert batch_statistics_calls(model, lambda: model(x)) == []
    with torch.no_grad():
        whole, part = model(x), model(x[:2])
    torch.testing.assert_close(*((y[0] if isinstance(y, tuple) else y)[:2] for y in (whole, part)))


def test_layers_that_have_a_row_of_their_own_are_left_out():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3, track_running_stats=False))
    calls = batch_statistics_calls(model.eval(), lambda: model(torch.randn(4, 3, 5, 5)), known={"0"})
    assert [call.module for call in calls] == ["1"]


def test_a_place_is_named_once_and_no_hook_is_left():
    model = Inner(lambda x: F.batch_norm(x, None, None, training=True)).eval()
    x = torch.randn(4, 3, 5, 5)
    assert len(batch_statistics_calls(model, lambda: (model(x), model(x)))) == 1
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
