"""BatchNorm recomputed from the buffers: right files agree, a changed constant fails with layer and channel."""

import copy
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from jumpout_export.export.convert import convert
from jumpout_export.export.converter_log import converter_log
from jumpout_export.model.batches import Batch
from jumpout_export.tolerances import ROUNDINGS
from jumpout_export.verify.constants.proof import prove_constants
from jumpout_export.verify.verify import verify_onnx


class AfterAdd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(x + self.conv(x))


class Shared(nn.Module):
    """One BatchNorm behind two layers, and one layer before two BatchNorms."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.other(self.b(torch.relu(self.bn(self.b(torch.relu(self.bn(self.a(x))))))))


# What the exporter does with each BatchNorm: the node that holds its constants.
NETWORKS = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), (4, 6, 6), ["Conv"]),
    "conv without bias": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
        (4, 6, 6),
        ["Conv"],
    ),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), (4, 6, 6), ["Conv"]),
    "one weight": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4)), (4, 6, 6), ["Conv"]),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (4, 9), ["Conv"]),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,), ["Gemm"]),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        (4, 5, 5),
        ["ConvTranspose"],
    ),
    "first": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)), (4, 6, 6), ["BatchNormalization"]),
    "not affine": (
        lambda: nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 6, 3)),
        (4, 6, 6),
        ["BatchNormalization"],
    ),
    "after add": (AfterAdd, (4, 6, 6), ["BatchNormalization"]),
    "shared": (Shared, (4,), ["Gemm", "BatchNormalization", "BatchNormalization"]),
}


def trained(name, seed=0):
    make, shape, _ = NETWORKS[name]
    torch.manual_seed(seed)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.3, 3)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias)
    return model.eval(), torch.randn(6, *shape)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns a function that gives a network, its samples and its file."""
    folder, made = tmp_path_factory.mktemp("constants"), {}

    def give(name):
        if name not in made:
            model, samples = trained(name)
            convert(model, Batch((samples,), {}), folder / f"{name}.onnx")
            made[name] = model, samples, folder / f"{name}.onnx"
        return made[name]

    return give


def located(model, samples, path):
    proof = prove_constants(path, model, Batch((samples,), {}), None)
    return proof.located, next((check for check in proof.checks if check.name == "batchnorm constants"), None)


@pytest.mark.integration
@pytest.mark.parametrize("name", NETWORKS)
def test_a_right_file_agrees_and_every_batchnorm_is_located(name, files):
    model, samples, path = files(name)
    found, check = located(model, samples, path)
    kinds = [one.where.split()[0] for one in found]
    assert kinds[: len(NETWORKS[name][2])] == NETWORKS[name][2] or name == "shared"
    assert all(kinds)
    assert check.name == "batchnorm constants"
    assert check.verdict == "pass"
    assert check.measured < 0.5 * check.limit
    assert check.limit == pytest.approx(ROUNDINGS * 2**-23, rel=0.1)
    names = {one.name for one in found}
    assert check.note.startswith(f"{len(names)} of {len(names)} located; worst: ")


def shifted(path, bad, pick, channel, share):
    """Writes the file with one constant of the node that `pick` chooses changed by a share of its value."""
    proto = onnx.load(path)
    name = pick(proto)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[channel] *= 1 + share
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    bad.write_bytes(proto.SerializeToString())
    return bad


def constant_of(operator, position):
    return lambda proto: next(node for node in proto.graph.node if node.op_type == operator).input[position]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "operator", "position", "layer", "what"),
    [
        ("conv", "Conv", 2, "1", "bias"),
        ("conv", "Conv", 1, "1", "weights"),
        ("conv without bias", "Conv", 2, "1", "bias"),
        ("depthwise", "Conv", 2, "1", "bias"),
        ("one weight", "Conv", 2, "1", "bias"),
        ("linear", "Gemm", 2, "1", "bias"),
        ("transposed", "ConvTranspose", 2, "1", "bias"),
        ("first", "BatchNormalization", 1, "0", "scale"),
        ("not affine", "BatchNormalization", 4, "0", "scale"),
        ("after add", "BatchNormalization", 3, "bn", "shift"),
    ],
)
def test_one_constant_off_by_a_thousandth_fails_with_layer_and_channel(
    name, operator, position, layer, what, files, tmp_path
):
    model, samples, path = files(name)
    bad = shifted(path, tmp_path / "bad.onnx", constant_of(operator, position), 2, 1e-3)
    _, check = located(model, samples, bad)
    assert check.verdict == "fail"
    assert 1e-6 < check.measured <= 2e-3
    assert check.measured > 10 * check.limit
    assert check.note.startswith(f"`{layer}` channel 2: {what} off by ")
    assert "1 of 1 located" in check.note
    assert re.search(rf"\((folded into|as) {operator} ", check.note)


