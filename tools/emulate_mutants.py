"""Plants each bug of tests/cpp/cuda/mutants.toml in the CUDA kernels and shows what finds it on the emulator.

python tools/emulate_mutants.py [WORD]    those alone whose name holds the word

Run as `make emulate-mutants`; some minutes. Ends with 1 if a bug is not found, or if one that changes no result is.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import emulated
from support.mutants import Mutant, mutants, write_mutant

RUNS = {
    "plain": [["--small", "--one-in", 6], ["--refuse", 209], ["--one-in", 1]],
    "asan": [["--exact", "--small", "--one-in", 6]],
    "tsan": [["--small", "--one-in", 24, "--workers", 3]],
}


def main(word: str = "") -> int:
    """Prints a line for each mutant."""
    if reason := emulated.missing():
        print(f"emulate-mutants: not run: {reason}", file=sys.stderr)
        return 3
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for kind in RUNS:
            emulated.build_rest(work / kind, kind)
        chosen = [mutant for mutant in mutants() if word in mutant.name]
        for mutant in chosen:
            found = find(mutant, work)
            good = (found is None) is mutant.equivalent
            wrong += not good
            print(f"{'' if good else 'ERROR '}{mutant.name}: {found or 'not found'}", flush=True)
    print(f"{len(chosen)} mutants, {wrong} not as expected")
    return int(wrong > 0 or not chosen)


def find(mutant: Mutant, work: Path) -> str | None:
    """What finds the mutant first, and how."""
    op = write_mutant(mutant, work / "op")
    for kind, runs in RUNS.items():
        program = emulated.build_kernels(work / kind, kind, op, "-w")
        for options in runs:
            try:
                done = emulated.check(program, *options)
            except subprocess.TimeoutExpired:
                return f"{kind}: does not end"
            if done.returncode != 0:
                return f"{kind}: {symptom(done)}"
    return None


def symptom(done: "subprocess.CompletedProcess[str]") -> str:
    """One line of what a run said."""
    different = sorted(set(re.findall(r"^differs: (.*?) at", done.stderr, re.MULTILINE)))
    if different:
        return f"other {', '.join(different)}"
    said = re.search(r"emulator: .*|data race|AddressSanitizer: \S+|runtime error: .*", done.stderr)
    return said[0] if said else f"exit code {done.returncode}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
