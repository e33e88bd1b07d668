"""What is said of the samples themselves: how they differ from those of the reference, and what would undo it."""

from __future__ import annotations

from torch import Tensor

from jumpout_export.batchnorm.reference import Reference
from jumpout_export.report import BatchNormReport

# Inputs that differ by less than this, in standard deviations of the reference, need no other preprocessing.
SAME = 0.1


def data_notes(report: BatchNormReport, inputs: tuple[Tensor, Tensor] | None, reference: Reference | None) -> list[str]:
    """Returns sentences on how the samples differ from those of the reference, most of the time none.

    `inputs` are (C,) mean and standard deviation of what the model got. Where a layer drifts by the data, the affine
    map is given that makes both those of the reference: the preprocessing that is missing, if one is.
    """
    if reference is None or not any(row.cause == "data" for row in report.layers):
        return []
    if inputs is None or reference.inputs is None or inputs[0].shape != reference.inputs[0].shape:
        return []
    (mean, deviation), (wanted_mean, wanted_deviation) = inputs, reference.inputs
    if bool((deviation <= 0).any()) or bool((wanted_deviation <= 0).any()):
        return []
    apart = ((mean - wanted_mean) / wanted_deviation).abs().maximum((deviation / wanted_deviation - 1).abs())
    if float(apart.max()) < SAME:
        return ["Mean and standard deviation of the inputs are those of the reference; what differs is not a scale."]
    scale = deviation / wanted_deviation
    shift = mean - wanted_mean * scale
    note = (
        f"The inputs have mean {_numbers(mean)} and standard deviation {_numbers(deviation)}, those of the reference "
        f"{_numbers(wanted_mean)} and {_numbers(wanted_deviation)}; (x - {_numbers(shift)}) / {_numbers(scale)} per "
        "channel takes the first to the second: is that normalisation missing, or one too many?"
    )
    return [note]


def likeness_notes(samples: int, repeats: float, *, in_order: bool) -> list[str]:
    """Returns sentences on samples that are not independent of each other, most of the time none.

    `repeats` is how many samples are alike, 1 where none are; `in_order` whether the samples change along their order.
    """
    notes = []
    if in_order:
        notes.append(
            f"The {samples} samples come sorted, or in long runs: neighbours are more alike than others, so the first "
            "of them are unlike the rest; shuffle them, or look at all."
        )
    if repeats > 1:
        notes.append(
            f"The samples are no {samples} independent ones: about {repeats:.0f} at a time are alike, as frames of one "
            "clip, crops of one scene or copies are. All intervals are widened as if there were "
            f"{samples / repeats:.0f}; say which belong together, groups=, for exact ones."
        )
    return notes


def _numbers(values: Tensor) -> str:
    texts = [f"{value:.3g}" for value in values.tolist()]
    return texts[0] if len(set(texts)) == 1 else f"[{', '.join(texts)}]"
