"""The options of the command export: axes, type and external data."""

from __future__ import annotations

import signal
import sys

import onnx
import pytest
from support.model_repository import parse
from support.onnx_files import shapes

from jumpout_export.cli import app as cli
from jumpout_export.report import not_run

pytestmark = pytest.mark.integration


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs `export` in a folder with a factory; returns exit code and stderr."""
    (tmp_path / "convert_factory.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers are for a process of its own

    def run(*arguments):
        argv = ["jumpout-export", "export", "convert_factory:net", "m.onnx", "--input-shape", "4,1,9,8", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ending:
            cli.main()
        return ending.value.code, capsys.readouterr().err

    return run


def test_the_command_takes_axes_type_and_external_data(command):
    axes = ["--dynamic", "input:2=height", "--dynamic", "input:3=width"]
    assert command(*axes, "--dtype", "fp16", "--external-data")[0] == 0
    proto = onnx.load("m.onnx")
    assert shapes("m.onnx")["input"] == ["batch", 1, "height", "width"]
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dynamic", "input=height"], "--dynamic must be INPUT:AXIS=NAME, for example image:2=height, got 'input=he"),
        (["--dynamic", "input:2"], "--dynamic must be INPUT:AXIS=NAME"),
        (["--dynamic", "input:two=h"], "--dynamic must be INPUT:AXIS=NAME"),
        (["--dynamic", "input:2=h", "--dynamic", "input:2=w"], "--dynamic names axis 2 of input twice"),
        (["--dynamic", "image:2=h"], "--dynamic: dynamic_axes names no input of the model: 'image'; it has input"),
        (["--dtype", "bf8"], "'bf8' is not"),
        (
            ["--triton", "no/models"],
            "--triton: a model repository is a folder, or a name in an existing one, got 'no/mod",
        ),
        (["--triton", "convert_factory.py"], "--triton: a model repository is a folder, or a name in an existing one"),
        (["--opset", "17"], "--opset: opset must be in [18, "),
        (["--opset", "99"], "is the newest that the installed ONNX Runtime accepts"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(arguments, message, command, tmp_path):
    code, err = command(*arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "m.onnx").exists()


def test_the_command_writes_a_model_repository_and_replaces_only_its_own(command, tmp_path):
    entry = tmp_path / "models" / "m"
    assert command("--triton", "models")[0] == 0
    assert parse((entry / "config.pbtxt").read_text()).max_batch_size > 0
    (entry / "labels.txt").write_text("cat")
    code, err = command("--triton", "models", "--static")
    assert code == 2
    assert "error: --triton: models/m is not replaced, because labels.txt there was changed or added after" in err
    (entry / "labels.txt").unlink()
    assert command("--triton", "models", "--static")[0] == 0
    assert parse((entry / "config.pbtxt").read_text()).max_batch_size == 0


def test_what_is_to_be_tried_reaches_the_comparison(command, monkeypatch):
    seen = []

    def run(*_arguments, **settings):
        seen.append({name: settings[name] for name in ("allow_constant", "made_up", "thorough")})
        return not_run(("cpu",), "not looked at")

    monkeypatch.setattr("jumpout_export.verify.noise.purpose.run_providers", run)
    assert command()[0] == 3
    options = ["--allow-constant", "a", "--allow-constant", "b", "--no-made-up-inputs", "--thorough"]
    assert command(*options)[0] == 3
    assert seen == [
        {"allow_constant": (), "made_up": True, "thorough": False},
        {"allow_constant": ("a", "b"), "made_up": False, "thorough": True},
    ]
