"""Numbers of a file that PyTorch's program has not: integers are tried on both sides, the others are listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from jumpout_export.model.batches import Batch
from jumpout_export.model.signature import tensors, with_tensors
from jumpout_export.onnxfile.numbers import Number
from jumpout_export.report import Check
from jumpout_export.text import joined

NUMBERS = "numbers"
# Of one file so many are tried; a converter adds none.
_MOST = 4
# So far from a number that is none of an integer, in units of it: further than float16 rounds.
_BESIDE = 2.0**-7
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def around(
    batch: Batch, names: Sequence[str], numbers: Sequence[Number], *, floats: bool = False
) -> Iterator[tuple[Number, str, Batch]]:
    """Yields each of the integers among the numbers, a name, and the batch with an input that is it or next to it.

    Args:
        batch: at least one sample.
        names: of its inputs.
        numbers: of the file.
        floats: yield the others, too, with inputs on both sides of them; both are files.
    """
    for number in [one for one in numbers if one.is_integer and one.value > 1][:_MOST]:
        near = [int(number.value) + shift for shift in (-1, 0, 1)]
        for place, value in enumerate(tensors(batch)):
            if value.dtype in _INTEGERS and value.numel() and near[-1] <= torch.iinfo(value.dtype).max:
                moved = list(tensors(batch))
                moved[place] = torch.tensor(near, dtype=value.dtype)[torch.arange(value.numel()) % 3].view(value.shape)
                yield number, f"{names[place]}={near[0]}..{near[-1]}", with_tensors(batch, moved)

    for number in [one for one in numbers if floats and not one.is_integer][:_MOST]:
        sides = torch.tensor([number.value * (1 - _BESIDE), number.value * (1 + _BESIDE)], dtype=torch.float64)
        for place, value in enumerate(tensors(batch)):
            if value.is_floating_point() and value.numel():
                moved = list(tensors(batch))
                moved[place] = sides[torch.arange(value.numel()) % 2].to(value.dtype).view(value.shape)
                yield number, f"{names[place]}={number.value:.6g}", with_tensors(batch, moved)


def numbers_check(
    numbers: Sequence[Number], tried: Sequence[Number], name: str = NUMBERS, where: str = "PyTorch's program"
) -> tuple[list[Check], list[str]]:
    """Returns what is said of the numbers, nothing if there are none, and a note on those that are not shown.

    Args:
        numbers: of a file, that the other side has not.
        tried: those of which both sides were compared.
        name: of the check.
        where: the other side, for a person.
    """
    if not numbers:
        return [], []
    left = [str(one) for one in numbers if one not in tried]
    parts = [f"compared on both sides: {joined([str(one) for one in tried])}"] if tried else []
    parts += [f"not in {where}, known by the outputs alone: {joined(left)}"] if left else []
    note = f"{name} of the file that {where} has not, known by the outputs alone: {joined(left)}"
    return [Check(name=name, verdict="pass", note="; ".join(parts))], [note] if left else []
