"""Golden data in ONNX's own layout: inputs and what PyTorch says, for a replay from any language."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from jumpout_export.disk import private_folder, writing
from jumpout_export.model.axes import Axes
from jumpout_export.model.batches import Batch
from jumpout_export.model.probes import rows
from jumpout_export.model.signature import tensors
from jumpout_export.onnxfile.manifest import FOLDER
from jumpout_export.tolerances import Budget
from jumpout_export.verify.values.reference import Expected, Reference
from jumpout_export.verify.values.scale import Scale, axis_of_length, axis_of_samples, representable

# Enough to compare on, small enough to lie beside the model.
_MOST_SAMPLES = 8


@dataclass(frozen=True)
class Golden:
    """What a replay needs."""

    inputs: dict[str, Tensor]  # by name, in the order of the graph
    outputs: dict[str, Tensor]  # the float64 reference, rounded to the outputs' dtypes, by name
    tolerance: dict[str, str]  # how far a replay may be off, one line per output, by name


def compute_golden(original: nn.Module, folded: nn.Module, batch: Batch, axes: Axes) -> Golden:
    """Runs the original on the first 8 samples of a batch, or on all of them if the file's batch size is fixed.

    The folded model, the one that is converted, gives the inputs their names. Raises whatever the model raises.
    """
    count = min(batch.size, _MOST_SAMPLES) if axes.size is None else batch.size
    batch = rows(batch, range(count), axes.batched)
    reference = Reference(original, batch, folded=folded)
    expected = reference(batch)
    if axes.size is None and count > 1:
        alone = reference.own(rows(batch, range(1), axes.batched))
        samples = [
            axis_of_samples(one.own.shape, two.tensor.shape, count) for one, two in zip(expected, alone, strict=True)
        ]
        expected = [replace(one, axis=axis) for one, axis in zip(expected, samples, strict=True)]
    elif axes.size is not None:
        expected = [replace(one, axis=axis_of_length(one.own.shape, count)) for one in expected]
    again = list(reference.nearby(batch))
    return Golden(
        inputs=dict(zip(reference.inputs, tensors(batch), strict=True)),
        outputs={one.name: representable(one.exact, one.own.dtype).to(one.own.dtype) for one in expected},
        tolerance={
            one.name: tolerance_line([one, *others], not reference.problem)
            for one, *others in zip(expected, *again, strict=True)
        },
    )


@contextmanager
def staged_golden(golden: Golden | None, folder: Path | None) -> Iterator[Path | None]:
    """Writes the golden data to a hidden folder in `folder` and yields `test_data_set_0` in there, None without any.

    It holds `input_0.pb, ..., output_0.pb, ...` and whatever else lies in an older `folder/test_data_set_0`. What is
    still in the hidden folder at the end of the block disappears with it, and so does `folder` if it was made here and
    is empty.

    Raises:
        ValueError: if it cannot be written.
    """
    from onnx import numpy_helper

    if golden is None or folder is None:
        yield None
        return
    is_new = not folder.exists()
    try:
        with ExitStack() as stack:
            with writing(folder / FOLDER):
                folder.mkdir(exist_ok=True)
                target = stack.enter_context(private_folder(folder / FOLDER)) / FOLDER
                target.mkdir()
                for kind, values in (("input", golden.inputs), ("output", golden.outputs)):
                    for index, (key, value) in enumerate(values.items()):
                        proto = numpy_helper.from_array(value.numpy(force=True), key)
                        (target / f"{kind}_{index}.pb").write_bytes(proto.SerializeToString(deterministic=True))
                _keep_other_files(folder / FOLDER, target)
            yield target
    finally:
        if is_new and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def _keep_other_files(older: Path, target: Path) -> None:
    for file in older.iterdir() if older.is_dir() else ():
        if file.is_dir():
            shutil.copytree(file, target / file.name, symlinks=True)
        elif not (file.match("input_*.pb") or file.match("output_*.pb")):
            shutil.copy2(file, target / file.name, follow_symlinks=False)


def tolerance_line(expected: Sequence[Expected], has_reference: bool) -> str:
    """Returns the tolerance of one output, measured on what PyTorch says of the golden inputs and of others near them.

    A few samples alone show too little of how far PyTorch itself is off. Without a reference the exact values are not
    float64.
    """
    golden, *others = expected
    others = [replace(other, axis=golden.axis) for other in others]
    dtype = golden.own.dtype
    if not dtype.is_floating_point or not golden.own.numel():
        return Budget.of([torch.zeros(1)], torch.bool, has_reference).line(torch.zeros(1), 0.0)
    scale = Scale()
    scale.add(golden)
    for other in others:
        scale.add(other, new=False)
    return scale.budget(has_reference).line(scale.channels, scale.median, scale.main, _dimension(golden, scale.main))


def _dimension(expected: Expected, main: int) -> int:
    """Which dimension of the output an axis behind its samples is; 1 of an output with one value per sample."""
    behind = [axis for axis in range(expected.own.ndim) if axis != expected.axis]
    return behind[main] if behind else 1
