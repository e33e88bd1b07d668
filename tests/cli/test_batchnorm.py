"""The commands check-bn and recalibrate-bn: what they print, write and exit with."""

import json
import os

import numpy as np
import torch
from safetensors.torch import load_file
from support.commands import calibrated

from jumpout_export.exit_codes import FAILED, NOT_VERIFIED, PASSED, WRONG_USAGE


def test_check_bn_tells_drift_from_agreement(folder, run):
    code, out, err = run("check-bn", "cli_factories:model", "--data", "data.npz")
    assert code == FAILED  # buffers as initialised, never trained
    assert "drift" in out
    calibrated("good.safetensors")
    code, out, err = run(
        "check-bn",
        "cli_factories:model",
        "--weights",
        "good.safetensors",
        "--data",
        "data.npz",
        "--json",
        "--samples",
        300,
    )
    assert json.loads(out)["verdict"] == "ok"
    assert code == PASSED, err


def test_check_bn_that_cannot_decide_exits_3(folder, run):
    calibrated("good.safetensors")
    code, out, _ = run(
        "check-bn",
        "cli_factories:model",
        "--weights",
        "good.safetensors",
        "--data",
        "data.npz",
        "--samples",
        2,
        "--batch-size",
        2,
        "--json",
    )
    assert json.loads(out)["verdict"] == "inconclusive"
    assert code == NOT_VERIFIED


def test_recalibrate_bn_writes_new_weights_that_pass_the_check(folder, run):
    code, out, err = run("recalibrate-bn", "cli_factories:model", "--data", "data.npz", "-o", "new.safetensors")
    assert code == PASSED, err
    assert "new.safetensors" in out
    assert "num_batches_tracked" in " ".join(load_file("new.safetensors"))
    code, _, err = run("check-bn", "cli_factories:model", "--weights", "new.safetensors", "--data", "data.npz")
    assert code == PASSED, err


def test_recalibrate_bn_dry_run_writes_nothing(folder, run):
    before = sorted(os.listdir())
    code, out, err = run("recalibrate-bn", "cli_factories:model", "--data", "data.npz", "--dry-run")
    assert code == PASSED, err
    assert "dry run" in out
    assert set(os.listdir()) - set(before) <= {"__pycache__"}


def test_recalibrate_bn_shows_before_after_and_what_the_method_changes(folder, run):
    arguments = ["recalibrate-bn", "cli_factories:model", "--data", "data.npz", "--dry-run", "--json"]
    report = json.loads(run(*arguments)[1])
    assert report["before"]["layers"][0]["w"] > 0.15
    assert report["after"]["layers"][0]["w"] < 0.01
    assert report["notes"] == [
        "BatchNorm layers recalibrated: 1; passes over the data: 2",
        "dry run: nothing was written",
    ]
    effect, other = report["before"]["outputs"], json.loads(run(*arguments, "--method", "variance")[1])
    assert effect["labelled"] == 300
    assert effect["nll_after"] != other["before"]["outputs"]["nll_after"]
    assert report["after"]["outputs"] is None


def test_recalibrate_bn_takes_margins_and_its_exit_code_from_the_check_afterwards(folder, run):
    arguments = ["recalibrate-bn", "cli_factories:model", "--data", "data.npz", "--dry-run", "--json"]
    code, out, _ = run(*arguments, "--method", "variance")
    assert json.loads(out)["after"]["verdict"] == "drift"  # the mean stays as it was
    assert code == FAILED
    code, out, err = run(*arguments, "--method", "variance", "--warn", 0.8, "--fail", 0.9)
    report = json.loads(out)
    assert (report["before"]["warn"], report["after"]["warn"], report["after"]["fail"]) == (0.8, 0.8, 0.9)
    assert report["after"]["verdict"] == "ok"
    assert code == PASSED, err
    code, _, err = run(*arguments, "--warn", 0.3)
    assert code == WRONG_USAGE
    assert "warn <= fail" in err


