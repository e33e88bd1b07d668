"""What the CUDA kernels could reach at most, computed from their instructions; nothing here has run on a GPU.

Each of a multiprocessor's four schedulers issues one instruction of a warp a cycle. The ALU pipe takes two cycles for
one (16 lanes), IMAD two and IMAD.WIDE four of another pipe. The busiest of the three is what a kernel cannot beat; the
memory is the other bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CLOCK = 1.755e9  # of an H100 under load; its boost is 1.98e9. Assumed for all three.
PACK = 8 * 32  # elements of a warp's instruction


@dataclass(frozen=True)
class Gpu:
    """Name, machine code, multiprocessors and bytes per second, from the data sheets of the SXM modules."""

    name: str
    arch: str
    multiprocessors: int
    bandwidth: float


GPUS = (
    Gpu("H100", "sm_90", 132, 3.35e12),
    Gpu("H200", "sm_90", 132, 4.8e12),
    Gpu("B200", "sm_100", 148, 8.0e12),
)
DTYPES = {"bfloat16": 2, "float32": 4}


def cycles(entry: dict[str, float]) -> tuple[float, str]:
    """Returns the cycles of a scheduler for eight elements of each lane, and which part is busy all the time."""
    return max(
        (entry["issued"], "issue"),
        (2 * entry["alu"], "ALU"),
        (2 * entry["imad"] + 4 * entry["imad_wide"], "IMAD"),
    )


def attainable(entry: dict[str, float], gpu: Gpu, moved: float) -> float:
    """Returns the bytes per second that the instructions allow, where one element moves `moved` bytes."""
    return gpu.multiprocessors * 4 * CLOCK / cycles(entry)[0] * PACK * moved


def kernels(size: int) -> dict[str, tuple[str, float]]:
    """Returns the kernels' names in the JSON and the bytes that each moves per element, by title."""
    return {
        "count": ("count {} aligned by block", size),
        "apply": ("apply {} aligned", 2 * size + 1 / 8),
        "apply with ReLU": ("apply {} aligned relu", 2 * size + 1 / 8),
        "backward": ("backward {} aligned", 2 * size + 1 / 8),
    }


def roofline_table(result: dict[str, Any]) -> str:
    """Returns, by kernel and GPU, the instructions per eight elements and the bandwidth that they allow."""
    header = " | ".join(f"{gpu.name}: issued, ALU | TB/s allowed, of {gpu.bandwidth / 1e12:g}" for gpu in GPUS)
    lines = [f"| kernel | {header} |", "|---" * (1 + 2 * len(GPUS)) + "|"]
    for dtype, size in DTYPES.items():
        for title, (name, moved) in kernels(size).items():
            cells = [f"{title}, {dtype}"]
            for gpu in GPUS:
                entry = result["architectures"][gpu.arch].get(name.format(dtype))
                if entry is None:
                    break
                reached = attainable(entry, gpu, moved)
                bound = "memory" if reached >= gpu.bandwidth else cycles(entry)[1]
                cells += [f"{entry['issued']:g}, {entry['alu']:g}", f"{reached / 1e12:.1f} ({bound})"]
            else:
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
