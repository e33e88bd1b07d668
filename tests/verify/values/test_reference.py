"""What PyTorch says, in its own precision and in float64."""

import torch
from torch import nn

from jumpout_export.model.signature import onnx_batch
from jumpout_export.verify.values.reference import Reference


def test_the_reference_is_float64_and_the_model_stays_float32():
    model = nn.Linear(3, 2)
    batch = onnx_batch(torch.randn(4, 3), model)
    (output,) = Reference(model, batch)(batch)
    exact = batch.args[0].double() @ model.weight.double().T + model.bias.double()
    torch.testing.assert_close(output.exact, exact.detach(), rtol=1e-14, atol=1e-14)
    assert torch.equal(output.own, model(batch.args[0]))
    assert model.weight.dtype == torch.float32


class Picky(nn.Linear):
    def __init__(self, allowed):
        super().__init__(3, 2)
        self.allowed = allowed

    def forward(self, x):
        if not self.allowed(x):
            raise ValueError("not my data")
        return super().forward(x)


def test_own_errors_are_measured_on_inputs_near_the_given_ones_that_the_model_takes():
    ones = onnx_batch(torch.ones(5, 3), nn.Linear(3, 2))
    near = list(Reference(Picky(lambda x: bool(((x >= 0) & (x <= 1)).all())), ones).nearby(ones))
    assert sum(len(output.own) for (output,) in near) == 25
    assert len({output.own.numpy().tobytes() for (output,) in near}) == 5
    assert list(Reference(Picky(lambda x: bool((x == 1).all())), ones).nearby(ones)) == []


class Shifted(nn.Module):
    """Adds what a function gives."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, x):
        return x + self.shift(x)


X = torch.ones(2, 3)


def verdicts(model):
    reference = Reference(model, onnx_batch(X, model))
    reference(onnx_batch(X, model))
    return {check.name: check for check in reference.checks()}


def test_a_model_that_draws_random_numbers_fails():
    assert verdicts(Shifted(lambda x: 0.5))["randomness"].verdict == "pass"
    check = verdicts(Shifted(lambda x: torch.rand(())))["randomness"]
    assert check.verdict == "fail"
    assert "batch size 2" in check.note


def test_a_model_that_does_not_run_in_float64_is_its_own_reference():
    def picky(x):
        if x.dtype == torch.float64:
            raise ValueError("not in float64")
        return 0.5

    model = Shifted(picky)
    reference = Reference(model, onnx_batch(X, model))
    (output,) = reference(onnx_batch(X, model))
    assert "not in float64" in reference.problem
    assert torch.equal(output.exact, output.own.double())
