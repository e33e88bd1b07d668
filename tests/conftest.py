"""What every test gets: restored generators and signal handlers, and the marks `cuda` and `provider`."""

import gc
import os
import random
import signal
import sys

import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("support")  # a failing assert in a shared helper shows its values, too


@pytest.fixture(autouse=True)
def restored_generators():
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


@pytest.fixture(autouse=True)
def restored_signals():
    """The command line, run in this process, takes Ctrl-C and SIGTERM."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with Ctrl-C ignored
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs the command line in this process; returns exit code, stdout and stderr."""
    from jumpout_export.cli import app as cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jumpout-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capfd.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


def pytest_collection_finish(session):
    keep_what_is_imported()


def pytest_runtest_teardown(item, nextitem):
    if nextitem is None or nextitem.path != item.path:
        keep_what_is_imported()


def keep_what_is_imported(most=500):
    """Lets Python not look through torch's modules for garbage again and again, a tenth of the time of an export."""
    if len(sys.modules) > keep_what_is_imported.modules + most:
        keep_what_is_imported.modules = len(sys.modules)
        gc.collect()
        gc.freeze()


keep_what_is_imported.modules = 0


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        if os.environ.get("JUMPOUT_REQUIRE_CUDA") == "1":
            pytest.fail("JUMPOUT_REQUIRE_CUDA=1, but torch sees no CUDA device")
        pytest.skip("needs a CUDA device")
    from support.project import OPENVINO, PROJECT

    if item.get_closest_marker("provider") and not OPENVINO.exists():
        pytest.skip(f"needs {OPENVINO.relative_to(PROJECT)}, which make providers makes")
