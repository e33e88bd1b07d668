"""OpenVINO, for real: another onnxruntime in another environment, all checks, every node (`make providers`)."""

import json
import os

import onnx
import pytest
import torch
from support.architectures import build
from support.project import OPENVINO
from support.verified import SAMPLES, Net, shifted
from torch import nn

from jumpout_export import export_onnx, verify_onnx
from jumpout_export.cli import info as cli_info
from jumpout_export.runtime.providers import provider_of, providers_in
from jumpout_export.runtime.session import newest_opset

pytestmark = [pytest.mark.provider, pytest.mark.integration]
THERE = {"provider_python": OPENVINO}


class Determinants(nn.Module):
    """OpenVINO has no Det."""

    def forward(self, x):
        return torch.relu(torch.linalg.det(torch.tanh(x))) + 1


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    torch.manual_seed(0)
    network, path = Net().eval(), tmp_path_factory.mktemp("openvino") / "m.onnx"
    report = export_onnx(network, path, SAMPLES[:4], calibration=SAMPLES, providers=("cpu", "openvino"), **THERE)
    assert report
    return network, path, report


def checks_of(report, provider):
    return {c.name.removeprefix(f"{provider}/"): c for c in report.checks if c.name.startswith(f"{provider}/")}


def test_a_file_is_published_with_every_check_that_the_cpu_has_and_every_node_there(good):
    _, path, report = good
    assert {name: one.verdict for name, one in report.providers.items()} == {"cpu": "pass", "openvino": "pass"}
    cpu, there = checks_of(report, "cpu"), checks_of(report, "openvino")
    assert set(there) == set(cpu) | {"off/nodes", "all/nodes"}
    nodes = len(onnx.load(path).graph.node)
    for level in ("off", "all"):
        assert there[f"{level}/nodes"].note == f"{nodes} nodes run on OpenVINOExecutionProvider"
        assert (there[f"{level}/nodes"].measured, there[f"{level}/nodes"].limit) == (0, 0)
        # Two runs agree bitwise, and have to.
        assert (there[f"{level}/repeatable"].measured, there[f"{level}/repeatable"].limit) == (0, 0)
        assert 0 < there[f"{level}/data/worst error"].measured < there[f"{level}/data/worst error"].limit
    with_version = [note for note in report.notes if note.startswith("openvino is that of onnxruntime 1.")]
    assert with_version[0].endswith(f"in another Python, {OPENVINO}")


@pytest.mark.parametrize("name", ["MobileNet", "LSTM", "transformer"])
def test_networks_of_other_kinds_pass_there(name, tmp_path):
    model, batch = build(name, 0)
    report = export_onnx(model, tmp_path / "m.onnx", batch, providers=("openvino",), **THERE)
    assert report, [check for check in report.checks if check.verdict == "fail"]


def test_a_half_precision_file_passes_there(tmp_path):
    torch.manual_seed(0)
    model = Net().eval()
    path = tmp_path / "m.onnx"
    assert export_onnx(model, path, SAMPLES[:4], dtype=torch.float16, providers=("openvino",), **THERE)


def test_a_wrong_weight_is_refused_there_with_its_layer(good, tmp_path):
    network, path, _ = good
    proto = onnx.load(path)
    shifted(proto, "linear.weight", 0.01)
    wrong = tmp_path / "wrong.onnx"
    onnx.save(proto, wrong)
    report = verify_onnx(wrong, network, SAMPLES, providers=("openvino",), **THERE)
    assert report.providers["openvino"].verdict == "fail"
    assert checks_of(report, "openvino")["all/data/worst error"].verdict == "fail"
    assert report.first_divergence == "linear"
    where = next(note for note in report.notes if note.startswith("`linear` is the first that differs"))
    assert "(openvino/off, data)" in where  # it was looked for there
    assert "1 of 20 values wrong" in where


class Large(nn.Module):
    """Its integers need more than 32 bits."""

    def forward(self, x):
        return x * 2, (x.sum((1, 2, 3)) > 0).to(torch.int64) * 2**40


