"""`fold`, and what `inspect`, `fold` and `verify` say about hostile files: exit codes, one line, nothing written."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.onnx_files import parsed
from support.warm import warm_python

from jumpout_export.exit_codes import FAILED, NOT_VERIFIED, PASSED, WRONG_USAGE


def noisy(op="Dropout", shape=("batch", 4)):
    """y = dropout(x w), or x w + noise."""
    drop = "[drop] y = Dropout(h, ratio, true)"
    noise = drop if op == "Dropout" else f"[noise] n = {op}(h) [add] y = Add(h, n)"
    size = ",".join(map(str, shape))
    weights = {"weights": np.eye(4, dtype="f4"), "ratio": np.float32(0.3), "true": np.array(True)}
    text = f"g (float[{size}] x) => (float[{size}] y) {{ [first] h = MatMul(x, weights) {noise} }}"
    return parsed(text, weights)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    onnx.save(noisy(), "noisy.onnx")
    onnx.save(noisy("RandomNormalLike"), "added.onnx")
    return tmp_path


def test_fold_writes_the_file_and_says_what_it_took_out(folder, run):
    code, out, err = run("fold", "noisy.onnx", "out.onnx", "--report", "report")
    assert code == PASSED, err
    assert "drop (Dropout)" in out
    assert (
        out.rstrip().splitlines()[-1].startswith("✓ PASS: `out.onnx` is the same network without training-time noise")
    )
    assert err == ""
    assert {"report.json", "report.html"} <= set(os.listdir("report"))
    assert run("inspect", "out.onnx")[0] == PASSED


def test_fold_prints_json_alone_on_stdout(folder, run):
    code, out, _ = run("fold", "noisy.onnx", "out.onnx", "--json")
    report = json.loads(out)
    assert code == PASSED
    assert (report["kind"], report["passed"], report["path"]) == ("fold", True, "out.onnx")
    assert [layer["path"] for layer in report["folded"]] == ["drop (Dropout)"]


def test_fold_says_that_there_was_nothing_to_fold(folder, run):
    run("fold", "noisy.onnx", "once.onnx")
    code, out, _ = run("fold", "once.onnx", "twice.onnx")
    assert code == PASSED
    assert "there is nothing to fold" in out
    assert (folder / "once.onnx").read_bytes() == (folder / "twice.onnx").read_bytes()


def test_what_cannot_be_folded_exits_1_with_the_node_and_leaves_an_older_file(folder, run):
    (folder / "out.onnx").write_bytes(b"older")
    before = sorted(os.listdir())
    code, out, err = run("fold", "added.onnx", "out.onnx")
    assert code == FAILED
    assert "noise (RandomNormalLike) draws normal numbers that are added in add (Add)" in out
    assert err == ""
    assert (folder / "out.onnx").read_bytes() == b"older"
    assert sorted(os.listdir()) == before
    code, out, _ = run("inspect", "added.onnx")
    assert code == FAILED
    assert "the noise cannot be taken out" in out
    code, out, _ = run("inspect", "noisy.onnx")
    assert code == FAILED
    assert "`jumpout-export fold` can take the noise out" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx", "out.onnx"], "missing.onnx: no such file"),
        ([".", "out.onnx"], ".: is not a file"),
        (["empty.onnx", "out.onnx"], "empty.onnx: not a readable ONNX model"),
        (["cut.onnx", "out.onnx"], "cut.onnx: not a readable ONNX model"),
        (["text.onnx", "out.onnx"], "text.onnx: not a readable ONNX model"),
        (["noisy.onnx", "out.pt"], "must end in .onnx, got 'out.pt'"),
        (["noisy.onnx", "nowhere/out.onnx"], "the folder of the file to write does not exist: 'nowhere'"),
        (["noisy.onnx", "out.onnx", "--report", "noisy.onnx"], "--report noisy.onnx must be a folder, it is a file"),
    ],
)
def test_a_wrong_use_exits_2_with_one_line(folder, run, arguments, message):
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "cut.onnx").write_bytes((folder / "noisy.onnx").read_bytes()[:-30])
    (folder / "text.onnx").write_text("no model\n")
    before = sorted(os.listdir())
    code, out, err = run("fold", *arguments)
    assert code == WRONG_USAGE
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert sorted(os.listdir()) == before


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs Linux's /proc")
def test_a_file_that_cannot_be_read_or_written_exits_2(folder, run):
    code, out, err = run("fold", "/proc/self/mem", "out.onnx")  # a file whose first byte nobody may read
    assert (code, out) == (WRONG_USAGE, "")
    assert err == "error: /proc/self/mem: not a readable ONNX model ([Errno 5] Input/output error)\n"
    code, out, err = run("fold", "noisy.onnx", "/proc/out.onnx")  # a folder that takes no files
    assert (code, out) == (WRONG_USAGE, "")
    assert err.startswith("error: /proc/out.onnx cannot be written: ")
    assert len(err.splitlines()) == 1


def test_no_random_inputs_exits_3(folder, run):
    model = noisy()
    size = numpy_helper.from_array(np.array([7, 4]), "size")
    model.graph.initializer.append(size)
    model.graph.node.insert(1, helper.make_node("Reshape", ["h", "size"], ["h2"]))
    model.graph.node[2].input[0] = "h2"
    onnx.save(model, "fixed.onnx")
    code, out, err = run("fold", "fixed.onnx", "out.onnx")
    assert code == NOT_VERIFIED
    assert out == ""
    assert "cannot be run on random inputs of any size that was tried" in err
    assert not os.path.exists("out.onnx")


@pytest.mark.integration
@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_a_package_it_exits_3_and_names_the_extra(folder, package):
    code = f"import sys; sys.modules[{package!r}] = None; from jumpout_export.cli.app import main; main()"
    command = [*warm_python(), "-c", code, "fold", "noisy.onnx", "out.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == NOT_VERIFIED, done.stderr
    assert f"error: {package} cannot be imported" in done.stderr
    assert "pip install 'jumpout-export[onnx]'" in done.stderr
    assert not (folder / "out.onnx").exists()


def external(location):
    model = noisy()
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    return model


def huge_constant():
    model = noisy()
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]
    return model


def cyclic():
    model = noisy()
    model.graph.node[0].input[1] = "y"
    return model


HOSTILE = {
    "external data through ..": (lambda: external("../weights.bin"), "is outside of the model's folder"),
    "external data at an absolute path": (lambda: external("/etc/hostname"), "is outside of the model's folder"),
    "external data through a symlink": (lambda: external("link.bin"), "is outside of the model's folder"),
    "external data through a hard link": (lambda: external("hard.bin"), "has several hard links"),
    "a huge input": (lambda: noisy(shape=(1 << 40, 4)), "allowed are axes from 1 and 268435456 elements"),
    "a huge constant": (huge_constant, "weights has 64 bytes, its shape needs"),
    "a cycle": (cyclic, "topologically sorted"),
}


@pytest.mark.parametrize("command", ["inspect", "fold", "verify"])
@pytest.mark.parametrize(("make", "problem"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_fails_with_its_reason_and_nothing_is_written(folder, run, command, make, problem, monkeypatch):
    inner = folder / "inner"
    inner.mkdir()
    (folder / "weights.bin").write_bytes(bytes(64))
    (inner / "link.bin").symlink_to(folder / "weights.bin")
    (inner / "hard.bin").hardlink_to(folder / "weights.bin")
    (folder / "hostile_factory.py").write_text("import torch\ndef model(): return torch.nn.Identity()\n")
    (inner / "hostile.onnx").write_bytes(make().SerializeToString())
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = sorted(str(path) for path in folder.rglob("*"))
    more = {"fold": ["inner/out.onnx"], "verify": ["--against", "hostile_factory:model", "--input-shape", "2,4"]}
    code, out, err = run(command, "inner/hostile.onnx", *more.get(command, []))
    assert code == FAILED, err
    assert problem in " ".join(out.split())
    assert "Traceback" not in err
    assert "onnxruntime:" not in err
    assert sorted(str(path) for path in folder.rglob("*")) == before
