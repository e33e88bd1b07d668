"""Samples that are run alone once, in both precisions: what they give alone is what any batch of them has to give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jumpout_export.model.batches import Batch
from jumpout_export.model.probes import joined_rows, rows
from jumpout_export.model.signature import Output
from jumpout_export.verify.values.independence import depends_on_others
from jumpout_export.verify.values.reference import Expected, Reference
from jumpout_export.verify.values.scale import axis_of_length, axis_of_samples


class Pool:
    """Batches of the same samples, in any number and order.

    Samples that do not depend on each other need their float64 result once, whatever batch they stand in. That they do
    not is shown by the model itself: every batch is run in the model's own precision, one of them in float64 too, and
    each that is not what the samples give alone.

    Attributes:
        dependent: how a result depends on the other samples in its batch, a phrase each.
    """

    def __init__(self, reference: Reference, batched: Sequence[bool], size: int | None = None) -> None:
        """Takes what runs the model, whether the first axis of each input is the batch, and its size where it is fixed.

        A model of a fixed size runs no sample alone: which axis of an output is the batch is said by its length.
        """
        self.dependent: list[str] = []
        self._reference, self._batched, self._size = reference, batched, size
        self._samples: list[Batch] = []
        self._alone: list[list[Expected]] = []
        self._axes: list[int | None] | None = None  # of the outputs, that have an entry per sample
        self._proven = False  # whether a batch was run in float64
        self._first_two: list[Output] = []  # what the batch gave that the axes were learned from

    def __len__(self) -> int:
        return len(self._samples)

    def run(self, batch: Batch) -> list[Expected]:
        """Returns what PyTorch gives for one sample alone, or for a batch; raises whatever the model raises."""
        found = self._reference(batch)
        if self._size is not None:
            return [replace(one, axis=axis_of_length(one.own.shape, self._size)) for one in found]
        if self._axes is None or len(self._axes) != len(found):
            return found
        return [replace(one, axis=axis) for one, axis in zip(found, self._axes, strict=True)]

    def add(self, sample: Batch, alone: list[Expected]) -> None:
        """Takes in a sample and what `run` returned for it."""
        self._samples.append(sample)
        self._alone.append(alone)

    def learn_axes(self) -> None:
        """Finds out which axis of each output has an entry per sample; raises whatever the model raises."""
        order = [0, 1 % len(self)]
        own = self._reference.own(self.batch(order))
        self._axes = self._axes_of(own, order)
        self._first_two = own if order == [0, 1] else []
        self._alone = [
            [replace(one, axis=axis) for one, axis in zip(alone, self._axes, strict=True)] for alone in self._alone
        ]

    def alone(self, number: int) -> list[Expected]:
        """Returns what was taken in for a sample."""
        return self._alone[number]

    def order(self, size: int) -> list[int]:
        """Returns the numbers of the samples of a batch: each size begins with another one, so that places change."""
        return [(size - 1 + place) % len(self) for place in range(size)]

    def batch(self, order: Sequence[int]) -> Batch:
        """Returns the batch of samples with these numbers."""
        return rows(joined_rows(self._samples, self._batched), order, self._batched)

    @property
    def knows_samples(self) -> bool:
        """Whether samples were shown to have the values in a batch that they have alone, in float64 too."""
        return self._proven and not self.dependent and self._reference.has_double and self._axes is not None

    def as_alone(self, order: Sequence[int]) -> list[Expected]:
        """Returns what a batch of samples gives if each has the values that it has alone: nothing is run."""
        axes = self._axes or []
        return [
            replace(
                one,
                own=self._together(at, order, axes[at], own=True),
                exact=self._together(at, order, axes[at]),
            )
            for at, one in enumerate(self._alone[order[0]])
        ]

    def expected(self, group: str, batch: Batch, order: Sequence[int]) -> list[Expected]:
        """Returns what PyTorch gives for a batch: its own values as they are, the exact ones from the samples alone.

        Where samples depend on each other, which `dependent` says then, the exact ones are those of the batch.

        Args:
            group: name of the batch.
            batch: the samples, in their order.
            order: their numbers.
        """
        if len(order) == 1:
            return self._alone[order[0]]
        own = self._first_two if self._first_two and [*order] == [0, 1] else self._reference.own(batch)
        axes = self._axes_of(own, order)
        exact = [Output(one.name, self._together(at, order, axes[at])) for at, one in enumerate(own)]
        problems = self._problems(group, batch, order, own, exact, axes)
        if problems:
            self.dependent += problems
            return self._reference.expected(batch, own, self._reference.exact(batch), axes)
        return self._reference.expected(batch, own, exact, axes)

    def _axes_of(self, own: list[Output], order: Sequence[int]) -> list[int | None]:
        pairs = zip(own, self._alone[order[0]], strict=True)
        return [axis_of_samples(one.tensor.shape, two.own.shape, len(order)) for one, two in pairs]

    def _together(self, number: int, order: Sequence[int], axis: int | None, *, own: bool = False) -> Tensor:
        """An output of samples alone, as it has to be in a batch."""
        values = [self._alone[sample][number] for sample in order]
        tensors = [value.own if own else value.exact for value in values]
        return tensors[0] if axis is None else torch.cat(tensors, axis)

    def _problems(
        self,
        group: str,
        batch: Batch,
        order: Sequence[int],
        own: list[Output],
        exact: list[Output],
        axes: list[int | None],
    ) -> list[str]:
        """How samples have other values in this batch than alone, beyond rounding."""
        double = self._reference.has_double
        rows = zip(own, exact, axes, strict=True)
        if double and self._proven and all(_alike(one.tensor, two.tensor, axis) for one, two, axis in rows):
            return []
        together = self._reference.exact(batch) if double else own
        self._proven = True
        return [
            problem
            for number, (one, axis) in enumerate(zip(together, axes, strict=True))
            for alone in self._all_alone(number, order, axis, own=not double)
            if (problem := depends_on_others(group, one.name, one.tensor, alone, axis, double=double))
        ]

    def _all_alone(self, number: int, order: Sequence[int], axis: int | None, *, own: bool) -> Iterator[Tensor]:
        if axis is None:  # the same for each of them
            for sample in dict.fromkeys(order):
                yield self._together(number, [sample], None, own=own)
        else:
            yield self._together(number, order, axis, own=own)


def _alike(own: Tensor, exact: Tensor, axis: int | None) -> bool:
    """Whether float32 in a batch agrees with float64 alone, so that float64 in the batch need not be asked."""
    if own.shape != exact.shape or not own.is_floating_point():
        return torch.equal(own, exact)
    return not depends_on_others("", "", own.double(), exact, axis, double=False)
