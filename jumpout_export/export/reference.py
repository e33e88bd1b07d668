"""What PyTorch says: the folded model in its own precision, and in float64 as the reference."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jumpout_export.export.checks import first_line
from jumpout_export.export.signature import Output, fresh, input_names, outputs, tensors, with_tensors
from jumpout_export.nn.batches import Batch
from jumpout_export.nn.randomness import rng_restored


@dataclass(frozen=True)
class Expected:
    """One output of PyTorch.

    Attributes:
        name: in the ONNX graph.
        own: as the model computes it.
        exact: the reference, in float64 where the output is floating point.
    """

    name: str
    own: Tensor
    exact: Tensor


class Reference:
    """Runs the folded model and its float64 copy.

    Attributes:
        problem: why there is no float64 copy; empty if there is one.
    """

    def __init__(self, folded: nn.Module, batch: Batch) -> None:
        self._model = folded
        self._double: nn.Module | None = copy.deepcopy(folded).double()
        self.problem = ""
        try:
            found = [output.tensor for output in self._run(self._double, _to_double(batch))]
        except Exception as error:  # a forward that fixes float32 may fail in any way; the reason is reported
            self._double = None
            self.problem = first_line(error)
        else:
            own = [output.tensor for output in self._run(folded, batch)]
            if [tensor.shape for tensor in found] != [tensor.shape for tensor in own]:
                self._double = None
                self.problem = "in float64 it returns other shapes"

    def __call__(self, batch: Batch) -> list[Expected]:
        """Returns every output for a batch; raises whatever the model raises."""
        own = self._run(self._model, batch)
        exact = own if self._double is None else self._run(self._double, _to_double(batch))
        return [
            Expected(one.name, one.tensor, two.tensor.double() if one.tensor.is_floating_point() else two.tensor)
            for one, two in zip(own, exact, strict=True)
        ]

    @staticmethod
    def _run(model: nn.Module, batch: Batch) -> list[Output]:
        with rng_restored(), torch.no_grad():
            return outputs(fresh(batch)(model), input_names(model, batch))


def _to_double(batch: Batch) -> Batch:
    values = [value.double() if value.is_floating_point() else value for value in tensors(batch)]
    return with_tensors(batch, values)
