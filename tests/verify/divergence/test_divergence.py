"""The first layer that differs: one weight of one layer is changed in a saved file, and exactly that layer is named."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from jumpout_export.export.convert import convert
from jumpout_export.export.converter_log import converter_log
from jumpout_export.export.publish import export_onnx
from jumpout_export.model.batches import Batch
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.render.headline import headline
from jumpout_export.verify.divergence.locate import locate_divergence
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration


def block(inputs, outputs, kernel=3, groups=1):
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = block(3, 6), block(6, 6)
        self.hidden, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.sigmoid(self.norm(self.hidden(self.two(self.one(x)).mean((2, 3))))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.shortcut, self.bn3 = nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.after, self.relu, self.head = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Linear(6, 4)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.head(self.relu(self.after(y + self.bn3(self.shortcut(x)))).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.deep, self.point = block(3, 6), block(6, 6, groups=6), block(6, 8, 1, groups=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.point(self.deep(self.stem(x))).mean((2, 3)))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.second = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)
        self.last, self.head = nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(F.pad(x, (1, 1, 1, 1)))))
        return F.linear(self.last(F.gelu(self.second(x)).mean((2, 3))), self.head.weight, self.head.bias)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.bn, self.head = nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x):
        n, length, _ = x.shape
        y = self.norm(x)
        q, k, v = (part(y).view(n, length, 2, 4).transpose(1, 2) for part in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 2, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, length, 8))
        return self.head(self.bn(x.mean(1)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.bn, self.head = nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.bn(self.layer(x).mean(1)))


SAMPLES = {Attention: (6, 8), Encoder: (6, 8)}
# Which BatchNorm the exporter folds into which layer.
FOLDED = {
    Plain: {"one.0": "one.1", "two.0": "two.1", "hidden": "norm"},
    Residual: {"conv1": "bn1", "conv2": "bn2", "shortcut": "bn3"},
    Depthwise: {"stem.0": "stem.1", "deep.0": "deep.1", "point.0": "point.1"},
    Functional: {"conv": "bn"},
}
NETWORKS = [Plain, Residual, Depthwise, Functional, Attention, Encoder]


def trained(network):
    """A network whose BatchNorms hold statistics that are close to, but not, those of the samples."""
    torch.manual_seed(0)
    model, samples = network(), torch.randn(24, *SAMPLES.get(network, (3, 8, 8)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # layers of equal weights would share one initializer
                parameter.add_(0.2 * torch.randn_like(parameter))
        for _ in range(20):
            model.train()(samples)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean += 0.1 * torch.randn_like(module.running_mean)
                module.running_var *= 0.8 + 0.4 * torch.rand_like(module.running_var)
    return model.eval(), samples


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: network.__name__)
def exported(request, tmp_path_factory):
    model, samples = trained(request.param)
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    convert(model, Batch((samples,), {}), path)
    return model, samples, path


def weights_in_the_file(model):
    """(layer, values as the file must hold them) of every layer, BatchNorm folded in by torch's own function."""
    modules, folded = dict(model.named_modules()), FOLDED.get(type(model), {})
    swallowed = set(folded.values())
    for path, module in modules.items():
        own = [name for name, _ in module.named_parameters(recurse=False) if name.endswith("weight")]
        if not own or path in swallowed:
            continue
        weight = getattr(module, own[0])
        if path in folded:
            bn = modules[folded[path]]
            fuse = fuse_linear_bn_weights if isinstance(module, nn.Linear) else fuse_conv_bn_weights
            statistics = (bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
            weight, bias = fuse(weight, module.bias, *statistics)
            yield path, bias
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            yield path, module.running_mean
        yield path, weight


def with_one_changed(proto, values, amount=0.05):
    """Returns a copy in which one of these values is changed where it stands, and the name of its initializer."""
    wanted = values.detach().numpy()
    for index, tensor in enumerate(proto.graph.initializer):
        array = numpy_helper.to_array(tensor)
        for form in (wanted, wanted.T):
            if array.shape == form.shape and np.allclose(array, form, rtol=1e-4, atol=1e-6):
                changed, edited = array.copy(), copy.deepcopy(proto)
                changed.reshape(-1)[changed.size // 2] += amount * np.abs(changed).max()
                edited.graph.initializer[index].CopyFrom(numpy_helper.from_array(changed, tensor.name))
                return edited
    raise AssertionError("the file does not hold these values")


def test_a_changed_weight_of_any_layer_names_exactly_that_layer(exported, tmp_path):
    model, samples, path = exported
    bad, proto, found = tmp_path / "bad.onnx", onnx.load(path), {}
    wanted = list(weights_in_the_file(model))
    assert len({layer for layer, _ in wanted}) >= 4
    for number, (layer, values) in enumerate(wanted):
        bad.write_bytes(with_one_changed(proto, values).SerializeToString())
        report = verify_onnx(bad, model, samples)
        found[number, layer] = (bool(report), report.first_divergence)
    assert found == {(number, layer): (False, layer) for number, (layer, _) in enumerate(wanted)}


def test_a_right_file_has_no_divergence_and_is_not_searched(exported, monkeypatch):
    model, samples, path = exported
    monkeypatch.setattr("jumpout_export.verify.divergence.suspects.locate_divergence", None)  # calling it would raise
    report = verify_onnx(path, model, samples)
    assert report
    assert report.first_divergence is None
    assert not any("differs" in note or "no layer" in note for note in report.notes)


@pytest.mark.parametrize("network", [Residual, Encoder], ids=["Residual", "Encoder"])
@pytest.mark.parametrize("fold", [True, False], ids=["folded", "as it is"])
def test_files_of_the_older_exporter_are_matched_too(network, fold, tmp_path):
    model, samples = trained(network)
    path, mode = tmp_path / "old.onnx", torch.onnx.TrainingMode
    settings = {"input_names": ["x"], "output_names": ["output"], "dynamic_axes": {"x": {0: "n"}, "output": {0: "n"}}}
    with converter_log():
        torch.onnx.export(
            model, (samples[:2],), path, dynamo=False, training=mode.EVAL if fold else mode.PRESERVE, **settings
        )
    assert verify_onnx(path, model, samples)
    layer, values = "head", model.head.weight
    if network is Residual and not fold:
        layer, values = "conv2", model.conv2.weight
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(with_one_changed(onnx.load(path), values).SerializeToString())
    assert verify_onnx(bad, model, samples).first_divergence == layer


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    model, samples = trained(Residual)
    path = tmp_path_factory.mktemp("residual") / "model.onnx"
    convert(model, Batch((samples,), {}), path)
    return model, samples, path


def edited(path, edit):
    proto = onnx.load(path)
    edit(proto)
    bad = path.with_name("bad.onnx")
    bad.write_bytes(proto.SerializeToString())
    return bad


def test_a_relu_that_became_an_identity_is_named(residual):
    model, samples, path = residual

    def edit(proto):
        next(node for node in proto.graph.node if node.op_type == "Relu").op_type = "Identity"

    report = verify_onnx(edited(path, edit), model, samples)
    assert report.first_divergence == "relu"
    assert "is off by" in report.notes[0]
    assert headline(report)[1].startswith("`bad.onnx`: The first layer that differs is `relu`.")


def test_a_residual_sum_of_the_wrong_branch_names_the_forward_and_its_line(residual):
    model, samples, path = residual

    def edit(proto):
        add = next(node for node in proto.graph.node if node.op_type == "Add")
        add.input[0] = add.input[1]

    report = verify_onnx(edited(path, edit), model, samples)
    assert report.first_divergence == "."
    assert "the model's own forward is the first that differs" in report.notes[0]
    assert "aten.add.Tensor" in report.notes[0]
    assert "test_divergence.py:" in report.notes[0]


def test_statistics_of_another_layer_name_the_layer_they_are_folded_into(residual):
    model, samples, path = residual
    wrong = copy.deepcopy(model)
    wrong.bn2.load_state_dict(model.bn1.state_dict())
    report = verify_onnx(path, wrong, samples)
    assert report.first_divergence == "conv2"
    assert "`conv2` (with BatchNorm `bn2` folded into it) is the first that differs" in report.notes[0]
    assert "no value in the file is like its result" in report.notes[0]


def test_nan_and_another_shape_are_located(residual):
    model, samples, path = residual

    def nan(proto):
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "conv2.weight")
        tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, np.nan, np.float32), tensor.name))

    def shape(proto):
        proto.graph.node[-1].output[0] = "whole"
        proto.graph.node.append(helper.make_node("Concat", ["whole", "whole"], ["output"], axis=1))
        proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8

    assert verify_onnx(edited(path, nan), model, samples).first_divergence == "conv2"
    report = verify_onnx(edited(path, shape), model, samples)
    assert not report
    assert report.first_divergence in (None, "head")


