"""bfloat16: where a runtime has the kernels it is verified by its own unit of error, elsewhere the nodes are named.

ONNX Runtime's CPU provider has LayerNormalization and what only moves values in bfloat16, and hardly anything else.
"""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper, parser
from support.project import OPENVINO
from support.reports import found, note
from torch import nn

from jumpout_export import export_onnx, verify_onnx
from jumpout_export.errors import NotVerifiableError
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.runtime.kernels import describe_bfloat16, explain_bfloat16
from jumpout_export.runtime.providers import fallback
from jumpout_export.runtime.session import open_session
from jumpout_export.tolerances import ceiling, describe_budget

pytestmark = pytest.mark.integration

X = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(1))


def norm():
    """Runs in bfloat16 on the CPU."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.LayerNorm(8), nn.Flatten()).eval()
    nn.init.uniform_(network[0].weight, 0.5, 2.0)
    nn.init.uniform_(network[0].bias, -1.0, 1.0)
    return network


def convolutions():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(*layers).eval()


class Between(nn.Module):
    """A LayerNorm in bfloat16 between what stays float32."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = norm()[0].bfloat16(), nn.Linear(8, 4)

    def forward(self, x):
        return torch.relu(self.head(self.norm(x.bfloat16()).float()))


class Stored(nn.Module):
    """Only its weights are bfloat16."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 8).bfloat16())

    def forward(self, x):
        return torch.relu(x @ self.weight.float().T)


def bits_of(path, inputs):
    """What ONNX Runtime gives, by way of its own values and DLPack: nothing of this package."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
        inputs.view(torch.uint16).numpy(), TensorProto.BFLOAT16
    )
    (output,) = session.run_with_ort_values(None, {session.get_inputs()[0].name: given})
    return torch.from_dlpack(output)


@pytest.mark.parametrize("own", [True, False], ids=["a bfloat16 model", "dtype=torch.bfloat16"])
def test_where_there_are_kernels_a_bfloat16_file_is_published(own, tmp_path):
    path = tmp_path / "m.onnx"
    model, batch = (norm().bfloat16(), X.bfloat16()) if own else (norm(), X)
    report = export_onnx(model, path, batch, calibration=[batch, batch[:2]], dtype=None if own else torch.bfloat16)
    assert report, found(report)
    proto = onnx.load(path)
    assert {one.type.tensor_type.elem_type for one in (*proto.graph.input, *proto.graph.output)} == {
        TensorProto.BFLOAT16
    }
    assert report.opset == 22
    assert "the nodes compute: 1 LayerNormalization, 1 Reshape in bfloat16; none in float32" in report.notes
    worst = next(check for check in report.checks if check.name == "cpu/all/data/worst error")
    # Of bfloat16's size: an eps is 0.8% of a value, and the limit follows PyTorch's own error.
    assert 1e-3 < worst.measured < worst.limit < ceiling(torch.bfloat16) == 0.25
    assert f"error limit per output: {describe_budget(torch.bfloat16)}" in report.notes
    # An oracle of its own.
    with torch.no_grad():
        exact = copy.deepcopy(norm()).double()(X.double())
    got = bits_of(path, X.bfloat16())
    assert got.dtype == torch.bfloat16
    assert float((got.double() - exact).abs().max()) < 0.03 * float(exact.abs().max())
    assert verify_onnx(path, model, batch)
    if not own:
        assert report.provenance["jumpout_export.dtype"] == "bfloat16"
        assert note(report, "precision").startswith("bfloat16 against the model's own precision, 8 samples: output")


