"""The worker in another Python: what it is handed and gives back, how it ends, and what is said when it is no good.

The other Python here is this one; `test_openvino.py` has a real other environment.
"""

import ast
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import parser
from support.onnx_files import saved
from support.verified import SAMPLES, found
from torch import nn

from jumpout_export import export_onnx, verify_onnx
from jumpout_export.errors import NotVerifiableError
from jumpout_export.runtime import limits, worker
from jumpout_export.runtime.elsewhere import Elsewhere, ElsewhereError
from jumpout_export.runtime.provider import Provider
from jumpout_export.runtime.providers import PROVIDERS, provider_of, providers_in
from jumpout_export.runtime.session import open_session

HEADER = '<ir_version: 10, opset_import: ["" : 18]> '
IDENTITY = HEADER + "g (float[n] x) => (float[n] y) { y = Identity(x) }"


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """The temporary files of a test, of which none may be left."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert left(place) == []


def left(place):
    """The workers' folders there; onnxruntime itself leaves a file."""
    return list(place.glob("jumpout-export-*"))


@pytest.fixture
def toy(monkeypatch):
    """A provider that this Python's onnxruntime has, so that this Python can be the other one."""
    monkeypatch.setitem(PROVIDERS, "toy", Provider("toy", "CPUExecutionProvider", must_repeat=True, package="toys"))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    path = tmp_path_factory.mktemp("good") / "m.onnx"
    assert export_onnx(network, path, SAMPLES[:4])
    return network, path


