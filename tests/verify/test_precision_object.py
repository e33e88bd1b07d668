"""A precision is one object: the model's own, float16, and one that is made up here and known to nobody else."""

import copy

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from jumpout_export import export_onnx, verify_onnx
from jumpout_export.errors import ConversionError
from jumpout_export.export.provenance import provenance
from jumpout_export.model.batches import Batch
from jumpout_export.verify import precision as precisions
from jumpout_export.verify.precision import OWN, Copied, dtypes, precision_of, precision_of_file
from jumpout_export.verify.values.loss import Loss

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
BATCH = Batch((X,), {})
STEP = 2.0**-8


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


class Toy(Copied):
    """Weights are multiples of 2^-8, computed in float32; asked for by a type that nothing else uses."""

    dtype = torch.qint8
    option = "toy"
    name = "fixed point 2^-8"

    def prepare(self, network, _batch):
        rounded = copy.deepcopy(network)
        with torch.no_grad():
            for weight in rounded.parameters():
                if float(weight.abs().max()) > 100:
                    raise ConversionError(f"beyond the range of {self.name} (100)")
                weight.copy_((weight / STEP).round() * STEP)
        return rounded


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(precisions, "_KNOWN", [*precisions._KNOWN])
    precisions.register(Toy())


def file_of(name):
    text = '<ir_version: 10, opset_import: ["" : 18]> g (float[n] x) => (float[n] y) {y = Relu(x)}'
    model = onnx.parser.parse_model(text)
    if name:
        model.metadata_props.add(key="jumpout_export.dtype", value=name)
    return model


def check(report, name):
    return next(check for check in report.checks if check.name == name)


def test_the_models_own_precision_changes_and_checks_nothing():
    model = network()
    assert precision_of(None) is OWN
    assert OWN.prepare(model, BATCH) is model
    assert OWN.batch(BATCH) is BATCH
    assert (OWN.metadata(), OWN.notes(), OWN.loss(model, model).checks()) == ({}, [], [])
    assert OWN.budget(model.double()) == torch.float64
    assert OWN.budget(nn.ReLU()) == torch.float32


def test_float16_is_asked_for_by_type_and_by_option_and_names_itself():
    half = precision_of(torch.float16)
    assert dtypes() == {"fp16": torch.float16, "bf16": torch.bfloat16}
    assert half.metadata() == {"jumpout_export.dtype": "float16"}
    assert half.budget(network()) == torch.float16
    assert half.batch(BATCH).args[0].dtype == torch.float16
    assert not half.is_in(BATCH)
    assert half.is_in(half.batch(BATCH))
    assert half.prepare(network(), BATCH)[0].weight.dtype == torch.float16
    assert "at most 0.05 in float16" in provenance(network(), (), None, half)["jumpout_export.tolerance"]


@pytest.mark.parametrize(
    ("name", "batch", "found"),
    [
        ("float16", BATCH, "float16"),
        ("float16", Batch((X.half(),), {}), ""),  # the model is given in float16 too
        ("int3", BATCH, ""),
        (None, BATCH, ""),
    ],
    ids=["named", "model in it", "unknown", "none"],
)
def test_a_file_says_what_the_model_has_to_be_brought_to(name, batch, found):
    assert precision_of_file(file_of(name), batch).name == found


def test_a_measurement_is_made_when_it_is_asked_for_and_only_then():
    model, half = network(), precision_of(torch.float16)
    loss = half.loss(model, half.prepare(model, BATCH))
    assert loss.inputs(BATCH).args[0].dtype == torch.float16
    assert loss.checks()[0].note == "no floating-point output"
    loss.add(BATCH)
    (measured,) = loss.checks()
    assert measured.note.startswith("float16 against the model's own precision, 6 samples: output `output` is off by")
    # An independent run of the rounded network: off by rounding to 11 bits, not by nothing.
    exact = copy.deepcopy(model).double()(X.double()).detach()
    off = (half.prepare(model, BATCH)(X.half()).detach().double() - exact).abs().max() / exact.abs().max()
    assert 0.1 * float(off) < measured.measured < 10 * float(off) < 0.1
    assert loss.checks() == loss.checks()


def test_another_network_is_told_from_the_model():
    model = network()
    loss = precision_of(torch.float16).loss(model, nn.Sequential(*network(), nn.Threshold(1e3, 0.0)).half())
    loss.add(BATCH)
    assert loss.checks()[0].verdict == "fail"
    assert loss.checks()[0].note.endswith("float16 does not hold this network")


def test_networks_that_cannot_be_compared_fail_the_check():
    loss = precision_of(torch.float16).loss(network(), nn.Linear(5, 3).half())
    loss.add(BATCH)
    assert loss.checks()[0].note.startswith("the two networks could not be compared: mat1 and mat2")
    assert Loss().inputs(BATCH) is BATCH


@pytest.mark.integration
def test_a_made_up_precision_is_exported_and_verified_through_the_object_alone(toy, tmp_path):
    path, model = tmp_path / "model.onnx", network()
    report = export_onnx(model, path, X, calibration=[X, X[:2]], dtype=torch.qint8)
    assert report, report.checks
    assert report.provenance["jumpout_export.dtype"] == "fixed point 2^-8"
    assert check(report, "precision").note.startswith("fixed point 2^-8 against the model's own precision, 8 samples")
    assert 0 < check(report, "precision").measured < 0.05
    weights = [numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    weights = [one for one in weights if one.dtype == "float32" and one.size > 1]
    assert len(weights) == 4
    assert all((one / STEP == (one / STEP).round()).all() for one in weights)
    verified = verify_onnx(path, model, X)
    assert verified, verified.checks
    assert check(verified, "precision").verdict == "pass"
    assert "compared with the model in fixed point 2^-8" in " ".join(verified.notes)
    assert "toy" in dtypes()


@pytest.mark.integration
def test_without_the_object_that_file_is_another_network(toy, monkeypatch, tmp_path):
    path, model = tmp_path / "model.onnx", network()
    assert export_onnx(model, path, X, dtype=torch.qint8)
    monkeypatch.setattr(precisions, "_KNOWN", precisions._KNOWN[:2])
    assert not verify_onnx(path, model, X)
    with pytest.raises(
        ValueError, match=r"must be torch\.float16, torch\.bfloat16 or None \(the model's own\), got torch\.qint8"
    ):
        export_onnx(model, path, X, dtype=torch.qint8)


def test_what_a_made_up_precision_does_not_hold_is_not_published(toy, tmp_path):
    model = network()
    model[0].weight.data[0, 0] = 1e3
    report = export_onnx(model, tmp_path / "model.onnx", X, dtype=torch.qint8)
    assert check(report, "convert").note == "beyond the range of fixed point 2^-8 (100)"
    assert report.providers["cpu"].reason == "the model was not converted"
    assert list(tmp_path.iterdir()) == []
    assert "jumpout_export.dtype" not in report.provenance
