"""`export --recalibrate` and `--require-batchnorm`: the new statistics are kept, shown, and asked for by verify."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import calibrated

from jumpout_export.report import ExportReport

pytestmark = pytest.mark.integration

EXPORT = ["export", "cli_factories:model", "m.onnx", "--data", "data.npz", "--no-made-up-inputs"]


@pytest.fixture
def exported(folder, run):
    code, out, err = run(*EXPORT, "--recalibrate", "--json")
    assert code == 0, out + err
    return ExportReport.model_validate_json(out)


def test_the_new_statistics_lie_beside_the_file_and_verify_it(exported, run):
    import cli_factories

    new, old = load_file("m.recalibrated.safetensors"), cli_factories.model().state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {"1.running_mean", "1.running_var"}
    weights = ["--weights", "m.recalibrated.safetensors"]
    assert run("verify", "m.onnx", "--against", "cli_factories:model", "--data", "data.npz", *weights)[0] == 0


def test_before_and_after_are_in_the_report_with_the_effect_on_the_outputs(exported):
    before, after = exported.batchnorm_before, exported.batchnorm
    assert (before.verdict, after.verdict) == ("drift", "ok")
    assert before.outputs.samples == 300
    assert after.outputs is None
    assert "the file's weights are in m.recalibrated.safetensors: verify it with --weights" in " ".join(exported.notes)
    assert next(check for check in exported.checks if check.name == "batchnorm statistics").verdict == "pass"


def test_verify_without_them_asks_whether_it_was_recalibrated(exported, run):
    code, out, _ = run("verify", "m.onnx", "--against", "cli_factories:model", "--data", "data.npz")
    assert code == 1
    last = out.strip().splitlines()[-1]
    assert "the only BatchNorm differs and every other weight agrees: was it exported with --recalibrate?" in last


def test_another_checkpoint_is_not_taken_for_a_recalibrated_one(exported, run):
    other = load_file("m.recalibrated.safetensors")
    other["4.weight"] = other["4.weight"] + 0.1
    other["1.running_mean"] = other["1.running_mean"] + 1
    save_file(other, "other.safetensors")
    code, out, _ = run(
        "verify", "m.onnx", "--against", "cli_factories:model", "--data", "data.npz", "--weights", "other.safetensors"
    )
    assert code == 1
    assert "was it exported with --recalibrate" not in out


def test_new_weights_are_never_written_over_an_input(folder, run):
    calibrated("m.recalibrated.safetensors")
    before = Path("m.recalibrated.safetensors").read_bytes()
    os.link("m.recalibrated.safetensors", "link.safetensors")
    for weights in ("m.recalibrated.safetensors", "./m.recalibrated.safetensors", "link.safetensors"):
        code, _, err = run(*EXPORT, "--recalibrate", "--weights", weights)
        assert code == 2
        assert f"would be written over {Path(weights)}, which is read" in err
    assert Path("m.recalibrated.safetensors").read_bytes() == before
    assert not Path("m.onnx").exists()


def test_a_failed_export_leaves_older_weights_as_they_were(folder, run):
    Path("w.safetensors").write_bytes(b"older")
    code, _, _ = run(
        *EXPORT, "--recalibrate", "--save-weights", "w.safetensors", "--opset", "18", "--dynamic", "input:2=h"
    )
    assert code == 1
    assert Path("w.safetensors").read_bytes() == b"older"
    assert not Path("m.onnx").exists()
    assert not Path("m.recalibrated.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--save-weights", "w.safetensors"], "--save-weights writes what --recalibrate makes"),
        (["--recalibrate", "--save-weights", "w.pt"], "--save-weights: save_weights must end in .safetensors"),
        (["--recalibrate", "--save-weights", "no/w.safetensors"], "the folder of save_weights does not exist: 'no'"),
    ],
)
def test_a_wrong_place_is_one_line_and_exit_code_2(options, text, folder, run):
    code, _, err = run(*EXPORT, *options)
    assert code == 2
    assert text in err
    assert len(err.strip().splitlines()) == 1


def test_drift_is_a_warning_in_the_last_line_and_a_failure_where_it_is_asked_for(folder, run):
    code, out, _ = run(*EXPORT)
    assert code == 0
    last = out.strip().splitlines()[-1]
    assert last.startswith("! PASS, WITH WARNINGS: ")
    assert "the file serves with statistics that drift from `1` on" in last
    Path("m.onnx").unlink()
    code, out, _ = run(*EXPORT, "--require-batchnorm")
    assert code == 1
    assert "`batchnorm statistics`, measured" in out.strip().splitlines()[-1]
    assert not Path("m.onnx").exists()


def test_statistics_that_agree_pass_where_it_is_asked_for(folder, run):
    calibrated("good.safetensors")
    code, out, _ = run(*EXPORT, "--require-batchnorm", "--weights", "good.safetensors")
    assert code == 0
    assert out.strip().splitlines()[-1].startswith("✓ PASS: ")


def test_too_few_samples_to_decide_are_exit_code_3_where_it_is_asked_for(folder, run):
    calibrated("good.safetensors")
    data = np.load("data.npz")
    np.savez("few.npz", inputs=data["inputs"][:3], labels=data["labels"][:3])
    arguments = ["export", "cli_factories:model", "m.onnx", "--data", "few.npz", "--weights", "good.safetensors"]
    code, out, _ = run(*arguments, "--require-batchnorm", "--json")
    assert code == 3
    assert json.loads(out)["batchnorm"]["verdict"] == "inconclusive"
    assert not Path("m.onnx").exists()
