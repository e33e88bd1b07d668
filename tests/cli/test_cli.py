"""Every command: its result on stdout, its exit code, and what a wrong use says."""

import json
import os

import onnx
import pytest
import torch
from support.commands import random_file

from jumpout_export.cli.progress import progress_on_stderr
from jumpout_export.exit_codes import FAILED, NOT_VERIFIED, PASSED, WRONG_USAGE

pytestmark = pytest.mark.integration


def test_export_writes_the_file_and_says_that_it_passed(folder, run):
    code, out, err = run(
        "export", "cli_factories:model", "m.onnx", "--data", "data.npz", "--report", "r", "--golden", "g"
    )
    assert code == PASSED, err
    assert "PASS" in out
    assert "export" in err
    onnx.checker.check_model("m.onnx", full_check=True)
    assert {"report.json", "report.html"} <= set(os.listdir("r"))
    assert sorted(os.listdir("g/test_data_set_0")) == ["input_0.pb", "output_0.pb"]


def test_export_prints_json_alone_on_stdout(folder, run):
    code, out, err = run("export", "cli_factories:model", "m.onnx", "--input-shape", "2,1,8,8", "--json")
    report = json.loads(out)
    assert code == PASSED, err
    assert report["passed"]
    assert report["providers"]["cpu"]["verdict"] == "pass"
    assert [layer["path"] for layer in report["folded"]] == ["2"]


@pytest.mark.parametrize(
    ("factory", "named"),
    [("functional_dropout", "bernoulli_"), ("noise_mask", "rand_like"), ("nan_variance", "inner|`1`|1")],
)
def test_a_failed_export_exits_1_names_the_module_and_touches_no_file(folder, run, factory, named):
    (folder / "m.onnx").write_bytes(b"older")
    before = sorted(os.listdir())
    code, out, _ = run("export", f"cli_factories:{factory}", "m.onnx", "--data", "data.npz")
    assert code == FAILED
    assert "FAIL" in out
    assert any(name in out for name in named.split("|"))
    if factory != "nan_variance":
        assert f"{folder}/cli_factories.py:" in out  # on one line, to be clicked or searched for
    assert (folder / "m.onnx").read_bytes() == b"older"
    assert [name for name in sorted(os.listdir()) if name != "__pycache__"] == [n for n in before if n != "__pycache__"]


def test_a_model_left_in_train_mode_is_exported_as_its_eval_network_and_the_report_says_so(folder, run):
    code, out, err = run("export", "cli_factories:one_child_in_train_mode", "m.onnx", "--data", "data.npz", "--json")
    assert code == PASSED, err
    notes = " ".join(json.loads(out)["notes"])
    assert "train mode" in notes
    assert "2" in notes


def test_cuda_asked_for_and_unusable_exits_3(folder, run):
    if torch.cuda.is_available():
        pytest.skip("CUDA is usable here")
    code, out, err = run("export", "cli_factories:model", "m.onnx", "--data", "data.npz", "--providers", "cpu,cuda")
    assert code == NOT_VERIFIED
    assert "pip install" in out
    assert not (folder / "m.onnx").exists()
    code, _, err = run("export", "cli_factories:model", "m.onnx", "--data", "data.npz", "--device", "cuda")
    assert code == NOT_VERIFIED
    assert "sees no usable CUDA device" in err


def test_verify_passes_on_the_exported_file_and_fails_on_a_corrupted_one(folder, run):
    run("export", "cli_factories:model", "m.onnx", "--data", "data.npz")
    code, out, err = run("verify", "m.onnx", "--against", "cli_factories:model", "--data", "data.npz")
    assert code == PASSED, err
    assert "PASS" in out
    model = onnx.load("m.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, "bad.onnx")
    code, out, err = run("verify", "bad.onnx", "--against", "cli_factories:model", "--data", "data.npz")
    assert code == FAILED
    assert "FAIL" in out


def test_verify_against_the_file_that_it_was_made_of(folder, run):
    run("export", "cli_factories:model", "m.onnx", "--data", "data.npz")
    onnx.save(onnx.version_converter.convert_version(onnx.load("m.onnx"), 21), "newer.onnx")
    code, out, err = run("verify", "newer.onnx", "--against", "m.onnx", "--data", "data.npz")
    assert (code, "compared with m.onnx" in out) == (PASSED, True), err
    model = onnx.load("m.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Softplus"
    onnx.save(model, "bad.onnx")
    code, out, err = run("verify", "bad.onnx", "--against", "m.onnx", "--data", "data.npz")
    assert (code, node.name in out) == (FAILED, True), err
    code, _, err = run("verify", "m.onnx", "--against", "gone.onnx", "--data", "data.npz")
    assert (code, "gone.onnx: no such file" in err) == (WRONG_USAGE, True), err
    weights = ("--weights", "w.safetensors")
    code, _, err = run("verify", "m.onnx", "--against", "m.onnx", "--data", "data.npz", *weights)
    assert (code, "m.onnx holds its own weights" in err) == (WRONG_USAGE, True), err


def test_inspect_proves_or_refutes(folder, run):
    run("export", "cli_factories:model", "m.onnx", "--input-shape", "2,1,8,8")
    assert run("inspect", "m.onnx")[0] == PASSED
    random_file("random.onnx")
    code, out, err = run("inspect", "random.onnx")
    assert code == FAILED
    assert "noise" in out
    (folder / "broken.onnx").write_bytes(b"\x08\x0a garbage")
    code, out, err = run("inspect", "broken.onnx")
    assert code == WRONG_USAGE
    assert "broken.onnx" in err


def test_info_prints_build_facts(run):
    code, out, err = run("info")
    assert code == PASSED, err
    assert torch.__version__ in out
    assert "cpu_kernels" in out
    assert "torch" in json.loads(run("info", "--json")[1])


def test_progress_without_a_terminal_prints_what_changed_and_the_end(capsys):
    with progress_on_stderr() as progress:
        for _ in range(7):
            for done in range(0, 513, 128):
                progress("checking", done, 512)
        progress("checking", 300, 300)
        progress("checking", 512, 512)
    shown = ["checking 0/512", "checking 512/512", "checking 300/300", "checking 512/512"]
    assert capsys.readouterr().err.splitlines() == shown


def test_an_exported_program_says_that_its_batchnorm_was_not_checked(folder, run):
    import cli_factories

    torch.export.save(torch.export.export(cli_factories.model().eval(), (torch.ones(2, 1, 8, 8),)), "m.pt2")
    code, _, err = run("export", "m.pt2", "m.onnx", "--data", "data.npz", "--batch-size", 2, "--static")
    assert code == PASSED, err
    assert err.count("BatchNorm was not checked: the exported program m.pt2 is a graph without BatchNorm layers") == 1


@pytest.mark.parametrize(("command", "takes"), [("export", 1), ("check-bn", 0), ("recalibrate-bn", 0)])
def test_the_help_offers_an_exported_program_where_the_command_takes_one(run, command, takes):
    code, out, _ = run(command, "--help")
    assert code == PASSED
    assert "package.module:factory" in out
    assert out.count("file.pt2") == takes


def test_two_named_inputs_of_random_shape(folder, run):
    code, _, err = run("export", "cli_factories:two", "m.onnx", "--input-shape", "x:5,4", "--input-shape", "y:5,2")
    assert code == PASSED, err
    assert [value.name for value in onnx.load("m.onnx").graph.input] == ["x", "y"]
