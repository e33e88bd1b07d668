"""The error budget, what is compared on, and what the converter's log collects: each against hand-made values."""

import logging
import math
import sys
import warnings

import pytest
import torch
from torch import nn

from jumpout_export.export.budget import FACTOR, FLOOR, error_limit
from jumpout_export.export.compare import Comparison, Scale
from jumpout_export.export.quiet import converter_log
from jumpout_export.export.reference import Expected, Reference
from jumpout_export.export.samples import rows, samples
from jumpout_export.export.signature import onnx_batch, outputs

EPS = torch.finfo(torch.float32).eps


def batch_of(*values):
    class Any(nn.Module):
        def forward(self, *inputs):
            return inputs[0]

    return onnx_batch(values, Any())


def test_the_limit_is_the_documented_formula():
    assert error_limit(1e-3, 10.0, torch.float32, True) == FACTOR * 1e-3 + FLOOR * EPS * 10
    assert error_limit(1e-3, 10.0, torch.float32, False) == 1e-3  # 1e-4 of the largest output
    assert error_limit(0.0, 1.0, torch.float64, True) == FLOOR * torch.finfo(torch.float64).eps
    assert error_limit(1.0, 1.0, torch.int64, True) == 0.0
    assert error_limit(0.0, 1.0, torch.float16, False) == FLOOR * torch.finfo(torch.float16).eps


def compared(got, own=(1.0, 2.0), exact=(1.0, 2.0), must_repeat=False):
    expected = Expected("y", torch.tensor([own]), torch.tensor([exact], dtype=torch.float64))
    scale = Scale()
    scale.add(expected)
    comparison = Comparison("cpu/off", must_repeat)
    comparison.add("data", 5, [expected], [got])
    return {check.name: check for check in comparison.checks({("data", "y"): scale}, has_reference=True)}


@pytest.mark.parametrize(("factor", "verdict"), [(0.9, "pass"), (1.1, "fail")])
def test_an_error_just_inside_passes_and_just_outside_fails(factor, verdict):
    own = 2.0 + 1e-4
    error = factor * (FACTOR * (torch.tensor(own).item() - 2.0) + FLOOR * EPS * 2)
    checks = compared(torch.tensor([[1.0, 2.0 + error]]), own=(1.0, own))
    worst = checks["cpu/off/data/worst error"]
    assert worst.verdict == verdict
    assert worst.measured == pytest.approx(error, rel=1e-2)
    assert worst.note == "output `y`, image 5, index (1,); 1 images, top-1 agrees on 1"


def test_a_network_that_outputs_zero_may_not_output_anything_else():
    assert compared(torch.zeros(1, 2), own=(0.0, 0.0), exact=(0.0, 0.0))["cpu/off/data/worst error"].verdict == "pass"
    wrong = compared(torch.tensor([[0.0, 1e-30]]), own=(0.0, 0.0), exact=(0.0, 0.0))["cpu/off/data/worst error"]
    assert (wrong.verdict, wrong.limit) == ("fail", 0.0)


def test_nan_in_one_value_does_not_make_the_limit_infinite():
    nan = math.nan
    checks = compared(torch.tensor([[nan, 3.0]]), own=(nan, 2.0), exact=(nan, 2.0))
    assert checks["cpu/off/finite"].verdict == "fail"
    worst = checks["cpu/off/data/worst error"]
    assert (worst.verdict, worst.measured) == ("fail", math.inf)
    assert worst.limit < 1e-5


def test_integers_may_equal_either_precision_and_nothing_else():
    expected = Expected("top", torch.tensor([1, 4]), torch.tensor([1, 5]))
    for got, verdict in (([1, 4], "pass"), ([1, 5], "pass"), ([1, 6], "fail")):
        scale, comparison = Scale(), Comparison("cpu/off", must_repeat=False)
        scale.add(expected)
        comparison.add("batch=2", 0, [expected], [torch.tensor(got)])
        check = comparison.checks({("data", "top"): scale}, has_reference=True)[-1]
        assert (check.verdict, check.limit) == (verdict, 0.0)


