"""Where the nodes ran, broken files under the sanitizers, load, the example, CMake, and the page about all that."""

import importlib
import json
import os
import re
import shutil
import sys
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


def test_four_clients_on_one_session_get_right_answers_in_flat_memory(replay, digits):
    done = replay.run(
        replay.load, digits / "model.onnx", "--clients", 4, "--requests", 20000, "--batches", "1,2,7,16", "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["passed"]
    assert (report["clients"], report["requests"], report["images"], report["wrong"]) == (4, 20000, 130000, 0)
    assert report["memory_after_mib"] < report["memory_before_mib"] + 4
    assert 0 < report["median_ms"] <= report["p99_ms"]


def test_wrong_answers_under_load_are_counted(replay, tmp_path):
    done = replay.run(replay.load, replay.crafted_random(tmp_path), "--requests", 50)
    assert done.returncode == 1
    assert re.match(r"FAIL: 4 clients, 50 requests, 315 images, 5[0-9] wrong answers\n", done.stdout), done.stdout


def test_the_example_classifies_images_as_python_does(replay, digits, tmp_path):
    import onnxruntime
    from sklearn.datasets import load_digits

    pixels = load_digits().images[:10].astype(np.uint8)  # 0 to 16
    session = onnxruntime.InferenceSession(str(digits / "model.onnx"))
    (scores,) = session.run(None, {"input": pixels[:, None].astype(np.float32) / np.float32(16)})
    for image, expected in zip(pixels, scores.argmax(1), strict=True):
        (tmp_path / "image.pgm").write_bytes(b"P5\n8 8\n16\n" + image.tobytes())
        done = replay.run(replay.classify, digits / "model.onnx", tmp_path / "image.pgm")
        assert (done.returncode, done.stdout) == (0, f"class {expected} of 10\n"), done.stderr


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"P5\n8 8\n255\n" + bytes(63), "the image is truncated"),
        (b"P2\n8 8\n255\n" + bytes(64), "not a binary PGM or PPM image"),
        (b"P5\n99999999 99999999\n255\n", "not a binary PGM or PPM image"),
        (b"P6\n8 8\n255\n" + bytes(192), "Got: 3 Expected: 1"),
    ],
    ids=["truncated", "text format", "huge", "colour"],
)
def test_the_example_says_what_is_wrong_with_an_image(replay, digits, tmp_path, image, reason):
    (tmp_path / "image.pgm").write_bytes(image)
    done = replay.run(replay.classify, digits / "model.onnx", tmp_path / "image.pgm")
    assert done.returncode == 1
    assert done.stderr.startswith("classify: ")
    assert reason in done.stderr


CONSUMER = """
cmake_minimum_required(VERSION 3.21)
project(consumer LANGUAGES CXX)
list(APPEND CMAKE_MODULE_PATH "{modules}")
find_package(onnxruntime REQUIRED)
message(STATUS "found in ${{ONNXRUNTIME_FROM}}")
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE onnxruntime::onnxruntime)
"""
CONFIG = """
add_library(onnxruntime::onnxruntime SHARED IMPORTED)
set_target_properties(onnxruntime::onnxruntime PROPERTIES IMPORTED_LOCATION "{root}/lib/libonnxruntime.so"
  INTERFACE_INCLUDE_DIRECTORIES "{root}/include")
"""


@pytest.fixture
def consumer(replay, tmp_path):
    """A project that uses ONNX Runtime, and a release of it as it is unpacked."""
    project, root = tmp_path / "project", tmp_path / "release"
    for folder in (project, root / "lib" / "cmake" / "onnxruntime"):
        folder.mkdir(parents=True)
    (project / "CMakeLists.txt").write_text(CONSUMER.format(modules=PROJECT / "cpp" / "replay" / "cmake"))
    (project / "main.cpp").write_text(
        "#include <onnxruntime_c_api.h>\n#include <cstdio>\n"
        "int main() { std::puts(OrtGetApiBase()->GetVersionString()); }\n"
    )
    cache = (replay.program.parent / "CMakeCache.txt").read_text()
    headers = re.search(r"^ONNXRUNTIME_INCLUDE_DIR:\w+=(.*)$", cache, re.MULTILINE)
    (root / "include").symlink_to(headers[1])
    for library in (replay.program.parent / "onnxruntime").iterdir():
        (root / "lib" / library.name).symlink_to(library.resolve())
    (root / "lib" / "cmake" / "onnxruntime" / "onnxruntimeConfig.cmake").write_text(CONFIG.format(root=root))
    return project, root


def configure(replay, project, *settings):
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}  # without a python3 that has a wheel
    return cmake, replay.run(cmake, "-S", project, "-B", project / "build", *settings, env=environment)


@pytest.mark.parametrize("way", ["root", "config", "wheel"])
def test_cmake_finds_onnx_runtime(replay, consumer, way):
    import onnxruntime

    project, root = consumer
    settings, found = {
        "root": ([f"-DONNXRUNTIME_ROOT={root}"], f"found in ONNXRUNTIME_ROOT={root}"),
        "config": ([f"-DCMAKE_PREFIX_PATH={root}"], "onnxruntimeConfig.cmake"),
        "wheel": (
            [f"-DONNXRUNTIME_PYTHON={sys.executable}", f"-DONNXRUNTIME_INCLUDE_DIR={root / 'include'}"],
            f"found in the wheel in {Path(onnxruntime.__file__).parent}",
        ),
    }[way]
    cmake, done = configure(replay, project, *settings)
    assert done.returncode == 0, done.stderr
    assert found in done.stdout
    built = replay.run(cmake, "--build", project / "build")
    assert built.returncode == 0, built.stdout + built.stderr
    assert replay.run(project / "build" / "consumer").stdout.strip() == onnxruntime.__version__


def test_cmake_says_where_it_looked(replay, consumer, tmp_path):
    project, _ = consumer
    for settings, reasons in (
        ([], ["no onnxruntimeConfig.cmake on CMAKE_PREFIX_PATH", "Set one of: -DONNXRUNTIME_ROOT=DIR"]),
        ([f"-DONNXRUNTIME_ROOT={tmp_path}"], ["no include/onnxruntime_cxx_api.h with lib/libonnxruntime.so in"]),
        (["-DONNXRUNTIME_PYTHON=/bin/false"], ["no package onnxruntime with", "in /bin/false"]),
        ([f"-DONNXRUNTIME_PYTHON={sys.executable}"], [f"for the wheel of {sys.executable}: set"]),
    ):
        shutil.rmtree(project / "build", ignore_errors=True)
        _, done = configure(replay, project, "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", *settings)
        message = " ".join(done.stderr.split())
        assert done.returncode == 1
        assert "ONNX Runtime was not found:" in message
        assert [reason for reason in reasons if reason not in message] == []


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


def test_the_code_on_the_page_is_that_of_the_example():
    page = (PROJECT / "docs" / "cpp.md").read_text(encoding="utf-8")
    example = (PROJECT / "examples" / "cpp" / "classify.cpp").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- classify\.cpp -->\n```cpp\n(.*?)```", page, re.DOTALL)
    assert code in example