@pytest.mark.integration
def test_it_fails_although_the_data_hide_the_channel(tmp_path):
    """The head does not read channel 1, so no comparison of outputs can see it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[4].weight[:, 1] = 0
        model[1].running_mean.normal_()
    model, samples, path = model.eval(), torch.randn(6, 3, 6, 6), tmp_path / "model.onnx"
    convert(model, Batch((samples,), {}), path)
    assert verify_onnx(path, model, samples)
    report = verify_onnx(shifted(path, path, constant_of("Conv", 2), 1, 1e-3), model, samples)
    assert [check.name for check in report.checks if check.blocks] == ["batchnorm constants"]
    assert report.providers["cpu"].verdict == "pass"
    assert not report
    assert report.first_divergence == "0"
    assert report.notes[0].startswith("`0` differs by its constants alone: the values agree")


@pytest.mark.integration
@pytest.mark.parametrize("name", ["conv", "depthwise", "linear", "transposed", "first", "after add", "shared"])
def test_a_file_from_before_a_recalibration_fails_with_the_layers_named(name, files):
    model, samples, path = files(name)
    later = copy.deepcopy(model)
    norms = {
        path: module for path, module in later.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    for module in norms.values():
        module.running_mean += 0.05 * torch.randn_like(module.running_mean)
        module.running_var *= 1.1
    _, check = located(later, samples, path)
    assert check.verdict == "fail"
    assert all(f"`{path}` channel " in check.note for path in norms)


@pytest.mark.integration
def test_what_cannot_be_located_is_named_and_no_failure(files, tmp_path):
    """The file of another network, and a BatchNorm that is never called."""
    model, samples, _ = files("conv")
    found, check = located(model, samples, files("first")[2])
    assert [one.where for one in found] == [""]
    assert check.verdict == "pass"
    assert check.note == "0 of 1 located; not located: `1`"
    unused = nn.Sequential(*model)
    unused.forward = lambda x: model[0](x)
    _, check = located(unused, samples, files("conv")[2])
    assert check.note == "0 of 1 located; not located: `1`"


def test_a_model_that_cannot_run_is_a_note(files):
    model, _, path = files("conv")
    proof = prove_constants(path, model, Batch((torch.randn(2, 3, 6, 6),), {}), None)
    assert proof.located == []
    assert proof.notes[0].startswith("the BatchNorm constants could not be looked for in the file: ")


@pytest.mark.integration
def test_a_model_without_batchnorm_has_no_such_check(tmp_path):
    model, samples = nn.Sequential(nn.Linear(3, 2)).eval(), torch.randn(4, 3)
    convert(model, Batch((samples,), {}), tmp_path / "model.onnx")
    assert located(model, samples, tmp_path / "model.onnx") == ([], None)
    report = verify_onnx(tmp_path / "model.onnx", model, samples)
    assert "batchnorm constants" not in {check.name for check in report.checks}


@pytest.mark.integration
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_precisions_have_limits_of_their_own(dtype, tmp_path):
    model, samples = trained("conv")
    model, samples = model.to(dtype), samples.to(dtype)
    convert(model, Batch((samples,), {}), tmp_path / "model.onnx")
    _, check = located(model, samples, tmp_path / "model.onnx")
    assert (check.verdict, check.note[:14]) == ("pass", "1 of 1 located")
    share = 0.1 if dtype == torch.float16 else 1e-9
    bad = shifted(tmp_path / "model.onnx", tmp_path / "bad.onnx", constant_of("Conv", 1), 2, share)
    _, check = located(model, samples, bad)
    assert check.verdict == "fail"


@pytest.mark.integration
def test_a_mul_and_an_add_are_located(tmp_path):
    """As a decomposed BatchNorm, or one written by hand, has it."""

    class Decomposed(nn.Module):
        def __init__(self, bn):
            super().__init__()
            scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
            self.register_buffer("scale", scale.detach()[:, None, None])
            self.register_buffer("shift", (bn.bias - bn.running_mean * scale).detach()[:, None, None])

        def forward(self, x):
            return torch.relu(x) * self.scale + self.shift

    model, samples = trained("first")
    model = nn.Sequential(nn.ReLU(), model[0]).eval()
    with converter_log():
        convert(Decomposed(model[1]).eval(), Batch((samples,), {}), tmp_path / "model.onnx")
    found, check = located(model, samples, tmp_path / "model.onnx")
    assert [one.where for one in found] == ["a Mul and an Add"]
    assert check.verdict == "pass"
    assert np.isfinite(check.measured)
