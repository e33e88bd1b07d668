"""Which further sizes a file has to be compared at: those at which it may begin to compute something else."""

from __future__ import annotations

from collections.abc import Mapping

from jumpout_export.model.axes import BATCH, Axes
from jumpout_export.model.batches import Batch
from jumpout_export.model.signature import tensors
from jumpout_export.onnxfile.flow.uses import SizeUse, size_uses, sizes_to_try
from jumpout_export.report import Check
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.text import first_line, joined

SIZES = "sizes"


def sizes_in_file(
    file: SavedFile, axes: Axes, example: Batch, name: str = SIZES
) -> tuple[list[dict[str, int]], Check | None]:
    """Returns further sizes to compare at, by name of the axis, and a check `name`; None if all is fixed.

    What is computed from the sizes of open axes is followed through the file; where it meets data or decides something,
    both sides are tried. Where that cannot be done the check says from which node on sizes are not shown, and passes.
    """
    opened = axes.opened()
    known = {name: example.size if name == BATCH else 0 for its in opened for name in its.values()}
    for value, its in zip(tensors(example), opened, strict=True):
        known |= {name: value.shape[axis] for axis, name in its.items() if name != BATCH and axis < value.ndim}
    if not known:
        return [], None
    batch = BATCH if BATCH in known else None
    try:
        uses = size_uses(file.proto, opened, known, batch)
    except Exception as error:  # a file may hold anything; what is wrong with it, other checks say
        note = f"not shown: what the file computes from sizes could not be followed: {first_line(error)}"
        return [], Check(name=name, verdict="pass", note=note)
    plan = sizes_to_try(uses, known, batch)
    return plan.sizes, Check(name=name, verdict="pass", note=_note(uses, plan.sizes, plan.left))


def describe(sizes: Mapping[str, int]) -> str:
    """Returns sizes by name of the axis for a person, such as `batch=64 height=9`."""
    return " ".join(f"{name}={size}" for name, size in sizes.items())


def _note(uses: list[SizeUse], sizes: list[dict[str, int]], left: list[SizeUse]) -> str:
    if not uses:
        return "nothing that the file computes from sizes decides anything but shapes"
    tried = [describe(moved) for moved in sizes]
    parts = [f"also tried at {joined(tried)}, on both sides of what a size decides in the file"] if tried else []
    parts += [f"other sizes are not shown at {joined([str(use) for use in left])}"] if left else []
    return (
        "; ".join(parts) or f"what a size decides is shown by the sizes compared: {joined([str(use) for use in uses])}"
    )
