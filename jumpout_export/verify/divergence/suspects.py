"""Keeps the samples on which a file is furthest off, and looks there for the first layer that differs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import nn

from jumpout_export.model.probes import Probe, rows
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.report import Check
from jumpout_export.runtime.session import Level
from jumpout_export.text import first_line
from jumpout_export.verify.constants.batchnorms import Located
from jumpout_export.verify.constants.faults import Fault
from jumpout_export.verify.constants.proof import Constants
from jumpout_export.verify.divergence.locate import locate_divergence
from jumpout_export.verify.divergence.search import Divergence
from jumpout_export.verify.values.compare import Comparison

# Samples that are looked at: the worst one and some after it, so that few values agree by chance.
_SAMPLES = 4


class Suspects:
    """The batch in which each session was furthest off, per group of probes; what is right costs nothing."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, tuple[float, int, Probe]]] = {}

    def add(self, comparison: Comparison, probe: Probe) -> None:
        """Keeps the probe that `comparison` took in last, if it is the worst of its group."""
        groups = self._kept.setdefault(comparison.label, {})
        before = groups[probe.group][0] if probe.group in groups else -1.0
        share, row = _furthest(comparison, probe)
        if share > before:
            groups[probe.group] = share, row, probe

    def look(
        self, path: Path, original: nn.Module, checks: list[Check], constants: Constants, fixed: bool
    ) -> Divergence | None:
        """Returns where the file departs from the model, None where no comparison of values or constants failed.

        Args:
            path: the file.
            original: the model in eval mode, on the CPU.
            checks: the verdicts on every session.
            constants: what is wrong with those of the file.
            fixed: whether the file has a fixed batch size.
        """
        first = next(iter(constants.faults), None)
        failed = [check.name for check in checks if check.verdict == "fail"]
        for label, groups in self._kept.items():
            whole = f"{label}/outputs" in failed or f"{label}/finite" in failed
            wrong = [
                kept
                for group, kept in groups.items()
                if any(name.startswith((f"{label}/{group}/", f"{label}/{group}, ")) for name in failed)
                or (whole and math.isinf(kept[0]))
            ]
            if wrong:
                # Samples as they came tell more than single ones or noise.
                _, row, probe = max(wrong, key=lambda kept: (kept[2].group == "data", kept[2].batch.size))
                return _earlier(_looked(path, original, constants.located, label, probe, row, fixed), first)
        if first is None:
            return None
        note = f"`{first.layer}` differs by its constants alone: the values agree on everything that was compared"
        return Divergence(first.layer, f"{note}; {first.text}" if first.text else note)


def _earlier(found: Divergence, first: Fault | None) -> Divergence:
    """What was found by the values, or a constant that is wrong before that: a small gain behind it hides it there."""
    if first is None:
        return found
    text = f"; {first.text}" if first.text else ""
    if found.layer == first.layer:
        return replace(found, note=f"{found.note}{text}")
    if found.operation is not None and found.operation <= first.operation:
        return found
    note = f"`{first.layer}` is the first that differs by its constants{text}; by the values: {found.note}"
    return Divergence(first.layer, note)


def _furthest(comparison: Comparison, probe: Probe) -> tuple[float, int]:
    """The largest error of the group so far in units of the size, and the sample within the probe, if it is in it."""
    if any(problem.startswith(f"{probe.group}: output") for problem in comparison.problems):
        return math.inf, 0
    found = (-1.0, 0)
    for (group, _), worst in comparison.worst.items():
        for largest in worst.largest if group == probe.group else ():
            if float(largest.shares.max()) > found[0]:
                channel = int(largest.shares.argmax())
                found = float(largest.shares[channel]), int(largest.samples[channel]) - probe.start
    return found


def _looked(
    path: Path, original: nn.Module, located: list[Located], label: str, probe: Probe, row: int, fixed: bool
) -> Divergence:
    provider, _, level = label.partition("/")
    batches = [probe.batch]
    if not fixed and probe.batch.size > _SAMPLES:
        row = min(max(row, 0), probe.batch.size - 1)
        batches.insert(0, rows(probe.batch, range(row, row + _SAMPLES), probe.batched))
    try:
        model = load_onnx(path)
        for batch in batches:  # all samples, if the file is right on a few of them
            found = locate_divergence(
                path, model, original, batch, located, provider=provider, level=cast("Level", level)
            )
            if found.reproduced:
                break
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base, as may the user's forward
        return Divergence(None, f"the first layer that differs could not be looked for: {first_line(error)}")
    return replace(found, note=f"{found.note} ({label}, {probe.group})")
