"""Writes experiments/README.md from the results: each table and figure of the paper, theirs beside ours."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from experiments import figures
from experiments.accuracy_tables import figure_2, hendrycks_gimpel, slides, table_1, table_2, table_3
from experiments.mechanism_tables import depth, pipeline, pooling, ratios
from experiments.results import Result, read_result
from experiments.tables import Groups, by_name, of_row, table


def write_summary(results: Path, readme: Path, protocol: str) -> None:
    """Writes the tables to `readme` and the figures to `figures/PROTOCOL` beside it.

    Raises:
        ValueError: if there are no results.
    """
    found = [read_result(path) for path in sorted(results.glob("*.json"))]
    if not found:
        raise ValueError(f"there are no results in {results}; give --data to make some")
    groups = by_name(found)
    pictures = figures.draw(groups, readme.parent / "figures" / protocol)
    made = (table_1, table_2, table_3, hendrycks_gimpel, figure_2, ratios, pooling, depth, slides, pipeline)
    sections = [_head(found, protocol), *(make(groups) for make in made)]
    text = "\n\n".join(section for section in sections if section)
    for marker, picture in pictures.items():
        text = text.replace(f"[[{marker}]]", f"![{picture.stem}]({picture.relative_to(readme.parent)})")
    readme.write_text(text + "\n")


def _head(results: list[Result], protocol: str) -> str:
    one = results[0]
    seconds = sum(epoch.seconds for result in results for epoch in result.epochs)
    data = sorted({result.data for result in results})
    where = {
        "cpu": "This is the CPU-sized protocol: fewer and smaller images, narrower networks, fewer epochs. "
        "It shows directions and mechanisms, not the paper's accuracies.",
        "gpu": "This is the full protocol of CIFAR10(s) and a shortened one of the Wide ResNet.",
    }[protocol]
    command = "make paper DATA=DIR" if protocol == "cpu" else "make paper-gpu DATA=DIR"
    return f"""# The paper's tables and figures, measured with this package

Wang, Zhou, Bilmes, *Jumpout: Improved Dropout for Deep Neural Networks with ReLUs*, ICML 2019. {where}
The same protocol as far as the paper states it; sigma of its half-normal rate, the place of the layers and its
tuned rates are not in the text we have, and the values of its Table 1 neither. Where it names none we take
sigma = 0.1 and put jumpout after every ReLU.

This file is written by `{command}`: {len(results)} runs, {seconds / 3600:.1f} hours of training in all,
on {one.machine["device"]} ({one.machine["cores"]} cores), torch {one.machine["torch"]}.
Data: {"; ".join(data)}. Where these were JPEG files, that costs every method a little accuracy.
Numbers are mean ± standard deviation over seeds, with the number of seeds in brackets; accuracies are percentages of
the test images. Every trained network was checked, recalibrated, exported and verified by this package.

{_index(by_name(results), protocol)}"""


# Row of the paper, as configurations name it -> the section about it, and the configurations.
_SECTIONS = {
    "Fig 1": ("Fig 1: active units", "`jumpout`"),
    "Fig 2": ("Fig 2: accuracy against the dropout rate", "`fig2-*`, `table1-*`"),
    "Figs 3 and 5": ("Figs 3 and 5: mean and variance with noise over without", "`alpha-*`"),
    "Fig 4": ("Fig 4: learning curves", "`none`, `dropout`, `jumpout`"),
    "Table 1": ("Table 1: the three modifications", "`table1-*`"),
    "Table 2": ("Table 2: the CIFAR10(s) column", "`none`, `dropout`, `jumpout`"),
    "Table 3": ("Table 3: Concrete Dropout", "`concrete`"),
    "Hendrycks and Gimpel": ("Hendrycks and Gimpel: variance re-estimation", "`hg-*`"),
    "slides": ("The lecture slides' network", "`slides-*`"),
    "pooling": ("Not in the paper: noise before or behind the max-pooling", "`pooled-*`"),
    "depth": ("Not in the paper: drift grows with depth", "`depth-*`"),
}


def _index(groups: Groups, protocol: str) -> str:
    lines = []
    for row, (heading, files) in _SECTIONS.items():
        found = of_row(groups, row)
        if found:
            where = f"{files} in [configs/{protocol}](configs/{protocol})"
            lines.append([f"[{heading}](#{_anchor(heading)})", where, _cost(found)])
    head = ["here", "one run: `python -m experiments.run FILE --data DIR`", "runs, seconds of training each (median)"]
    return table(head, lines)


def _anchor(heading: str) -> str:
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _cost(groups: Groups) -> str:
    seconds = [sum(epoch.seconds for epoch in result.epochs) for results in groups.values() for result in results]
    return f"{len(seconds)}, {statistics.median(seconds):.0f}"
