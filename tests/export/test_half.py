"""Half precision: exported, verified and measured against the model, or refused."""

from __future__ import annotations

import copy
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from support.networks import HalfResidual, trained
from support.reports import found, note
from torch import nn

from jumpout_export import verify_onnx
from jumpout_export.errors import ConversionError
from jumpout_export.export.publish import export_onnx
from jumpout_export.fold.network.half import half_copy
from jumpout_export.model.signature import onnx_batch
from jumpout_export.verify.values.reference import Reference

pytestmark = pytest.mark.integration

X = torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(1))


def test_half_precision_is_exported_verified_and_measured_against_the_model(tmp_path):
    model = trained(HalfResidual())
    path = tmp_path / "model.onnx"
    report = export_onnx(model, path, X, calibration=[X, X[:2]], dtype=torch.float16, golden=tmp_path)
    assert report, found(report)
    proto = onnx.load(path)
    types = {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    assert types == {onnx.TensorProto.FLOAT16}
    assert onnx.TensorProto.FLOAT not in {tensor.data_type for tensor in proto.graph.initializer}
    assert report.provenance["jumpout_export.dtype"] == "float16"
    text = note(report, "precision")
    assert text.startswith("float16 against the model's own precision, 6 samples: output `output` is off by up to 0.")
    assert text.endswith("top-1 agrees on 6 of 6")
    # An oracle of its own: what the file gives, against the float64 model.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": X.half().numpy()})[0].astype(np.float64)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(X.double()).numpy()
    assert np.abs(got - exact).max() < 0.01 * np.abs(exact).max()
    before = path.read_bytes()
    assert export_onnx(model, path, X, calibration=[X, X[:2]], dtype=torch.float16, golden=tmp_path)
    assert path.read_bytes() == before
    verified = verify_onnx(path, model, X)
    assert verified, found(verified)
    assert "compared with the model in float16, which the file's metadata names as its type" in verified.notes
    # 1, 2 and 7 are rows of the first batch; `verify` sees X alone, the export X and two more samples.
    assert note(verified, "precision").startswith(
        "float16 against the model's own precision, 4 samples: output `output`"
    )
    with torch.no_grad():
        model.linear.weight[0, 0] += 0.1 * model.linear.weight.abs().max()
    assert not verify_onnx(path, model, X)


def test_a_network_that_float16_does_not_hold_is_refused(tmp_path):
    model = trained(HalfResidual())
    with torch.no_grad():
        model.linear.weight *= 1e-8
        model.linear.bias *= 1e-8
    report = export_onnx(model, tmp_path / "model.onnx", X, dtype=torch.float16)
    assert not report
    check = next(check for check in report.checks if check.name == "precision")
    assert (check.verdict, check.limit) == ("fail", 0.25)
    assert check.measured == pytest.approx(1, abs=0.1)
    assert check.note.endswith("float16 does not hold this network")


def test_a_model_that_float16_cannot_hold_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 2))
    model[0].weight.data[0, 0] = 1e5
    report = export_onnx(model, tmp_path / "model.onnx", torch.ones(2, 4), dtype=torch.float16)
    assert found(report)["convert"] == "beyond the range of float16 (65504): `0.weight` (largest value 1e+05)"

    class Fixed(nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    with pytest.raises(ConversionError, match="the model does not run in float16: RuntimeError"):
        half_copy(Fixed(4, 2).eval(), onnx_batch(torch.ones(2, 4), Fixed(4, 2)))

    class Overflows(nn.Linear):
        def forward(self, x):
            return super().forward(x).abs() * 1e5 + 1e5

    report = export_onnx(Overflows(4, 2), tmp_path / "model.onnx", torch.ones(2, 4), dtype=torch.float16)
    assert "NaN or infinite values" in found(report)["cpu/off/finite"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("dtype", "error", "message"),
    [
        (
            torch.float64,
            ValueError,
            r"must be torch\.float16, torch\.bfloat16 or None \(the model's own\), got torch\.fl",
        ),
        ("fp16", TypeError, r"dtype must be torch\.float16, torch\.bfloat16 or None, got 'fp16'"),
    ],
)
def test_other_types_are_refused(dtype, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_onnx(nn.Linear(4, 2), tmp_path / "model.onnx", torch.ones(2, 4), dtype=dtype)


def test_a_float64_output_of_a_float32_model_is_judged_as_what_it_was_computed_in(tmp_path):
    class Widened(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y, y.double() * 2

    model = Widened(300, 20)
    example = torch.randn(16, 300)
    assert export_onnx(model, tmp_path / "model.onnx", example, golden=tmp_path)
    proto = onnx.load(tmp_path / "model.onnx")
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata["jumpout_export.tolerance.output_1"].startswith("cap=0.001 ")
    weight = next(
        tensor for tensor in proto.graph.initializer if list(tensor.dims) == [300, 20] or tensor.dims[0] == 20
    )
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 1e-4
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(proto, tmp_path / "model.onnx")
    assert not verify_onnx(tmp_path / "model.onnx", model, example)
    batch = onnx_batch(example, model)
    assert [one.precision for one in Reference(model.eval(), batch)(batch)] == [None, torch.float32]
    double = onnx_batch(example.double(), model)
    assert [one.precision for one in Reference(model.double(), double)(double)] == [None, None]