def test_a_wrong_weight_or_another_network_in_bfloat16_is_refused(tmp_path):
    path, model = tmp_path / "m.onnx", norm().bfloat16()
    assert export_onnx(model, path, X.bfloat16())
    proto = onnx.load(path)
    weight = next(one for one in proto.graph.initializer if one.name == "0.weight")
    array = numpy_helper.to_array(weight).copy()
    array[3] *= 2
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    wrong = tmp_path / "wrong.onnx"
    onnx.save(proto, wrong)
    report = verify_onnx(wrong, model, X.bfloat16())
    assert report.providers["cpu"].verdict == "fail"
    failed = {check.name for check in report.checks if check.verdict == "fail"}
    assert {"cpu/off/data/worst error", "cpu/all/data/worst error"} <= failed
    assert report.first_divergence == "0"
    with torch.no_grad():
        model[0].bias[0] += 0.5
    assert not verify_onnx(path, model, X.bfloat16())


def test_without_kernels_it_was_not_run_and_the_nodes_are_named(tmp_path):
    report = export_onnx(convolutions(), tmp_path / "m.onnx", torch.randn(4, 1, 5, 5), dtype=torch.bfloat16)
    assert not report
    assert report.providers["cpu"].verdict == "not_run"
    assert report.providers["cpu"].reason == (
        "CPU cannot run this file: it has no bfloat16 kernel for Conv, Relu, Gemm (`node_conv2d`, `node_relu`, "
        "`node_linear`; 3 of 4 nodes in bfloat16): verify it on a provider that has them, as it is served, cast the "
        "model with model.float(), or export it with dtype=torch.float16 (--dtype fp16)"
    )
    # Nothing is wrong with the file: nothing fails, and what the CPU lacks stands in no other provider's way.
    assert [check.name for check in report.checks if check.verdict == "fail"] == []
    loads = next(check for check in report.checks if check.name == "file/onnxruntime")
    assert (loads.verdict, loads.required) == ("not_run", False)
    assert "the nodes compute: 1 Conv, 1 Relu, 1 Reshape, 1 Gemm in bfloat16; none in float32" in report.notes
    assert list(tmp_path.iterdir()) == []
    # Both of what the reason offers do help.
    assert export_onnx(convolutions(), tmp_path / "m.onnx", torch.randn(4, 1, 5, 5), dtype=torch.float16)
    assert export_onnx(convolutions().bfloat16().float(), tmp_path / "m.onnx", torch.randn(4, 1, 5, 5))


def test_every_operator_that_is_named_is_refused_by_the_runtime_and_no_other():
    """Each by a session of its own, made here."""
    text = """<ir_version: 10, opset_import: ["" : 22]> g (bfloat16[2, 4] x) => (bfloat16[4, 2] y, float[2, 4] z)
    { a = Sigmoid(x) b = Add(a, x) c = Identity(b) y = Transpose <perm = [1, 0]> (c)
    d = Cast <to = 1> (b) z = Exp(d) }"""
    proto, cpu = parser.parse_model(text), fallback()
    with pytest.raises(Exception, match="Could not find an implementation") as error:
        cpu.open(proto, optimized=False)
    reason = explain_bfloat16(error.value, proto, lambda one: cpu.open(one, optimized=False))
    assert reason.startswith("it has no bfloat16 kernel for Sigmoid, Add (`a`, `b`; 2 of 5 nodes in bfloat16): ")
    for operator, loads in (("Sigmoid", False), ("Identity", True), ("Transpose", True)):
        graph = f"g (bfloat16[2, 2] x) => (bfloat16[2, 2] y) {{ y = {operator}(x) }}"
        one = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 22]> {graph}')
        try:
            onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:
            assert not loads, operator
        else:
            assert loads, operator
    assert describe_bfloat16(proto) == (
        "the nodes compute: 1 Sigmoid, 1 Add, 1 Identity, 1 Transpose in bfloat16; 1 Exp in float32; 1 Cast from or to "
        "bfloat16"
    )


def test_what_is_no_want_of_a_kernel_is_not_explained_with_one(tmp_path):
    invalid = """<ir_version: 10, opset_import: ["" : 18]> g (bfloat16[1, 1, 3, 3] x, bfloat16[1, 1, 1, 1] w) =>
    (bfloat16[1, 1, 3, 3] y) { y = Conv(x, w) }"""
    path = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(invalid), path)
    with pytest.raises(Exception, match="INVALID_GRAPH") as error:
        open_session(path, "cpu", "off")
    assert not isinstance(error.value, NotVerifiableError)
    single = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    )
    assert explain_bfloat16(RuntimeError("anything"), single, lambda one: None) is None
    assert describe_bfloat16(single) == ""


