"""Publishes again and again in forks that are killed or race.

It runs in a process of its own, which is warm, so that a fork that exports and is killed takes a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from jumpout_export.disk import private_folder
from jumpout_export.errors import LoadError
from jumpout_export.export.publish import export_onnx
from jumpout_export.export.replace import replace_export
from jumpout_export.onnxfile.data import changed_data, external_files, tie_data
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.onnxfile.manifest import digests_of, manifest_checks
from support.onnx_files import parsed

NAME = "model.onnx"


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


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
        model = parsed("g () => (float[4] y) { y = Identity(w) }", {"w": np.full(4, seed, np.float32)})
        model.producer_version = str(seed)
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
        manifest = digests_of(private / NAME, data, golden).write(private / "manifest")
        replace_export(private / NAME, data, folder / NAME, golden, manifest=manifest)
        shutil.rmtree(hidden)


def whole(folder):
    """The number of the export that lies in `folder`, as `stage` made it, or what is wrong with it."""
    try:
        model = load_onnx(folder / NAME)
    except LoadError as error:
        return str(error)
    if problems := changed_data(folder / NAME, model):
        return problems[0]
    if problem := misdescribed(folder, model):
        return problem
    seed = int(model.producer_version)
    golden = folder / "test_data_set_0"
    found = {path.read_text() for path in golden.iterdir()} if golden.exists() else {str(seed)}
    return seed if found == {str(seed)} else f"mixed: the file is {seed}, the golden data {sorted(found)}"


def misdescribed(folder, model):
    """What is wrong with the manifest in `folder`; empty if it describes what is there, or there is none."""
    checks, _ = manifest_checks(folder / NAME, external_files(model))
    away = "" if not checks or (folder / "test_data_set_0").exists() else "a manifest, and no golden data"
    return away or next((check.note for check in checks if check.verdict != "pass"), "")


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
    events = [("os.rename", number) for number in range(7)] + [("os.remove", 0), ("os.rename", 99)]
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
        if problem := misdescribed(folder, load_onnx(folder / NAME)):
            result["problems"].append(f"{what} {when}: {problem}")
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
