"""Proves from the compiled CUDA kernels what can be known of them without a GPU; no kernel is run.

python tools/sass.py FOLDER [--write]    FOLDER: where CMake built the extension with CUDA, see `make cuda-check`

Read from the extension itself: no register is spilled, no CUDA symbol is exported, and no kernel has grown by more
than a tenth since benchmarks/results/sass.json, which --write writes anew. Read from PTX of the same compiler options:
nothing is contracted to a fused multiply-add, flushed to zero or approximated; all arithmetic is IEEE 754's own.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from sass_path import Instruction, common_path, read_functions

RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "sass.json"
MOST_GROWTH = 1.1
# The pipe that computes 16 lanes of a warp in a cycle, on sm_80 to sm_100; IMAD and FMUL have others.
ALU = re.compile(
    "BMSK|F2FP|FMNMX|FSEL|FSETP|IABS|IADD3|ISETP|LEA|LOP3?|MOV|P2R|PLOP3|POPC|PRMT|R2P|SEL|SHF|VIADD|VIMNMX"
)
# In PTX. Integer mad, which is exact, is none of these.
INEXACT = re.compile(r"\bfma\b|\bmad\.(?:r[nzmp]|ftz|f\d)|\.ftz\b|\.approx\b|\bdiv\.full\b|\.sat\.f\d")
DTYPES = {"f": "float32", "d": "float64", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}
SIZES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
# Packs of eight that a thread takes at a time in the main loop; 0 where there are none.
PACKS = {
    "count": 4,
    "count_all": 4,
    "rate": 0,
    "apply": 2,
    "apply_rows": 1,
    "backward": 2,
    "backward_rows": 1,
}
# What template arguments after the type mean: those that are true, and the threads of a group.
FLAGS = ("aligned", "relu")
GROUPS = {"256": "by block", "32": "by warp", "1": "by thread"}


def main() -> int:
    """Prints a line for each check; returns 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/sass.json anew")
    options = parser.parse_args()
    (library,) = options.folder.glob("_C*.so")
    result = measure(library)
    if options.write:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    problems = {
        "instructions in PTX that are not IEEE 754's own": inexact(options.folder),
        "kernels that spill registers or keep arrays in memory": spilled(library),
        "CUDA symbols that are exported": exported(library),
        "kernels that grew by more than a tenth, see benchmarks/results/sass.json": grown(
            json.loads(RESULT.read_text()), result
        ),
    }
    for what, found in problems.items():
        print(f"{what}: {len(found)}, allowed 0")
        for line in found[:20]:
            print(f"  {line}")
    return int(any(problems.values()))


def measure(library: Path) -> dict[str, Any]:
    """Returns registers and instructions of every kernel for each architecture in the library."""
    architectures = sorted(set(re.findall(r"\bsm_\d+", run("cuobjdump", "-lelf", library))))
    return {
        "compiler": re.findall(r"V(\d[\d.]*)", run("nvcc", "--version"))[0],
        "disassembler": importlib.metadata.version("nvidia-cuda-cuobjdump"),
        "unit": "instructions of a warp per eight elements of each lane; alu: those of the ALU pipe",
        "architectures": {arch: measure_architecture(library, arch) for arch in architectures},
    }


def measure_architecture(library: Path, arch: str) -> dict[str, dict[str, float]]:
    """Returns, by kernel: registers, instructions in all and, where whole packs are moved, those per eight elements."""
    functions = read_functions(run("cuobjdump", "-sass", "-arch", arch, library))
    registers = {name: usage["REG"] for name, usage in resources(library, arch).items()}
    kernels = {}
    for name, code in functions.items():
        kernel, dtype, flags = described(name)
        entry: dict[str, float] = {
            "registers": registers[name],
            "instructions": sum(instruction.base != "NOP" for instruction in code),
        }
        if "aligned" in flags:
            entry |= per_pack(code, kernel, dtype)
        kernels[title(kernel, dtype, flags)] = entry
    return dict(sorted(kernels.items()))


def per_pack(code: list[Instruction], kernel: str, dtype: str) -> dict[str, float]:
    """Returns the instructions per eight elements on the common path of a kernel's loop, by pipe."""
    packs = PACKS[kernel]
    pieces = packs * SIZES[dtype] // 2  # of 16 bytes
    path = common_path(code, pieces, *((0, 0) if kernel.startswith("count") else (pieces, 8 * packs)))
    if path is None:
        raise ValueError(f"no loop of {kernel} for {dtype} moves {packs} packs at a time: is PACKS up to date?")
    count = collections.Counter(instruction.base for instruction in path)
    wide = sum(instruction.name.startswith(("IMAD.WIDE", "IMAD.HI")) for instruction in path)
    return {
        "issued": len(path) / packs,
        "alu": sum(n for name, n in count.items() if ALU.fullmatch(name)) / packs,
        "imad": (count["IMAD"] - wide) / packs,
        "imad_wide": wide / packs,
    }


