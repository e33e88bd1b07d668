"""CMake: where ONNX Runtime is found, and what a project that uses the library needs to say."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from support.cmake import built, cmake_program, configure, copy
from support.project import PROJECT

# The whole of a project that uses the library; the page shows it.
TWELVE_LINES = PROJECT / "tests" / "cpp" / "consumer"

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
    project.mkdir()
    (project / "CMakeLists.txt").write_text(CONSUMER.format(modules=PROJECT / "cpp" / "replay" / "cmake"))
    (project / "main.cpp").write_text(
        "#include <onnxruntime_c_api.h>\n#include <cstdio>\n"
        "int main() { std::puts(OrtGetApiBase()->GetVersionString()); }\n"
    )
    release(replay, root)
    return project, root


def release(replay, root):
    """ONNX Runtime as a release of it is unpacked."""
    cache = (replay.program.parent / "CMakeCache.txt").read_text()
    headers = re.search(r"^ONNXRUNTIME_INCLUDE_DIR:\w+=(.*)$", cache, re.MULTILINE)
    (root / "lib" / "cmake" / "onnxruntime").mkdir(parents=True)
    (root / "include").symlink_to(headers[1])
    for library in (replay.program.parent / "onnxruntime").iterdir():
        (root / "lib" / library.name).symlink_to(library.resolve())
    (root / "lib" / "cmake" / "onnxruntime" / "onnxruntimeConfig.cmake").write_text(CONFIG.format(root=root))
    return root


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
    done = replay.run(cmake, "--build", project / "build")
    assert done.returncode == 0, done.stdout + done.stderr
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


@pytest.fixture
def moved(replay, tmp_path):
    """The library installed anew, in a folder that nothing was configured with."""
    cmake = cmake_program()
    done = replay.run(cmake, "--install", replay.program.parent, "--prefix", tmp_path / "prefix")
    assert done.returncode == 0, done.stderr
    return tmp_path / "prefix"


def test_the_project_of_twelve_lines_has_twelve_lines():
    assert sum(bool(line.strip()) for file in TWELVE_LINES.iterdir() for line in file.read_text().splitlines()) == 12


def test_installed_programs_start_from_anywhere(replay, moved, digits):
    for program in ("jumpout-replay", "jumpout-load"):
        done = replay.run(moved / "bin" / program, digits / "model.onnx", cwd="/", env={})
        assert (done.returncode, done.stderr) == (0, ""), done
        assert "PASS" in done.stdout


@pytest.mark.parametrize("way", ["installed", "build tree", "add_subdirectory"])
def test_twelve_lines_replay_a_proof(replay, moved, digits, tmp_path, way):
    project = copy(TWELVE_LINES, tmp_path / "consumer")
    settings = [f"-DCMAKE_PREFIX_PATH={moved}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Wconversion -Werror"]
    if way == "build tree":
        settings[0] = f"-Djumpout_replay_DIR={replay.program.parent}"
    if way == "add_subdirectory":
        lists = project / "CMakeLists.txt"
        line = f'add_subdirectory("{PROJECT}/cpp/replay" replay)'
        lists.write_text(lists.read_text().replace("find_package(jumpout_replay REQUIRED)", line))
        settings[0] = f"-DONNXRUNTIME_ROOT={release(replay, tmp_path / 'release')}"
    built(replay, project, *settings)
    program = project / "build" / "consumer"
    done = replay.run(program, digits / "model.onnx", cwd="/", env={})
    assert done.returncode == 0, done
    assert "PASS: 1 output within tolerance of the golden data" in done.stdout
    assert replay(replay.crafted_random(tmp_path), program=program, env={}).returncode == 1
    assert not (project / "build" / "replay" / "jumpout-replay").exists()


@pytest.mark.parametrize("standard", [None, 17, 20])
def test_the_standard_that_is_asked_for_is_used(replay, consumer, tmp_path, standard):
    _, root = consumer
    settings = [f"-DONNXRUNTIME_ROOT={root}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-B", tmp_path / "build"]
    settings += [f"-DCMAKE_CXX_STANDARD={standard}"] * bool(standard)
    _, done = configure(replay, PROJECT / "cpp" / "replay", *settings)
    assert done.returncode == 0, done.stderr
    flags = re.findall(r"-std=\S+", (tmp_path / "build" / "compile_commands.json").read_text())
    assert set(flags) <= {f"-std=c++{standard or 17}"}
    assert flags or standard in (None, 17)  # a compiler whose own standard it is needs no flag


def test_the_headers_and_sources_are_c_plus_plus_20(replay, tmp_path):
    headers = (PROJECT / "cpp" / "replay" / "include" / "jumpout").iterdir()
    (tmp_path / "all.cpp").write_text("".join(f"#include <jumpout/{header.name}>\n" for header in headers))
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    flags += [f"-I{PROJECT / 'cpp' / 'replay' / 'include'}", '-DJUMPOUT_REPLAY_VERSION="1"']
    sources = [PROJECT / "cpp" / "replay" / name for name in ("tensor.cpp", "model.cpp", "replay.cpp", "golden.cpp")]
    for source in (tmp_path / "all.cpp", *sources):
        done = replay.run(compiler, *flags, source)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_package_says_what_is_wrong(replay, moved, tmp_path):
    project = copy(TWELVE_LINES, tmp_path / "consumer")
    lists = project / "CMakeLists.txt"
    text = lists.read_text()
    lists.write_text(text.replace("jumpout_replay REQUIRED", "jumpout_replay 0.2 REQUIRED"))
    _, done = configure(replay, project, f"-DCMAKE_PREFIX_PATH={moved}")
    assert done.returncode == 1
    assert 'compatible with requested version "0.2"' in " ".join(done.stderr.split())
    lists.write_text(text)
    for library in (moved / "lib" / "jumpout_replay").iterdir():
        library.unlink()
    _, done = configure(replay, project, f"-DCMAKE_PREFIX_PATH={moved}")
    assert done.returncode == 1
    assert "the ONNX Runtime that it was built against is gone" in " ".join(done.stderr.split())
    built(
        replay, project, f"-DCMAKE_PREFIX_PATH={moved}", f"-DONNXRUNTIME_ROOT={release(replay, tmp_path / 'release')}"
    )
