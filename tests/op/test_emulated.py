"""The CUDA kernels without a GPU: compiled as C++ against an emulator, bit for bit what the CPU kernels give."""

import re

import pytest
from support import emulated
from support.mutants import mutants, mutated, write_mutant

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing())),
]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    programs = {}

    def build(kind, op=emulated.OP):
        if (kind, op) not in programs:
            folder = tmp_path_factory.mktemp(kind)
            emulated.build_rest(folder, kind)
            programs[kind, op] = emulated.build_kernels(folder, kind, op)
        return programs[kind, op]

    return build


def cases(done):
    """The number of cases that were compared; all of them agreed."""
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return int(re.fullmatch(r"(\d+) cases, 0 differences\n", done.stdout)[1])


def test_every_kernel_gives_the_bits_of_the_cpu_kernels(build):
    program = build("plain")
    assert cases(emulated.check(program, "--seed", 1, "--one-in", 2)) > 1000
    assert cases(emulated.check(program, "--seed", 2, "--one-in", 2, "--small", "--workers", 3)) > 1000


def test_no_kernel_reads_or_writes_outside_its_arrays_or_does_what_is_undefined(build):
    assert cases(emulated.check(build("asan"), "--exact", "--small", "--one-in", 4)) > 450


def test_no_two_threads_race(build):
    assert cases(emulated.check(build("tsan"), "--small", "--one-in", 12, "--workers", 3)) > 120


REFUSALS = {
    35: r"the NVIDIA driver is too old for the CUDA \d+\.\d that jumpout was compiled with: update the driver, .*",
    209: r"jumpout was not compiled for this GPU \(sm_75\): build it with .*CMAKE_CUDA_ARCHITECTURES=75",
    700: r"an earlier CUDA operation failed, not jumpout \(.*\): set CUDA_LAUNCH_BLOCKING=1 to see which one, .*",
    9: r"jumpout could not use the CUDA device: .*",
}


@pytest.mark.parametrize("error", REFUSALS)
def test_a_refused_launch_says_in_one_line_what_to_do_and_leaves_no_error_behind(build, error):
    done = emulated.check(build("plain"), "--refuse", error)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(REFUSALS[error] + "\n", done.stdout)


def test_every_mutant_still_applies():
    for mutant in mutants():
        assert mutated(mutant)


def test_a_broken_kernel_is_found(build, tmp_path):
    (mutant,) = (mutant for mutant in mutants() if mutant.name == "load: the tail is one too short")
    done = emulated.check(build("plain", write_mutant(mutant, tmp_path / "op")), "--small", "--one-in", 20)
    assert done.returncode == 1
    assert "differs: y at" in done.stderr
