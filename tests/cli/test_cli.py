"""Every command: its result on stdout, its exit code, and what a wrong use says."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from jumpout_export.cli import app as cli
from jumpout_export.cli.progress import progress_on_stderr
from jumpout_export.cli.work import FAILED, NOT_VERIFIED, PASSED, WRONG_USAGE

FACTORIES = """
import time
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from jumpout_export import Jumpout

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Jumpout(relu=True), nn.Flatten(), nn.Linear(144, 3))

class Noisy(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.inner = model()
        self.draw = draw
    def forward(self, x):
        return self.draw(self.inner(x))

def functional_dropout(): return Noisy(lambda x: F.dropout(x, 0.5, training=True))
def noise_mask(): return Noisy(lambda x: x * (torch.rand_like(x) > 0.5))

def nan_variance():
    net = model()
    net[1].running_var[2] = float("nan")
    return net

def one_child_in_train_mode():
    net = model().eval()
    net[2].train()
    return net

class Slow(nn.Module):
    def forward(self, x):
        print("running", flush=True)
        time.sleep(60)
        return x

def slow(): return Slow()

def exits(): raise SystemExit(0)

class Exits(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(1)
    def forward(self, x):
        if x.shape[0] != 128:
            raise SystemExit(0)
        return self.bn(x)

def exits_later(): return Exits()

def prints():
    print("hello")
    return model()

def two_norms():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))

def softened():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))
    torch.manual_seed(0)
    nn.init.normal_(net[2].weight, std=0.5)
    net[1].running_var.fill_(9.0)
    return net

class Picks(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(1)
    def forward(self, x):
        y = self.bn(3 * x + 1)
        return y[y > 0.5]

def picks(): return Picks()

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)
    def forward(self, x, y):
        return self.a(x) + self.b(y)

def two(): return Two()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "cli_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cli_factories", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 1, 8, 8)).astype(np.float32)
    np.savez("data.npz", inputs=inputs, labels=rng.integers(0, 3, 300))
    return tmp_path


def calibrated(path):
    """Weights whose BatchNorm agrees with data.npz."""
    import cli_factories

    from jumpout_export import recalibrate_batchnorm

    net = cli_factories.model()
    recalibrate_batchnorm(net, torch.from_numpy(np.load("data.npz")["inputs"]).split(100))
    save_file(net.state_dict(), path)


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
        "--images",
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
        "--images",
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
        "BatchNorm layers recalibrated: 1; passes over the data: 1",
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


def random_file(path):
    node = helper.make_node("RandomNormalLike", ["x"], ["y"], name="noise")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([node], "g", info[:1], info[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


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
    (["export", "cli_factories:model", "m.onnx", "--data", "data.npz", "--dtype", "bf16"], "'bf16' is not"),
    (
        ["export", "cli_factories:two_norms", "m.onnx", "--data", "data.npz", "--allow", "9", "--images", "100"],
        "error: --allow: allow names no module of the model: '9'; it has '0'; '1'; '2'; '3'; '4'",
    ),
    (
        ["export", "cli_factories:model", "m.onnx", "--input-shape", "2,1,8,8", "--dynamic", "image:2=height"],
        "error: --dynamic: dynamic_axes names no input of the model: 'image'; it has",
    ),
    (["verify", "missing.onnx", "--against", "cli_factories:model", "--data", "data.npz"], "missing.onnx"),
    (["verify", "m.onnx", "--data", "data.npz"], "Missing option '--against'"),
    (["check-bn", "cli_factories:model"], "Missing option '--data'"),
    (["check-bn", "cli_factories:model", "--data", "data.npz", "--weights", "w.bin"], "there is no such file"),
    (["check-bn", "cli_factories:model", "--data", "data.npz", "--device", "tpu9"], "--device must be cpu or cuda"),
    (["recalibrate-bn", "cli_factories:model", "--data", "data.npz"], "give either -o NEW.safetensors or --dry-run"),
    (["recalibrate-bn", "cli_factories:model", "--data", "data.npz", "-o", "a.pt"], "must end in .safetensors"),
    (["inspect", "missing.onnx"], "missing.onnx"),
    (["inspect", "--nonsense"], "No such option"),
    (["nonsense"], "No such command 'nonsense'"),
    (["demo", "--data", "missing"], "there is no such folder"),
    (["verify", "m.onnx", "--against", "a:b", "--input-shape", "1", "--providers", "tpu"], "cpu, cuda or cpu,cuda"),
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


def test_ctrl_c_ends_with_130_and_leaves_nothing(folder):
    command = [sys.executable, "-m", "jumpout_export", "export", "cli_factories:slow", "m.onnx", "--input-shape", "1,4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert "running\n" in iter(process.stderr.readline, "")
        before = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - before < 30
    assert "interrupted" in err
    assert set(os.listdir()) <= {"cli_factories.py", "data.npz", "__pycache__"}


def process(arguments, *, before="", entry="from jumpout_export.__main__ import main; main()", stdout=subprocess.PIPE):
    """A command in a process of its own, with code that runs before anything of ours is imported."""
    code = f"import atexit, os, signal, sys\n{before}\nsys.argv = {['jumpout-export', *arguments]!r}\n{entry}\n"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=100, check=False)


def signal_at(number, event, ending):
    """Sends this process a signal when Python is about to do something with a file or module of that name."""
    return (
        "def watch(event, details):\n"
        f"    names = details[:2] if event == {event!r} else ()\n"
        f"    if any(isinstance(name, str | os.PathLike) and os.fspath(name).endswith({ending!r}) for name in names):\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "sys.addaudithook(watch)"
    )


EXPORT = ["export", "cli_factories:model", "m.onnx", "--input-shape", "2,1,8,8", "--report", "r"]
TOO_LATE = "interrupted too late: the file is being published, and the command ends with its own exit code"


@pytest.mark.parametrize(
    ("number", "event", "name"),
    [
        (signal.SIGINT, "os.rename", "/m.onnx"),
        (signal.SIGINT, "shutil.rmtree", ".unfinished"),
        (signal.SIGTERM, "os.rename", "/report.json"),
    ],
    ids=["Ctrl-C at the rename", "Ctrl-C after it", "SIGTERM at the report"],
)
def test_a_signal_once_the_file_is_being_published_does_not_change_the_exit_code(folder, number, event, name):
    done = process(EXPORT, before=signal_at(number, event, name))
    assert TOO_LATE in done.stderr
    assert done.returncode == PASSED, done.stderr
    assert "PASS" in done.stdout
    assert {"report.json", "report.html"} <= set(os.listdir("r"))
    assert (folder / "m.onnx").exists()


def test_a_signal_at_the_very_end_of_the_process_does_not_change_the_exit_code(folder):
    # Registered first, it runs last: Python has left our code, and takes the signal handlers away next.
    done = process(EXPORT[:-2], before="atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))")
    assert done.returncode == PASSED, done.stderr
    assert (folder / "m.onnx").exists()


def test_a_signal_while_the_report_of_a_failed_export_is_written_ends_the_command(folder):
    arguments = [EXPORT[0], "cli_factories:noise_mask", *EXPORT[2:]]
    done = process(arguments, before=signal_at(signal.SIGTERM, "os.rename", "/report.json"))
    assert done.returncode == 128 + signal.SIGTERM
    assert "interrupted\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "m.onnx").exists()


@pytest.mark.parametrize("command", ["fold", "recalibrate-bn"])
def test_a_signal_while_another_command_puts_its_file_in_place_comes_too_late(folder, command):
    random_file("random.onnx")
    model = onnx.load("random.onnx")
    model.graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["y"]))
    onnx.save(model, "plain.onnx")
    arguments, name = {
        "fold": (["plain.onnx", "m.onnx"], "/m.onnx"),
        "recalibrate-bn": (["cli_factories:model", "--data", "data.npz", "-o", "w.safetensors"], "/w.safetensors"),
    }[command]
    done = process([command, *arguments], before=signal_at(signal.SIGINT, "os.rename", name))
    assert TOO_LATE in done.stderr
    assert done.returncode == PASSED, done.stderr
    assert os.path.exists(name[1:])


