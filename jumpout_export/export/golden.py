"""Golden data in ONNX's own layout: inputs and what PyTorch says, for a replay from any language."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from jumpout_export.export.reference import Reference
from jumpout_export.export.samples import rows
from jumpout_export.export.scale import representable
from jumpout_export.export.signature import tensors
from jumpout_export.export.tolerance import tolerance_line
from jumpout_export.nn.batches import Batch

FOLDER = "test_data_set_0"
# Enough to compare on, small enough to lie beside the model.
_MOST_IMAGES = 8


@dataclass(frozen=True)
class Golden:
    """What a replay needs.

    Attributes:
        inputs: by name, in the order of the graph.
        outputs: the float64 reference, rounded to the outputs' dtypes, by name.
        tolerance: how far a replay may be off, one line per output, by name.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    tolerance: dict[str, str]


def compute_golden(original: nn.Module, folded: nn.Module, batch: Batch, *, dynamic_batch: bool) -> Golden:
    """Runs the model on the first 8 images of a batch, or on all of them if the file's batch size is fixed.

    Args:
        original: in eval mode, on the CPU; its outputs are the golden ones.
        folded: the model that is converted; it gives the inputs their names.
        batch: inputs on the CPU.
        dynamic_batch: whether the file's batch size is open.

    Raises:
        Exception: whatever the model raises.
    """
    count = min(batch.size, _MOST_IMAGES) if dynamic_batch else batch.size
    batch = rows(batch, range(count))
    reference = Reference(original, batch, folded=folded)
    expected = reference(batch)
    return Golden(
        inputs=dict(zip(reference.inputs, tensors(batch), strict=True)),
        outputs={one.name: representable(one.exact, one.own.dtype).to(one.own.dtype) for one in expected},
        tolerance={one.name: tolerance_line(one, not reference.problem) for one in expected},
    )


def stage_golden(golden: Golden, folder: Path) -> Path:
    """Writes `folder/test_data_set_0/input_0.pb, ..., output_0.pb, ...` and returns that inner folder.

    Args:
        golden: inputs and outputs.
        folder: must exist.
    """
    from onnx import numpy_helper

    target = folder / FOLDER
    target.mkdir()
    for kind, values in (("input", golden.inputs), ("output", golden.outputs)):
        for index, (name, value) in enumerate(values.items()):
            proto = numpy_helper.from_array(value.numpy(force=True), name)
            (target / f"{kind}_{index}.pb").write_bytes(proto.SerializeToString(deterministic=True))
    return target


def publish_golden(staged: Path, folder: Path) -> None:
    """Moves staged golden data into `folder`, in place of older data there; other files stay."""
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for old in [*target.glob("input_*.pb"), *target.glob("output_*.pb")]:
        old.unlink()
    for file in staged.iterdir():
        shutil.move(file, target / file.name)
