"""What the converter takes: every opset of ONNX Runtime, layers of torch, and no scripted one."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.networks import trained
from support.reports import found
from torch import nn

from jumpout_export.export.convert import convert
from jumpout_export.export.publish import export_onnx
from jumpout_export.model.signature import onnx_batch
from jumpout_export.onnxfile.load import DEFAULT_OPSET
from jumpout_export.runtime.session import newest_opset

pytestmark = pytest.mark.integration

X = torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("opset", range(18, 27))
def test_every_opset_that_onnx_runtime_accepts_is_honoured(opset, tmp_path):
    if opset > newest_opset():
        pytest.skip(f"this ONNX Runtime accepts opsets up to {newest_opset()}")
    model = trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.Flatten(), nn.Softmax(1)))
    batch = onnx_batch(X, model)
    assert convert(model, batch, tmp_path / "model.onnx", opset=opset).opset == opset
    proto = onnx.load(tmp_path / "model.onnx")
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    assert proto.ir_version == 10
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": X.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, model(X).numpy(), rtol=1e-4, atol=1e-6)


def test_the_newest_opset_is_the_one_after_which_onnx_runtime_refuses(tmp_path):
    newest = newest_opset()
    assert DEFAULT_OPSET < newest <= onnx.defs.onnx_opset_version()
    text = f"opset must be in [18, {newest}], got {newest + 1}; {newest} is the newest that the installed ONNX Runtime"
    with pytest.raises(ValueError) as error:
        export_onnx(nn.Linear(4, 2), tmp_path / "model.onnx", torch.ones(2, 4), opset=newest + 1)
    assert str(error.value).startswith(text)
    if newest == onnx.defs.onnx_opset_version():
        pytest.skip("this ONNX Runtime accepts everything that onnx can write")
    convert(nn.Linear(4, 2).eval(), onnx_batch(torch.ones(2, 4), nn.Linear(4, 2)), tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    proto.opset_import[0].version = newest + 1
    with pytest.raises(Exception, match="opset"):
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


A, B, C = (torch.randn(4, size, generator=torch.Generator().manual_seed(size)) for size in (3, 2, 2))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_transformer_layer_of_torch_behind_other_layers_is_exported(norm_first, layers, tmp_path):
    class VisionTransformer(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
            self.patches, self.token = nn.Linear(6, 8), nn.Parameter(torch.randn(1, 1, 8))
            self.encoder = layer if layers == 1 else nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x)], 1)
            return self.encoder(x)[:, 0]

    report = export_onnx(VisionTransformer(), tmp_path / "model.onnx", torch.randn(4, 5, 6))
    assert report, found(report)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_scripted_layer_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: torch.jit.script is deprecated, and copies of its modules warn
        model = nn.Sequential(torch.jit.script(nn.Linear(3, 3)))
        report = export_onnx(model, tmp_path / "model.onnx", A)
    assert found(report)["convert"].startswith("`0` is scripted (torch.jit), which the converter does not take")
