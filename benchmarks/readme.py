"""Writes the tables of README and docs and the plot anew from the committed JSON files: no number is typed by hand.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from roofline import roofline_table

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
    """Returns ns per element of one thread, for float32 and bfloat16, ours beside its peers."""
    rows, machine = result["rows"], result["machine"]
    columns = [("1 MB", "float32"), ("16 MB", "float32"), ("256 MB", "float32")]
    columns += [("1 MB", "bfloat16"), ("16 MB", "bfloat16")]
    shown = {"256 MB": "256 MB", "1 MB": "256 Ki", "16 MB": "4 Mi"}
    titles = [f"{shown[shape] if kind == 'bfloat16' else shape} {kind}" for shape, kind in columns]
    lines = [
        f"Medians, one thread, {machine['device']} ({machine['kernels']}), torch {machine['torch']}:",
        "",
        f"| ns per element | {' | '.join(titles)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    wanted = [
        ("forward", "copy", "`clone`"),
        ("forward", "dropout", "`F.dropout`"),
        ("forward", "composed", "jumpout composed from torch calls"),
        ("forward", "jumpout", "**`jumpout`**"),
        ("forward", "jumpout in place", "**`jumpout(inplace=True)`**"),
        ("forward+backward", "relu", "`F.relu`, with backward"),
        ("forward+backward", "relu+dropout", "`F.relu` + `F.dropout`, with backward"),
        ("forward+backward", "composed", "composed, with backward"),
        ("forward+backward", "relu+jumpout", "**`jumpout(relu=True)`, with backward**"),
    ]
    for direction, function, title in wanted:
        cells = []
        for shape, dtype in columns:
            row = find(rows, shape=shape, dtype=dtype, threads=1, direction=direction, function=function)
            cells.append(per_element(row))
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
    bare = (
        find(rows, shape="16 elements", dtype="float32", threads=1, function="bare autograd.Function")["median"] * 1e6
    )
    lines += ["", *threads_table(result), ""]
    lines += textwrap.wrap(
        "At 16 elements a call takes {:.0f} microseconds forward and {:.0f} with backward, `F.dropout` {:.0f} and "
        "{:.0f}; an `autograd.Function` in Python that does nothing takes {:.0f}: small tensors gain nothing.".format(
            *calls.values(), bare
        ),
        120,
    )
    ours, theirs = saved["relu+jumpout"], saved["relu+dropout"]
    lines += ["", f"Saved for backward, 1 Mi float32 elements: {ours:,} bytes; `F.relu` + `F.dropout` {theirs:,}."]
    return "\n".join(lines)


def threads_table(result: dict[str, Any]) -> list[str]:
    """Returns ns per element with backward on one thread, on all, and on all while a data loader's worker competes."""
    beside, every = result["rows_beside_loader"], max(row["threads"] for row in result["rows"])
    settings = [("1 thread", result["rows"], 1), (f"{every} threads", result["rows"], every)]
    settings += [(f"{every} threads on {every} cores, a data loader's worker beside", beside, every)]
    lines = [
        "| with backward, ns per element | 1 MB float32 | 16 MB float32 | 256 Ki bfloat16 | 4 Mi bfloat16 |",
        "|---|---|---|---|---|",
    ]
    for title, rows, threads in settings:
        for function, name in (("relu", "`F.relu`"), ("relu+dropout", "+ `F.dropout`"), ("relu+jumpout", "**ours**")):
            cells = [
                per_element(
                    find(
                        rows, shape=shape, dtype=dtype, threads=threads, direction="forward+backward", function=function
                    )
                )
                for dtype in ("float32", "bfloat16")
                for shape in ("1 MB", "16 MB")
            ]
            lines.append(f"| {title}: {name} | {' | '.join(cells)} |")
    return lines


def per_element(row: dict[str, Any]) -> str:
    return f"{row['median'] / row['elements'] * 1e9:.2f}"


def training_table(result: dict[str, Any]) -> str:
    """Returns milliseconds per training step."""
    steps = result["steps"]
    base = steps["dropout"]["median"]
    lines = ["| training step, six conv-BN-ReLU layers, batch 64 of 32x32 | ms | against dropout |", "|---|---|---|"]
    for kind, timing in steps.items():
        lines.append(f"| {kind} | {timing['median'] * 1e3:.0f} | {timing['median'] / base:.2f} |")
    return "\n".join(lines)


EXPORTS = {
    "torch": "`torch.onnx.export(dynamo=True)`",
    "torch verify": "the same with `verify=True`",
    "optimum style": "the same, then outputs compared in ONNX Runtime as optimum does",
    "ours": "**`export_onnx`**, every check",
}


def export_table(result: dict[str, Any]) -> str:
    """Returns seconds per export of a ResNet-50-like network, and what the file costs in ONNX Runtime."""
    exports, latency, settings = result["exports"], result["latency"], result["settings"]
    base = exports["torch verify"]["median"]
    size = f"{settings['size']}x{settings['size']}"
    lines = [f"| export of a ResNet-50-like network, {size} images | s | against `verify=True` |", "|---|---|---|"]
    lines += [
        f"| {title} | {exports[name]['median']:.1f} | {exports[name]['median'] / base:.2f} |"
        for name, title in EXPORTS.items()
    ]
    ours, plain = latency["ours"]["median"], latency["without dropout"]["median"]
    sentence = (
        f"In ONNX Runtime {result['machine']['onnxruntime']} the exported file takes {ours * 1e3:.1f} ms per image, "
        f"the same network built without dropout {plain * 1e3:.1f} ms: ratio {ours / plain:.2f}."
    )
    return "\n".join([*lines, "", *textwrap.wrap(sentence, 120)])


