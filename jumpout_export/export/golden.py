"""Golden data in ONNX's own layout: inputs and what PyTorch says, for a replay from any language."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from jumpout_export.export.reference import Reference
from jumpout_export.export.samples import rows
from jumpout_export.export.signature import tensors
from jumpout_export.nn.batches import Batch

FOLDER = "test_data_set_0"
# Enough to compare on, small enough to lie beside the model.
_MOST_IMAGES = 8


def stage_golden(original: nn.Module, folded: nn.Module, batch: Batch, folder: Path, *, dynamic_batch: bool) -> Path:
    """Writes `folder/test_data_set_0/input_0.pb, ..., output_0.pb, ...` and returns that inner folder.

    The outputs are the float64 reference, rounded to the outputs' dtypes. Of a longer batch the first 8 images are
    taken, unless the file's batch size is fixed.

    Args:
        original: in eval mode, on the CPU; its outputs are written.
        folded: the model that was converted; it gives the inputs their names.
        batch: inputs on the CPU.
        folder: must exist.
        dynamic_batch: whether the file's batch size is open.
    """
    from onnx import numpy_helper

    count = min(batch.size, _MOST_IMAGES) if dynamic_batch else batch.size
    batch = rows(batch, range(count))
    target = folder / FOLDER
    target.mkdir()
    reference = Reference(original, batch, folded=folded)
    for index, (name, value) in enumerate(zip(reference.inputs, tensors(batch), strict=True)):
        proto = numpy_helper.from_array(value.numpy(force=True), name)
        (target / f"input_{index}.pb").write_bytes(proto.SerializeToString(deterministic=True))
    for index, output in enumerate(reference(batch)):
        proto = numpy_helper.from_array(output.exact.to(output.own.dtype).numpy(force=True), output.name)
        (target / f"output_{index}.pb").write_bytes(proto.SerializeToString(deterministic=True))
    return target


def publish_golden(staged: Path, folder: Path) -> None:
    """Moves staged golden data into `folder`, in place of older data there; other files stay."""
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for old in [*target.glob("input_*.pb"), *target.glob("output_*.pb")]:
        old.unlink()
    for file in staged.iterdir():
        shutil.move(file, target / file.name)
