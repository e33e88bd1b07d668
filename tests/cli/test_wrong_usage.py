"""Wrong usage of the command line: exit code 2 or 3, and one line that says what is wrong."""

import json
import os
import sys

import numpy as np
import pytest

from jumpout_export.cli import app as cli
from jumpout_export.exit_codes import NOT_VERIFIED, PASSED, WRONG_USAGE

QUANTIZE = ["export", "cli_factories:model", "m.onnx", "--data", "data.npz", "--quantize", "int8"]
WRONG = [
    (["export", "cli_factories:model"], "Missing argument"),
    (["export", "cli_factories:model", "m.onnx"], "give either --data or --input-shape"),
    (["export", "cli_factories:model", "m.txt", "--data", "data.npz"], "must end in .onnx"),
    (["export", "cli_factories:model", "no/m.onnx", "--data", "data.npz"], "no"),
    (["export", "cli_factories:none", "m.onnx", "--data", "data.npz"], "none does not exist in cli_factories"),
    (["export", "cli_factories:model", "m.onnx", "--data", "missing.npz"], "there is no such file"),
    (["export", "cli_factories:model", "m.onnx", "--input-shape", "2,1,8,8", "--recalibrate"], "give --data"),
    (["export", "model", "m.onnx", "--data", "data.npz"], "MODEL must be package.module:callable, or file.pt2 where"),
    (
        ["export", "cli_factories:model", "m.onnx", "--data", "data.npz", "--opset", "13"],
        "error: --opset: opset must be in [18, ",
    ),
    (["export", "cli_factories:model", "m.onnx", "--data", "data.npz", "--dtype", "bf8"], "'bf8' is not"),
    (
        ["export", "cli_factories:two_norms", "m.onnx", "--data", "data.npz", "--allow", "9", "--samples", "100"],
        "error: --allow: allow names no module of the model: '9'; it has '0'; '1'; '2'; '3'; '4'",
    ),
    (
        ["export", "cli_factories:model", "m.onnx", "--input-shape", "2,1,8,8", "--dynamic", "image:2=height"],
        "error: --dynamic: dynamic_axes names no input of the model: 'image'; it has",
    ),
    (["verify", "missing.onnx", "--against", "cli_factories:model", "--data", "data.npz"], "missing.onnx"),
    (["verify", "m.onnx", "--data", "data.npz"], "Missing option '--against'"),
    (
        ["verify", "m.onnx", "--against", "a:b", "--data", "data.npz", "--min-sqnr", "20", "--no-accuracy"],
        "error: --min-sqnr, --no-accuracy: a limit of quantized files; give --quantized, too",
    ),
    (
        ["verify", "m.onnx", "--against", "a:b", "--data", "data.npz", "--quantized", "--max-clipped", "20"],
        "error: --max-clipped: max_clipped must be a share in [0, 1], got 20",
    ),
    (
        QUANTIZE,
        "error: --calibration: a quantized export takes the ranges of activations from samples as in serving",
    ),
    (
        ["export", "cli_factories:model", "m.onnx", "--data", "data.npz", "--calibration", "data.npz"],
        "error: --calibration: quantize_calibration is for a quantized export: give quantize='int8' (--quantize int8)",
    ),
    (
        [
            "export",
            "cli_factories:model",
            "m.onnx",
            "--data",
            "data.npz",
            "--quantize",
            "int8",
            "--calibration",
            "no.npz",
        ],
        "error: --calibration no.npz: there is no such file",
    ),
    (
        [
            "export",
            "cli_factories:model",
            "m.onnx",
            "--data",
            "data.npz",
            "--quantize",
            "int8",
            "--calibration",
            "data.npz",
            "--dtype",
            "fp16",
        ],
        "error: --dtype: dtype and quantize='int8' exclude each other",
    ),
    (["check-bn", "cli_factories:model"], "Missing option '--data'"),
    (["check-bn", "cli_factories:model", "--data", "data.npz", "--weights", "w.bin"], "there is no such file"),
    (["check-bn", "cli_factories:model", "--data", "data.npz", "--device", "tpu9"], "--device must be cpu or cuda"),
    (["recalibrate-bn", "cli_factories:model", "--data", "data.npz"], "give either -o NEW.safetensors or --dry-run"),
    (["recalibrate-bn", "cli_factories:model", "--data", "data.npz", "-o", "a.pt"], "must end in .safetensors"),
    (["inspect", "missing.onnx"], "missing.onnx"),
    (["inspect", "--nonsense"], "No such option"),
    (["nonsense"], "No such command 'nonsense'"),
    (["demo", "--data", "missing"], "there is no such folder"),
    (
        ["verify", "m.onnx", "--against", "a:b", "--input-shape", "1", "--providers", "tpu"],
        "of cpu, cuda, openvino, separated by commas",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(folder, run, arguments, message):
    before = sorted(os.listdir())
    code, out, err = run(*arguments)
    assert code == WRONG_USAGE
    assert message in err
    assert out == ""
    assert set(os.listdir()) - set(before) <= {"__pycache__"}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("sklearn.datasets", ["demo", "--out", "o"], "demo"),
        ("PIL", ["demo", "--out", "o", "--data", "images"], "data"),
        ("onnxruntime", ["export", "cli_factories:model", "m.onnx", "--data", "data.npz"], "onnx"),
        ("jinja2", ["check-bn", "cli_factories:model", "--data", "data.npz", "--report", "r"], "report"),
    ],
)
def test_a_missing_package_exits_3_and_names_the_extra(folder, run, monkeypatch, package, arguments, extra):
    (folder / "images" / "cat").mkdir(parents=True)
    (folder / "images" / "cat" / "1.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(*arguments)
    assert code == NOT_VERIFIED
    assert f"pip install 'jumpout-export[{extra}" in err
    assert not (folder / "m.onnx").exists()


def test_a_converter_that_is_too_old_exits_3_before_the_model_is_loaded(folder, run, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("onnxscript"), "__version__", "0.5.7")
    code, _, err = run("export", "no_such_module:model", "m.onnx", "--input-shape", "2,1,8,8")
    assert code == NOT_VERIFIED
    assert "error: onnxscript 0.5.7 is installed, " in err
    assert not (folder / "m.onnx").exists()


@pytest.mark.parametrize("command", ["export", "check-bn", "verify", "recalibrate-bn"])
def test_data_that_does_not_fit_the_model_is_wrong_usage(folder, run, command):
    np.savez("wrong.npz", inputs=np.ones((4, 5, 8, 8), np.float32))
    np.savez("bytes.npz", inputs=np.ones((4, 1, 8, 8), np.uint8))
    (folder / "any.onnx").write_bytes(b"")
    arguments = {
        "export": ["export", "cli_factories:model", "m.onnx"],
        "check-bn": ["check-bn", "cli_factories:model"],
        "verify": ["verify", "any.onnx", "--against", "cli_factories:model"],
        "recalibrate-bn": ["recalibrate-bn", "cli_factories:model", "--dry-run"],
    }[command]
    code, _, err = run(*arguments, "--data", "wrong.npz")
    assert code == WRONG_USAGE
    assert "the model cannot run a batch of (4, 5, 8, 8) float32: RuntimeError" in err
    assert "Traceback" not in err
    code, _, err = run(*arguments, "--data", "bytes.npz")
    assert code == WRONG_USAGE
    assert "convert images to float in [0, 1]" in err


@pytest.mark.parametrize(("factory", "code"), [("exits", WRONG_USAGE), ("exits_later", NOT_VERIFIED)])
def test_code_of_the_user_that_exits_does_not_pass_for_a_verdict(folder, run, factory, code):
    actual, _, err = run("check-bn", f"cli_factories:{factory}", "--data", "data.npz")
    assert actual == code
    assert "SystemExit" in err or "sys.exit(0)" in err


@pytest.mark.integration
def test_prints_of_the_user_do_not_spoil_the_json(folder, run):
    code, out, err = run("export", "cli_factories:prints", "m.onnx", "--input-shape", "2,1,8,8", "--json")
    assert code == PASSED, err
    assert json.loads(out)["passed"]
    assert "hello" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "cli_factories:model", "m.onnx", "--data", "data.npz", "--report", "data.npz"],
        ["check-bn", "cli_factories:model", "--data", "data.npz", "--report", "data.npz"],
        ["demo", "--out", "data.npz"],
    ],
)
def test_a_file_in_place_of_a_folder_is_found_before_the_work(folder, run, arguments):
    code, _, err = run(*arguments)
    assert code == WRONG_USAGE
    assert "data.npz must be a folder, it is a file" in err
    assert not (folder / "m.onnx").exists()


def test_an_unexpected_failure_is_neither_passed_nor_failed(run, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(cli.cli_info, "facts", broken)
    code, _, err = run("info")
    assert code == NOT_VERIFIED
    assert "a bug of ours" in err