def python(folder, body, name="python"):
    """A program in the place of a Python; `worker` in its body is the path of the worker."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\nworker = sys.argv[2]\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def changed(folder, old, new):
    """A Python that runs the worker with one thing in it changed."""
    assert old in Path(worker.__file__).read_text()
    return python(
        folder,
        f"source = open(worker).read().replace({old!r}, {new!r})\n"
        "sys.argv = sys.argv[2:]\n"
        "exec(compile(source, worker, 'exec'), {'__name__': '__main__'})",
    )


def model_of(text):
    return parser.parse_model(text).SerializeToString()


def opened(runtime, text):
    options = {"optimized": True, "threads": 1, "alone": False}
    return runtime.open(model_of(text), "CPUExecutionProvider", {}, **options)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def until(condition):
    for _ in range(900):
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_the_worker_imports_numpy_and_onnxruntime_alone():
    imported = set()
    for node in ast.walk(ast.parse(Path(worker.__file__).read_text())):
        imported |= {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
        imported |= {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime"}


@pytest.mark.integration
def test_a_session_there_is_used_as_one_here():
    text = HEADER + "g (float[n, 3] x, int64[1] s) => (float[n, 3] y, int64[1] t) { y = Sigmoid(x) t = Add(s, s) }"
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 3), np.float32), "s": np.array([7])}
    here = onnxruntime.InferenceSession(model_of(text), providers=["CPUExecutionProvider"])
    runtime = Elsewhere(sys.executable)
    try:
        assert runtime.facts()["version"] == onnxruntime.__version__
        assert runtime.facts()["providers"] == onnxruntime.get_available_providers()
        there = opened(runtime, text)
        for kind in ("get_inputs", "get_outputs"):
            values = [[(one.name, one.type, one.shape) for one in getattr(side, kind)()] for side in (here, there)]
            assert values[0] == values[1]
        assert sorted(runtime.nodes(there)) == [
            ("", "Add", "CPUExecutionProvider"),
            ("", "Sigmoid", "CPUExecutionProvider"),
        ]
        for names in (None, ["t"], ["t", "y"]):
            for mine, its in zip(here.run(names, feeds), there.run(names, feeds), strict=True):
                assert (mine.dtype, mine.shape, mine.tobytes()) == (its.dtype, its.shape, its.tobytes())
    finally:
        runtime.close()


ARRAYS = {
    "float16": ("float16[n]", np.array([1, np.nan, -0.0], np.float16)),
    "double": ("double[n]", np.array([1e300, np.inf])),
    "int64": ("int64[n]", np.array([2**62, -1])),
    "uint8": ("uint8[n]", np.arange(3, dtype=np.uint8)),
    "bool": ("bool[n]", np.array([True, False])),
    "scalar": ("float", np.float32(3).reshape(())),
    "empty": ("float[n, 3]", np.zeros((0, 3), np.float32)),
    "strided": ("float[n, m]", np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]),
}


@pytest.mark.integration
def test_arrays_of_every_kind_come_back_as_they_went():
    runtime = Elsewhere(sys.executable)
    try:
        for name, (kind, array) in ARRAYS.items():
            session = opened(runtime, f"{HEADER} g ({kind} x) => ({kind} y) {{ y = Identity(x) }}")
            (back,) = session.run(None, {"x": array})
            assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes()), name
    finally:
        runtime.close()


@pytest.mark.integration
def test_what_cannot_be_handed_over_says_so_and_is_never_pickled():
    runtime = Elsewhere(sys.executable)
    strings = HEADER + "g (float[n] x) => (string[n] y) { y = Cast<to=8>(x) }"
    sequence = HEADER + "g (float[n] x) => (seq(float[n]) y) { y = SequenceConstruct(x) }"
    try:
        with pytest.raises(ElsewhereError, match="Object arrays cannot be saved when allow_pickle=False"):
            opened(runtime, strings).run(None, {"x": np.ones(2, np.float32)})
        with pytest.raises(ElsewhereError, match="an output is a list, only arrays can be handed over"):
            opened(runtime, sequence).run(None, {"x": np.ones(2, np.float32)})
        with pytest.raises(ElsewhereError, match="Unexpected input data type"):  # and it is still there
            opened(runtime, IDENTITY).run(None, {"x": np.ones(2)})
    finally:
        runtime.close()


@pytest.mark.integration
def test_sessions_that_nobody_holds_are_closed_there(tmp_path):
    # It counts its sessions where it says its version.
    runtime = Elsewhere(
        changed(tmp_path, "return self._runtime.facts()", "return {'providers': [len(self._sessions)]}")
    )
    try:
        kept = [opened(runtime, IDENTITY) for _ in range(3)]
        del kept[1:]
        assert runtime.facts()["providers"] == [1]
    finally:
        runtime.close()


BROKEN = {
    "garbage": ("print('hello', flush=True); time.sleep(60)", r"answers 'hello' instead .*; is it a Python\?"),
    "endless": ("while True: os.write(1, b'y')", "answers 'y+' instead of what a worker does"),
    "other JSON": ("print('[]', flush=True); time.sleep(60)", r"answers '\[\]' instead of what a worker does"),
    "ends": ("sys.exit('no licence')", "ended with exit code 1: no licence"),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
    "hangs": ("time.sleep(60)", "did not answer within 2 seconds"),
    "closes": ("os.close(1); time.sleep(60)", "closed its output"),
    "lies": ("print('{\"result\": 7}', flush=True); time.sleep(60)", "says 7 of itself"),
}


@pytest.mark.integration
@pytest.mark.parametrize(("body", "says"), BROKEN.values(), ids=BROKEN.keys())
def test_a_worker_that_is_no_good_is_one_clear_reason_and_not_asked_again(toy, tmp_path, monkeypatch, body, says):
    monkeypatch.setattr(limits, "SECONDS", 2.0)
    monkeypatch.setattr("jumpout_export.runtime.elsewhere._PATIENCE", 0.5)
    monkeypatch.setattr("jumpout_export.runtime.elsewhere._LONGEST", 1000)
    program = python(tmp_path, body)
    with providers_in(program, ["toy"]):
        with pytest.raises(NotVerifiableError, match=f"TOY cannot be used: the worker in {program} {says}"):
            open_session(tmp_path / "m.onnx", "toy", "all")
        with pytest.raises(NotVerifiableError, match=f"the worker in {program} {says}"):
            provider_of("toy").runtime.facts()
    assert provider_of("toy").explain_unusable() is None  # that of this Python


@pytest.mark.integration
def test_a_python_that_lacks_onnxruntime_or_the_provider_ends_with_3_and_the_pip_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bare_factory.py").write_text("from torch import nn\n\ndef network():\n    return nn.Conv2d(1, 2, 3)\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "bare"], check=True)
    bare = tmp_path / "bare" / "bin" / "python"
    export = ["export", "bare_factory:network", "m.onnx", "--input-shape", "2,1,5,5", "--providers"]
    code, _, err = run(*export, "openvino", "--provider-python", bare)
    assert code == 3
    assert (
        f"{bare} has no onnxruntime and numpy (No module named 'numpy'): {bare} -m pip install onnxruntime-openv" in err
    )
    for provider, package in (("openvino", "onnxruntime-openvino"), ("cuda", "'onnxruntime-gpu[cuda,cudnn]'")):
        if PROVIDERS[provider].onnxruntime_name in onnxruntime.get_available_providers():
            continue
        for python in ([], ["--provider-python", sys.executable]):
            code, _, err = run(*export, provider, *python)
            assert code == 3
            assert f"python3 -m venv onnxruntime-{provider} && onnxruntime-{provider}/bin/pip install {package}" in err
            assert f"--provider-python onnxruntime-{provider}/bin/python" in err
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("nowhere/python", "nowhere/python is no program that can be run"),
        ("environment", "environment is a folder; the Python in that environment is environment/bin/python"),
        ("plain.txt", "plain.txt is no program that can be run"),
    ],
)
def test_a_python_that_is_none_is_wrong_usage(run, tmp_path, monkeypatch, named, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    (tmp_path / "environment" / "bin" / "python").touch()
    (tmp_path / "plain.txt").touch()
    common = ["verify", "m.onnx", "--against", "nowhere:network", "--input-shape", "2,3"]
    code, _, err = run(*common, "--providers", "openvino", "--provider-python", named)
    assert (code, err.strip()) == (2, f"error: --provider-python: provider_python must be a Python, {says}")


def test_a_python_for_the_cpu_alone_is_wrong_usage(run):
    common = ["verify", "m.onnx", "--against", "nowhere:network", "--input-shape", "2,3"]
    code, _, err = run(*common, "--provider-python", sys.executable)
    assert code == 2
    assert "--provider-python: provider_python is for cuda, openvino; the CPU is always that of the Python" in err


@pytest.mark.integration
def test_a_file_is_verified_there_by_the_same_checks(toy, good, folders):
    network, path = good
    here = verify_onnx(path, network, SAMPLES, providers=("toy",))
    there = verify_onnx(path, network, SAMPLES, providers=("cpu", "toy"), provider_python=sys.executable)
    assert here
    assert there
    mine, its = ([check for check in report.checks if check.name.startswith("toy/")] for report in (here, there))
    assert len(mine) > 30
    assert mine == its
    note = f"toy is that of onnxruntime {onnxruntime.__version__} in another Python, {sys.executable}"
    assert note in there.notes
    assert note not in here.notes


SAVES = "np.save(self._folder / file, value, allow_pickle=False)"
WRONG = {  # what is done with an output instead, and what becomes of the verdict
    "shape": (
        "np.save(self._folder / file, value[:1], allow_pickle=False)",
        "fail",
        "output `output` is float32[1, 3], in PyTorch it is float32[4, 3]",
    ),
    "values": ("np.save(self._folder / file, value + np.float32(1e-3), allow_pickle=False)", "fail", "worst error"),
    "dtype": ("np.save(self._folder / file, value.astype('float64'), allow_pickle=False)", "fail", "float64"),
    "no array": ("(self._folder / file).write_text('hello')", "not_run", "cannot be given arrays, or gives none ("),
    "a pickle": ("np.save(self._folder / file, np.array([None]))", "not_run", "Object arrays cannot be loaded"),
    "no file": ("None", "not_run", "No such file or directory"),
}


@pytest.mark.integration
@pytest.mark.parametrize(("does", "verdict", "says"), WRONG.values(), ids=WRONG.keys())
def test_a_worker_that_gives_back_something_else_does_not_pass(toy, good, tmp_path, does, verdict, says):
    network, path = good
    # The four values of the convolution that the provider is tried with are right.
    program = changed(tmp_path, SAVES, f"{SAVES} if value.size == 4 else {does}")
    report = verify_onnx(path, network, SAMPLES[:4], providers=("toy", "cpu"), provider_python=program)
    assert not report
    assert report.providers["cpu"].verdict == "pass"
    assert report.providers["toy"].verdict == verdict
    said = [f"{name}: {check.note}" for name, check in found(report).items()]
    assert any(says in text for text in said), said


@pytest.mark.integration
def test_what_onnxruntime_raises_there_is_the_files_fault(toy, tmp_path):
    graph = "g (double[1, 1, 3, 3] x, double[1, 1, 1, 1] w) => (double[1, 1, 3, 3] y) { y = Conv(x, w) }"
    path, says = saved(graph, tmp_path / "m.onnx"), "Could not find an implementation for Conv"
    with providers_in(sys.executable, ["toy"]), pytest.raises(ElsewhereError, match=says):
        open_session(path, "toy", "off")


@pytest.mark.integration
@pytest.mark.parametrize("when", ["first", "last"])
def test_a_worker_that_is_killed_leaves_nothing_verified_and_nothing_behind(toy, good, when):
    network, path = good
    seen = []

    def kill(what, done, total):
        seen.append(done)
        if len(seen) == (1 if when == "first" else len(steps)):
            os.kill(provider_of("toy").runtime._process.pid, signal.SIGKILL)

    steps = []
    assert verify_onnx(
        path,
        network,
        SAMPLES,
        providers=("toy",),
        progress=lambda *step: steps.append(step),
        provider_python=sys.executable,
    )
    report = verify_onnx(
        path, network, SAMPLES, providers=("cpu", "toy"), progress=kill, provider_python=sys.executable
    )
    assert not report
    assert report.providers["cpu"].verdict == "pass"
    assert report.providers["toy"].verdict == "not_run"
    reason = f"TOY cannot be used any more: the worker in {sys.executable} was ended by SIGKILL"
    assert report.providers["toy"].reason == reason
    assert [check.note for check in report.checks if check.name == "toy"] == [reason]
    assert [
        check.verdict for check in report.checks if check.name.startswith("toy/") and check.name.endswith("error")
    ] == []


@pytest.mark.integration
def test_one_that_dies_on_inputs_of_other_magnitudes_is_not_verified(toy, good, tmp_path):
    network, path = good
    dies = f"{SAVES} if np.abs(value).max() < 20 else os.kill(os.getpid(), 9)"
    report = verify_onnx(
        path, network, SAMPLES[:4], providers=("cpu", "toy"), provider_python=changed(tmp_path, SAVES, dies)
    )
    assert report.providers["toy"].verdict == "not_run"
    assert "was ended by SIGKILL" in report.providers["toy"].reason
    assert report.providers["cpu"].verdict == "pass"
    assert next(check for check in report.checks if check.name == "cpu/all/data/worst error").verdict == "pass"


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_no_worker_and_no_folder(good, tmp_path, folders, number):
    _, path = good
    (tmp_path / "ended_factory.py").write_text(
        "from torch import nn\n\ndef network():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))\n"
    )
    # It says who it is, and where it is asked about itself, it sleeps.
    waits = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); __import__('time').sleep(60)"
    program = changed(tmp_path, "return self._runtime.facts()", waits)
    command = [sys.executable, "-m", "jumpout_export", "verify", str(path), "--against", "ended_factory:network"]
    command += ["--input-shape", "2,1,8,8", "--providers", "openvino", "--provider-python", str(program)]
    environment = {**os.environ, "TMPDIR": str(folders), "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        pid = int((tmp_path / "pid").read_text())
        assert [stat.S_IMODE(folder.stat().st_mode) for folder in left(folders)] == [0o700]
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == (128 + number if number != signal.SIGKILL else -number)
    assert until(lambda: not alive(pid))
    assert until(lambda: not left(folders))


@pytest.mark.integration
def test_within_the_same_python_there_is_one_worker_and_without_one_there_is_none(toy):
    with providers_in(None, ["toy"]):
        assert provider_of("toy") is PROVIDERS["toy"]
    with providers_in(sys.executable, ["toy"]):
        outer = provider_of("toy")
        assert outer.runtime.python == sys.executable
        assert provider_of("cpu") is PROVIDERS["cpu"]
        with providers_in(sys.executable, ["toy"]):
            assert provider_of("toy") is outer
        assert outer.explain_unusable() is None
        pid = outer.runtime._process.pid
    assert not alive(pid)
    assert provider_of("toy") is PROVIDERS["toy"]
    with pytest.raises(NotVerifiableError, match="is closed"):
        outer.runtime.facts() if not outer.runtime._facts else outer.runtime.load([])
