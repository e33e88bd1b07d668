"""Mutated files: never a traceback, never a crash, never a pass for a wrong file, nothing written."""

from __future__ import annotations

import json
import signal

import pytest
from support.commands import worker
from support.fuzz_worker import Fuzz

pytestmark = pytest.mark.integration

SEED = 7
COUNTS = {"onnx": 1500, "npz": 400, "safetensors": 400, "pt2": 300}
SECONDS = 150


def fuzzed(kind, folder):
    return worker("fuzz_worker", kind, SEED, COUNTS.get(kind, 1), folder, timeout=SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_mutated_files_end_in_a_verdict_or_a_documented_error(kind, tmp_path):
    done = fuzzed(kind, tmp_path)
    assert done.returncode == 0, f"mutation {(tmp_path / 'last').read_text()}: {done.returncode}\n{done.stderr[-3000:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["problems"] == []
    assert result["verdicts"]["refused"] > COUNTS[kind] // 4  # most mutations are not harmless
    assert result["verdicts"]["passed"] > 0  # and the unharmed files of the corpus pass


def test_a_crash_is_seen_with_the_mutation_that_made_it(tmp_path):
    assert fuzzed("crash", tmp_path).returncode == -signal.SIGSEGV
    assert (tmp_path / "last").read_text() == "the one that crashes"


def test_what_the_fuzzer_looks_for_it_finds(tmp_path):
    fuzz = Fuzz(tmp_path)
    fuzz.start("7")
    (tmp_path / "last").unlink()

    def raises(error):
        raise error

    for action in (
        lambda: raises(ValueError("one line")),
        lambda: raises(KeyError("undocumented")),
        lambda: raises(ValueError("two\nlines")),
        lambda: (tmp_path / "left behind").write_text(""),
    ):
        fuzz.check(action)
    fuzz.expect(False, "another network")
    assert fuzz.problems == [
        "7: KeyError: 'undocumented'",
        "7: not one line: ValueError('two\\nlines')",
        "7: wrote ['left behind']",
        "7: another network",
    ]
    assert fuzz.verdicts == {"passed": 0, "refused": 4}
