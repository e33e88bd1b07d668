"""A provider is one object: what a new one needs is said in it, and nothing else asks which one it is."""

import re

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from jumpout_export import export_onnx, verify_onnx
from jumpout_export.cli.app import app
from jumpout_export.cli.ready import parse_providers
from jumpout_export.errors import LoadError, NotVerifiableError
from jumpout_export.runtime.provider import Provider
from jumpout_export.runtime.providers import PROVIDERS, check_providers, fallback
from jumpout_export.runtime.session import open_session

SAMPLES = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))


class Absent(Provider):
    """One that nothing here has the library for."""

    def explain_libraries(self):
        return "libtoy.so is missing; play with something else"


class Breaking(Provider):
    """One whose device is lost while a file is opened."""

    def open(self, model, **options):
        raise RuntimeError("TOY failure 7")

    def explain_error(self, error):
        return "the toy is broken" if "TOY failure" in str(error) else None


@pytest.fixture
def toys(monkeypatch):
    """Made-up providers on ONNX Runtime's own CPU code, the last two unusable."""
    for provider in (
        Provider("toy", "CPUExecutionProvider"),
        Provider("unknown", "ToyExecutionProvider", install="pip install toys"),
        Absent("absent", "CPUExecutionProvider"),
    ):
        monkeypatch.setitem(PROVIDERS, provider.name, provider)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(18, 3)).eval()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("toys") / "m.onnx"
    assert export_onnx(network, path, SAMPLES)
    return path


@pytest.mark.integration
def test_a_made_up_provider_is_verified_on_and_has_its_own_verdict(toys, file, network):
    report = verify_onnx(file, network, SAMPLES, providers=("cpu", "toy"))
    assert report
    assert {name: entry.verdict for name, entry in report.providers.items()} == {"cpu": "pass", "toy": "pass"}
    checks = {check.name: check for check in report.checks}
    # It is not where everything lands, so every node has to be seen on it; and it may differ from run to run.
    assert checks["toy/all/nodes"].note.endswith("nodes run on CPUExecutionProvider")
    assert "cpu/all/nodes" not in checks
    assert checks["toy/all/repeatable"].limit is None
    assert checks["cpu/all/repeatable"].limit == 0


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unknown", r"UNKNOWN cannot be used: the installed onnxruntime .* has no ToyExec.*&& pip install toys"),
        ("absent", r"ABSENT cannot be used: libtoy.so is missing; play with something else"),
    ],
)
def test_one_that_cannot_be_used_was_not_run_and_says_why(toys, file, network, name, reason):
    report = verify_onnx(file, network, SAMPLES, providers=(name, "cpu"))
    assert not report
    assert report.providers["cpu"].verdict == "pass"
    assert report.providers[name].verdict == "not_run"
    assert re.fullmatch(reason, report.providers[name].reason)


@pytest.mark.integration
def test_an_error_of_the_device_is_none_of_the_file(monkeypatch, file):
    monkeypatch.setitem(PROVIDERS, "breaking", Breaking("breaking", "CPUExecutionProvider"))
    with pytest.raises(NotVerifiableError, match="BREAKING cannot be used: the toy is broken"):
        open_session(file, "breaking", "all")


@pytest.mark.integration
def test_a_provider_on_which_nodes_do_not_run_fails(monkeypatch, file, network):
    class Elsewhere(Provider):
        def open(self, model, **options):
            return Provider("", "CPUExecutionProvider").open(model, **options)

        def explain_unusable(self):
            return None

    monkeypatch.setitem(PROVIDERS, "toy", Elsewhere("toy", "ToyExecutionProvider"))
    report = verify_onnx(file, network, SAMPLES, providers=("toy",))
    assert report.providers["toy"].verdict == "fail"
    assert "nodes do not run on ToyExecutionProvider" in report.providers["toy"].reason


@pytest.mark.integration
def test_the_trial_finds_a_provider_that_runs_elsewhere_or_computes_something_else(monkeypatch):
    cpu = PROVIDERS["cpu"]
    assert cpu.explain_unusable() is None
    assert Provider("toy", "CPUExecutionProvider").explain_unusable() is None

    class Wrong(Provider):
        def open(self, model, **options):
            model.graph.initializer[0].float_data[0] = 4
            return super().open(model, **options)

    assert Wrong("toy", "CPUExecutionProvider").explain_unusable() == (
        "a convolution on CPUExecutionProvider computes [[[[0.0, 4.0], [8.0, 12.0]]]]"
    )
    other = Provider("other", "CPUExecutionProvider")
    monkeypatch.setattr(Provider, "elsewhere", lambda self, session: ["`c` (Conv) runs on the moon"])
    assert other.explain_unusable() == (
        "ONNX Runtime does not run a convolution on CPUExecutionProvider: `c` (Conv) runs on the moon"
    )


def test_every_message_lists_the_registered_ones(toys):
    with pytest.raises(ValueError, match="providers must be of cpu, cuda, openvino, toy, unknown, absent, got 'tpu'"):
        check_providers(["tpu"])
    text = "--providers must be of cpu, cuda, openvino, toy, unknown, absent, separated by commas, got 'cpu,tpu'"
    with pytest.raises(LoadError, match=re.escape(text)):
        parse_providers("cpu,tpu")
    assert parse_providers("Toy, cpu") == ("toy", "cpu")


@pytest.mark.integration
def test_the_command_line_takes_it(toys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy_factory.py").write_text("from torch import nn\n\ndef network():\n    return nn.Conv2d(1, 2, 3)\n")
    common = ["export", "toy_factory:network", "m.onnx", "--input-shape", "2,1,5,5", "--providers"]
    monkeypatch.syspath_prepend(str(tmp_path))
    done = CliRunner().invoke(app, [*common, "toy"])
    assert done.exit_code == 0, done.output
    refused = CliRunner().invoke(app, [*common, "unknown"])
    assert isinstance(refused.exception, NotVerifiableError)  # the process ends with 3
    assert "--providers unknown: UNKNOWN cannot be used: the installed onnxruntime" in str(refused.exception)


def test_the_one_that_everything_lands_on_is_one():
    assert [provider.name for provider in PROVIDERS.values() if provider.is_fallback] == [fallback().name] == ["cpu"]
