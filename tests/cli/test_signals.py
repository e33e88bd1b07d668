"""Signals, full disks and closed pipes: a command ends with one line and an exit code that is true."""

import os
import signal
import subprocess
import sys
import time

import onnx
import pytest
from onnx import helper
from support.commands import EXPORT, KEPT, process, random_file, signal_at
from support.warm import warm_python

from jumpout_export.exit_codes import PASSED, WRONG_USAGE

pytestmark = pytest.mark.integration


def test_ctrl_c_ends_with_130_and_leaves_nothing(folder):
    command = [*warm_python(), "-m", "jumpout_export", "export", "cli_factories:slow", "m.onnx", "--input-shape", "1,4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert "running\n" in iter(process.stderr.readline, "")
        before = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - before < 30
    assert "interrupted" in err
    assert set(os.listdir()) <= {"cli_factories.py", "data.npz", "__pycache__"}


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
    at_the_end = "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))"
    done = process(EXPORT[:-2], before=at_the_end, python=[sys.executable])
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
    done = process(["info"], before=signal_at(signal.SIGINT, "import", "typer"), python=[sys.executable])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_python_m_and_the_script_start_with_the_signal_handlers(folder):
    done = process(
        ["info"],
        before=signal_at(signal.SIGINT, "import", "typer"),
        entry="import runpy; runpy.run_module('jumpout_export', run_name='__main__')",
        python=[sys.executable],
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


def test_a_report_that_cannot_be_written_is_one_line_and_the_verdict_is_kept(folder):
    limit = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.dont_write_bytecode = True"
    )
    done = process(EXPORT, before=limit)
    assert f"warning: --report r cannot be written: File too large; {KEPT}" in done.stderr.splitlines()
    assert done.returncode == PASSED
    assert "PASS" in done.stdout
    assert "Traceback" not in done.stderr
    assert not list((folder / "r").glob("*.html"))


def test_a_closed_pipe_does_not_change_the_exit_code(folder):
    command = f"{sys.executable} -m jumpout_export export cli_factories:model m.onnx --input-shape 2,1,8,8"
    script = f"{command} 2>/dev/null | head -1; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", script], check=False, capture_output=True).returncode == PASSED
