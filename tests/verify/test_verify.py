"""Verification of a saved file: a good one passes, and every corruption of it fails for the right reason."""

import copy
import hashlib
import math
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from jumpout_export import Jumpout
from jumpout_export.errors import LoadError
from jumpout_export.export.convert import converter_log
from jumpout_export.export.publish import export_onnx
from jumpout_export.onnxfile import static as graph
from jumpout_export.verify.verify import verify_onnx


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = Jumpout(sigma=0.1, relu=True)
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        return self.linear(self.drop(self.bn(self.conv(x))).mean((2, 3)))


IMAGES = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A trained network and its verified file."""
    torch.manual_seed(0)
    model = Net()
    for _ in range(5):
        model(IMAGES * 2 + 1)
    path = tmp_path_factory.mktemp("good") / "model.onnx"
    assert export_onnx(model, path, IMAGES[:4])
    return model, path


@pytest.fixture
def corrupt(good, tmp_path):
    """Returns a function that applies an edit to a copy of the good file and verifies it."""
    model, path = good

    def verify(edit, **arguments):
        proto = onnx.load(path)
        edit(proto)
        (tmp_path / "bad.onnx").write_bytes(proto.SerializeToString())
        return verify_onnx(tmp_path / "bad.onnx", model, IMAGES, **arguments)

    return verify


def found(report):
    return {check.name: check for check in report.checks if check.verdict != "pass"}


def initializer(proto, name):
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def shifted(proto, name, amount):
    tensor = initializer(proto, name)
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] += amount
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def test_a_good_file_passes_at_both_levels_and_all_sizes(good):
    model, path = good
    report = verify_onnx(path, model, [(IMAGES[:16], torch.zeros(16, dtype=torch.int64)), IMAGES[16:]])
    assert report
    assert report.kind == "verify"
    assert report.providers["cpu"].verdict == "pass"
    names = {check.name for check in report.checks}
    for level in ("off", "all"):
        groups = [f"{random}batch={size}" for random in ("", "random ") for size in (1, 2, 7)] + ["data"]
        assert {f"cpu/{level}/{group}/worst error" for group in groups} <= names
        assert {f"cpu/{level}/{kind}" for kind in ("names", "outputs", "finite", "repeatable")} <= names
    data = next(check for check in report.checks if check.name == "cpu/all/data/worst error")
    assert "; 40 images, top-1 agrees on 40" in data.note
    assert 0 < data.measured < data.limit < 1e-5
    note = "8 x torch's own error against float64 + 16 eps, at most 0.001 in float32, of the channel's size"
    assert f"error limit per output: {note}" in report.notes


def test_the_measured_error_is_what_a_bare_session_shows(good):
    model, path = good
    report = verify_onnx(path, model, IMAGES)
    (got,) = onnxruntime.InferenceSession(path).run(None, {"x": IMAGES.numpy()})
    with torch.no_grad():
        exact = copy.deepcopy(model).eval().double()(IMAGES.double())
    error = (torch.from_numpy(got).double() - exact).abs()
    check = next(check for check in report.checks if check.name == "cpu/all/data/worst error")
    image, channel = (int(number) for number in re.match(r".*image (\d+), index \((\d+),\)", check.note).groups())
    assert check.measured == pytest.approx(error[image, channel].item(), rel=1e-6)


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
    images = torch.randn(64, 4).to(next(model.parameters()).dtype)
    for source, name in ((model, "right"), (wrong, "wrong")):
        inputs = ["input" if isinstance(model, nn.Linear | nn.Sequential) else "x"]
        named = {"input_names": inputs, "output_names": ["output"], "dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}
        with converter_log():
            torch.onnx.export(source, (images,), tmp_path / f"{name}.onnx", dynamo=True, verbose=False, **named)
    errors = [
        {check.verdict for check in verify_onnx(tmp_path / name, model, images).checks if "data/worst" in check.name}
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
    assert "output `output`, image" in worst.note
    constants = "batchnorm constants" if name.startswith("conv") else "weights"
    assert {name.split("/")[0] for name in found(report)} == {"cpu", constants}
    assert report.first_divergence == name.split(".")[0]


def test_the_batchnorm_constants_are_the_buffers(good, corrupt):
    """conv.bias in the file is the folded BatchNorm shift; a running mean that is off by 1e-3 shows."""
    model, path = good
    wrong = copy.deepcopy(model)
    wrong.bn.running_mean[2] += 1e-3
    assert verify_onnx(path, model, IMAGES)
    assert "cpu/all/data/worst error" in found(verify_onnx(path, wrong, IMAGES))


def test_a_renamed_output_fails(corrupt):
    def edit(proto):
        proto.graph.output[0].name = proto.graph.node[-1].output[0] = "logits"

    report = corrupt(edit)
    assert not report
    assert found(report)["cpu/off/names"].note == "the file's outputs are logits, the model's are output"
    assert report.providers["cpu"].reason.startswith("cpu/off/names: the file's outputs")


def test_a_renamed_input_fails(corrupt):
    def edit(proto):
        proto.graph.input[0].name = proto.graph.node[0].input[0] = "image"

    assert found(corrupt(edit))["cpu/all/names"].note == "the file's inputs are image, the model's are x"


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
    report = verify_onnx(path, two, IMAGES)
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

    assert "output `output` is float32[7, 5, 1], in PyTorch" in found(corrupt(edit))["cpu/all/outputs"].note


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


def test_a_noise_node_is_found_by_inspection_and_by_running(corrupt):
    def edit(proto):
        noise = helper.make_node("RandomUniformLike", [], [""], low=0.99, high=1.01)
        insert(proto, noise)

    report = corrupt(edit)
    assert {"file/random nodes", "cpu/off/repeatable", "cpu/all/repeatable"} <= found(report).keys()


def test_nan_in_the_file_fails(corrupt):
    report = corrupt(lambda proto: shifted(proto, "linear.bias", math.nan))
    assert "output `output` has" in found(report)["cpu/off/finite"].note
    assert found(report)["cpu/off/data/worst error"].measured == math.inf


def test_nan_in_both_fails(tmp_path):
    class Root(nn.Module):
        def forward(self, x):
            return torch.sqrt(x)

    node = helper.make_node("Sqrt", ["x"], ["output"])
    both = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "output")]
    graph = helper.make_graph([node], "graph", both[:1], both[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "sqrt.onnx").write_bytes(model.SerializeToString())
    assert verify_onnx(tmp_path / "sqrt.onnx", Root(), torch.ones(3, 2) + torch.rand(3, 2))
    report = verify_onnx(tmp_path / "sqrt.onnx", Root(), torch.tensor([[-1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]))
    assert not report
    assert {"cpu/off/finite", "cpu/all/finite"} <= found(report).keys()


def test_a_file_with_a_fixed_batch_size_is_verified_at_that_size(good, corrupt):
    def edit(proto):
        for end in (proto.graph.input[0], proto.graph.output[0]):
            end.type.tensor_type.shape.dim[0].ClearField("dim_param")
            end.type.tensor_type.shape.dim[0].dim_value = 3

    report = corrupt(edit)
    assert report
    names = [check.name for check in report.checks if "worst error" in check.name and "off" in check.name]
    assert [name.split("/")[2] for name in names] == ["batch=3", "data", "random batch=3"]
    assert any("; 42 images" in check.note for check in report.checks)  # 40 in threes, the last filled up


def test_a_file_that_runs_at_one_batch_size_only_fails(corrupt):
    def edit(proto):
        insert(proto, helper.make_node("Reshape", ["shape"], [""]), numpy_helper.from_array(np.array([2, 4]), "shape"))

    report = corrupt(edit)
    assert "batch=1: ONNX Runtime cannot run it" in found(report)["cpu/off/outputs"].note


def test_a_model_random_in_eval_mode_is_a_failure_not_an_exception(good):
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x) * torch.rand(())

    model, path = good
    noisy = Noisy()
    noisy.load_state_dict(model.state_dict())
    report = verify_onnx(path, noisy, IMAGES)
    assert "draws random numbers in eval mode" in found(report)["randomness"].note
    assert report.providers["cpu"].verdict == "not_run"
    assert not report


def test_a_broken_batchnorm_fails_in_verification_too(good):
    model, path = good
    broken = copy.deepcopy(model)
    broken.bn.running_var[0] = torch.nan
    report = verify_onnx(path, broken, IMAGES)
    assert "`bn` running_var" in found(report)["batchnorm"].note


def test_a_model_that_does_not_run_in_float64_is_compared_coarser_and_said_so(good, tmp_path):
    class Fixed(Net):
        def forward(self, x):
            return super().forward(x.float())

    model, path = good
    fixed = Fixed()
    fixed.load_state_dict(model.state_dict())
    report = verify_onnx(path, fixed, IMAGES)
    assert report
    assert any(
        note.startswith("compared with PyTorch's own precision, because the model fails in") for note in report.notes
    )
    with torch.no_grad():
        fixed.linear.weight[0, 0] += 1e-2
    assert not verify_onnx(path, fixed, IMAGES)


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
    assert found(report)["cpu/off/data/worst error"].note.startswith("output `top`, image")
    assert (found(report)["cpu/off/data/worst error"].measured, found(report)["cpu/off/data/worst error"].limit) == (
        1,
        0,
    )


def test_comparing_nothing_is_an_error(good):
    model, path = good
    for nothing in ([], iter(())):
        with pytest.raises(ValueError, match="nothing to compare: inputs is empty"):
            verify_onnx(path, model, nothing)
    with pytest.raises(ValueError, match=r"example: the batch must not be empty, got shape \(0, 1, 8, 8\)"):
        verify_onnx(path, model, IMAGES[:0])
    with pytest.raises(TypeError, match="inputs must be a batch or an iterable of batches, got int"):
        verify_onnx(path, model, 3)


def test_an_unknown_provider_is_an_error(good):
    model, path = good
    with pytest.raises(ValueError, match="providers must be of cpu, cuda, got 'tensorrt'"):
        verify_onnx(path, model, IMAGES, ("cpu", "tensorrt"))
    with pytest.raises(ValueError, match="providers must be of cpu, cuda, got none"):
        verify_onnx(path, model, IMAGES, ())


def test_an_unreadable_file_is_an_error(good, tmp_path):
    model, path = good
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:500])
    with pytest.raises(LoadError, match=r"cut.onnx: not a readable ONNX model"):
        verify_onnx(tmp_path / "cut.onnx", model, IMAGES)
    with pytest.raises(LoadError, match=r"none.onnx: no such file"):
        verify_onnx(tmp_path / "none.onnx", model, IMAGES)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has the CUDA provider"
)
def test_cuda_that_cannot_be_used_is_not_run_and_not_passed(good):
    model, path = good
    report = verify_onnx(path, model, IMAGES, ("cpu", "cuda"))
    assert report.providers["cpu"].verdict == "pass"
    assert report.providers["cuda"].verdict == "not_run"
    assert "has no CUDAExecutionProvider" in report.providers["cuda"].reason
    assert "pip install 'jumpout-export[onnx-gpu]'" in report.providers["cuda"].reason
    assert not report
    assert {check.name: check.verdict for check in found(report).values()} == {"cuda": "not_run"}


def test_the_model_and_the_generators_stay_as_they_were(good):
    model, path = good
    model = copy.deepcopy(model).train()
    before = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    verify_onnx(path, model, IMAGES)
    torch.testing.assert_close(model.state_dict(), before[0], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(module.training for module in model.modules())


def test_a_file_that_is_replaced_while_it_is_verified_fails_and_the_hash_is_of_the_first(good, tmp_path):
    model, path = good
    served, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    shutil.copy(path, served)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    proto = onnx.load(path)
    shifted(proto, "linear.bias", 1.0)
    other.write_bytes(proto.SerializeToString())

    def replace(what, done, total):
        if done == 1:
            other.replace(served)

    report = verify_onnx(served, model, IMAGES[:4], progress=replace)
    assert found(report)["file/unchanged"].note.startswith("the file was changed while it was looked at")
    assert "model.onnx; run this again" in found(report)["file/unchanged"].note
    assert report.sha256 == before


@pytest.mark.parametrize("gone", [False, True], ids=["changed", "deleted"])
def test_weights_beside_the_file_that_change_while_it_is_verified_fail(gone, tmp_path):
    model, x = nn.Linear(32, 32), torch.randn(3, 32)
    path = tmp_path / "model.onnx"
    assert export_onnx(model, path, x, external_data=True)
    data = next(tmp_path.glob("*.data"))
    content = data.read_bytes()

    def replace(what, done, total):
        if done == 1:
            data.unlink()
            if not gone:
                data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    report = verify_onnx(path, model, x, progress=replace)
    assert data.name in found(report)["file/unchanged"].note


def test_a_file_that_is_replaced_while_it_is_inspected_fails(good, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    shutil.copy(good[1], path)
    inspect = graph.inspect_file

    def slow(*arguments):
        checks = inspect(*arguments)
        path.write_bytes(path.read_bytes() + b" ")
        return checks

    assert graph.inspect_onnx(path)
    monkeypatch.setattr(graph, "inspect_file", slow)
    assert found(graph.inspect_onnx(path)).keys() == {"file/unchanged"}


class Infinite(nn.Module):
    """Scores of which some are -inf on purpose."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        return self.linear(x).masked_fill(torch.tensor([False, True, False, False, True]), -math.inf)