def described(symbol: str) -> tuple[str, str, list[str]]:
    """Returns kernel, dtype (none of `rate`) and what is true of the template's arguments, from a mangled name."""
    match = re.search(r"\d+([a-z_]+)_kernelI(f|d|13__nv_bfloat16|6__half|)((?:L[bi]\d+E)+)E", symbol)
    if match is None or match[1] not in PACKS:
        raise ValueError(f"{symbol} is no kernel that tools/sass.py knows")
    kernel, dtype, arguments = match.groups()
    flags = [name for name, value in zip(FLAGS, re.findall(r"Lb(\d)E", arguments), strict=False) if value == "1"]
    return kernel, DTYPES[dtype] if dtype else "", flags + [GROUPS[n] for n in re.findall(r"Li(\d+)E", arguments)]


def title(kernel: str, dtype: str, flags: list[str]) -> str:
    """Returns the name of a kernel in the JSON file."""
    return " ".join(word for word in (kernel, dtype, *flags) if word)


def resources(library: Path, arch: str) -> dict[str, dict[str, int]]:
    """Returns REG, STACK, LOCAL, ... of each kernel."""
    listing = run("cuobjdump", "-res-usage", "-arch", arch, library)
    pairs = re.findall(r"Function (\S+):\s*\n\s*(.*)", listing)
    return {name: {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)} for name, usage in pairs}


def spilled(library: Path) -> list[str]:
    """Returns kernels with a stack or local memory, on any architecture."""
    architectures = sorted(set(re.findall(r"\bsm_\d+", run("cuobjdump", "-lelf", library))))
    return [
        f"{title(*described(name))}, {arch}: {usage['STACK']} bytes of stack, {usage['LOCAL']} local"
        for arch in architectures
        for name, usage in resources(library, arch).items()
        if usage["STACK"] or usage["LOCAL"]
    ]


def inexact(folder: Path) -> list[str]:
    """Returns the lines of the kernels' PTX, for each virtual architecture, that round otherwise than IEEE 754 says."""
    commands = json.loads((folder / "compile_commands.json").read_text())
    (entry,) = (entry for entry in commands if entry["file"].endswith(".cu"))
    options = [word for word in shlex.split(entry["command"]) if not word.startswith("--generate-code")]
    options = options[: options.index("-x")]
    found = []
    for arch in (80, 90, 100):
        ptx = run(*options, f"-arch=compute_{arch}", "-ptx", "-o", "-", entry["file"], cwd=entry["directory"])
        lines = ptx.splitlines()
        if not any("mul.rn.f32" in line for line in lines):
            found.append(f"compute_{arch}: no multiplication of the kernels is in the PTX, so nothing was read")
        found += [f"compute_{arch}: {line.strip()}" for line in lines if INEXACT.search(line)]
    return found


def exported(library: Path) -> list[str]:
    """Returns dynamic symbols that another library's CUDA runtime could be mixed up with."""
    symbols = run("nm", "-D", "--defined-only", library).split()[2::3]
    if not any(symbol.startswith("PyInit") for symbol in symbols):
        return ["PyInit__C is not exported, so the symbols were not read"]
    return [symbol for symbol in symbols if re.search(r"cuda|jumpout|^__?cu|fatbin", symbol, re.IGNORECASE)]


def grown(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns where `now` has a kernel that `before` lacks, or more than a tenth more of something in one."""
    found = []
    for arch, kernels in now["architectures"].items():
        known = before["architectures"].get(arch, {})
        found += [
            f"{name}, {arch}: {'new' if name in kernels else 'gone'}; make cuda-sass writes the file anew"
            for name in sorted(kernels.keys() ^ known.keys())
        ]
        for name in sorted(kernels.keys() & known.keys()):
            found += [
                f"{name}, {arch}: {value:g} {what}, was {known[name].get(what, 0):g}"
                for what, value in kernels[name].items()
                if value > MOST_GROWTH * known[name].get(what, 0)
            ]
    return found


def run(*command: object, cwd: str | None = None) -> str:
    """Returns what a command printed; the programs of the development packages are found."""
    words = [str(word) for word in command]
    path = os.pathsep.join([*map(str, tool_folders()), os.environ["PATH"]])
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, "PATH": path})
    if done.returncode != 0:
        sys.exit(f"{shlex.join(words)}\n{done.stderr}")
    return done.stdout


def tool_folders() -> set[Path]:
    """Returns where pip put cuobjdump and the nvdisasm that it calls."""
    return {
        Path(str(file.locate())).parent
        for tool in ("cuobjdump", "nvdisasm")
        for file in importlib.metadata.files(f"nvidia-cuda-{tool}") or []
        if file.name == tool
    }


if __name__ == "__main__":
    sys.exit(main())
