"""The float16 copy of a network: BatchNorm is folded before the rounding where that is exact."""

from __future__ import annotations

import copy

import torch
from support.networks import HalfResidual, trained
from torch import nn

from jumpout_export.fold.network.half import half_copy
from jumpout_export.model.signature import onnx_batch

X = torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(1))


def test_batchnorm_is_folded_before_the_rounding_where_that_is_exact_and_not_elsewhere():
    model = trained(HalfResidual())
    model.bn1.running_var.mul_(1e5), model.bn1.weight.data.mul_(300)  # beyond float16 by itself
    half = half_copy(model, onnx_batch(X, model))
    kinds = {path: type(module) for path, module in half.named_modules()}
    assert (kinds["bn1"], kinds["bn2"], kinds["pre"]) == (nn.Identity, nn.Identity, nn.BatchNorm2d)
    with torch.no_grad():
        torch.testing.assert_close(half(X.half()).float(), model(X), rtol=0.02, atol=0.02)
        rounded_first = copy.deepcopy(model).half()(X.half())
        assert not torch.allclose(rounded_first.float(), model(X), rtol=0.02, atol=0.02)
    assert model.first.weight.dtype == torch.float32

    class Shared(nn.Module):
        """What the convolution gives is used beside BatchNorm too: to fold it would change that."""

        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.linear, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.last(self.linear((self.bn(y) + y).mean((2, 3))))

    shared = trained(Shared())
    half = half_copy(shared, onnx_batch(X, shared))
    assert (type(half.bn), type(half.last)) == (nn.BatchNorm2d, nn.Identity)
