"""What an export makes of the check of its BatchNorm statistics, and the new ones as a file beside the network's."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from jumpout_export.disk import check_target, private_folder, writing
from jumpout_export.errors import ArgumentError
from jumpout_export.model.copies import as_safetensors
from jumpout_export.model.norms import serves_with_statistics
from jumpout_export.report import BatchNormReport, Check, CheckVerdict

NAME = "batchnorm statistics"
_CURE = "recalibrate first (recalibrate_batchnorm(model, batches), or --recalibrate)"


@dataclass(frozen=True)
class Staged:
    """A finished file or folder, in the file system of its place."""

    file: Path
    place: Path


def statistics_check(model: nn.Module, report: BatchNormReport | None, required: bool) -> list[Check]:
    """Returns the check that the stored statistics are those that serving sees, as the report found them.

    Drift and a lack of evidence keep a file from being published only if they are asked to.

    Raises:
        ValueError: if it is required of a model with BatchNorm that there is no report of.
    """
    if report is None:
        if required and any(map(serves_with_statistics, model.modules())):
            raise ArgumentError(
                "require_batchnorm",
                "require_batchnorm needs the check of the weights that are exported: pass "
                "batchnorm=check_batchnorm(model, batches)",
            )
        return []
    # One whose W is NaN, because it could not be measured, only if there is no other.
    worst = max(report.layers, key=lambda layer: -math.inf if math.isnan(layer.w) else layer.w, default=None)
    measured, limit = (worst.w, report.warn) if worst is not None else (None, None)
    where = f"; the largest W is {worst.w:.4g} at `{worst.name}`, the margin {report.warn:g}" if worst else ""
    if report.verdict == "ok":
        return [Check(name=NAME, measured=measured, limit=limit, verdict="pass", note=f"agree with serving{where}")]
    if report.verdict == "inconclusive":
        note = f"could not be decided with {report.samples} samples{where}: give more samples"
        return [Check(name=NAME, verdict="not_run", required=required, note=note)]
    origin = f" from `{report.origin}` on" if report.origin else ""
    note = f"the file serves with statistics that drift{origin}{where}: {_CURE}"
    verdict: CheckVerdict = "fail" if required else "warning"
    return [Check(name=NAME, measured=measured, limit=limit, verdict=verdict, note=note)]


def check_weights_target(path: str | os.PathLike[str] | None) -> Path | None:
    """Returns the path that the weights are written to, None if none are.

    Raises:
        ValueError: if no safetensors can be written there.
        TypeError: if it is no path.
    """
    if path is None:
        return None
    return check_target(path, "save_weights", ".safetensors")


@contextmanager
def staged_weights(model: nn.Module, place: Path | None) -> Iterator[Staged | None]:
    """Writes the weights to a hidden folder beside their place, and yields them; None without a place.

    Raises:
        ValueError: if they cannot be written.
    """
    if place is None:
        yield None
        return
    with private_folder(place) as folder:
        with writing(place):
            (folder / place.name).write_bytes(as_safetensors(model))
        yield Staged(folder / place.name, place)