def proof_table(result: dict[str, Any]) -> str:
    """Returns what the proof of an export costs beside torch's own export, for four networks, and how it grows."""
    machine = result["machine"]
    lines = [
        f"Medians of {result['rounds']} exports each in turns, {machine['device']}, torch {machine['torch']}:",
        "",
        "| network | torch's own export | s | `export_onnx`, s | times | samples run, of these in float64 too |",
        "|---|---|---|---|---|---|",
    ]
    for title, row in result["networks"].items():
        ours, peer = row["medians"]["ours"], row["medians"][row["peer"]]
        own = "with `verify=True`" if row["peer"] == "torch verify" else "alone"
        unit = ", CPU seconds" if row["clock"] != "seconds" else ""
        cells = [f"{title}{unit}", own, f"{peer:.1f}", f"{ours:.1f}", f"{row['ratio']:.1f}"]
        lines.append(f"| {' | '.join(cells)} | {row['samples']}, {row['samples_float64']} |")
    first, last = result["curve"][0], result["curve"][-1]
    more = (last["export"] - first["export"]) / (last["forward"] - first["forward"])
    sentence = (
        f"From {first['size']} to {last['size']} pixels one forward of the first network grows from "
        f"{first['forward'] * 1e3:.0f} to {last['forward'] * 1e3:.0f} ms and its export from {first['export']:.1f} to "
        f"{last['export']:.1f} s: about {more:.0f} forwards of one sample each."
    )
    return "\n".join([*lines, "", *textwrap.wrap(sentence, 120)])


METHODS = {
    "as trained": ("as trained", ""),
    "torch update_bn": ("`torch.optim.swa_utils.update_bn`", "dropout on, batches weigh the same"),
    "fvcore update_bn_stats": ("fvcore `update_bn_stats`", "dropout on"),
    "AIMET recipe": ("AIMET's recipe", "dropout off, averages over batches"),
    "batch": ('`method="batch"`', "dropout off, all values together"),
    "exact": ('**`method="exact"`**', "what serving sees"),
}


def recalibration_table(result: dict[str, Any]) -> str:
    """Returns what each way to recalibrate leaves of W, and what it makes of accuracy and NLL."""
    data, training, machine = result["data"], result["training"], result["machine"]
    what = (
        f"{data['source']}: {data['train']:,} training images, {training['epochs']} epochs, seed {training['seed']}. "
        "Five convolutions, each with BatchNorm, ReLU and the noise named. All methods start from the same trained "
        "network and see the same training images. W is the largest of any layer on these, accuracy (%) and NLL are of "
        f"{data['test']:,} test images, s are CPU seconds of one thread, {machine['device']}, torch {machine['torch']}."
    )
    lines = [
        *textwrap.wrap(what, 120),
        "",
        "| noise | method | how | W left | accuracy | NLL | passes | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for noise, rows in result["networks"].items():
        for index, row in enumerate(rows):
            title, how = METHODS[row["method"]]
            cells = [noise if index == 0 else "", title, how, f"{row['max_w']:.2g}", f"{100 * row['accuracy']:.1f}"]
            cells += [f"{row['nll']:.3f}"]
            cells += [str(row["passes"]), f"{row['cpu_seconds']:.0f}"] if row["passes"] else ["", ""]
            lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


def batch_sizes_table(result: dict[str, Any]) -> str:
    """Returns what one pass with batch statistics leaves, by the size of its batches, and what exact takes."""
    what = (
        f"Scikit-learn's digits ({result['images']:,} images), networks trained with dropout at 0.2, one run, one "
        f"thread, {result['machine']['device']}."
    )
    lines = [
        *textwrap.wrap(what, 120),
        "",
        "| network | method | batches of | W left in serving | accuracy | NLL | passes | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in result["networks"].items():
        for index, row in enumerate(rows):
            cells = [name if index == 0 else "", row["method"], str(row["batch_size"] or ""), f"{row['max_w']:.2g}"]
            cells += [f"{100 * row['accuracy']:.1f}", f"{row['nll']:.3f}"]
            cells += [str(row["passes"]), f"{row['cpu_seconds']:.1f}"] if row["passes"] else ["", ""]
            lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
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


def replace(page: Path, marker: str, content: str) -> None:
    """Puts `content` between the comments `<!-- marker -->` and `<!-- /marker -->` of a page."""
    pattern = rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
    new, count = re.subn(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", page.read_text(), flags=re.S)
    if count != 1:
        raise SystemExit(f"{page.name} must hold <!-- {marker} --> once, it does {count} times")
    page.write_text(new)


def main() -> None:
    op, training = load("op-cpu.json"), load("training-cpu.json")
    replace(ROOT / "README.md", "benchmarks", f"{op_table(op)}\n\n{training_table(training)}")
    if (RESULTS / "export-cpu.json").is_file():
        replace(ROOT / "README.md", "export-benchmark", export_table(load("export-cpu.json")))
    if (RESULTS / "proof-cpu.json").is_file():
        replace(ROOT / "docs" / "concepts.md", "proof-cost", proof_table(load("proof-cpu.json")))
    replace(ROOT / "docs" / "concepts.md", "recalibration", recalibration_table(load("recalibrate.json")))
    replace(ROOT / "docs" / "concepts.md", "batch-sizes", batch_sizes_table(load("batch-sizes.json")))
    replace(ROOT / "docs" / "cuda.md", "roofline", roofline_table(load("sass.json")))
    plot(op, ROOT / "docs" / "op-cpu.svg")


if __name__ == "__main__":
    main()
