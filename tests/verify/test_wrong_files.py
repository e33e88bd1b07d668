"""Every corruption of a good file fails for the right reason."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.verified import SAMPLES, Net, found, shifted
from torch import nn

from jumpout_export.export.converter_log import converter_log
from jumpout_export.export.publish import export_onnx
from jumpout_export.verify.verify import verify_onnx


class Masked(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.linear = nn.Linear(4, 5)
        self.register_buffer("mask", torch.tensor([0.0, 0, 0, 0, mask]))

    def forward(self, x):
        return self.linear(x) + self.mask


class Oscillating(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return torch.sin(1e7 * self.linear(x))


def two_scales():
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight[0] *= 1e5
    return model


def other_weights(model):
    with torch.no_grad():
        model.linear.weight.copy_(torch.randn_like(model.linear.weight))


def one_row_off(model):
    with torch.no_grad():
        model.weight[1] *= 1.01


def all_off(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("make", "edit", "right"),
    [
        (lambda: Masked(-1e4), other_weights, "pass"),
        (lambda: Masked(-1e9), other_weights, "pass"),
        (two_scales, one_row_off, "pass"),
        (lambda: nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 5)).half(), all_off, "pass"),
        # It multiplies rounding by 1e7: nothing can be said about any file, so the right one is not passed either.
        (Oscillating, other_weights, "fail"),
    ],
    ids=["masked -1e4", "masked -1e9", "two scales", "float16", "ill-conditioned"],
)
def test_no_model_buys_a_limit_under_which_a_wrong_file_passes(make, edit, right, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    wrong = copy.deepcopy(model)
    edit(wrong)
    samples = torch.randn(64, 4).to(next(model.parameters()).dtype)
    for source, name in ((model, "right"), (wrong, "wrong")):
        inputs = ["input" if isinstance(model, nn.Linear | nn.Sequential) else "x"]
        named = {"input_names": inputs, "output_names": ["output"], "dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}
        with converter_log():
            torch.onnx.export(source, (samples,), tmp_path / f"{name}.onnx", dynamo=True, verbose=False, **named)
    errors = [
        {check.verdict for check in verify_onnx(tmp_path / name, model, samples).checks if "data/worst" in check.name}
        for name in ("right.onnx", "wrong.onnx")
    ]
    assert errors == [{right}, {"fail"}]


@pytest.mark.parametrize("name", ["conv.weight", "conv.bias", "linear.weight", "linear.bias"])
def test_one_changed_weight_fails(name, corrupt):
    report = corrupt(lambda proto: shifted(proto, name, 1e-2))
    assert not report
    assert report.providers["cpu"].verdict == "fail"
    worst = found(report)["cpu/off/data/worst error"]
    assert worst.measured > 10 * worst.limit
    assert "output `output`, sample" in worst.note
    constants = "batchnorm constants" if name.startswith("conv") else "weights"
    assert {name.split("/")[0] for name in found(report)} == {"cpu", constants}
    assert report.first_divergence == name.split(".")[0]


@pytest.mark.integration
def test_the_batchnorm_constants_are_the_buffers(good, corrupt):
    """conv.bias in the file is the folded BatchNorm shift; a running mean that is off by 1e-3 shows."""
    model, path = good
    wrong = copy.deepcopy(model)
    wrong.bn.running_mean[2] += 1e-3
    assert verify_onnx(path, model, SAMPLES)
    assert "cpu/all/data/worst error" in found(verify_onnx(path, wrong, SAMPLES))


def test_a_renamed_output_fails(corrupt):
    def edit(proto):
        proto.graph.output[0].name = proto.graph.node[-1].output[0] = "logits"

    report = corrupt(edit)
    assert not report
    assert found(report)["cpu/off/names"].note == (
        "the file's outputs are logits, the model's are output; what serves a file asks by name: "
        "write it with output_names=['output'], an argument of torch.onnx.export"
    )
    assert report.providers["cpu"].reason.startswith("cpu/off/names: the file's outputs")


def test_a_renamed_input_fails(corrupt):
    def edit(proto):
        proto.graph.input[0].name = proto.graph.node[0].input[0] = "image"

    assert found(corrupt(edit))["cpu/all/names"].note == (
        "the file's inputs are image, the model's are x; what serves a file asks by name: "
        "write it with input_names=['x'], an argument of torch.onnx.export"
    )


def test_an_added_and_a_dropped_output_fail(corrupt, good):
    def edit(proto):
        proto.graph.node.append(helper.make_node("Identity", ["output"], ["more"]))
        proto.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 5]))

    assert "the file's outputs are output, more" in found(corrupt(edit))["cpu/off/names"].note

    class Two(Net):
        def forward(self, x):
            y = super().forward(x)
            return y, y + 1

    model, path = good
    two = Two()
    two.load_state_dict(model.state_dict())
    report = verify_onnx(path, two, SAMPLES)
    assert "the file's outputs are output, the model's are output_0, output_1" in found(report)["cpu/off/names"].note


def test_another_dtype_fails(corrupt):
    def edit(proto):
        proto.graph.node[-1].output[0] = "single"
        proto.graph.node.append(helper.make_node("Cast", ["single"], ["output"], to=TensorProto.DOUBLE))
        proto.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE

    note = found(corrupt(edit))["cpu/off/outputs"].note
    assert "batch=1: output `output` is float64[1, 5], in PyTorch it is float32[1, 5]" in note


def test_another_shape_fails(corrupt):
    def edit(proto):
        proto.graph.node[-1].output[0] = "whole"
        proto.graph.node.append(helper.make_node("Unsqueeze", ["whole", "axis"], ["output"]))
        proto.graph.initializer.append(numpy_helper.from_array(np.array([2]), "axis"))
        proto.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)

    assert "output `output` is float32[3, 5, 1], in PyTorch" in found(corrupt(edit))["cpu/all/outputs"].note


def insert(proto, node, *constants):
    """Puts a node between the last node and its input."""
    last = proto.graph.node[-1]
    node.input.insert(0, last.input[0])
    last.input[0] = node.output[0] = "inserted"
    proto.graph.node.insert(len(proto.graph.node) - 1, node)
    proto.graph.initializer.extend(constants)


RATIO = numpy_helper.from_array(np.array(0.5, dtype=np.float32), "ratio")


TRUE = numpy_helper.from_array(np.array(True), "true")


def test_a_training_dropout_shows_only_without_the_optimizer(corrupt):
    """ONNX Runtime's optimizer removes it, so a check at the default level alone would call the file repeatable."""
    report = corrupt(lambda proto: insert(proto, helper.make_node("Dropout", ["ratio", "true"], [""]), RATIO, TRUE))
    assert {"file/training dropout", "cpu/off/repeatable", "cpu/off/data/worst error"} <= found(report).keys()
    assert not any(name.startswith("cpu/all") for name in found(report))
    assert not report


