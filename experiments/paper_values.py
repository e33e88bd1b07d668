"""Numbers of the paper that stand beside ours, and the names of its ablation's rows."""

from __future__ import annotations

import itertools

# Table 2, column CIFAR10(s), by configuration.
PAPER = {
    "none": "not given",
    "dropout": "86.50",
    "jumpout": "90.24",
}
# Table 3.
CONCRETE = "95.29 / 79.06 / 81.87"
# Table 1: half-normal rate, normalised by q, rescaled; its values are missing from the text we have.
MODIFICATIONS = ("I half-normal rate", "II normalised by q", "III rescaled")
ABLATIONS = tuple(itertools.product((False, True), repeat=3))


def ablation_name(flags: tuple[bool, ...]) -> str:
    """Returns the configuration of a row of Table 1, such as `table1-101`; plain dropout and jumpout have their own."""
    if not any(flags):
        return "dropout"
    return "jumpout" if all(flags) else "table1-" + "".join(str(int(flag)) for flag in flags)
