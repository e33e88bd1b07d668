"""A right file that torch wrote passes: the paths in it and the metadata it lacks are warnings, and decide nothing."""

import warnings

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from jumpout_export.export.publish import export_onnx
from jumpout_export.onnxfile.static import metadata_check
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)).relu().mean((2, 3))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mha, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.mha(x, x, x)[0]).mean(1)


NETWORKS = {"conv": (Conv, (4, 3, 8, 8)), "attention": (Attention, (4, 5, 8))}


@pytest.fixture(params=NETWORKS)
def of_torch(request, tmp_path):
    """A network, its example, and the file that torch writes of it, source lines and all."""
    torch.manual_seed(0)
    make, shape = NETWORKS[request.param]
    model, x, path = make().eval(), torch.randn(shape), tmp_path / "torch.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        torch.onnx.export(
            model, (x,), path, dynamo=True, input_names=["x"], output_names=["output"],
            dynamic_shapes=({0: "batch"},), verbose=False,
        )  # fmt: skip
    return model, x, path


def verdicts(report, verdict):
    return {check.name for check in report.checks if check.verdict == verdict}


def test_a_right_file_of_torch_passes_with_warnings(of_torch):
    model, x, path = of_torch
    report = verify_onnx(path, model, x)
    assert report, verdicts(report, "fail")
    assert verdicts(report, "warning") == {"file/local paths", "file/metadata"}


def test_a_wrong_one_fails_for_its_values_alone(of_torch):
    model, x, path = of_torch
    proto = onnx.load(path)
    weight = next(one for one in proto.graph.initializer if len(one.dims) > 1)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.1, weight.name))
    onnx.save(proto, path)
    report = verify_onnx(path, model, x)
    assert not report
    assert not any(name.startswith("file/") for name in verdicts(report, "fail"))


def test_an_export_with_a_path_in_it_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setattr("jumpout_export.export.provenance.version_of", lambda _name: "/home/me/wheels/torch")
    report = export_onnx(Conv(), tmp_path / "m.onnx", torch.randn(4, 3, 8, 8))
    assert not report
    assert verdicts(report, "fail") == {"file/local paths"}
    assert not (tmp_path / "m.onnx").exists()


def test_an_export_has_no_warning_and_its_file_none_either(tmp_path):
    torch.manual_seed(0)
    model, x = Conv(), torch.randn(4, 3, 8, 8)
    made = export_onnx(model, tmp_path / "m.onnx", x)
    assert made, verdicts(made, "fail")
    assert verdicts(made, "warning") == verdicts(verify_onnx(tmp_path / "m.onnx", model, x), "warning") == set()


def test_metadata_of_another_tool_says_nothing_of_the_weights():
    header = '<ir_version: 10, opset_import: ["" : 18]>'
    proto = onnx.parser.parse_model(f"{header} g (float[1] x) => (float[1] y) {{ y = Relu(x) }}")
    assert metadata_check(proto).verdict == "fail"
    proto.metadata_props.add(key="author", value="somebody")
    assert metadata_check(proto).verdict == "fail"
    proto.metadata_props.add(key="jumpout_export.version", value="0.1")
    assert metadata_check(proto).verdict == "pass"
