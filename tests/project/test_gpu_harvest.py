"""What a machine with a GPU would run, run here with the emulator in place of the device."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from support import emulated
from support.project import PROJECT

pytestmark = pytest.mark.integration

HARVEST = PROJECT / "tools" / "gpu_harvest.sh"


def harvest(out, **environment):
    variables = {**os.environ, "OUT": str(out), "PYTHON": sys.executable, **environment}
    return subprocess.run(["bash", HARVEST], capture_output=True, text=True, check=False, env=variables)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path):
    done = harvest(tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert done.stderr.startswith("gpu: not run: nvidia-smi finds no GPU here")


@pytest.mark.slow
@pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_a_dry_run_goes_on_after_failures_and_keeps_what_passed(tmp_path):
    done = harvest(tmp_path, DRY="1")
    rows = {row["step"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert done.returncode == 1, done.stderr
    assert rows["gpu"]["exit_code"] == rows["memcheck"]["exit_code"] == 127  # not installed
    for name in ("programs", "check", "times", "pytest-cuda"):
        assert rows[name]["exit_code"] == 0, (tmp_path / f"{name}.log").read_text()
    assert rows["check"]["last_line"].endswith(" cases, 0 differences")
    assert {row["dtype"] for row in json.loads((tmp_path / "times.json").read_text())} == {"float32", "bfloat16"}

    # What passed is not run again, whatever the time that is left; what failed would be.
    (tmp_path / "times.rc").write_text("1")
    harvest(tmp_path, DRY="1", BUDGET="0")
    again = {row["step"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert again["check"] == rows["check"]
    assert again["times"] == {**rows["times"], "exit_code": 3, "last_line": "no time was left"}
