"""Builds tests/cpp/cuda/check.cpp, which compares the CUDA kernels on an emulator with the CPU kernels, and runs it."""

import functools
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from support.project import PROJECT

OP = PROJECT / "cpp" / "op"
EMULATOR = PROJECT / "tests" / "cpp" / "cuda"
# What a sanitizer must not see is the scheduler; it is told of the fibers by the definition.
SANITIZERS = {
    "plain": ([], []),
    "asan": (["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"], ["-DEMULATOR_ASAN"]),
    "tsan": (["-fsanitize=thread"], ["-DEMULATOR_TSAN"]),
}
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# Compiling takes longer than running, so that only what runs most is optimised: "-O2".
FLAGS = ["-std=c++17", "-g", "-ffp-contract=off", "-pthread", *WARNINGS]


@functools.cache
def missing() -> str | None:
    """Why the emulator cannot be built here."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the emulator switches threads on x86-64 only, this is {platform.machine()}"
    if shutil.which("g++") is None:
        return "there is no g++ on the PATH"
    return None if cuda_headers() else "there is no nvcc on the PATH, whose headers the emulator includes"


@functools.cache
def cuda_headers() -> Path | None:
    """The folder of nvcc's cuda_runtime.h."""
    if shutil.which("nvcc") is None:
        return None
    plan = subprocess.run(["nvcc", "-dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True)
    top = re.search(r"^#\$ TOP=(.*)$", plan.stderr, re.MULTILINE)
    return Path(top[1].strip(), "include") if top else None


def build_rest(folder: Path, kind: str) -> None:
    """Compiles everything but the CUDA kernels: the oracle, the emulator and the comparison."""
    sanitize, define = SANITIZERS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    for source in ("jumpout_cpu", "cpu_select", "cpu_scalar"):
        _compile(OP / f"{source}.cpp", folder, "-O2")
    for source in ("fiber", "emulator", "runtime"):
        _compile(EMULATOR / f"{source}.cpp", folder, "-O2", *define)
    _compile(EMULATOR / "check.cpp", folder, "-O1", *sanitize)


def build_kernels(folder: Path, kind: str, op: Path = OP, *flags: str) -> Path:
    """Compiles the CUDA kernels in the folder `op`, links the program and returns its path."""
    sanitize, _ = SANITIZERS[kind]
    emulator = ["-x", "c++", "-include", EMULATOR / "emulator.h"]
    _compile(op / "jumpout_cuda.cu", folder, *sanitize, *flags, *emulator, include=op)
    program = folder / "check"
    _run("g++", "-pthread", *sanitize, *sorted(folder.glob("*.o")), "-o", program)
    return program


def check(program: Path, *options: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs the program; the sanitizers end it at the first error."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [program, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=environment)


def _compile(source: Path, folder: Path, *flags: object, include: Path = OP) -> None:
    paths = ["-I", include, "-I", EMULATOR, "-isystem", cuda_headers()]
    _run("g++", *FLAGS, *paths, *flags, "-c", source, "-o", folder / f"{source.stem}.o")


def _run(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")