def test_the_report_says_which_nodes_stay_float32(tmp_path):
    path = tmp_path / "m.onnx"
    report = export_onnx(Between().eval(), path, X[:, 0], calibration=X[:, 0])
    assert report, found(report)
    said = "the nodes compute: 1 LayerNormalization in bfloat16; 1 Gemm, 1 Relu in float32; 2 Casts from or to bfloat16"
    assert said in report.notes
    assert said == describe_bfloat16(load_onnx(path))
    stored = export_onnx(Stored(), path, X[:, 0])
    assert stored, found(stored)
    assert not any(text.startswith("the nodes compute") for text in stored.notes)  # the file is float32 alone


def test_golden_data_in_bfloat16_is_wrong_usage(tmp_path):
    with pytest.raises(
        ValueError, match="golden data cannot be bfloat16, which no replay reads: `input`, `output`; lea"
    ):
        export_onnx(norm(), tmp_path / "m.onnx", X, dtype=torch.bfloat16, golden=tmp_path)


def test_a_batchnorm_in_bfloat16_that_the_converter_breaks_says_how_to_export_it(tmp_path):
    report = export_onnx(convolutions().bfloat16(), tmp_path / "m.onnx", torch.randn(4, 1, 5, 5).bfloat16())
    assert not report
    failed = [check.name for check in report.checks if check.verdict == "fail"]
    said = [text for text in report.notes if text.startswith("torch's converter folds a BatchNorm in bfloat16 into")]
    assert (failed, len(said)) in ((["file/onnx checker"], 1), ([], 0))  # the latter once the converter is mended


def test_the_command_line_knows_it_and_ends_with_3(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bf16_factory.py").write_text(
        "from torch import nn\n\ndef norm():\n    return nn.LayerNorm(8)\n\ndef linear():\n    return nn.Linear(8, 3)\n"
    )
    common = ("m.onnx", "--input-shape", "4,8", "--dtype", "bf16")
    code, _, err = run("export", "bf16_factory:norm", *common)
    assert code == 0, err
    code, out, _ = run("export", "bf16_factory:linear", *common)
    assert code == 3
    assert "it has no bfloat16 kernel for Gemm" in " ".join(out.split())
    code, _, err = run("inspect", "m.onnx")
    assert code == 0, err


@pytest.mark.provider
def test_openvino_has_no_kernels_either_and_says_which(tmp_path):
    batch = X.bfloat16()
    report = export_onnx(
        norm().bfloat16(), tmp_path / "m.onnx", batch, providers=("cpu", "openvino"), provider_python=OPENVINO
    )
    assert not report
    assert report.providers["cpu"].verdict == "pass"
    assert report.providers["openvino"].verdict == "not_run"
    assert "OPENVINO cannot run this file: it has no bfloat16 kernel for Layer" in report.providers["openvino"].reason


def test_bits_come_and_go_as_they_are(tmp_path):
    """Every one of the 65,536, those of NaN too."""
    path = tmp_path / "m.onnx"
    onnx.save(
        parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 22]> g (bfloat16[n] x, float[n] z) => (bfloat16[n] y, float[n] t)'
            "{ y = Identity(x) t = Neg(z) }"
        ),
        path,
    )
    bits = torch.from_numpy(np.arange(2**16, dtype=np.uint16))
    session = open_session(path, "cpu", "all")
    for count in (2**16, 3, 0):
        given = bits[:count].view(torch.bfloat16), torch.arange(count, dtype=torch.float32)
        back, negative = session.run(list(given))
        assert back.dtype == torch.bfloat16
        assert torch.equal(back.view(torch.uint16), bits[:count])
        assert torch.equal(negative, -given[1])
