"""The demo: the whole pipeline on real images, from the digits and from a folder."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support.project import PROJECT
from support.warm import warm_python

from jumpout_export import demo
from jumpout_export.errors import LoadError

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    result = subprocess.run(
        [sys.executable, "-m", "jumpout_export", "demo", "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return out, result


def test_it_trains_fixes_exports_and_says_where_to_look(run):
    out, result = run
    assert {
        "model.onnx",
        "weights.safetensors",
        "weights_as_trained.safetensors",
        "data.npz",
        "model.py",
        "report.json",
        "report.html",
        "test_data_set_0",
    } <= set(os.listdir(out))
    assert "Look next at:" in result.stdout
    assert "training 16/16" in result.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["training"]["test_accuracy"][-1] > 0.96
    assert report["training"]["serving_accuracy"][0] > report["training"]["test_accuracy"][0] + 0.2
    assert len(report["before"]["layers"]) == 4
    assert report["before"]["verdict"] == "drift"
    assert report["before"]["origin"]
    assert report["after"]["verdict"] == "ok"
    assert report["export"]["passed"]
    assert [layer["kind"] for layer in report["export"]["folded"]] == ["Jumpout"] * 4
    assert all(len(q) == 16 for q in report["training"]["active_fraction"].values())
    assert report["after"]["outputs"]["top1_after"] is not None


def counted(text):
    """What is counted in the output, and the same on every machine."""
    return re.findall(r"\d+ (?:of \d+ )?(?:checks|layers|BatchNorm)[\w ]*|\d+ became \w+", " ".join(text.split()))


def test_the_readme_shows_what_it_prints(run):
    spec = importlib.util.spec_from_file_location("demo_docs", PROJECT / "tools" / "demo_docs.py")
    demo_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo_docs)
    shown = demo_docs.README.read_text(encoding="utf-8").split(demo_docs.MARKS[0])[1].split(demo_docs.MARKS[1])[0]
    printed = demo_docs.excerpt(run[1].stdout)
    assert len(counted(printed)) >= 4
    assert counted(shown) == counted(printed), "run `python tools/demo_docs.py`"
    changed = shown.replace(counted(shown)[-1], "7" + counted(shown)[-1])
    assert counted(changed) != counted(printed)


def test_its_file_holds_nothing_random_and_no_path(run):
    out, _ = run
    model = onnx.load(out / "model.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert kinds <= {"Conv", "Relu", "MaxPool", "GlobalAveragePool", "ReduceMean", "Flatten", "Reshape", "Gemm"}, kinds
    assert b"/" + str(out).encode().strip(b"/").split(b"/")[0] + b"/" not in (out / "model.onnx").read_bytes()


def test_its_next_steps_work_as_printed(run):
    out, result = run
    commands = [line.strip() for line in result.stdout.splitlines() if line.startswith(f"  cd {out} && ")]
    commands = [command.replace(f" {sys.executable} ", f" {shlex.join(warm_python())} ") for command in commands]
    codes = [subprocess.run(command, shell=True, capture_output=True, check=False).returncode for command in commands]
    verify, check_bn = codes
    assert verify == 0
    assert check_bn in (1, 3)  # as trained it drifts; the test images alone may be too few to decide


def test_the_result_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        demo.run_demo(tmp_path / name, epochs=1, seed=3)
    for file in ("model.onnx", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def image_folder(root, count=60, size=(8, 8)):
    pixels = load_digits().images
    for index in range(count):
        folder = root / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels[index] * 15).astype("uint8")).resize(size)
        image.save(folder / f"{index}.png")


@pytest.mark.parametrize("split", [True, False], ids=["train and test", "one folder"])
def test_it_runs_on_a_folder_of_images(tmp_path, monkeypatch, split):
    if split:
        image_folder(tmp_path / "data" / "train")
        image_folder(tmp_path / "data" / "test", 20)
    else:
        image_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    report = demo.run_demo(tmp_path / "out", Path(), epochs=1)
    assert report.title == "jumpout-export demo on data, a folder of images"
    assert report.export is not None
    assert (tmp_path / "out" / "model.onnx").exists() is bool(report.export)
    assert "channels=3, classes=2" in (tmp_path / "out" / "model.py").read_text()


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(LoadError, match="there is no such folder"):
        demo.run_demo(tmp_path / "out", tmp_path / "missing")
    image_folder(tmp_path / "few", 4)
    with pytest.raises(LoadError, match="at least 10 images are needed, got 4"):
        demo.run_demo(tmp_path / "out", tmp_path / "few")
    assert not (tmp_path / "out").exists()


def test_training_records_the_active_fraction_of_every_jumpout():
    torch.manual_seed(0)
    images = demo.load_digits(0)
    history = demo.train(demo.network(), images, 1, lambda *_: None)
    assert list(history.active_fraction) == ["jumpout1", "jumpout2", "jumpout3", "jumpout4"]
    assert all(0.2 < values[0] < 0.8 for values in history.active_fraction.values())
