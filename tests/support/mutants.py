"""Bugs to plant in the CUDA kernels: tests/cpp/cuda/mutants.toml."""

import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

from support.emulated import EMULATOR, OP


@dataclass(frozen=True)
class Mutant:
    """`old`, which must stand in the file `of` times, becomes `new` the `nth` time, from 1."""

    name: str
    old: str
    new: str
    file: str = "jumpout_cuda.cu"
    nth: int = 1
    of: int = 1
    equivalent: bool = False  # the same results in another way: must not be found


def mutants() -> list[Mutant]:
    with (EMULATOR / "mutants.toml").open("rb") as file:
        return [Mutant(**entry) for entry in tomllib.load(file)["mutant"]]


def mutated(mutant: Mutant) -> str:
    """The text of its file with the bug."""
    parts = (OP / mutant.file).read_text().split(mutant.old)
    if len(parts) != mutant.of + 1:
        raise ValueError(
            f"mutant `{mutant.name}` no longer applies: its text stands {len(parts) - 1} times in {mutant.file}, "
            f"expected {mutant.of}: {mutant.old!r}. Write it anew in tests/cpp/cuda/mutants.toml"
        )
    return mutant.old.join(parts[: mutant.nth]) + mutant.new + mutant.old.join(parts[mutant.nth :])


def write_mutant(mutant: Mutant, folder: Path) -> Path:
    """Writes `folder`, a copy of cpp/op with the bug, and returns it."""
    shutil.copytree(OP, folder, dirs_exist_ok=True)
    (folder / mutant.file).write_text(mutated(mutant))
    return folder