def test_all_images_are_compared_and_small_batches_and_noise_too():
    images = [batch_of(torch.arange(8.0).reshape(4, 2)), batch_of(torch.arange(8.0, 14.0).reshape(3, 2))]
    found = list(samples(iter(images), None, seed=0))
    assert [(sample.group, sample.batch.size, sample.start) for sample in found] == [
        ("batch=1", 1, 0),
        ("batch=2", 2, 0),
        ("batch=7", 7, 0),
        ("data", 4, 0),
        ("data", 3, 4),
        ("random batch=1", 1, 0),
        ("random batch=2", 2, 0),
        ("random batch=7", 7, 0),
    ]
    assert torch.equal(torch.cat([sample.batch.args[0] for sample in found[3:5]]), torch.arange(14.0).reshape(7, 2))
    assert torch.equal(found[2].batch.args[0][4:], images[0].args[0][:3])  # seven of four images: from the start again
    again = list(samples(iter(images), None, seed=0))
    other = list(samples(iter(images), None, seed=1))
    assert torch.equal(found[7].batch.args[0], again[7].batch.args[0])
    assert not torch.equal(found[7].batch.args[0], other[7].batch.args[0])


def test_a_fixed_batch_size_is_filled_up():
    found = list(samples(iter([batch_of(torch.arange(5.0))]), 3, seed=0))
    assert [(sample.group, sample.batch.size) for sample in found] == [
        ("batch=3", 3),
        ("data", 3),
        ("data", 3),
        ("random batch=3", 3),
    ]
    assert found[2].batch.args[0].tolist() == [3.0, 4.0, 0.0]


def test_random_inputs_stay_among_the_values_given():
    index, mask, table = torch.tensor([3, 7, 7, 9]), torch.tensor([True, False, True, True]), torch.randn(6)
    *_, last = samples(iter([batch_of(index, mask, table)]), None, seed=0)
    assert set(last.batch.args[0].tolist()) <= {3, 7, 9}
    assert last.batch.args[1].dtype == torch.bool
    assert torch.equal(last.batch.args[2], table)  # as long as it is, it is no batch
    *_, last = samples(iter([batch_of(torch.zeros(4, 50))]), None, seed=0)
    assert abs(last.batch.args[0].std().item() - 1) < 6 / math.sqrt(2 * 350)


def test_rows_start_again_at_the_first():
    assert rows(batch_of(torch.arange(3)), range(2, 6)).args[0].tolist() == [2, 0, 1, 2]


def test_the_reference_is_float64_and_the_model_stays_float32():
    model = nn.Linear(3, 2)
    batch = onnx_batch(torch.randn(4, 3), model)
    (output,) = Reference(model, batch)(batch)
    exact = batch.args[0].double() @ model.weight.double().T + model.bias.double()
    torch.testing.assert_close(output.exact, exact.detach(), rtol=1e-14, atol=1e-14)
    assert torch.equal(output.own, model(batch.args[0]))
    assert model.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("result", "inputs", "names"),
    [
        (torch.ones(1), ["x"], ["output"]),
        (torch.ones(1), ["output"], ["output_0"]),
        ((torch.ones(1), None, [torch.ones(1)]), ["x"], ["output_0", "output_1"]),
        ({"a": torch.ones(1), "b": None}, ["x"], ["a"]),
        ({"x": torch.ones(1)}, ["x"], ["output_0"]),
        ({"a": [torch.ones(1), torch.ones(1)]}, ["x"], ["output_0", "output_1"]),
    ],
)
def test_outputs_are_named(result, inputs, names):
    assert [output.name for output in outputs(result, inputs)] == names


def test_an_output_that_is_no_tensor_is_named():
    with pytest.raises(TypeError, match="every output of the model must be a tensor, got int"):
        outputs((torch.ones(1), 3), ["x"])


def test_the_converters_log_is_collected_and_everything_restored(capfd):
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    with pytest.raises(ZeroDivisionError), converter_log() as said:
        for logger in loggers:
            logger.warning("from %s", logger.name)
        logging.getLogger("torch.onnx").warning("torchvision is not installed. Skipping x")
        warnings.warn("a warning", UserWarning, stacklevel=1)
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
        print("a graph", file=sys.stderr)
        raise ZeroDivisionError
    assert said == ["from torch", "from torch.onnx", "from onnxscript", "UserWarning: a warning"]
    assert [(logger.handlers, logger.propagate) for logger in loggers] == before
    assert capfd.readouterr() == ("", "")
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", UserWarning, stacklevel=1)
