"""A result depends on the other samples of its batch, or on nothing but the input."""

import re

import pytest
import torch
import torch.nn.functional as F
from support.reports import found
from support.stateful import Net

from jumpout_export.export.publish import export_onnx
from jumpout_export.fold.network.folded import fold_model
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)) + 3


def noisy_from(size):
    return lambda model, x, y: y + torch.rand_like(y) if len(x) >= size else y


@pytest.mark.parametrize(
    ("size", "example", "calibration"), [(7, X[:1], None), (9, X, [X, torch.cat([X, X])])], ids=["7", "calibration"]
)
def test_noise_at_one_batch_size_only_is_found_and_the_size_named(size, example, calibration, tmp_path):
    model = Net(noisy_from(size))
    report = export_onnx(model, tmp_path / "model.onnx", example, calibration=calibration)
    assert found(report).keys() & {"convert", "randomness"}  # a path that was not traced is refused even earlier
    assert not list(tmp_path.iterdir())
    export_onnx(Net(), tmp_path / "model.onnx", X)
    note = found(verify_onnx(tmp_path / "model.onnx", model, calibration or example))["randomness"]
    assert f"batch size {17 if size == 7 else 10}: the model draws random numbers in eval mode" in note
    assert "aten.rand_like" in note


def by_hand(model, x, y):
    return (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()


def functional(model, x, y):
    return F.batch_norm(y[:, :, None].repeat(1, 1, 2) + torch.tensor([0.0, 1.0]), None, None, training=True).sum(2)


@pytest.mark.parametrize("after", [by_hand, functional])
def test_a_result_that_depends_on_the_other_samples_fails_unless_the_batch_is_fixed(after, tmp_path):
    report = export_onnx(Net(after), tmp_path / "model.onnx", X)
    assert "output `output` of sample 0 of 2 differs by" in found(report)["batch independence"]
    assert "dynamic_batch=False (--static) fixes the size" in found(report)["batch independence"]
    report = export_onnx(Net(by_hand), tmp_path / "model.onnx", X, dynamic_batch=False)
    assert report
    assert "batch independence" not in {check.name for check in report.checks}


def test_outputs_without_a_batch_axis_may_be_constants_and_outputs_may_have_it_elsewhere(tmp_path):
    def after(model, x, y):
        return y, model.linear.weight, model.linear.weight.sum(), y.T

    report = export_onnx(Net(after), tmp_path / "model.onnx", X)
    assert report
    note = next(check.note for check in report.checks if check.name == "batch independence")
    assert note.endswith("in a batch: output_0, output_1, output_2, output_3")


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (lambda model, x, y: y.softmax(1).mean(0), "`output` has no batch axis and differs by"),
        (lambda model, x, y: y.max(), "`output` has no batch axis and differs by"),
        (
            lambda model, x, y: y.reshape(1, -1),
            r"`output` has shape \[1, \d\] alone and \[1, \d+\]",
        ),
        (lambda model, x, y: (y - y.mean(0)).T, "of sample 0 of 2 differs by"),
        (lambda model, x, y: torch.stack([y[:, 0] * 1e7, y[:, 1] - y[:, 1].mean()], 1), "of sample 0 of 2 differs by"),
    ],
    ids=["mean", "maximum", "flattened", "transposed", "beside a large channel"],
)
def test_an_output_that_mixes_the_samples_of_a_batch_fails(after, problem, tmp_path):
    report = export_onnx(Net(after), tmp_path / "model.onnx", X)
    assert re.search(problem, found(report)["batch independence"])


def test_similarities_between_the_samples_of_a_batch_fail(tmp_path):
    report = export_onnx(Net(lambda model, x, y: y @ y.T), tmp_path / "model.onnx", X)
    assert "has shape [2, 1] alone and [2, 2] in its batch" in found(report)["batch independence"]


def test_an_amplifier_of_rounding_fails_the_check_conditioning(tmp_path):
    report = export_onnx(Net(lambda model, x, y: torch.sin(y * 1e7)), tmp_path / "model.onnx", X)
    assert "PyTorch's own error on output `output` (data) is" in found(report)["conditioning"]
    assert "the model amplifies rounding" in found(report)["conditioning"]


def test_torch_cond_is_folded():
    def branch(model, x, y):
        return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: -y, (y,))

    model = Net(branch).eval()
    with torch.no_grad():
        assert torch.equal(fold_model(model, X)(X), model(X))
