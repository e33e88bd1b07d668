"""What an option needs is asked for before anything runs; a report that cannot be written in the end loses nothing."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from support.commands import EXPORT, KEPT, calibrated, random_file

from jumpout_export import render
from jumpout_export.cli import ready
from jumpout_export.exit_codes import FAILED, NOT_VERIFIED, PASSED, WRONG_USAGE
from jumpout_export.runtime.providers import PROVIDERS

pytestmark = pytest.mark.integration

DATA = ("--data", "data.npz")
COMMANDS = {
    "export": ("export", "cli_factories:marks", "m.onnx", *DATA),
    "verify": ("verify", "random.onnx", "--against", "cli_factories:marks", *DATA),
    "check-bn": ("check-bn", "cli_factories:marks", *DATA),
    "recalibrate-bn": ("recalibrate-bn", "cli_factories:marks", *DATA, "--dry-run"),
}
ON_FILES = {
    "fold": ("fold", "random.onnx", "out.onnx"),
    "inspect": ("inspect", "random.onnx"),
}


@pytest.fixture
def ran(folder):
    """Whether the model ran."""
    random_file("random.onnx")
    return lambda: (folder / "ran").exists()


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
@pytest.mark.parametrize("command", [*COMMANDS.values(), *ON_FILES.values()], ids=[*COMMANDS, *ON_FILES])
def test_what_the_report_is_made_with_is_asked_for_first(ran, run, monkeypatch, command, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = run(*command, "--report", "r")
    assert (code, out) == (NOT_VERIFIED, "")
    assert f"need {package}" in err
    assert "pip install 'jumpout-export[report]'" in err
    assert not ran()
    assert not os.path.exists("r")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_without_a_report_nothing_of_it_is_needed(ran, run, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, _, err = run(*command)
    assert "jinja2" not in err
    assert ran(), code


def test_the_runtime_is_asked_for_before_the_model_runs(ran, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for command in (COMMANDS["export"], COMMANDS["verify"]):
        code, _, err = run(*command)
        assert code == NOT_VERIFIED
        assert "pip install 'jumpout-export[onnx" in err
    assert not ran()


@pytest.mark.parametrize("package", ["jinja2", "onnxscript", "sklearn.datasets"])
def test_the_demo_asks_for_all_it_needs_before_it_trains(folder, run, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("jumpout_export.demo.train", None)  # calling it would raise a TypeError
    code, _, err = run("demo", "--out", "o")
    assert code == NOT_VERIFIED
    assert "pip install 'jumpout-export[" in err
    assert not (folder / "o").exists()


@pytest.mark.parametrize("option", ["--data", "--reference"])
def test_a_folder_that_needs_pillow_is_told_before_another_set_runs(folder, ran, run, monkeypatch, option):
    (folder / "pictures" / "cat").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, _, err = run(*COMMANDS["check-bn"], option, "pictures")
    assert code == NOT_VERIFIED
    assert "pip install 'jumpout-export[data]'" in err
    assert not ran()


@pytest.mark.parametrize("command", [COMMANDS["export"], COMMANDS["verify"]], ids=["export", "verify"])
def test_a_provider_that_cannot_be_used_is_said_first_and_ends_where_it_is_the_only_one(ran, run, monkeypatch, command):
    monkeypatch.setattr(type(PROVIDERS["cuda"]), "explain_unusable", lambda self: "no GPU here")
    code, out, err = run(*command, "--providers", "cuda")
    assert (code, out) == (NOT_VERIFIED, "")
    assert err == "error: --providers cuda: CUDA cannot be used: no GPU here\n"
    assert not ran()
    _, out, err = run(*command, "--providers", "cpu,cuda", "--json")
    assert err.startswith("warning: --providers: CUDA cannot be used: no GPU here\n")
    assert set(json.loads(out)["providers"]) == {"cpu", "cuda"}


def test_a_folder_that_takes_no_files_is_found_before_the_work(folder, ran, run, monkeypatch):
    monkeypatch.setattr(ready.os, "access", lambda path, mode: os.path.basename(path) != "locked")
    (folder / "locked").mkdir()
    code, _, err = run(*COMMANDS["check-bn"], "--report", "locked/new/r")
    assert code == WRONG_USAGE
    assert "--report locked/new/r cannot be written: " in err
    assert "locked takes no new files or folders" in err
    assert not ran()
    (folder / "file").write_text("")
    code, _, err = run(*COMMANDS["check-bn"], "--report", "file/r")
    assert code == WRONG_USAGE
    assert "--report file/r cannot be written: " in err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--samples", "300", "--weights", "good.safetensors"], PASSED),
        ([], FAILED),
        (["--batch-size", "5", "--samples", "5"], NOT_VERIFIED),
    ],
    ids=["ok", "drift", "inconclusive"],
)
@pytest.mark.parametrize("json_too", [False, True], ids=["text", "json"])
def test_a_folder_that_is_gone_in_the_end_keeps_the_result_and_the_exit_code(folder, run, arguments, code, json_too):
    calibrated("inner.safetensors")
    from safetensors.torch import load_file, save_file

    save_file({f"inner.{name}": value for name, value in load_file("inner.safetensors").items()}, "good.safetensors")
    command = ("check-bn", "cli_factories:takes_folder", *DATA, *arguments, *(["--json"] if json_too else []))
    actual, out, err = run(*command, "--report", "r")
    assert actual == code, err
    assert err.rstrip().splitlines()[-1] == (
        "warning: --report r cannot be written: the report needs a folder, but r is a file; name another folder; "
        + KEPT
    )
    expected = {PASSED: "ok", FAILED: "drift", NOT_VERIFIED: "inconclusive"}[code]
    assert (json.loads(out)["verdict"] == expected) if json_too else "Largest W" in out


def test_a_page_that_cannot_be_made_keeps_the_result_too(folder, run, monkeypatch):
    def broken(report, directory):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(render, "write_report", broken)
    code, out, err = run(*EXPORT)
    assert code == PASSED
    assert "PASS" in out
    assert "Traceback" in err
    assert f"warning: --report r cannot be written: ZeroDivisionError: a bug of ours; {KEPT}" in err
    assert (folder / "m.onnx").exists()


def test_the_demo_names_its_own_option(folder, run, monkeypatch):
    def full(report, directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(render, "write_report", full)
    torch.set_num_threads(1)
    code, out, err = run("demo", "--out", "o", "--epochs", "1")
    assert code in (PASSED, FAILED, NOT_VERIFIED)
    assert "jumpout-export demo on scikit-learn" in out
    assert f"warning: --out o cannot be written: No space left on device; {KEPT}" in err


def test_np_files_need_no_pillow(ran, run, monkeypatch):
    np.savez("more.npz", inputs=np.load("data.npz")["inputs"])
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, _, err = run(*COMMANDS["check-bn"], "--reference", "more.npz")
    assert "Pillow" not in err
    assert ran(), code
