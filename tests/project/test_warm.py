"""A copy of the warm Python is to its test what a Python of its own is: code, signal, streams, folder, environment."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.ranks import run_ranks
from support.warm import AVAILABLE, warm_python

pytestmark = [pytest.mark.integration, pytest.mark.skipif(not AVAILABLE, reason="needs Linux")]

# Each is run by a Python of its own, too, and has to end alike.
PROGRAMS = {
    "prints": ["-c", "import sys; print('out'); print('err', file=sys.stderr)"],
    "arguments": ["-c", "import sys; print(sys.argv)", "one", "--two"],
    "exits": ["-c", "raise SystemExit(7)"],
    "exits with a text": ["-c", "raise SystemExit('why')"],
    "ends at once": ["-c", "import os; print('lost'); os._exit(5)"],
    "killed": ["-c", "import os; os.kill(os.getpid(), 9)"],
    "aborts": ["-c", "import os; os.abort()"],
    "raises": ["-c", "import atexit; atexit.register(print, 'at exit'); 1 / 0"],
    "interrupted": ["-c", "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"],
    "a module": ["-m", "said", "x"],
    "a file": ["said.py", "x"],
    "a warning": ["-W", "error::UserWarning", "-c", "import warnings; warnings.warn('oh')"],
    "reads": ["-c", "print(input())"],
    "its own folder and environment": ["-c", "import os; print(os.getcwd(), os.environ['SAID'], os.getpid() > 1)"],
    "an empty place in the path": ["-c", "import said; print(said.__name__)"],
}


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_copy_ends_as_a_python_of_its_own_does(program, unbuffered, tmp_path):
    (tmp_path / "said.py").write_text("import sys\nprint(__name__, sys.argv[1:], __name__ == '__main__')\n")
    settings = {
        "cwd": tmp_path,
        "env": {**os.environ, "SAID": "yes", "PYTHONUNBUFFERED": unbuffered},
        "input": "line\n",
        "timeout": 60,
    }
    own, copy = (
        subprocess.run([*python, *program], capture_output=True, text=True, check=False, **settings)
        for python in ([sys.executable], warm_python())
    )
    assert copy.returncode == own.returncode
    assert copy.stdout == own.stdout
    assert copy.stderr.splitlines()[-1:] == own.stderr.splitlines()[-1:]


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_closed(closed, tmp_path):
    streams = "[stream is None for stream in (sys.stdin, sys.stdout, sys.stderr)]"
    look = f"import sys, pathlib; pathlib.Path('said').write_text(str({streams}))"
    said = []
    for python in ([sys.executable], warm_python()):
        subprocess.run(f"{shlex.join([*python, '-c', look])} {closed}", shell=True, cwd=tmp_path, check=True)
        said.append((tmp_path / "said").read_text())
    assert "True" in said[0]
    assert said[1] == said[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_of_the_client_reaches_the_copy(number):
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(9))\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([*warm_python(), "-c", code], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "ready\n"
        client.send_signal(number)
        assert client.wait(30) == 9


def test_who_kills_the_client_kills_the_copy():
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([*warm_python(), "-c", code], stdout=subprocess.PIPE, text=True) as client:
        copy = int(client.stdout.readline())
        client.kill()
        assert client.stdout.read() == ""  # it ends when nobody holds the other end any more
    assert client.returncode == -signal.SIGKILL
    command = Path(f"/proc/{copy}/cmdline")
    assert not command.exists() or command.read_text() == "", "it is gone, or nobody has asked for its code yet"


def test_a_copy_has_imported_torch_and_draws_numbers_of_its_own():
    code = (
        "import sys; print('torch' in sys.modules); import numpy, random; print(numpy.random.rand(), random.random())"
    )
    first, second = (
        subprocess.run([*warm_python(), "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    )
    assert first[0] == second[0] == "True"
    assert first[1] != second[1]
    assert first[2] != second[2]


def test_ranks_know_their_number_and_one_that_fails_ends_the_others():
    code = "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'])"
    assert run_ranks(2, "-c", code) == [(0, "0 2\n", ""), (0, "1 2\n", "")]
    code = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    (survivor, _, _), (failed, _, _) = run_ranks(2, "-c", code)
    assert (survivor, failed) == (-signal.SIGTERM, 3)
