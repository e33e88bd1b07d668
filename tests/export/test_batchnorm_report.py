"""A BatchNorm report goes with the export of the model that it is of, and with no other."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.nn.quantized import BatchNorm2d as QuantizedBatchNorm2d

from jumpout_export import check_batchnorm, export_onnx
from jumpout_export.export.provenance import provenance
from jumpout_export.report import BatchNormLayer, BatchNormReport

pytestmark = pytest.mark.integration

FACTORIES = '''
import torch
from torch import nn


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's and detectron2's."""

    def __init__(self, channels):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.1), ("running_var", 1.1)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


class Named(nn.Module):
    """A BatchNorm in a submodule that is called as torch's wrappers call theirs, and one beside it."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.add_module(name, nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
        self.add_module("0", nn.Conv2d(4, 5, 1))
        self.add_module("1", nn.BatchNorm2d(5))

    def forward(self, x):
        return self.get_submodule("1")(self.get_submodule("0")(self.get_submodule(self.name)(x)))


def model(norm):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
    net(torch.rand(64, 3, 6, 6))  # statistics that suit the data
    return net.eval()


def plain():
    return model(nn.BatchNorm2d(4))


def instance_norm():
    return model(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))


def fixed():
    return model(FrozenBatchNorm2d(4))


def module():
    return Named("module").eval()


def orig_mod():
    return Named("_orig_mod").eval()
'''
NETWORKS = ("plain", "instance_norm", "fixed", "module", "orig_mod")
MADE: dict = {}
exec(compile(FACTORIES, "factories", "exec"), MADE)


def report_of(*layers):
    return BatchNormReport(
        verdict="ok",
        samples=8,
        layers=[
            BatchNormLayer(name=name, channels=channels, verdict="ok", w=0.0, w_low=0.0, w_high=0.0)
            for name, channels in layers
        ],
    )


def accepted(model, *layers):
    return "ok, largest W" in provenance(model, (), report_of(*layers))["jumpout_export.batchnorm"]


def refusal(model, *layers):
    with pytest.raises(ValueError, match="the BatchNorm report is of another model") as error:
        provenance(model, (), report_of(*layers))
    return str(error.value)


@pytest.mark.parametrize("network", NETWORKS)
def test_an_export_takes_the_models_own_report(network, tmp_path):
    samples = torch.rand(32, 3, 6, 6)
    model = MADE[network]()
    report = check_batchnorm(model, [samples])
    exported = export_onnx(model, tmp_path / "net.onnx", samples[:2], batchnorm=report)
    assert exported.passed
    assert exported.batchnorm == report
    assert {layer.name for layer in report.layers} == (
        {"1", "4"} if network in NETWORKS[:3] else {"1", f"{network.replace('orig', '_orig')}.1"}
    )


@pytest.mark.parametrize("network", ["instance_norm", "fixed", "module"])
def test_the_command_line_checks_and_exports_it(network, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"batchnorm_report_{network}"  # a module of its own, because imported modules stay
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    np.savez(tmp_path / "samples.npz", inputs=torch.rand(32, 3, 6, 6).numpy())
    code, out, err = run("export", f"{name}:{network}", "net.onnx", "--data", "samples.npz", "--json")
    assert "another model" not in err
    assert code == 0, (code, err)
    assert (tmp_path / "net.onnx").exists()
    assert len(json.loads(out)["batchnorm"]["layers"]) == 2


@pytest.mark.parametrize("network", NETWORKS)
def test_the_check_may_have_run_on_the_wrapped_model_or_the_export(network):
    model = MADE[network]()
    wrapped = (model, nn.DataParallel(model), torch.compile(model), nn.DataParallel(torch.compile(model)))
    for checked in wrapped:
        report = check_batchnorm(checked, [torch.rand(32, 3, 6, 6)])
        for exported in wrapped:
            assert "over 32 samples" in provenance(exported, (), report)["jumpout_export.batchnorm"]


def test_a_wrapper_of_the_users_own_counts_too():
    class Average(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.module = model

    assert accepted(MADE["plain"](), ("module.1", 4), ("module.4", 5))
    assert accepted(Average(MADE["plain"]()), ("1", 4), ("4", 5))


@pytest.mark.parametrize("network", ["instance_norm", "fixed"])
def test_another_models_report_is_refused(network):
    model = MADE[network]()
    assert accepted(model, ("1", 4), ("4", 5))
    assert "it has layers `1` (6 channels); the model has `1` (4 channels); `4` (5 channels)" in refusal(
        model, ("1", 6)
    )
    assert "it has layers `bn` (4 channels)" in refusal(model, ("bn", 4))


@pytest.mark.parametrize("part", ["module", "_orig_mod"])
def test_a_layer_is_not_taken_for_its_neighbour_without_the_wrappers_name(part):
    model = MADE["Named"](part)
    assert accepted(model, ("1", 5), (f"{part}.1", 4))
    assert accepted(model, (f"{part}.1", 4))
    for wrong in (("1", 4), (f"{part}.1", 5), (f"{part}.1.1", 4), ("2", 5)):
        assert "the model has" in refusal(model, wrong)
    assert "the model has" in refusal(MADE["plain"](), (f"{part}.1", 6))


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), QuantizedBatchNorm2d(4)])
def test_a_layer_without_statistics_of_its_own_is_none_a_report_can_have(norm):
    assert "the model has none" in refusal(nn.Sequential(norm), ("0", 4))
