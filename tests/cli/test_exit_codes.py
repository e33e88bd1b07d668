"""No exit code without a verdict: whatever the model's code, the streams or the system do to the process."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from support.commands import process
from support.warm import warm_python

from jumpout_export import signals
from jumpout_export.cli.errors import run as run_app
from jumpout_export.cli.work import working
from jumpout_export.errors import NotVerifiableError
from jumpout_export.exit_codes import FAILED, NOT_VERIFIED, PASSED, WRONG_USAGE

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the parent process of the command line needs fork"),
]

FACTORIES = """
import os, signal, sys, threading, time
import torch
from torch import nn

class Acts(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.fc, self.act = nn.Linear(4, 2), act
    def forward(self, x):
        self.act()
        return self.fc(x)

def model(): return nn.Linear(4, 2)
def at_once(): os._exit(0)
def in_forward(): return Acts(lambda: os._exit(0))
def from_a_thread():
    threading.Thread(target=lambda: os._exit(0)).start()
    time.sleep(60)
def in_a_copy():
    if os.fork() == 0: time.sleep(0.5)
    os._exit(0)
def another_program(): os.execv("/bin/true", ["true"])
def killed(): return Acts(lambda: os.kill(os.getpid(), signal.SIGKILL))
def crashes(): return Acts(os.abort)
def hangs_up():  # whatever the parent of the tests ignores, as nohup does
    return Acts(lambda: (signal.signal(signal.SIGHUP, signal.SIG_DFL), os.kill(os.getpid(), signal.SIGHUP)))
class Slow(nn.Module):
    def forward(self, x):
        print("running", os.getpid(), flush=True)
        time.sleep(60)
        return x
def slow(): return Slow()
"""
BEFORE = "before there was a verdict"


@pytest.fixture
def factories(folder):
    (folder / "acting.py").write_text(FACTORIES)
    return folder


def export(factory):
    return ["export", f"acting:{factory}", "m.onnx", "--input-shape", "2,4"]


@pytest.mark.parametrize(
    ("factory", "code", "message"),
    [
        ("at_once", NOT_VERIFIED, f"error: the process ended with exit code 0 {BEFORE}: the code of the model or"),
        ("in_forward", NOT_VERIFIED, f"error: the process ended with exit code 0 {BEFORE}: the code of the model or"),
        ("from_a_thread", NOT_VERIFIED, f"error: the process ended with exit code 0 {BEFORE}"),
        ("in_a_copy", NOT_VERIFIED, f"error: the process ended with exit code 0 {BEFORE}"),
        ("another_program", NOT_VERIFIED, f"error: the process ended with exit code 0 {BEFORE}"),
        ("killed", NOT_VERIFIED, f"error: SIGKILL ended the process {BEFORE}; the system does that where memory"),
        ("crashes", NOT_VERIFIED, f"error: SIGABRT ended the process {BEFORE}"),
        ("hangs_up", 128 + signal.SIGHUP, f"error: SIGHUP ended the process {BEFORE}"),
    ],
)
def test_a_process_that_the_models_code_ends_has_no_verdict(factories, factory, code, message):
    done = process(export(factory))
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")][-1].startswith(message)
    assert "Traceback" not in done.stderr
    assert not os.path.exists("m.onnx")


def test_a_verdict_stays_one_however_the_process_ends_after_it(factories):
    for end in ("os._exit(7)", "os.abort()"):
        done = process(["--help"], before=f"atexit.register(lambda: {end})", python=[sys.executable])
        assert done.returncode == PASSED, done.stderr


def test_the_parent_is_light_and_the_work_is_done_by_its_child(factories):
    watch = (
        "import os\nreal = os.waitpid\n"
        "def waitpid(*arguments):\n"
        "    print('parent', sum(name == 'torch' for name in sys.modules), len(sys.modules) < 300, file=sys.stderr)\n"
        "    return real(*arguments)\n"
        "os.waitpid = waitpid"
    )
    done = process(["--help"], before=watch, python=[sys.executable])
    assert done.returncode == PASSED
    assert "parent 0 True" in done.stderr.splitlines()


@contextlib.contextmanager
def running(python=(sys.executable,), **settings):
    """A command that is in the model's forward, with the process that does the work."""
    command = [*python, "-m", "jumpout_export", *export("slow")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings) as parent:
        line = next(line for line in iter(parent.stderr.readline, "") if line.startswith("running"))
        try:
            yield parent, int(line.split()[1])
        finally:
            parent.kill()


def gone(pid):
    """Whether the process ends within some seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGTERM, "the parent"),
        (signal.SIGINT, "the child"),
        (signal.SIGINT, "both, as a terminal does"),
        (signal.SIGTERM, "both, as a terminal does"),
    ],
)
def test_a_signal_ends_the_work_whoever_gets_it_and_leaves_nothing(factories, number, to):
    with running(start_new_session=True) as (parent, child):
        assert child != parent.pid
        {"the parent": parent.send_signal, "the child": lambda n: os.kill(child, n)}.get(
            to, lambda n: os.killpg(parent.pid, n)
        )(number)
        _, err = parent.communicate(timeout=60)
    assert parent.returncode == 128 + number
    assert err.count("interrupted") == 1
    assert "Traceback" not in err
    assert gone(child)
    assert set(os.listdir()) <= {"acting.py", "cli_factories.py", "data.npz", "__pycache__"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_who_kills_the_parent_kills_the_work(factories):
    with running() as (parent, child):
        parent.kill()
        parent.wait(60)
        assert gone(child)


def test_a_signal_that_nobody_wants_stays_ignored(factories):
    with running(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as (parent, child):
        parent.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert parent.poll() is None
        assert not gone_at_once(child)


def gone_at_once(pid):
    return not os.path.exists(f"/proc/{pid}")


def test_where_no_process_can_be_had_there_is_one(factories):
    done = process(export("model"), before="def fork(): raise BlockingIOError(11, 'no more')\nos.fork = fork")
    assert done.returncode == PASSED, done.stderr


class Stop(BaseException):
    """Nothing that `except Exception` catches."""


@pytest.mark.parametrize("error", [Stop("no more"), KeyboardInterrupt(), GeneratorExit()])
def test_what_only_ends_processes_is_one_line_and_no_verdict(error, capsys):
    def app():
        raise error

    with pytest.raises(SystemExit) as end:
        run_app(app)
    assert end.value.code == NOT_VERIFIED
    what = type(error).__name__
    assert capsys.readouterr().err == f"error: the code of the model or the data raised {what}: {str(error) or what}\n"


@pytest.mark.parametrize("error", [Stop("no more"), KeyboardInterrupt(), SystemExit(0), SystemExit("text")])
def test_the_models_code_cannot_end_the_work(error):
    with pytest.raises(NotVerifiableError, match="the code of the model or the data"), working():
        raise error
    with pytest.raises(signals.Interrupted), working():
        raise signals.Interrupted(130)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2, 2), (None, 0), ("text", NOT_VERIFIED)])
def test_only_a_number_is_a_code(code, expected, capsys):
    with pytest.raises(SystemExit) as end:
        run_app(lambda: sys.exit(code))
    assert end.value.code == expected


def shell(line):
    line = line.replace("PYTHON", shlex.join(warm_python()))
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=100)


COMMAND = "PYTHON -m jumpout_export"
EXPORT = f"{COMMAND} {' '.join(export('model'))}"


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (f"{EXPORT} >&-", WRONG_USAGE, "error: stdout cannot be written: Bad file descriptor; m.onnx was published"),
        (f"{EXPORT} 2>&-", PASSED, ""),
        (f"{EXPORT} 2>/dev/full", PASSED, ""),
        (f"{EXPORT} >&- 2>&- <&-", WRONG_USAGE, ""),
        (f"{EXPORT} >/dev/full 2>/dev/full", WRONG_USAGE, ""),
        (f"{COMMAND} --help >&-", WRONG_USAGE, "error: a file cannot be written: Bad file descriptor"),
        (f"{COMMAND} info >&-", WRONG_USAGE, "error: stdout cannot be written: Bad file descriptor"),
        (f"{COMMAND} {' '.join(export('in_forward'))} 2>/dev/full", NOT_VERIFIED, ""),
    ],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_streams_that_are_closed_or_full_change_no_verdict_and_a_result_that_nobody_got_is_none(
    factories, line, code, says
):
    done = shell(line)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert [text for text in done.stderr.splitlines() if text.startswith("error: ")] == ([says] if says else [])
    assert ("PASS" in done.stdout) == (code == PASSED)


def test_nothing_is_printed_into_a_file_that_took_the_number_of_a_closed_stream(factories):
    """Without care the data file, opened first, would be handle 1, and prints of C would go there."""
    before = (factories / "data.npz").read_bytes()
    shell(f"{EXPORT.replace('--input-shape 2,4', '--data data.npz')} >&- 2>&- <&-")
    assert (factories / "data.npz").read_bytes() == before


def test_failed_checks_keep_their_code_behind_the_parent(factories):
    onnx = shell(f"{COMMAND} export cli_factories:noise_mask m.onnx --input-shape 2,1,8,8")
    assert onnx.returncode == FAILED
