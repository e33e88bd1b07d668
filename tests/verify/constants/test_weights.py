"""Which values a right file may hold, and the verdict on its constants, from files written out by hand."""

import numpy as np
import torch
from support.onnx_files import parsed, saved
from torch import nn

from jumpout_export.model.signature import onnx_batch
from jumpout_export.verify.constants.batchnorms import Located
from jumpout_export.verify.constants.known import known_values
from jumpout_export.verify.constants.proof import prove_constants, recorded_run

X = torch.ones(2, 3)


class Scaled(nn.Module):
    """A weight that it doubles first, one that it does not use, and a BatchNorm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.spare = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(7))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(x @ (self.weight * 2))


def known(located=()):
    model = Scaled().eval()
    return model, known_values(model, recorded_run(model, onnx_batch(X, model)), list(located))


def weights_check(path, model):
    checks = prove_constants(path, model, onnx_batch(X, model), None).checks
    return next((check for check in checks if check.name == "weights"), None)


def test_weights_and_what_the_model_makes_of_them_are_known():
    model, values = known([Located("norm", 3, "norm")])
    assert {one.name: one.judged for one in values if one.name} == {
        "weight": True,
        "spare": True,
        "norm.weight": False,
        "norm.bias": False,
        "norm.running_mean": False,
        "norm.running_var": False,
    }  # the counter is a single integer, the rest of a BatchNorm is a check of its own
    made = [one.array for one in values if not one.name]
    assert any(np.array_equal(array, model.weight.detach().numpy() * 2) for array in made)


def test_the_weights_of_a_layer_that_a_batchnorm_is_folded_into_are_not_looked_for():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    recorded = recorded_run(model, onnx_batch(X, model))
    judged = {one.name for one in known_values(model, recorded, [Located("1", 3, "1")]) if one.name and one.judged}
    assert judged == {"0.weight", "0.bias"}
    # Operation 0 is the transposition of the weight, 2 an empty tensor.
    folded = known_values(model, recorded, [Located("1", 3, "0", "Gemm fc", layer=1)])
    assert not any(one.judged for one in folded if one.name)


def test_a_name_tells_only_where_every_batchnorm_was_found():
    assert all(one.by_name for one in known([Located("norm", 3, "norm", "BatchNormalization n")])[1] if one.name)
    assert not any(one.by_name for one in known([Located("norm", 3, "norm")])[1])


def test_a_model_that_cannot_run_may_make_anything_of_its_weights():
    model = nn.Linear(3, 2)
    recorded = recorded_run(model, onnx_batch(torch.ones(2, 5), model))
    assert recorded.problem.startswith("mat1 and mat2 shapes cannot be multiplied")
    values = known_values(model, recorded, [])
    assert [(one.name, one.by_name) for one in values] == [("weight", False), ("bias", False)]


def test_one_wrong_value_fails_and_the_right_file_passes(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    values = {name: value.detach().numpy() for name, value in model.named_parameters()}
    text = "g (float[n,3] x) => (float[n,4] y) { y = Gemm<transB = 1>(x, weight, bias) }"
    check = weights_check(saved(parsed(text, values), tmp_path / "right.onnx"), model)
    assert (check.verdict, check.note) == ("pass", "2 of 2 weights are in the file bit for bit")
    values["weight"] = values["weight"].copy()
    values["weight"][3, 1] = 5
    check = weights_check(saved(parsed(text, values), tmp_path / "wrong.onnx"), model)
    assert (check.verdict, check.measured) == ("fail", 1)
    assert check.note.startswith("`weight` has 1 of 12 values wrong in the file, the first at [3, 1]: 5 instead of ")


def test_a_model_without_weights_has_no_such_check(tmp_path):
    path = saved("g (float[n,3] x) => (float[n,3] y) { y = Relu(x) }", tmp_path / "m.onnx")
    assert weights_check(path, nn.ReLU()) is None
