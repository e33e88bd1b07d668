"""Machine code of CUDA kernels as cuobjdump prints it, and the common path through a kernel's main loop."""

from __future__ import annotations

import re
from dataclasses import dataclass

State = tuple[int, tuple[int, int, int]]  # an instruction's index, and what was done before it: loads, stores, products
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
TARGET = re.compile(r"BRA(?:\.\S+)*\s+(?:!?U?P\w+,\s*)?`?\(?(0x[0-9a-f]+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction: where it stands, `@P0 FMUL.FTZ R1, R2, R3` as `FMUL.FTZ`, and what may follow it."""

    address: int
    name: str
    conditional: bool
    target: int | None  # of a branch

    @property
    def base(self) -> str:
        """The name without its modifiers."""
        return self.name.split(".")[0]


def read_functions(listing: str) -> dict[str, list[Instruction]]:
    """Returns the instructions of each function in what `cuobjdump -sass` printed."""
    functions = {}
    for part in listing.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        functions[name.strip()] = [_instruction(int(a, 16), text) for a, text in LINE.findall(body)]
    return functions


def _instruction(address: int, text: str) -> Instruction:
    guard = re.match(r"@!?U?P\w+\s+", text)
    rest = text[guard.end() :] if guard else text
    target = TARGET.match(rest)
    conditional = bool(guard or re.match(r"BRA\S*\s+!?U?P", rest))
    return Instruction(address, rest.split()[0], conditional, int(target[1], 16) if target else None)


def common_path(code: list[Instruction], loads: int, stores: int, products: int) -> list[Instruction] | None:
    """Returns the shortest way once round a loop that does at least so many 16-byte loads and stores and products.

    With what one turn of a kernel does for whole packs of eight elements, that is the way nearly every turn takes:
    the ways with fewer are those of the tail. None if no loop has one.
    """
    wanted = (loads, stores, products)
    index = {instruction.address: k for k, instruction in enumerate(code)}
    ways = [
        way
        for end, instruction in enumerate(code)
        if instruction.target in index and instruction.target < instruction.address
        if (way := _shortest(code, index, index[instruction.target], end, wanted))
    ]
    return min(ways, key=len, default=None)


def _shortest(
    code: list[Instruction], index: dict[int, int], start: int, end: int, wanted: tuple[int, int, int]
) -> list[Instruction] | None:
    """Returns the shortest way from `start` to `end` by forward branches alone, a state per count of what is wanted."""
    reached: dict[int, dict[tuple[int, int, int], tuple[int, State | None]]] = {start: {(0, 0, 0): (0, None)}}
    for k in range(start, end + 1):
        for before, (length, _) in reached.get(k, {}).items():
            counts = tuple(min(most, b + d) for most, b, d in zip(wanted, before, _does(code[k]), strict=True))
            for following in _following(code, index, k):
                cost = length + (code[k].base != "NOP")
                best = reached.setdefault(following, {})
                if k < following and (counts not in best or cost < best[counts][0]):
                    best[counts] = cost, (k, before)
    final = [c for c in reached.get(end, {}) if c == wanted]
    if not final:
        return None
    way: list[Instruction] = []
    state: State | None = (end, final[0])
    while state is not None:
        k, counts = state
        way.append(code[k])
        state = reached[k][counts][1]
    return [instruction for instruction in reversed(way) if instruction.base != "NOP"]


def _does(instruction: Instruction) -> tuple[int, int, int]:
    name = instruction.name
    load = name.startswith("LDG") and ".128" in name
    store = name.startswith("STG") and ".128" in name
    return load, store, name.startswith(("FMUL", "DMUL"))


def _following(code: list[Instruction], index: dict[int, int], k: int) -> list[int]:
    instruction = code[k]
    if instruction.base in ("CALL", "EXIT", "RET"):
        return [k + 1] if instruction.conditional else []
    if instruction.target is None:
        return [k + 1]
    taken = [index[instruction.target]] if instruction.target in index else []
    return [*taken, k + 1] if instruction.conditional else taken