def test_values_that_are_wrong_there_alone_fail(tmp_path):
    """OpenVINO computes integers in 32 bits on the CPU, ONNX Runtime itself in the 64 that they have."""
    path = tmp_path / "m.onnx"
    report = export_onnx(Large(), path, SAMPLES[:4], providers=("cpu", "openvino"), **THERE)
    assert not report
    assert {name: one.verdict for name, one in report.providers.items()} == {"cpu": "pass", "openvino": "fail"}
    assert checks_of(report, "openvino")["all/nodes"].verdict == "pass"
    assert not path.exists()


def test_nodes_that_run_elsewhere_fail_and_are_named(tmp_path):
    report = export_onnx(
        Determinants(), tmp_path / "m.onnx", torch.randn(4, 3, 3), providers=("cpu", "openvino"), **THERE
    )
    assert not report
    assert report.providers["cpu"].verdict == "pass"
    assert report.providers["openvino"].verdict == "fail"
    check = checks_of(report, "openvino")["all/nodes"]
    assert check.measured >= 1
    assert "(Det) runs on CPUExecutionProvider" in check.note
    assert "of 4 nodes do not run on OpenVINOExecutionProvider" in check.note
    # It ran in part on the CPU, with right values: that alone is what is wrong.
    others = [c.name for c in report.checks if c.verdict == "fail" and not c.name.endswith("/nodes")]
    assert others == []
    assert not (tmp_path / "m.onnx").exists()


def test_a_float64_file_does_not_run_there(tmp_path):
    torch.manual_seed(0)
    network, batch = (
        nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval().double(),
        torch.randn(4, 8).double(),
    )
    report = export_onnx(network, tmp_path / "m.onnx", batch, providers=("cpu", "openvino"), **THERE)
    assert report.providers["cpu"].verdict == "pass"
    check = checks_of(report, "openvino")["all/nodes"]
    assert check.verdict == "fail"
    assert "(Gemm) runs on CPUExecutionProvider" in check.note


def test_a_file_that_is_too_new_for_that_onnxruntime_says_which_opset_is_not(tmp_path):
    newest = newest_opset()
    with providers_in(OPENVINO, ["openvino"]):
        there = newest_opset(provider_of("openvino"))
    if there >= newest:
        pytest.skip("both load the same opsets")
    report = export_onnx(
        Net().eval(), tmp_path / "m.onnx", SAMPLES[:4], opset=newest, providers=("cpu", "openvino"), **THERE
    )
    assert report.providers["cpu"].verdict == "pass"
    assert report.providers["openvino"].verdict == "not_run"
    reason = report.providers["openvino"].reason
    assert f"OPENVINO cannot run this file: it has opset {newest}, IR version " in reason
    assert f"does not load; export it with --opset {there} or older" in reason
    older = export_onnx(Net().eval(), tmp_path / "m.onnx", SAMPLES[:4], opset=there, providers=("openvino",), **THERE)
    assert older


def test_the_command_line_takes_it_and_says_what_is_there(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "openvino_factory.py").write_text(
        "from torch import nn\n\ndef network():\n    return nn.Conv2d(1, 2, 3)\n"
    )
    common = ("openvino_factory:network", "m.onnx", "--input-shape", "2,1,5,5", "--providers")
    code, out, err = run("export", *common, "cpu,openvino", "--provider-python", OPENVINO, "--json")
    assert code == 0, err
    assert json.loads(out)["providers"]["openvino"]["verdict"] == "pass"
    manifest = json.loads((tmp_path / "m.manifest.json").read_text())
    assert manifest["verdicts"]["openvino"] == "pass"
    code, out, err = run("export", *common, "cuda,openvino", "--provider-python", OPENVINO, "--json")
    assert code == 3
    assert "warning: --providers: CUDA cannot be used: the onnxruntime 1." in err
    facts = cli_info.facts(os.fspath(OPENVINO))
    assert facts["ONNX Runtime openvino"] == "usable, a convolution ran on it"
    assert facts["ONNX Runtime cpu"] == "usable, a convolution ran on it"
    assert facts["ONNX Runtime cuda"].startswith("unusable: the onnxruntime 1.")
