"""The assertions for other projects' tests: what they say, and that pytest loads nothing heavy for them."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points

import pytest
import torch
from support.project import PROJECT
from support.warm import warm_python
from torch import nn

from jumpout_export import export_onnx, recalibrate_batchnorm
from jumpout_export.render import render_failure
from jumpout_export.report import BatchNormSetsReport, Check, VerifyReport
from jumpout_export.runtime.providers import PROVIDERS
from jumpout_export.testing import assert_batchnorm_agrees, assert_export_matches

PLUGIN = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def batches(n=8):
    torch.manual_seed(1)
    return torch.randn(64 * n, 1, 8, 8).split(64)


@pytest.fixture
def exported(tmp_path):
    net = network()
    assert export_onnx(net, tmp_path / "m.onnx", batches()[0])
    return net, tmp_path / "m.onnx"


@pytest.mark.integration
def test_a_file_that_is_the_model_passes_and_gives_its_report(exported):
    net, path = exported
    report = assert_export_matches(path, net, batches(), providers=("cpu",))
    assert report.passed
    assert report.path == str(path)


@pytest.mark.integration
def test_another_weight_fails_with_check_measured_limit_and_layer(exported):
    net, path = exported
    with torch.no_grad():
        net[4].weight[0, 0] += 1
    with pytest.raises(AssertionError) as error:
        assert_export_matches(path, net, batches())
    text = str(error.value)
    assert text.startswith("`m.onnx`: The first layer that differs is `4`.")
    blocks = [dict(line.split(maxsplit=1) for line in block.splitlines()) for block in text.split("\n\n")[1:-1]]
    assert len(blocks) == 5
    errors = [block for block in blocks if block["check"].endswith("worst error")]
    assert errors
    assert all(float(block["measured"]) > float(block["limit"]) for block in errors)
    assert {block["layer"] for block in errors} == {"4"}
    assert text.splitlines()[-1].startswith("and ")


@pytest.mark.integration
def test_what_could_not_be_verified_fails(exported, monkeypatch):
    net, path = exported
    monkeypatch.setattr(type(PROVIDERS["cuda"]), "explain_unusable", lambda self: "no GPU here")
    with pytest.raises(AssertionError, match=r"could not be verified here. cuda was not run: .*no GPU here"):
        assert_export_matches(path, net, batches(), providers=("cpu", "cuda"))


def test_statistics_that_agree_pass_and_a_drift_names_its_layer():
    net = network()
    with pytest.raises(AssertionError) as error:
        assert_batchnorm_agrees(net, batches())
    text = str(error.value)
    assert text.startswith("1 of 1 BatchNorm layer drifts, starting at `1`: W ")
    facts = dict(line.split(maxsplit=1) for line in text.split("\n\n")[1].splitlines())
    assert (facts["check"], facts["verdict"], facts["limit"], facts["layer"]) == ("1", "✗ drift", "0.05", "1")
    assert float(facts["measured"]) > 0.05
    recalibrate_batchnorm(net, batches())
    assert assert_batchnorm_agrees(net, batches()).verdict == "ok"


def test_too_few_samples_fail():
    net = network()
    recalibrate_batchnorm(net, batches())
    with pytest.raises(AssertionError, match="could not be decided with 8 samples"):
        assert_batchnorm_agrees(net, [batches()[0][:8]])


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install 'jumpout-export"):
        assert_export_matches(tmp_path / "m.onnx", network(), batches())


def test_a_few_checks_are_all_named_and_passes_are_not():
    checks = [
        Check(name="a", verdict="pass"),
        Check(name="b", verdict="not_run", note="why"),
        Check(name="c", verdict="fail"),
    ]
    text = render_failure(VerifyReport(passed=False, checks=checks))
    assert [line.split()[1] for line in text.splitlines() if line.startswith("  check")] == ["c", "b"]
    assert "more" not in text.split("\n\n")[-1]
    assert render_failure(BatchNormSetsReport()) == "No set of samples was checked."


# What pytest does in another project, where the package is installed.

PROJECT_TESTS = """
import torch
from torch import nn

from jumpout_export import export_onnx, recalibrate_batchnorm

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
batches = torch.randn(256, 1, 8, 8).split(64)

def test_drifts(assert_batchnorm_agrees):
    assert_batchnorm_agrees(net, batches)

def test_agrees(assert_batchnorm_agrees):
    recalibrate_batchnorm(net, batches)
    assert_batchnorm_agrees(net, batches)

def test_matches(tmp_path, assert_export_matches):
    export_onnx(net, tmp_path / "m.onnx", batches[0])
    assert_export_matches(tmp_path / "m.onnx", net, batches)
"""


def installed(folder):
    """The environment of a process in which pytest finds the package's entry point, whenever it was installed."""
    info = folder / "site" / "jumpout_export_plugin-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jumpout-export-plugin\nVersion: 0\n")
    lines = "".join(f"{name} = {module}\n" for name, module in PLUGIN.items())
    (info / "entry_points.txt").write_text(f"[pytest11]\n{lines}")
    return {**os.environ, "PYTHONPATH": str(info.parent), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@pytest.mark.integration
def test_pytest_finds_the_fixtures(tmp_path):
    (tmp_path / "test_it.py").write_text(PROJECT_TESTS)
    command = [*warm_python(), "-m", "pytest", "-rP", "-p", "no:cacheprovider", "-p", "no:xdist", "."]
    done = subprocess.run(
        command, cwd=tmp_path, env=installed(tmp_path), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 2 passed" in done.stdout
    # The assertion's own words and the caller's line; nothing of this package's inside.
    assert re.search(r"^E +AssertionError: 1 of 1 BatchNorm layer drifts, starting at `1`", done.stdout, re.MULTILINE)
    assert re.search(r"^E +measured +0\.\d+$", done.stdout, re.MULTILINE)
    assert "testing.py:" not in done.stdout
    assert "pytest_plugin.py:" not in done.stdout
    assert "jumpout-export" in done.stdout
    assert "pass: `m.onnx` equals the PyTorch model" in done.stdout or "warning: `m.onnx`" in done.stdout


@pytest.mark.integration
def test_pytest_loads_nothing_heavy_for_it(tmp_path):
    code = "import sys, pytest; pytest.main(sys.argv[1:]); print('IMPORTED', *sys.modules)"
    command = [sys.executable, "-c", code]
    (tmp_path / "test_it.py").write_text("def test_nothing():\n    pass\n")
    for arguments in (["--help"], ["test_it.py"], ["--fixtures", "test_it.py"]):
        done = subprocess.run(
            [*command, "-p", "no:xdist", *arguments],
            cwd=tmp_path,
            env=installed(tmp_path / str(len(arguments)) / arguments[0].strip("-")),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        *text, imported = done.stdout.splitlines()
        assert "jumpout_export.pytest_plugin" in imported.split(), done.stdout + done.stderr
        assert not {"torch", "numpy", "pydantic", "onnx", "onnxruntime", "jumpout_export.testing"} & set(
            imported.split()
        )
    assert any(line.startswith("assert_export_matches") for line in text)


def test_the_entry_point_is_what_is_installed_and_its_module_is_there():
    assert PLUGIN == {"jumpout-export": "jumpout_export.pytest_plugin"}
    installed_ones = {entry.name: entry.value for entry in entry_points(group="pytest11")}
    assert installed_ones.get("jumpout-export", PLUGIN["jumpout-export"]) == PLUGIN["jumpout-export"]