def test_few_bytes_per_run_find_the_same_layer(residual):
    model, samples, path = residual
    bad = edited(path, lambda proto: None)
    bad.write_bytes(with_one_changed(onnx.load(path), dict(weights_in_the_file(model))["conv2"]).SerializeToString())
    batch = Batch((samples[:4],), {})
    whole = locate_divergence(bad, load_onnx(bad), model, batch, [])
    small = locate_divergence(bad, load_onnx(bad), model, batch, [], bytes_per_run=1)
    assert whole.layer == "conv2"
    assert whole == small


def test_external_data_keeps_working(residual, tmp_path):
    model, samples, path = residual
    proto = with_one_changed(onnx.load(path), dict(weights_in_the_file(model))["conv1"])
    onnx.save_model(proto, tmp_path / "bad.onnx", save_as_external_data=True, location="bad.data", size_threshold=0)
    assert (tmp_path / "bad.data").stat().st_size
    assert verify_onnx(tmp_path / "bad.onnx", model, samples).first_divergence == "conv1"


def test_a_shared_layer_and_an_all_zero_branch_do_not_mislead(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.dead, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
            return self.head(x + torch.relu(self.dead(x) - 100))

    torch.manual_seed(0)
    model, samples, path = Shared().eval(), torch.randn(16, 6), tmp_path / "model.onnx"
    assert export_onnx(model, path, samples)
    for layer in ("twice", "head"):
        changed = with_one_changed(onnx.load(path), getattr(model, layer).weight)
        (tmp_path / "bad.onnx").write_bytes(changed.SerializeToString())
        assert verify_onnx(tmp_path / "bad.onnx", model, samples).first_divergence == layer


def test_a_file_that_cannot_be_searched_says_so_and_its_constants_name_the_layer(residual, monkeypatch):
    model, samples, path = residual
    bad = path.with_name("bad.onnx")
    bad.write_bytes(with_one_changed(onnx.load(path), model.head.weight).SerializeToString())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jumpout_export.verify.divergence.values._marked", full)
    report = verify_onnx(bad, model, samples)
    assert not report
    assert report.first_divergence == "head"
    assert report.notes[0].startswith("`head` is the first that differs by its constants; `head.weight` has 1 of ")
    assert "the first layer that differs could not be looked for: [Errno 28] No space left on device" in report.notes[0]


def test_a_right_file_shows_no_divergence_even_when_it_is_searched(residual):
    model, samples, path = residual
    found = locate_divergence(path, load_onnx(path), model, Batch((samples[:4],), {}), [])
    assert found.layer is None
    assert not found.reproduced
    assert found.note == "no layer can be named: with the values inside of it as outputs the file is right"
