"""Writes experiments/README.md from the results: each table and figure of the paper, theirs beside ours."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from experiments import figures
from experiments.accuracy_tables import figure_2, hendrycks_gimpel, slides, table_1, table_2, table_3
from experiments.mechanism_tables import depth, pipeline, pooling, ratios
from experiments.results import Result, read_result
from experiments.serving_tables import serving
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
    made = (table_1, table_2, table_3, hendrycks_gimpel, figure_2, ratios, pooling, depth, serving, slides, pipeline)
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
        "It shows directions and mechanisms, not the paper's accuracies. The images are the first ones of a fixed "
        "shuffle of CIFAR-10, kept as JPEG files in a folder per class: JPEG costs accuracy (how much was not "
        "measured), and other files of the same images give other numbers.",
        "gpu": "This is the full protocol of CIFAR10(s) and a shortened one of the Wide ResNet.",
    }[protocol]
    target = "paper" if protocol == "cpu" else "paper-gpu"
    commits = sorted({result.machine["commit"] for result in results})
    return f"""# The paper's tables and figures, measured with this package

Wang, Zhou, Bilmes, *Jumpout: Improved Dropout for Deep Neural Networks with ReLUs*, ICML 2019. {where}
Of the paper's settings, sigma of its half-normal rate, the place of the layers, the tuned rates and the values of its
Table 1 are not in the text we have. Where it names none we take sigma = 0.1, p = 0.1, and put the noise after every
ReLU. Rates p' are means over layers and seeds in the last epoch; nothing was tuned.

{len(results)} runs, {seconds / 3600:.1f} hours of training in all, on {one.machine["device"]} ({one.machine["cores"]}
cores), torch {one.machine["torch"]}, commits {", ".join(commits)}. Data: {"; ".join(data)}.

    make {target} DATA=DIR                                    makes the runs that are not there, and this page
    python -m experiments.paper --protocol {protocol} --data DIR --out NEW     all runs anew, beside these
    python -m experiments.repeat jumpout none --data DIR     some of them again, compared with these

Numbers are mean ± standard deviation over seeds, with the number of seeds in brackets; accuracies are percentages of
the test images, which add ± {100 * (0.25 / _test_images(one)) ** 0.5:.1f} points that are the same for all. Every
trained network was checked, recalibrated, exported and verified by this package.

{_index(by_name(results), protocol)}"""


def _test_images(result: Result) -> int:
    return result.config.data.test or 10_000


# Row of the paper, as configurations name it -> the section about it, and the configurations.
_SECTIONS = {
    "Fig 1": ("Fig 1: active units", "`none`, `dropout`, `jumpout`"),
    "Fig 2": ("Fig 2: accuracy against the dropout rate", "`fig2-*`, `dropout`, `jumpout`, `table1-001`"),
    "Figs 3 and 5": (
        "Figs 3 and 5: mean and variance with noise over without",
        "`alpha-*`, `dropout`, `jumpout`, `table1-001`, `fig2-*-0.2`",
    ),
    "Fig 4": ("Fig 4: learning curves", "`none`, `dropout`, `jumpout`, `concrete`"),
    "Table 1": ("Table 1: the three modifications", "`dropout`, `table1-*`, `jumpout`"),
    "Table 2": ("Table 2: the CIFAR10(s) column", "`none`, `dropout`, `jumpout`"),
    "Table 3": ("Table 3: Concrete Dropout", "`concrete`"),
    "Hendrycks and Gimpel": ("Hendrycks and Gimpel: variance re-estimation", "`hg-*`"),
    "slides": ("The lecture slides' network", "`slides-*`"),
    "pooling": ("Not in the paper: noise before or behind the max-pooling", "`pooled-*`"),
    "depth": ("Not in the paper: drift grows with depth", "`depth-*`"),
    "serving": ("Not in the paper: validation during training", "`serving-*`"),
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
