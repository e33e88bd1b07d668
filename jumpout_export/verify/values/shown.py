"""Which outputs moved at all: one that is the same for every input shows nothing of the file behind it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jumpout_export.errors import ArgumentError
from jumpout_export.model.batches import Batch
from jumpout_export.model.operations import record
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.run import sharing_copy
from jumpout_export.model.signature import input_names, outputs, tensors
from jumpout_export.report import Check
from jumpout_export.text import joined
from jumpout_export.verify.values.reference import Expected
from jumpout_export.verify.values.scale import in_samples

# Of an output's own size: what moves by less does not move, it is the rounding of float64 in another batch.
_STILL = 1e-9


class Moves:
    """Takes in what PyTorch gives, and knows which outputs had one value only."""

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}  # of outputs that did not move so far
        self._samples: dict[str, int] = {}
        self._input: list[Tensor] = []  # of the first sample
        self._varied = False

    def see(self, batch: Batch, batched: Sequence[bool]) -> None:
        """Takes in the inputs of a batch: where all of them are the same, no output can be expected to move."""
        if self._varied:
            return
        values = [value for value, is_batch in zip(tensors(batch), batched, strict=True) if is_batch]
        self._input = self._input or [value[0].clone() for value in values]
        self._varied = any(
            value.shape[1:] != first.shape or not all(same_bits(first, row) for row in value)
            for value, first in zip(values, self._input, strict=True)
        )

    def add(self, group: str, expected: Expected) -> None:
        """Takes in an output for a batch; at other sizes of an axis it may have another shape, which says nothing."""
        if group.startswith("sizes") or not expected.own.numel():
            return
        samples = in_samples(expected.exact, expected.axis)
        first = self._first.setdefault(expected.name, samples[0].clone())
        before = self._samples.get(expected.name, 0)
        if before < 0 or first.shape != samples.shape[1:]:
            return
        moved = not all(_same(first, sample) for sample in samples)
        self._samples[expected.name] = -1 if moved else before + len(samples)

    def still(self) -> dict[str, int]:
        """Returns the outputs that did not move, and on how many samples; none where all samples are the same."""
        return {name: samples for name, samples in self._samples.items() if samples > 0} if self._varied else {}

    def moving(self) -> set[str]:
        """Returns the outputs that moved."""
        return {name for name, samples in self._samples.items() if samples < 0}

    def is_number(self, name: str) -> bool:
        """Whether an output that did not move is floating point, and no class or index."""
        return self._first[name].is_floating_point()


def _same(first: Tensor, sample: Tensor) -> bool:
    if not first.is_floating_point():
        return torch.equal(first, sample)
    return torch.allclose(first, sample, rtol=_STILL, atol=0.0, equal_nan=True)


def shown_check(moves: Moves, model: nn.Module, sample: Batch, allowed: Collection[str] = ()) -> list[Check]:
    """Returns the verdict on outputs that are the same for all inputs; none where each moved.

    An output that no input reaches in PyTorch is a constant, and its values were compared. One that an input reaches
    and that never moved, as of a saturated or dead network, shows nothing of the weights behind it: not run. A class or
    index may stay the same where an output that moves is made of all the same weights.

    Args:
        moves: what was seen.
        model: in eval mode, on the CPU; a copy of it is run.
        sample: one of the samples.
        allowed: outputs that may be constant.
    """
    still = moves.still()
    if not still:
        return []
    behind = _behind(model, sample)
    constant = [name for name in still if name in behind and not behind[name].reached]
    shown = {name for moving in moves.moving() if moving in behind for name in behind[moving].weights}
    # The class of similar samples is often the same; an output that moves may show all weights that it is made of.
    classes = [
        name
        for name in still
        if moves.moving() and not moves.is_number(name) and name in behind and behind[name].weights <= shown
    ]
    wrong = [name for name in still if name not in (*constant, *classes, *allowed)]
    if not wrong and not constant and not any(name in allowed for name in still):
        return []
    parts = (
        [f"no input reaches {joined([f'`{name}`' for name in constant])}, compared as constants"] if constant else []
    )
    agreed = [f"`{name}`" for name in still if name in allowed and name not in (*constant, *classes)]
    parts += [f"constant as allowed: {joined(agreed)}"] if agreed else []
    if not wrong:
        return [Check(name="outputs move", verdict="pass", note="; ".join(parts))]
    names = joined([f"`{name}` ({still[name]} samples)" for name in wrong])
    text = (
        f"output {names} is the same for every input that was tried, so nothing of what computes it was shown; give "
        f"other inputs, or allow it by name (allow_constant, --allow-constant {wrong[0]})"
    )
    return [Check(name="outputs move", verdict="not_run", note="; ".join([text, *parts]))]


def check_constant(allowed: Collection[str], names: Collection[str]) -> None:
    """Raises `ArgumentError` if an output that may be constant is none of the model's."""
    unknown = [name for name in allowed if name not in names]
    if unknown:
        text = f"allow_constant: the model has no output {joined([f'`{name}`' for name in unknown])}"
        raise ArgumentError("allow_constant", f"{text}; its outputs are {', '.join(names)}")


@dataclass(frozen=True)
class _Behind:
    """What an output is made of."""

    reached: bool  # whether the values of an input reach it
    weights: set[str]  # names of the weights that do


def _behind(model: nn.Module, sample: Batch) -> dict[str, _Behind]:
    """Per output, what it is made of; nothing where the forward cannot be recorded."""
    try:
        recording = record(sharing_copy(model), sample)
        pairs = list(zip(outputs(recording.result, input_names(model, sample)), recording.producers, strict=True))
    except Exception:  # the user's forward may raise anything
        return {}
    operations = recording.operations
    data: list[bool] = []
    for index, one in enumerate(operations):
        read = len(
            {id(leaf) for leaf in pytree.tree_leaves((one.arguments, dict(one.options))) if isinstance(leaf, Tensor)}
        )
        # More than results and weights: an input of the model.
        direct = read > len(set(one.inputs)) + len(recording.read_directly(index))
        by_results = any(data[number] for number in one.inputs)
        data.append(one.from_data and one.reads_values and (direct or by_results))
    found = {}
    for output, at in pairs:
        left, seen = [at] if at is not None else [], set[int]()
        while left:
            number = left.pop()
            if number not in seen:
                seen.add(number)
                left += operations[number].inputs
        weights = {name for number in seen for name in operations[number].weights}
        found[output.name] = _Behind(at is not None and data[at], weights)
    return found
