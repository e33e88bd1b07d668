"""Where the nodes ran, broken files under the sanitizers, load, the example, CMake, and the page about all that."""

import importlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.project import PROJECT


def test_cuda_without_its_provider_is_undecided_and_says_what_is_missing(replay, mixed):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    reason = r"ONNX Runtime library \S+ has no CUDAExecutionProvider; build against one that has, such as .*-gpu$"
    replay.refused(3, reason, mixed / "model.onnx", "--provider", "cuda")


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture
def proof(replay, sanitized, mixed, tmp_path):
    def run(*nodes):
        named = [(f"a{number}", *node) for number, node in enumerate(nodes)]
        profile = replay.write_profile(tmp_path / "profile.json", *named)
        return replay.run(replay.sanitized / "replay-proof", profile, "cuda", mixed / "model.onnx").stdout.splitlines()

    return run


def test_the_proof_names_nodes_that_ran_elsewhere(proof):
    on_gpu, on_cpu = ("Conv", CUDA), ("Conv", CPU)
    assert proof(on_gpu, on_gpu) == [f"2 on {CUDA}"]
    assert proof() == ["problem: no node ran on the GPU"]
    assert proof(on_gpu, on_cpu, ("", "")) == [
        f"1 on {CPU}",
        f"1 on {CUDA}",
        "1 on an unknown provider",
        f"problem: node `a1` (Conv) ran on {CPU}",
        "problem: node `a2` () ran on an unknown provider",
    ]
    many = proof(on_gpu, *[on_cpu] * 10)
    assert (len(many), many[-1]) == (2 + 9, "problem: 2 more nodes did too")


def test_the_proof_reads_what_onnx_runtime_writes(replay, sanitized, digits, tmp_path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "real")
    session = onnxruntime.InferenceSession(digits / "model.onnx", options, providers=[CPU])
    value = session.get_inputs()[0]
    session.run(None, {value.name: np.zeros((2, *value.shape[1:]), np.float32)})
    file = session.end_profiling()
    nodes = [event for event in json.loads(Path(file).read_text()) if event["cat"] == "Node"]
    lines = replay.run(replay.sanitized / "replay-proof", file, "cuda", digits / "model.onnx").stdout.splitlines()
    assert lines[0] == f"{len(nodes)} on {CPU}"
    named = [re.fullmatch(rf"problem: node `(.*)` \((.*)\) ran on {CPU}", line) for line in lines[1:-1]]
    first = [match.groups() for match in named if match][:5]
    assert first == [(event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]) for event in nodes[:5]]


@pytest.mark.parametrize("seed", [1, 2])
def test_no_broken_file_crashes_it(replay, sanitized, mixed, tmp_path, seed):
    # An impossible allocation in ONNX Runtime is an exception outside the sanitizer; here it must be one too.
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1"}
    done = replay.run(replay.sanitized / "replay-fuzz", mixed, tmp_path / "scratch", 500, seed, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    codes = dict(line.split(": ") for line in done.stdout.splitlines())
    assert sum(map(int, codes.values())) == 500
    assert int(codes["1"]) > 50
    assert int(codes["2"]) > 250


def test_without_apt_the_headers_are_asked_for(replay, tmp_path):
    script = tmp_path / "tools" / "onnxruntime_headers.sh"
    script.parent.mkdir()
    shutil.copy(PROJECT / "tools" / script.name, script)
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    done = replay.run(shutil.which("bash"), script, env={"PATH": str(tmp_path / "bin")})
    if done.returncode == 0:
        pytest.skip("the system has the headers")
    assert done.returncode == 3
    assert re.match("no ONNX Runtime headers: .* no apt to fetch them with; install libonnxruntime-dev", done.stderr)


def test_the_page_shows_the_usage_and_the_measured_numbers(replay, monkeypatch):
    page = (PROJECT / "docs" / "cpp.md").read_text(encoding="utf-8")
    for program in (replay.program, replay.load):
        assert f"```text\n{replay.run(program, '--help').stdout}```" in page
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    serving = importlib.import_module("serving")
    assert serving.table(json.loads(serving.RESULT.read_text())) in page
