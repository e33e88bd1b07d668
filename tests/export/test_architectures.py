"""Networks of many kinds pass export, inspection and verification: no false alarm, whatever the seed."""

from __future__ import annotations

import copy

import pytest
import torch
from support.architectures import ARCHITECTURES, build

from jumpout_export import export_onnx, inspect_onnx, verify_onnx

pytestmark = pytest.mark.integration

SEEDS = (1, 2, 3)


def problems(report):
    return [(check.name, check.measured, check.limit, check.note) for check in report.checks if check.verdict != "pass"]


def exported(name, seed, path):
    model, batch = build(name, seed)
    before = copy.deepcopy(model.state_dict())
    report = export_onnx(model, path, batch)
    assert report, problems(report)
    assert report.folded, "every network here has noise to fold away"
    assert report.first_divergence is None
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return model, batch, report


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_right_network_passes_export_inspection_and_verification(name, tmp_path):
    path = tmp_path / "model.onnx"
    model, batch, report = exported(name, SEEDS[0], path)
    inspected = inspect_onnx(path)
    assert inspected, problems(inspected)
    assert inspected.sha256 == report.sha256
    other_model, other_batch = build(name, 1000)
    verified = verify_onnx(path, model, other_batch)  # inputs that the export has not seen
    assert verified, problems(verified)
    assert not verify_onnx(path, other_model, batch), "a network with other weights must not pass"


@pytest.mark.parametrize("seed", SEEDS[1:])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_right_network_passes_whatever_its_weights(name, seed, tmp_path):
    exported(name, seed, tmp_path / "model.onnx")
