"""Writes the README's tables and the plot anew from the committed JSON files, so that no number is typed by hand.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLOTTED = ("copy", "dropout", "relu+dropout", "composed", "compiled composed", "jumpout", "relu+jumpout")
# Bytes of one float32 element that have to move: read for q, read, write, one bit.
FORWARD_BYTES, COPY_BYTES = 3 * 4 + 1 / 8, 2 * 4


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def find(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


def op_table(result: dict[str, Any]) -> str:
    """Returns ns per element of one thread, float32, and how many times faster than the peers."""
    rows, machine = result["rows"], result["machine"]
    lines = [
        f"Medians, float32, one thread, {machine['device']} ({machine['kernels']}), torch {machine['torch']}:",
        "",
        "| ns per element | 1 MB | 16 MB | 256 MB |",
        "|---|---|---|---|",
    ]
    wanted = [
        ("forward", "copy", "`clone`"),
        ("forward", "dropout", "`F.dropout`"),
        ("forward", "composed", "jumpout composed from torch calls"),
        ("forward", "jumpout", "**`jumpout`**"),
        ("forward", "jumpout in place", "**`jumpout(inplace=True)`**"),
        ("forward+backward", "relu+dropout", "`F.relu` + `F.dropout`, with backward"),
        ("forward+backward", "composed", "composed, with backward"),
        ("forward+backward", "relu+jumpout", "**`jumpout(relu=True)`, with backward**"),
    ]
    for direction, function, title in wanted:
        cells = []
        for shape in ("1 MB", "16 MB", "256 MB"):
            row = find(rows, shape=shape, dtype="float32", threads=1, direction=direction, function=function)
            cells.append(f"{row['median'] / row['elements'] * 1e9:.2f}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    saved = result["saved_bytes_for_1Mi_float32"]
    calls = {
        (function, direction): find(
            rows, shape="16 elements", dtype="float32", threads=1, direction=direction, function=function
        )["median"]
        * 1e6
        for function in ("jumpout", "dropout")
        for direction in ("forward", "forward+backward")
    }
    lines += [
        "",
        "At 16 elements a call takes {:.0f} microseconds forward and {:.0f} with backward, `F.dropout` {:.0f} and "
        "{:.0f}: small tensors gain nothing.".format(*calls.values()),
    ]
    ours, theirs = saved["relu+jumpout"], saved["relu+dropout"]
    lines += ["", f"Saved for backward, 1 Mi float32 elements: {ours:,} bytes; `F.relu` + `F.dropout` {theirs:,}."]
    return "\n".join(lines)


def training_table(result: dict[str, Any]) -> str:
    """Returns milliseconds per training step."""
    steps = result["steps"]
    base = steps["dropout"]["median"]
    lines = ["| training step, six conv-BN-ReLU layers, batch 64 of 32x32 | ms | against dropout |", "|---|---|---|"]
    for kind, timing in steps.items():
        lines.append(f"| {kind} | {timing['median'] * 1e3:.0f} | {timing['median'] / base:.2f} |")
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws time per element against size for each function, beside a copy scaled by bytes.

    The copy goes to fresh memory, so at large sizes its page faults count too: a yardstick, not a bound.
    """
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    sizes = [16, 1 << 18, 1 << 22, 1 << 26]
    rows = [row for row in result["rows"] if row["dtype"] == "float32" and row["threads"] == 1]
    rows = [row for row in rows if row["direction"] == "forward" and row["elements"] in sizes]
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for function in PLOTTED:
        points = sorted((row["elements"], row["median"]) for row in rows if row["function"] == function)
        axes.plot([n for n, _ in points], [t / n * 1e9 for n, t in points], marker="o", label=function)
    copies = sorted((row["elements"], row["median"]) for row in rows if row["function"] == "copy")
    floor = [(n, t / n * 1e9 * FORWARD_BYTES / COPY_BYTES) for n, t in copies]
    axes.plot(
        *zip(*floor, strict=True), color="black", linestyle=":", label="a copy, scaled to the bytes jumpout moves"
    )
    axes.set(xscale="log", yscale="log", xlabel="elements", ylabel="ns per element, forward")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    mpl.rcParams["svg.hashsalt"] = "jumpout-export"
    figure.savefig(path, metadata={"Date": None})


def replace(text: str, marker: str, content: str) -> str:
    """Puts `content` between the comments `<!-- marker -->` and `<!-- /marker -->`."""
    pattern = rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
    new, count = re.subn(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.S)
    if count != 1:
        raise SystemExit(f"README.md must hold <!-- {marker} --> once, it does {count} times")
    return new


def main() -> None:
    readme = ROOT / "README.md"
    op, training = load("op-cpu.json"), load("training-cpu.json")
    text = replace(readme.read_text(), "benchmarks", f"{op_table(op)}\n\n{training_table(training)}")
    plot(op, ROOT / "docs" / "op-cpu.svg")
    readme.write_text(text)


if __name__ == "__main__":
    main()