def test_ctrl_c_during_the_long_imports_is_one_line(folder):
    done = process(["info"], before=signal_at(signal.SIGINT, "import", "typer"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_python_m_and_the_script_start_with_the_signal_handlers(folder):
    done = process(
        ["info"],
        before=signal_at(signal.SIGINT, "import", "typer"),
        entry="import runpy; runpy.run_module('jumpout_export', run_name='__main__')",
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (EXPORT[:-2], "error: stdout cannot be written: No space left on device; m.onnx was published"),
        (["info"], "error: stdout cannot be written: No space left on device"),
        (["--help"], "error: a file cannot be written: No space left on device"),
    ],
    ids=["export", "info", "help"],
)
def test_a_result_that_cannot_be_printed_is_one_line_and_exits_2(folder, arguments, message):
    with open("/dev/full", "w") as full:
        done = process(arguments, stdout=full)
    assert [line for line in done.stderr.splitlines() if "error" in line.lower()] == [message]
    assert done.returncode == WRONG_USAGE
    assert "Traceback" not in done.stderr
    assert (folder / "m.onnx").exists() == ("export" in arguments)


def test_a_report_that_cannot_be_written_is_one_line_and_names_what_was_published(folder):
    limit = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.dont_write_bytecode = True"
    )
    done = process(EXPORT, before=limit)
    assert "error: --report r cannot be written: File too large; m.onnx was published" in done.stderr.splitlines()
    assert done.returncode == WRONG_USAGE
    assert "Traceback" not in done.stderr


def test_a_missing_package_for_the_report_names_what_was_published(folder, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, _, err = run(*EXPORT)
    assert code == NOT_VERIFIED
    assert "pip install 'jumpout-export[report" in err
    assert "; m.onnx was published" in err
    assert (folder / "m.onnx").exists()


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


def test_two_named_inputs_of_random_shape(folder, run):
    code, _, err = run("export", "cli_factories:two", "m.onnx", "--input-shape", "x:5,4", "--input-shape", "y:5,2")
    assert code == PASSED, err
    assert [value.name for value in onnx.load("m.onnx").graph.input] == ["x", "y"]


def test_a_closed_pipe_does_not_change_the_exit_code(folder):
    command = f"{sys.executable} -m jumpout_export export cli_factories:model m.onnx --input-shape 2,1,8,8"
    script = f"{command} 2>/dev/null | head -1; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", script], check=False, capture_output=True).returncode == PASSED


def test_an_unexpected_failure_is_neither_passed_nor_failed(run, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(cli.cli_info, "facts", broken)
    code, _, err = run("info")
    assert code == NOT_VERIFIED
    assert "a bug of ours" in err