def test_recalibrate_bn_of_some_layers_leaves_the_others(folder, run):
    arguments = ["recalibrate-bn", "cli_factories:two_norms", "--data", "data.npz", "-o", "new.safetensors"]
    code, _, err = run(*arguments, "--layers", "0")
    assert code == FAILED, err  # the other one still drifts
    saved = load_file("new.safetensors")
    assert not torch.equal(saved["0.running_mean"], torch.zeros(1))
    assert torch.equal(saved["2.running_mean"], torch.zeros(4))
    code, _, err = run(*arguments, "--layers", "0", "--layers", "2")
    assert code == PASSED, err
    code, _, err = run(*arguments, "--layers", "1")
    assert code == WRONG_USAGE
    assert "got '1'; allowed are '0', '2'" in err


def test_recalibrate_bn_refuses_what_makes_the_outputs_worse(folder, run):
    import cli_factories

    net = cli_factories.softened()
    inputs = torch.from_numpy(np.load("data.npz")["inputs"])
    with torch.no_grad():
        labels = torch.multinomial(net.eval()(inputs).softmax(1), 1)[:, 0]
    np.savez("labelled.npz", inputs=inputs.numpy(), labels=labels.numpy())
    arguments = ["recalibrate-bn", "cli_factories:softened", "-o", "new.safetensors"]
    code, _, err = run(*arguments, "--data", "labelled.npz", "--refuse-if-worse")
    assert code == FAILED
    assert "the negative log likelihood rises from" in err
    assert not (folder / "new.safetensors").exists()
    assert run(*arguments, "--data", "labelled.npz")[0] == PASSED
    np.savez("plain.npz", inputs=inputs.numpy())
    code, _, err = run(*arguments, "--data", "plain.npz", "--refuse-if-worse")
    assert code == WRONG_USAGE
    assert "refuse_if_worse needs labels" in err


def test_recalibrate_bn_says_where_outputs_cannot_be_compared(folder, run):
    code, out, err = run("recalibrate-bn", "cli_factories:picks", "--data", "data.npz", "--dry-run", "--json")
    assert code == PASSED, err
    assert "The effect on the outputs was not measured: the outputs change shape" in " ".join(json.loads(out)["notes"])


def test_check_bn_tells_other_data_from_a_stale_average_and_shows_sets_side_by_side(folder, run):
    calibrated("good.safetensors")
    np.savez("night.npz", inputs=np.load("data.npz")["inputs"] * 0.3 + 0.1)
    model = ("check-bn", "cli_factories:model", "--weights", "good.safetensors", "--reference", "data.npz")
    code, out, _ = run(*model, "--data", "night.npz", "--json")
    assert code == FAILED
    assert json.loads(out)["layers"][0]["cause"] == "data"
    code, out, _ = run(*model, "--data", "data.npz", "--data", "night.npz")
    assert code == FAILED
    assert "1 of 2 sets of samples, first night.npz: " in out
    assert "reference=" not in out


def test_check_bn_names_each_set_once(folder, run):
    code, _, err = run("check-bn", "cli_factories:model", "--data", "data.npz", "--data", "data.npz")
    assert code == WRONG_USAGE
    assert "two sets of samples are named data.npz; rename one, or give it once" in err
    code, _, err = run("check-bn", "cli_factories:model", "--data", "data.npz", "--per-folder")
    assert code == WRONG_USAGE
    assert "--per-folder: data.npz must be a folder of folders, one for each set of samples" in err


def test_check_bn_takes_groups_from_an_array(folder, run):
    calibrated("good.safetensors")
    arrays = dict(np.load("data.npz"))
    count = len(arrays["inputs"])
    np.savez("clips.npz", **arrays, clip=np.arange(count) // 8)
    model = ("check-bn", "cli_factories:model", "--weights", "good.safetensors", "--data", "clips.npz", "--json")
    _, out, _ = run(*model, "--groups", "clip")
    assert json.loads(out)["groups"] == -(-count // 8)
    code, _, err = run(*model, "--groups", "scene")
    assert code == WRONG_USAGE
    assert f"--groups scene: clips.npz must hold an array of that name with {count} values" in err
