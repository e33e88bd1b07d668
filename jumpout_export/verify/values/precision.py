"""How far a half-precision copy is from the model that it was made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from jumpout_export.fold.network.half import half_batch
from jumpout_export.model.batches import Batch
from jumpout_export.model.run import cast, double_copy, run
from jumpout_export.model.signature import input_names, outputs
from jumpout_export.report import Check, counted
from jumpout_export.text import count, first_line
from jumpout_export.verify.values.reference import Expected
from jumpout_export.verify.values.scale import Scale

# Of an output's size: a network that loses this much, by weights below 6e-8 for example, is another one.
MOST_LOSS = 0.25


class PrecisionLoss:
    """How far the float16 network is from the model it was made of."""

    def __init__(self, model: nn.Module, half: nn.Module) -> None:
        """Takes both in eval mode, on the CPU."""
        self._model, self._half = double_copy(model), half
        self._scales: dict[str, Scale] = {}
        self._images = self._same = self._classified = 0
        self._problem = ""

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches in float16, and compares both networks on each."""
        for batch in batches:
            inputs = half_batch(batch)
            try:
                self._add(batch, inputs)
            except Exception as error:  # what the file is compared on fails the same way, and is reported then
                self._problem = first_line(error)
            yield inputs

    def check(self) -> Check:
        """Returns the largest error in units of the output's size, against a limit that no useful network reaches.

        What is good enough below it, only the user knows.
        """
        scales = {name: scale for name, scale in self._scales.items() if scale.own_errors.numel()}
        errors = {name: scale.own_coarse for name, scale in scales.items()}
        if self._problem:
            return counted("precision", [f"the two networks could not be compared: {self._problem}"])
        if not errors:
            return counted("precision", [], "no floating-point output")
        worst = max(errors, key=lambda name: errors[name])
        note = f"float16 against the model's own precision, {count(self._images, 'image')}: output `{worst}` is off "
        note += f"by up to {errors[worst]:.2%} of its size"
        note += f"; top-1 agrees on {self._same} of {self._classified}" if self._classified else ""
        failed = not errors[worst] <= MOST_LOSS
        return Check(
            name="precision",
            measured=errors[worst],
            limit=MOST_LOSS,
            verdict="fail" if failed else "pass",
            note=f"{note}; float16 does not hold this network" if failed else note,
        )

    def _add(self, batch: Batch, inputs: Batch) -> None:
        names = input_names(self._half, inputs)
        half, exact = run(self._half, inputs), run(self._model, cast(batch, torch.float64))
        for one, two in zip(outputs(half, names), outputs(exact, names), strict=True):
            if not one.tensor.is_floating_point():
                continue
            self._scales.setdefault(one.name, Scale()).add(Expected(one.name, one.tensor, two.tensor.double()))
            if one.tensor.ndim == 2 and one.tensor.shape[1] > 1:
                self._same += int((one.tensor.argmax(1) == two.tensor.argmax(1)).sum())
                self._classified += len(one.tensor)
        self._images += batch.size
