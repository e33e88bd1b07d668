"""Publishing: killed at any moment, on a full disk, without permission, twice at once, there is a whole export or none.

The killing runs in a process of its own, which is warm, so that a fork that exports and is killed takes a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from jumpout_export.disk import locked, private_folder, writing
from jumpout_export.errors import LoadError
from jumpout_export.export.publish import export_onnx
from jumpout_export.export.replace import replace_export
from jumpout_export.onnxfile.data import changed_data, data_files, tie_data
from jumpout_export.onnxfile.load import load_onnx

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and file locks of POSIX")
NAME = "model.onnx"
SECONDS = 200


def run_mode(mode, folder):
    return subprocess.run(
        [sys.executable, "-W", "ignore", __file__, mode, str(folder)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


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
    assert len(listed(tmp_path)) == 3, listed(tmp_path)  # ... which the next export removes


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
    command = [sys.executable, "-m", "jumpout_export", "export", "factory:net", NAME, "--input-shape", "2,4"]
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
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
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


def test_an_error_of_the_file_system_is_one_line_with_the_file():
    with (
        pytest.raises(ValueError, match=r"^m\.onnx cannot be written: No space left on device$"),
        writing(Path("m.onnx")),
    ):
        raise OSError(28, "No space left on device", "/somewhere/else")
    with pytest.raises(ValueError, match=r"^m\.onnx cannot be written: a reason$"), writing(Path("m.onnx")):
        raise TimeoutError("a reason")


def test_the_folder_of_a_living_export_stays_and_that_of_a_dead_one_goes(tmp_path):
    target = tmp_path / NAME

    def dies():
        with private_folder(target) as folder:
            (folder / "part").write_text("half a file")
            os.kill(os.getpid(), signal.SIGKILL)

    with private_folder(target) as alive:
        assert in_fork(dies) == -signal.SIGKILL
        assert len(listed(tmp_path)) == 2
        with private_folder(target) as other:
            assert listed(tmp_path) == sorted([alive.name, other.name])
        with private_folder(tmp_path / "other.onnx"):
            assert alive.exists()
    assert listed(tmp_path) == []


def test_folders_that_are_not_ours_stay(tmp_path):
    for name in (".model.onnx.backup", ".model.onnx.12345678", "model.onnx.12345678.unfinished"):
        (tmp_path / name).mkdir()
    (tmp_path / ".model.onnx.1234abcd.unfinished").write_text("a file")
    before = listed(tmp_path)
    with private_folder(tmp_path / NAME):
        pass
    assert listed(tmp_path) == before


def test_a_lock_that_is_not_let_go_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("jumpout_export.disk._PATIENCE", 0.05)
    with locked(tmp_path), pytest.raises(TimeoutError, match="another process has locked the folder"), locked(tmp_path):
        pass


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


def in_fork(action):
    """Runs `action` in a fork; returns its exit code, minus the signal if one ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 3))


def export(folder, seed, progress=None):
    example = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    return export_onnx(network(seed), folder / NAME, example, external_data=True, golden=folder, progress=progress)


def stage(folder, seed):
    """A finished export of small files of one's own, without the seconds that a real one takes."""
    with private_folder(folder / NAME) as private:
        tensor = onnx.numpy_helper.from_array(np.full(4, seed, np.float32), "w")
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["w"], ["y"])],
            "g",
            [],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])],
            [tensor],
        )
        model = onnx.helper.make_model(graph, producer_version=str(seed))
        onnx.external_data_helper.convert_model_to_external_data(model, location="data", size_threshold=0)
        onnx.save(model, private / NAME)
        model = load_onnx(private / NAME)
        data = tie_data(model, private / "data", NAME)
        (private / NAME).write_bytes(model.SerializeToString())
        hidden = folder / f".golden.{os.getpid()}"
        golden = hidden / "test_data_set_0"
        golden.mkdir(parents=True)
        for name in ("input_0.pb", "output_0.pb"):
            (golden / name).write_text(str(seed))
        replace_export(private / NAME, data, folder / NAME, golden)
        shutil.rmtree(hidden)


def whole(folder):
    """The number of the export that lies in `folder`, as `stage` made it, or what is wrong with it."""
    try:
        model = load_onnx(folder / NAME)
    except LoadError as error:
        return str(error)
    if problems := changed_data(folder / NAME, model):
        return problems[0]
    seed = int(model.producer_version)
    golden = folder / "test_data_set_0"
    found = {path.read_text() for path in golden.iterdir()} if golden.exists() else {str(seed)}
    return seed if found == {str(seed)} else f"mixed: the file is {seed}, the golden data {sorted(found)}"


def contents(folder):
    """The file, its weights and its golden data, by name; hidden folders and weights of no file left out."""
    names = {NAME} | {
        entry.value
        for tensor in load_onnx(folder / NAME).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [folder / name for name in names] + sorted((folder / "test_data_set_0").glob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kill_exports(folder):
    """Exports again and again in forks that are killed, and looks at what is there."""
    versions = []
    for seed in (0, 1):
        reference = folder.with_name(f"{folder.name}-{seed}")
        reference.mkdir()
        assert export(reference, seed)
        begin = time.monotonic()
        assert export(reference, seed)
        seconds = time.monotonic() - begin
        versions.append(contents(reference))
    result = {"problems": [], "killed": 0, "older": 0, "newer": 0, "leftovers": 0}
    events = [("os.rename", number) for number in range(5)] + [("os.remove", 0), ("os.rename", 99)]
    moments = [("after", seconds * share / 6) for share in range(1, 6)]
    now = 0
    assert export(folder, now)
    for what, when in (*events, *moments):
        child = os.fork()
        if child == 0:
            if what != "after":
                kill_at(what, when, folder)
            export(folder, 1 - now)
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "after":
            time.sleep(when)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        result["killed"] += os.WIFSIGNALED(status)
        result["leftovers"] += any(name.startswith(".") for name in listed(folder))
        found = contents(folder)
        published = [seed for seed in (0, 1) if found[NAME] == versions[seed][NAME]]
        if not published:
            result["problems"].append(f"{what} {when}: another file")
            continue
        expected = versions[published[0]]
        golden_is_away = not (folder / "test_data_set_0").exists()
        if golden_is_away:
            expected = {name: value for name, value in expected.items() if not name.startswith("test_data")}
        if found != expected:
            result["problems"].append(f"{what} {when}: mixed {sorted(found)}")
        result["newer" if published[0] != now else "older"] += 1
        now = published[0]
    assert export(folder, 1)
    if contents(folder) != versions[1]:
        result["problems"].append("the export after all kills is another one")
    print(json.dumps(result))


def kill_at(event, number, folder):
    """Kills this process just before a rename or removal in the folder itself, counted from 0."""
    left = [number]

    def hook(name, arguments):
        if name == event and Path(arguments[1 if event == "os.rename" else 0]).parent == folder:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def race(folder):
    """Two processes replace the same export in a loop; now and then one is killed."""
    generator = random.Random(0)
    result = {"problems": [], "rounds": 0}
    stage(folder, 0)
    for number in range(14):
        children = []
        for seed in (0, 1):
            child = os.fork()
            if child == 0:
                for _ in range(8):
                    stage(folder, seed)
                os._exit(0)
            children.append(child)
        if number % 2:
            time.sleep(generator.uniform(0, 0.05))
            os.kill(children[generator.randrange(2)], signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
        found = whole(folder)
        if found not in (0, 1):
            result["problems"].append(found)
        result["rounds"] += 1
    print(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"kill": kill_exports, "race": race}[sys.argv[1]](Path(sys.argv[2]))