def test_infinite_values_that_pytorch_gives_too_fail_and_no_layer_is_blamed(tmp_path):
    report = export_onnx(Infinite(), tmp_path / "model.onnx", torch.randn(4, 6))
    assert found(report).keys() == {"cpu/off/finite", "cpu/all/finite"}
    note = found(report)["cpu/off/finite"].note
    assert re.fullmatch(r"output `output` has \d+ NaN or infinite values; PyTorch itself gives them", note)
    assert report.first_divergence is None
    assert not any("differ" in note for note in report.notes)


@pytest.mark.parametrize("other", [math.inf, math.nan, 3.0], ids=str)
def test_a_value_that_is_not_the_infinity_of_pytorch_is_the_files_fault(other, tmp_path):
    model = Infinite()
    values = [
        numpy_helper.from_array(model.linear.weight.detach().numpy(), "weight"),
        numpy_helper.from_array(model.linear.bias.detach().numpy(), "bias"),
        numpy_helper.from_array(np.array([False, True, False, False, True]), "mask"),
        numpy_helper.from_array(np.array([0, -math.inf, 0, 0, other], np.float32), "filled"),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "weight", "bias"], ["scores"], transB=1),
        helper.make_node("Where", ["mask", "filled", "scores"], ["output"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", 6), ("output", 5))
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "wrong", ends[:1], ends[1:], values),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    report = verify_onnx(tmp_path / "model.onnx", model, torch.randn(4, 6))
    assert "; PyTorch itself gives" in found(report)["cpu/off/finite"].note
    assert not found(report)["cpu/off/finite"].note.endswith("gives them")
    assert found(report)["cpu/off/data/worst error"].verdict == "fail"
