"""How far a network is from the model that it was made of, where it computes in another precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from jumpout_export.model.batches import Batch
from jumpout_export.model.run import cast, double_copy, run
from jumpout_export.model.signature import input_names, outputs
from jumpout_export.report import Check, counted, limited
from jumpout_export.text import count, first_line
from jumpout_export.verify.values.reference import Expected
from jumpout_export.verify.values.scale import Scale

# Of an output's size: a network that loses this much, by weights below 6e-8 for example, is another one.
MOST_LOSS = 0.25


class Loss:
    """Of the model's own precision: batches stay as they are and nothing is lost."""

    def inputs(self, batch: Batch) -> Batch:
        """Returns the batch as the network takes it."""
        return batch

    def add(self, batch: Batch) -> None:
        """Compares both networks on a batch in the model's own precision; each is run once."""

    def checks(self) -> list[Check]:
        """Returns the verdict on what was compared so far."""
        return []


OWN_LOSS = Loss()


class PrecisionLoss(Loss):
    """How far a network in another precision is from the model it was made of."""

    def __init__(self, name: str, model: nn.Module, network: nn.Module, inputs: Callable[[Batch], Batch]) -> None:
        """Takes the precision's name, both in eval mode on the CPU, and what gives a batch as the network takes it."""
        self._name, self._inputs = name, inputs
        self._model, self._network = double_copy(model), network
        self._scales: dict[str, Scale] = {}
        self._samples = self._same = self._classified = 0
        self._problem = ""

    def inputs(self, batch: Batch) -> Batch:
        """Returns the batch in the precision."""
        return self._inputs(batch)

    def add(self, batch: Batch) -> None:
        """Compares both networks on a batch."""
        try:
            self._compare(batch, self._inputs(batch))
        except Exception as error:  # what the file is compared on fails the same way, and is reported then
            self._problem = first_line(error)

    def checks(self) -> list[Check]:
        """Returns the largest error in units of the output's size, against a limit that no useful network reaches.

        What is good enough below it, only the user knows.
        """
        errors = {name: scale.own_coarse for name, scale in self._scales.items() if scale.own_errors}
        if self._problem:
            return [counted("precision", [f"the two networks could not be compared: {self._problem}"])]
        if not errors:
            return [counted("precision", [], "no floating-point output")]
        worst = max(errors, key=lambda name: errors[name])
        note = (
            f"{self._name} against the model's own precision, {count(self._samples, 'sample')}: output `{worst}` is "
            f"off by up to {errors[worst]:.2%} of its size"
        )
        note += f"; top-1 agrees on {self._same} of {self._classified}" if self._classified else ""
        check = limited("precision", errors[worst], MOST_LOSS, note)
        if check.verdict == "fail":
            check.note += f"; {self._name} does not hold this network"
        return [check]

    def _compare(self, batch: Batch, inputs: Batch) -> None:
        names = input_names(self._network, inputs)
        found, exact = run(self._network, inputs), run(self._model, cast(batch, torch.float64))
        for one, two in zip(outputs(found, names), outputs(exact, names), strict=True):
            if not one.tensor.is_floating_point():
                continue
            self._scales.setdefault(one.name, Scale()).add(Expected(one.name, one.tensor, two.tensor.double()))
            if one.tensor.ndim == 2 and one.tensor.shape[1] > 1:
                self._same += int((one.tensor.argmax(1) == two.tensor.argmax(1)).sum())
                self._classified += len(one.tensor)
        self._samples += batch.size