@pytest.mark.integration
def test_a_noise_node_is_found_by_inspection_and_by_running(corrupt):
    def edit(proto):
        noise = helper.make_node("RandomUniformLike", [], [""], low=0.99, high=1.01)
        insert(proto, noise)

    report = corrupt(edit)
    assert {"file/random nodes", "cpu/off/repeatable", "cpu/all/repeatable"} <= found(report).keys()


def test_a_file_with_a_fixed_batch_size_is_verified_at_that_size(good, corrupt):
    def edit(proto):
        for end in (proto.graph.input[0], proto.graph.output[0]):
            end.type.tensor_type.shape.dim[0].ClearField("dim_param")
            end.type.tensor_type.shape.dim[0].dim_value = 3

    report = corrupt(edit)
    assert report
    names = [check.name for check in report.checks if "worst error" in check.name and "off" in check.name]
    assert [name.split("/")[2] for name in names] == ["batch=3", "made-up batch=3", "data"]
    assert any("; 42 samples" in check.note for check in report.checks)  # 40 in threes, the last filled up


def test_a_file_that_runs_at_one_batch_size_only_fails(corrupt):
    def edit(proto):
        insert(proto, helper.make_node("Reshape", ["shape"], [""]), numpy_helper.from_array(np.array([2, 4]), "shape"))

    report = corrupt(edit)
    assert "batch=1: ONNX Runtime cannot run it" in found(report)["cpu/off/outputs"].note


@pytest.mark.integration
def test_integer_outputs_must_be_equal(tmp_path):
    class Top(nn.Module):
        def forward(self, x):
            return {"score": x * 2, "top": x.argmax(1)}

    assert export_onnx(Top(), tmp_path / "top.onnx", torch.randn(4, 3))
    proto = onnx.load(tmp_path / "top.onnx")
    assert [output.name for output in proto.graph.output] == ["score", "top"]
    node = next(node for node in proto.graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"
    (tmp_path / "bad.onnx").write_bytes(proto.SerializeToString())
    report = verify_onnx(tmp_path / "bad.onnx", Top(), torch.randn(4, 3))
    assert found(report)["cpu/off/data/worst error"].note.startswith("output `top`, sample")
    assert (found(report)["cpu/off/data/worst error"].measured, found(report)["cpu/off/data/worst error"].limit) == (
        1,
        0,
    )
