"""Publishing: killed, on a full disk, without permission, twice at once, there is a whole export or none."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess

import pytest
import torch
from support.commands import worker
from support.publish_worker import NAME, in_fork, listed, stage, whole
from support.warm import warm_python
from torch import nn

from jumpout_export.export.publish import export_onnx
from jumpout_export.export.replace import replace_export
from jumpout_export.onnxfile.data import data_files
from jumpout_export.onnxfile.manifest import manifest_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="signals and file locks of POSIX"),
]


SECONDS = 200


def run_mode(mode, folder):
    return worker("publish_worker", mode, folder, timeout=SECONDS)


@pytest.mark.slow
def test_a_killed_export_leaves_the_older_one_or_the_new_one_whole(tmp_path):
    done = run_mode("kill", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["problems"] == []
    assert result["killed"] >= 12
    assert result["older"] > 3  # often nothing is published yet
    assert result["newer"] > 0  # and some were killed afterwards
    assert result["leftovers"] > 0  # SIGKILL leaves hidden folders...
    assert len(listed(tmp_path)) == 4, listed(tmp_path)  # ... which the next export removes


def test_the_replacement_is_whole_at_every_moment_and_two_at_once_never_mix(tmp_path):
    done = run_mode("race", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["problems"] == []
    assert result["rounds"] == 14


def test_what_the_checks_above_look_for_they_find(tmp_path):
    stage(tmp_path, 0)
    other = tmp_path / "other"
    other.mkdir()
    stage(other, 1)
    assert whole(tmp_path) == 0
    shutil.copy(other / "test_data_set_0" / "output_0.pb", tmp_path / "test_data_set_0")
    assert "test_data_set_0/output_0.pb is not the file that was proven" in str(whole(tmp_path))
    manifest_of(tmp_path / NAME).unlink()
    assert "mixed" in str(whole(tmp_path))
    shutil.rmtree(tmp_path / "test_data_set_0")
    assert whole(tmp_path) == 0
    (data,) = data_files(tmp_path, NAME)
    data.write_bytes(b"other weights")
    assert "sha256" in str(whole(tmp_path))
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:5])
    assert "not a readable" in str(whole(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_command_leaves_nothing(number, tmp_path):
    (tmp_path / "factory.py").write_text(
        "import os, signal, torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        if any(name.endswith('.unfinished') for name in os.listdir('.')):\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "        return super().forward(x)\n"
        "def net():\n"
        "    return Net(4, 2)\n"
    )
    command = [*warm_python(), "-m", "jumpout_export", "export", "factory:net", NAME, "--input-shape", "2,4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert "interrupted" in done.stderr
    assert set(listed(tmp_path)) - {"__pycache__"} == {"factory.py"}


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """A process may be limited in the size of its files: to write more fails as on a full disk."""
    (tmp_path / "factory.py").write_text(
        "import torch\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Linear(512, 512))\n"
    )
    (tmp_path / NAME).write_bytes(b"older")
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "sys.dont_write_bytecode = True\n"
        f"sys.argv = ['jumpout-export', 'export', 'factory:net', '{NAME}', '--input-shape', '2,512', '--golden', 'g']\n"
        "from jumpout_export.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [*warm_python(), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert f"{NAME} cannot be written: File too large" in errors[0]
    assert "Traceback" not in done.stderr
    assert listed(tmp_path) == ["factory.py", NAME]
    assert (tmp_path / NAME).read_bytes() == b"older"


@pytest.mark.parametrize(
    ("external", "limit", "named"),
    [(True, 2000, "model.onnx"), (None, 3000, "golden/test_data_set_0")],
    ids=["weights beside the file", "golden data"],
)
def test_a_full_disk_at_any_file_takes_everything_back(external, limit, named, tmp_path):
    def forked():
        os.chdir(tmp_path)
        model = nn.Linear(1, 600) if external else nn.Linear(1, 1)
        example = torch.ones(8, 1) if external else torch.ones(8, 1, 900, 1)  # the golden input takes 28,800 bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(ValueError, match=rf"^{named} cannot be written: File too large$"):
            export_onnx(model, NAME, example, external_data=external, golden="golden")

    assert in_fork(forked) == 0
    assert listed(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_named_before_the_work(tmp_path):
    def forked():
        if os.getuid() == 0:  # root may write anywhere
            os.chmod(tmp_path, 0o555)
            for parent in tmp_path.parents[:2]:
                os.chmod(parent, 0o755)
            os.setuid(65534)
        if os.access(tmp_path, os.W_OK) or not os.access(tmp_path, os.X_OK):
            os._exit(77)
        with pytest.raises(ValueError, match="the folder of path cannot be written to: "):
            export_onnx(nn.Linear(4, 2), tmp_path / NAME, torch.ones(2, 4))

    os.chmod(tmp_path, 0o555)
    code = in_fork(forked)
    os.chmod(tmp_path, 0o755)
    if code == 77:
        pytest.skip("no other user can be taken here")
    assert code == 0
    assert listed(tmp_path) == []


def test_an_error_before_the_file_is_replaced_takes_weights_and_golden_data_back(tmp_path):
    stage(tmp_path, 0)
    before = {name: (tmp_path / name).stat().st_ino for name in listed(tmp_path)}
    golden = tmp_path / "golden" / "test_data_set_0"
    golden.mkdir(parents=True)
    weights = tmp_path / "golden" / f"{NAME}.0123456789abcdef.data"
    weights.write_bytes(b"weights")
    (tmp_path / "golden" / NAME).write_bytes(b"new")
    (tmp_path / "folder.onnx" / "full").mkdir(parents=True)  # no file can take its place
    with pytest.raises(IsADirectoryError):
        replace_export(tmp_path / "golden" / NAME, weights, tmp_path / "folder.onnx", golden)
    shutil.rmtree(tmp_path / "folder.onnx")
    shutil.rmtree(tmp_path / "golden")
    assert {name: (tmp_path / name).stat().st_ino for name in listed(tmp_path)} == before
    assert whole(tmp_path) == 0


def test_other_files_beside_golden_data_stay(tmp_path):
    (tmp_path / "test_data_set_0" / "notes").mkdir(parents=True)
    (tmp_path / "test_data_set_0" / "input_7.pb").write_bytes(b"of an older export")
    (tmp_path / "test_data_set_0" / "readme.txt").write_text("mine")
    assert export_onnx(nn.Linear(4, 2), tmp_path / NAME, torch.ones(2, 4), golden=tmp_path)
    assert listed(tmp_path / "test_data_set_0") == ["input_0.pb", "notes", "output_0.pb", "readme.txt"]
